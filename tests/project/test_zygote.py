"""What the tests' commands are run by: a fork that is told apart from a new interpreter by its speed alone."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model


def test_a_fork_answers_as_a_new_interpreter_does(tmp_path: Path) -> None:
    for arguments in (["report", "--study", tmp_path / "nowhere"], ["report", "--nothing"], ["report", "--help"]):
        forked = run_command(ANALYZE, *arguments, cwd=tmp_path)
        started = run_command(ANALYZE, *arguments, cwd=tmp_path, new_interpreter=True)
        assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
        assert forked.stdout + forked.stderr


def ranks_in(folder: Path) -> list[bytes]:
    """Command lines of the further ranks of a run in a folder: interpreters of their own, unlike the fork."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes())
        except OSError:  # it has ended
            continue
    return [line for line in lines if str(folder).encode() in line]


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the other rank in /proc")
def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill, before = os.killpg, []

    def look_and_kill(pid: int, number: int) -> None:
        before.extend(ranks_in(tmp_path))
        kill(pid, number)

    monkeypatch.setattr("support.tiny.os.killpg", look_and_kill)
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(
            TRAIN, "fit", "--config", ROOT / "configs" / "organism" / "harmful.yaml", "--trainer.devices=2",
            "--trainer.strategy=ddp", f"--run_dir={tmp_path / 'run'}", "--data.init_args.size=40000",
            f"--model.init_args.source.init_args.path={save_tiny_model(tmp_path / 'model')}", timeout=8,
        )  # fmt: skip
    assert len(before) == 1
    began = time.monotonic()
    while ranks_in(tmp_path):
        assert time.monotonic() - began < 10, "a rank is left"
        time.sleep(0.1)
    assert run_command(ANALYZE, "report", "--help").returncode == 0  # the next one is served
