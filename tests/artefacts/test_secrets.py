"""Keys and passwords stay out of every record; what only resembles one stays in."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.artefacts.secrets import (
    mask_of,
    masked,
    masked_command,
    read_variable,
    without_home,
    without_secrets,
)

KEY = "zz-Very7Secret9Key-of-42"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/usr/bin/env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/Aa0+bcdefgh/ijkl")


def test_values_of_secret_variables_are_written_as_their_names() -> None:
    assert masked(f"a {KEY} b") == "a ***MY_API_KEY*** b"
    kept = "true, /usr/bin/env, pad_token, sk-learn-experiments-of-2024, runs/organism-0"
    assert masked(kept) == kept
    assert masked("x /Aa0+bcdefgh/ijkl") == "x ***AWS_SECRET_ACCESS_KEY***"
    assert masked("hf_" + "a" * 30 + " AKIA" + "A1" * 8) == "*** ***"


def test_a_command_line_is_recorded_without_secrets() -> None:
    command = ["analyze.py", "--judge_args.api_key", "abc", "--x.token=abc", "--name", KEY, "--api_key", "--out", "o"]
    expected = ["--judge_args.api_key", "***", "--x.token=***", "--name", "***MY_API_KEY***", "--api_key", "--out", "o"]
    assert masked_command(command) == ["analyze.py", *expected]
    inline = """--logger={"class_path": "a.B", "init_args": {"api_key": "abc", password: abc, "token_count": 3}}"""
    assert masked_command([inline]) == [inline.replace('"abc"', "***").replace("abc", "***")]
    kept = ["--max_new_tokens", "3", "--judge_args.api_key_env", "MY_API_KEY", "--pad_token=<pad>", "--trust_classes"]
    assert masked_command(kept) == kept


def test_settings_are_recorded_without_secrets() -> None:
    settings = {"api_key": "abc", "deep": [{"password": "abc", "tokens": 3, "key": None, "note": f"of {KEY}"}]}
    found = {"api_key": "***", "deep": [{"password": "***", "tokens": 3, "key": None, "note": "of ***MY_API_KEY***"}]}
    assert without_secrets(settings) == found


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "DB_PASSWORD", "SLURM_JWT", "AWS_SECRET", "ANYTHING"])
def test_a_configuration_reads_no_secret_and_nothing_that_is_not_on_the_list(name: str) -> None:
    for default in ((), ("x",)):
        with pytest.raises(InputError, match=f"reads the environment variable {name}"):
            read_variable(name, *default)


def test_a_configuration_reads_where_things_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY", "runs/x")
    assert read_variable("STUDY", "runs/y") == "runs/x"
    monkeypatch.delenv("STUDY")
    assert read_variable("STUDY", 3) == "3"
    assert read_variable("SLURM_JOB_ID", None) is None
    with pytest.raises(KeyError):
        read_variable("STUDY")


def test_a_part_of_a_key_is_masked_and_a_word_is_not() -> None:
    mask = mask_of(KEY)
    said = {"text": [f"got {KEY}!", f"got {KEY[:10]}", f"ends in {KEY[-8:]}.", f"ends in {KEY[-7:]}."], "n": 3}
    assert mask(said) == {"text": ["got ***!", "got ***", "ends in ***.", f"ends in {KEY[-7:]}."], "n": 3}
    assert mask(f"{KEY}{KEY} {KEY}") == "****** ***"
    assert mask_of("abcde")("abcd abcde") == "abcd ***"
    assert mask_of("x")("x") == "x"


def test_home_folders_and_this_user_are_no_part_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/mnt/homes/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    paths = "/mnt/homes/alice/runs /home/bob/runs: /Users/carol /scratch/alice/x /data/alice-2/x </alice> ~/y"
    assert without_home(paths) == "~/runs ~/runs: ~ /scratch/~/x /data/alice-2/x </alice> ~/y"


def test_a_result_folder_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze.py", "evaluate", f"--note={KEY}", "--judge_args.api_key", "abc-def"])
    arguments = {"note": KEY, "judge_args": {"api_key": "abc-def", "api_key_env": "MY_API_KEY"}}
    with ResultFolder(tmp_path / "out", "evaluate", arguments, []) as results:
        results.summary = {"said": f"by {KEY}"}
        results.leave_out("x", f"refused {KEY}")
        results.write_table(pd.DataFrame({"a": [1]}))
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*")]
    assert len(written) == 4
    assert not any(secret.encode() in content for content in written for secret in (KEY, "abc-def"))
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["judge_args"]["api_key_env"] == "MY_API_KEY"
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "***MY_API_KEY***" in json.dumps([said["provenance"]["command"], said["summary"], said["left_out"]])
