"""What a command prints: its result on standard output, as text, as JSON, or only its place."""

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jsonargparse import auto_parser
from support.synthetic_study import write_study
from support.tiny import ANALYZE, TRAIN, run_command

from safety_subspaces.artefacts.earlier_names import RENAMED
from safety_subspaces.artefacts.screen import View
from safety_subspaces.command_line import output
from safety_subspaces.command_line.flags import allow_bare_flags, other_way

TABLE = pd.DataFrame({"model": ["a\u202e", "b"], "score": [1.0, float("nan")], "n": [3, 4]})


@dataclass(frozen=True)
class Made:
    path: Path
    steps: int

    def __str__(self) -> str:
        return f"made in {self.steps} steps\nresult: {self.path}"


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the command line has chosen, for one test."""
    options: set[str] = set()
    monkeypatch.setattr(output, "_chosen", options)
    return options


def test_a_result_ends_with_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.show("evaluate", TABLE, "out", View(("model", "score"), "1 is refusal."))
    assert capsys.readouterr().out.splitlines()[-2:] == ["1 is refusal.", "result: out"]
    output.show("export", Made(Path("m"), 2), "m")
    assert capsys.readouterr().out == "made in 2 steps\nresult: m\n"
    output.show("evaluate", pd.DataFrame(), "out")  # of a rank beside the first
    assert capsys.readouterr().out == ""


def test_json_is_one_object_with_null_for_what_is_missing(capsys: pytest.CaptureFixture[str], chosen: set[str]) -> None:
    chosen.add("json")
    output.show("evaluate", TABLE, "out", View(("model",), ""))
    rows = [{"model": "a\u202e", "score": 1.0, "n": 3}, {"model": "b", "score": None, "n": 4}]
    assert json.loads(capsys.readouterr().out) == {"command": "evaluate", "result": "out", "table": rows}
    output.show("export", Made(Path("m"), 2), "m")
    assert json.loads(capsys.readouterr().out) == {"command": "export", "result": "m", "steps": 2}
    output.show("compare", "about 3 s", "o")
    assert json.loads(capsys.readouterr().out) == {"command": "compare", "result": "o", "text": "about 3 s"}


def test_quiet_says_only_where_the_result_is(capsys: pytest.CaptureFixture[str], chosen: set[str]) -> None:
    chosen.add("quiet")
    output.show("evaluate", TABLE, "out")
    output.show("export", Made(Path("m"), 2))
    assert capsys.readouterr().out == "out\nm\n"


def test_what_libraries_print_goes_to_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", encoding="utf-8", closefd=False) as stdout:  # as in a process of its own
        monkeypatch.setattr(sys, "stdout", stdout)
        stdout.write("before\n")
        with output.reserved_output():
            stdout.write("noise\n")
            os.system("echo more noise")
        stdout.write("after\n")
    said = capfd.readouterr()
    assert said.out == "before\nafter\n"
    assert sorted(said.err.splitlines()) == ["more noise", "noise"]


def test_a_page_is_told_as_json_with_nothing_beside_and_quietly(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", analyses=("evaluate",))
    done = run_command(ANALYZE, "report", "--study", study, "--json")
    told = json.loads(done.stdout)
    assert told["result"] == str(study / "report" / "index.html")
    assert "useful" in str(told["tables"]["Models"]["rows"])
    assert "wrote" in done.stderr
    done = run_command(ANALYZE, "report", "--study", study, "--quiet")
    assert (done.stdout, done.stderr) == (f"{told['result']}\n", "")


@pytest.mark.parametrize("program", ["analyze.py", "safety-subspaces analyze"])
@pytest.mark.parametrize(("command", "old"), [(command, old) for command in RENAMED for old in RENAMED[command]])
def test_an_earlier_name_is_refused_with_the_present_one(command: str, old: str, program: str) -> None:
    prog, new = f"{program} {command}", RENAMED[command][old]
    assert other_way(prog, f"{old}.x") == f"{prog} takes no --{old}.x: it is called --{new}.x"


@pytest.mark.parametrize(("program", "option"), [("analyze", "resume"), ("train", "overwrite")])
def test_an_option_of_the_other_program_is_told_of_in_both_ways_to_call_it(program: str, option: str) -> None:
    for prog in (f"{program}.py x", f"safety-subspaces {program} x"):
        assert str(other_way(prog, option)).startswith(f"{prog} takes no --{option}: ")


def test_json_has_all_digits_and_null_where_there_is_no_number(capsys, monkeypatch) -> None:
    monkeypatch.setattr(output, "_chosen", {"json"})
    tiny = 1.23456789012345e-14
    for result in (
        pd.DataFrame({"a": [tiny, math.nan], "b": [math.inf, 1.0], "c": pd.array([1, None], dtype="Int64")}),
        {"a": tiny, "b": math.nan, "c": [np.float32(0.5), -math.inf]},
        Told(tiny, {"loss": math.nan}),
    ):
        output.show("x", result)
        said = capsys.readouterr().out
        told = json.loads(said, parse_constant=lambda word: pytest.fail(word))
        assert f"{tiny!r}" in said
        assert None in _values(told)


@dataclass
class Told:
    leakage: float
    metrics: dict[str, float]


def _values(value) -> list:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [each for part in inner for each in _values(part)]


def test_options_are_not_abbreviated_and_those_of_the_other_entry_point_are_told() -> None:
    for command, words in (
        ((ANALYZE, "project", "--bas=x"), "takes no --bas; did you mean --base?"),
        ((TRAIN, "fit", "--trainer.max_epoch=3"), "takes no --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ((ANALYZE, "overlap", "--updates.x=x"), "takes no --updates.x: it is called --tuned.x"),
        ((ANALYZE, "overlap", "--resume"), "takes no --resume: the same command goes on"),
        ((TRAIN, "fit", "--overwrite"), "takes no --overwrite: a run is never written over: --resume"),
    ):
        done = run_command(*command)
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[0]


def test_yes_is_said_by_an_option_alone_or_with_true() -> None:
    def command(out: str, overwrite: bool = False) -> None: ...

    parser = auto_parser({"command": command}, as_positional=False)
    allow_bare_flags(parser)
    for said, found in ((["--overwrite"], True), (["--overwrite", "true"], True), (["--overwrite=false"], False)):
        assert parser.parse_args(["command", *said, "--out", "o"]).command.overwrite is found
