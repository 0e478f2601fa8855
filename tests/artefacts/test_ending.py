"""A process ends at a signal with its status, with its parent, and in bounded time whatever its main thread does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.launch import ends
from support.tiny import ANALYZE, ROOT, TRAIN, run_command

# What `command_line.run` does, without the imports of a command; the first argument is what the main thread does.
COMMAND = """
import ctypes, os, subprocess, sys, time
sys.path.insert(0, {source!r})
from safety_subspaces import command_line
from safety_subspaces.artefacts import ending
ending.GRACE_SECONDS = 0.5
def main():
    print(os.getpid(), flush=True)
    {main}
if __name__ == "__main__":
    command_line.begin()
    command_line.run(main)
"""
SLEEP = "time.sleep(60)"
# Python's own handlers wait for ever here, as they do behind a collective.
DEAF = "lock = ctypes.CDLL(None).pthread_mutex_lock; held = ctypes.create_string_buffer(64); lock(held); lock(held)"
PARENT = """subprocess.Popen([sys.executable, sys.argv[1]], env=dict(os.environ, LOCAL_RANK="1")); time.sleep(60)"""


def command(folder: Path, main: str, name: str = "command.py") -> Path:
    path = folder / name
    path.write_text(COMMAND.format(source=str(ROOT / "src"), main=main))
    return path


def started(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "SLURM_NTASKS")}
    return subprocess.Popen([*before, sys.executable, *map(str, arguments)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("main", [SLEEP, DEAF], ids=["python", "a collective"])
def test_a_signal_ends_a_command_with_its_status_and_no_traceback(tmp_path: Path, name: str, main: str) -> None:
    process = started(command(tmp_path, main))
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.Signals[name])
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.Signals[name]
    assert said.strip() == f"stopped by {name}"


FORK = """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b".")
        time.sleep(60)
    os.read(reading, 1)
    os.kill(pid, 15)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)"""


def test_a_fork_dies_of_a_signal_without_a_word(tmp_path: Path) -> None:
    process = started(command(tmp_path, FORK))
    out, said = process.communicate(timeout=30)
    assert (out.split()[1], said) == ("-15", "")


def test_a_signal_that_was_ignored_stays_so(tmp_path: Path) -> None:
    path = command(tmp_path, "time.sleep(0.3)")
    process = started(path, before=("nohup",))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)  # as when the terminal closes
    assert process.wait(timeout=30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_a_rank_ends_with_the_first_one(tmp_path: Path, is_stopped: bool) -> None:
    first = started(command(tmp_path, PARENT, "first.py"), command(tmp_path, DEAF))
    first.stdout.readline()
    other = int(first.stdout.readline())
    if is_stopped:
        os.kill(other, signal.SIGSTOP)
    first.kill()
    assert ends(other)
    first.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_rank_hands_a_signal_to_the_first_one_which_ends_all(tmp_path: Path) -> None:
    first = started(command(tmp_path, PARENT, "first.py"), command(tmp_path, DEAF))
    first.stdout.readline()
    other = int(first.stdout.readline())
    os.kill(other, signal.SIGTERM)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM
    assert said.strip() == "stopped by SIGTERM"
    assert ends(other)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_rank_ends_when_its_launcher_does(tmp_path: Path) -> None:
    launcher = """subprocess.Popen([sys.executable, sys.argv[1]], env=dict(os.environ, TORCHELASTIC_RUN_ID="x")); {}"""
    process = started(command(tmp_path, launcher.format(SLEEP), "launcher.py"), command(tmp_path, DEAF))
    process.stdout.readline()
    rank = int(process.stdout.readline())
    process.kill()
    assert ends(rank)
    process.communicate()


@pytest.mark.parametrize("option", ["-O", "-OO"])
@pytest.mark.parametrize("script", [TRAIN, ANALYZE], ids=["train", "analyze"])
def test_an_interpreter_without_asserts_is_refused(tmp_path: Path, option: str, script: Path) -> None:
    refused = run_command(option, script, "fit", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "error: python -O and -OO leave out checks that results rest on; run it without them\n"
    assert not list(tmp_path.iterdir())
