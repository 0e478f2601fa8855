"""Kills a command at a system call that writes, which also what Rust and C write makes: by strace, where it is."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from faults.cases import Case
from faults.commands import Running, read
from faults.kills import Reference, Stage, Trial, ended

WRITING = "write,pwrite64,ftruncate,fallocate,fsync"
ATTACHED = re.compile(r"attached", re.IGNORECASE)


def has_strace() -> bool:
    """Tell whether strace is here and may look at other processes."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def count_calls(stage: Stage, case: Case) -> int:
    """Return how many calls an undisturbed command makes that write."""
    stage.reset(case)
    log = stage.ground.logs / "calls"
    running = _traced(stage, case, ["-o", str(log)])
    stage.commands.wait(running)
    return len(re.findall(rf"^\d+ +({WRITING.replace(',', '|')})\(", read(log), re.MULTILINE))


def kill_at_call(stage: Stage, case: Case, reference: Reference, call: int) -> Trial:
    """Kill a command at its n-th call that writes, and run it again."""
    stage.reset(case)
    running = _traced(stage, case, ["-o", os.devnull, "-e", f"inject={WRITING}:signal=KILL:when={call}"])
    return ended(stage, case, reference, [running], f"call {call} that writes")


def _traced(stage: Stage, case: Case, options: list[str]) -> Running:
    """Start a command that stops before its first line, and let it go on under strace."""
    (running,) = stage.start(case, {0: {"do": "stop"}})
    while "T" not in Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2][:3]:
        time.sleep(0.005)
    words = stage.ground.logs / "strace"
    with words.open("w") as stream:
        subprocess.Popen(
            ["strace", "-f", "-e", f"trace={WRITING}", *options, "-p", str(running.pid)],
            stderr=stream,
            start_new_session=True,
        )
    while not ATTACHED.search(read(words)):
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGCONT)
    return running
