"""Starts a script in several real processes, and ends the whole group if it hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# What a launcher leaves in the environment: a test that runs under one must not hand it on.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK")


@dataclass(frozen=True)
class Finished:
    """How a group of processes ended."""

    returncode: int
    output: str
    seconds: float


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start Python in a session of its own; Lightning starts the other ranks inside it."""
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}:{HERE.parent}"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait(process: subprocess.Popen[str], timeout: float) -> Finished:
    """Wait for the end; what is left of the group after the time is killed."""
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nended after {timeout} s without finishing"
    return Finished(process.returncode, output, time.monotonic() - began)


def is_running(pid: int) -> bool:
    """Tell whether a process runs or is stopped; one that has ended may still wait to be noticed by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, seconds: float = 20) -> bool:
    """Wait for a process that is no child of this one, and tell whether it has ended."""
    last = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < last:
        time.sleep(0.05)
    return not is_running(pid)


def run_worker(folder: Path, cases: list[dict], devices: int, timeout: float = 900) -> list[dict]:
    """Train every case in one launch of ``worker.py``, and return what it measured."""
    plan = folder / "cases.json"
    plan.write_text(json.dumps({"devices": devices, "cases": cases}))
    done = wait(start(HERE / "worker.py", folder), timeout)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads((folder / "results.json").read_text())
