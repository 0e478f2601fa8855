"""The machine fails under a command: it has to end in bounded time in words of ours, with what was there intact."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.cases import Case
from faults.commands import Finished, descendants
from faults.kills import Reference, Stage, Trial, as_launched, compared, named
from faults.outcome import differences, outcome

# The longest that a command may go on after what it needs has failed.
BOUND_SECONDS = 60.0
# What our errors begin with, wherever a progress bar stood.
OURS = re.compile(r"error: |stopped by SIGTERM")
A_YEAR = 365 * 24 * 3600.0


def disk_full_at(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Refuse every operation that needs room, from the n-th on; then give room and run it again."""
    fault = {"do": "raise", "errno": "ENOSPC", "at": operation}
    return _refused(stage, case, reference, "no space", named(reference, operation), fault)


def read_only(stage: Stage, case: Case, reference: Reference) -> Trial:
    """Refuse everything that changes the disk, from the start; then allow it and run it again."""
    fault = {"do": "raise", "errno": "EROFS", "at": 1}
    return _refused(stage, case, reference, "read-only", "from the start", fault)


def broken_disk_at(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Refuse one operation alone, as a disk does that has a bad block."""
    fault = {"do": "raise", "errno": "EIO", "at": operation, "lasting": False}
    return _refused(stage, case, reference, "broken disk", named(reference, operation), fault)


def events_refused(stage: Stage, case: Case, reference: Reference) -> Trial:
    """Refuse the file of TensorBoard's events alone."""
    fault = {"do": "raise", "errno": "EACCES", "at": 1, "matching": r"tfevents"}
    return _refused(stage, case, reference, "event file", "from the start", fault)


def folder_vanishes_at(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Remove the folder that the result goes to at the n-th operation; then make it and run the command again."""
    fault = {"do": "vanish", "at": operation, "path": str(stage.ground.work)}
    return _refused(stage, case, reference, "vanished folder", named(reference, operation), fault)


def input_vanishes_at(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Remove all that a command reads at the n-th operation; then put it back and run the command again."""
    aside = stage.inputs.with_name("inputs-aside")
    shutil.copytree(stage.inputs, aside, symlinks=True)
    try:
        stage.reset(case)
        fault = {"do": "vanish", "at": operation, "path": str(stage.inputs)}
        finished = stage.wait(stage.start(case, {0: fault}), BOUND_SECONDS)
    finally:
        shutil.rmtree(stage.inputs, ignore_errors=True)
        aside.rename(stage.inputs)
    # What had been read by then is enough to end well.
    problems = [] if finished[0].returncode == 0 else _words(finished)
    return Trial(
        case.name,
        "vanished input",
        named(reference, operation),
        (*problems, *_intact(stage, case, reference, finished), *_again(stage, case, reference)),
    )


def clock_jumps_back_at(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Set the clock back by a year at the n-th operation, after which all goes on as if it had not been."""
    stage.reset(case)
    fault = {"do": "clock", "at": operation, "seconds": -A_YEAR}
    finished = stage.wait(stage.start(case, dict.fromkeys(range(case.ranks), fault)))
    problems = [f"exit {rank.returncode}: {rank.output[-600:]}" for rank in finished if rank.returncode]
    return Trial(
        case.name, "clock set back", named(reference, operation), (*problems, *compared(stage, reference.folders))
    )


def clock_is_back_after_a_kill(stage: Stage, case: Case, reference: Reference, operation: int) -> Trial:
    """Kill a command at the n-th operation, and run it again under a clock that was set back by a year."""
    stage.reset(case)
    stage.wait(stage.start(case, {0: {"do": "kill", "at": operation}}))
    fault = {"do": "clock", "at": 1, "seconds": -A_YEAR}
    finished = stage.wait(stage.start(case, {0: fault}))
    problems = [f"exit {rank.returncode}: {rank.output[-600:]}" for rank in finished if rank.returncode]
    return Trial(
        case.name,
        "clock set back",
        f"before it goes on from {named(reference, operation)}",
        (*problems, *compared(stage, reference.folders)),
    )


def worker_killed(stage: Stage, case: Case, reference: Reference, after: float) -> Trial:
    """Kill one of the worker processes of a command some time after they started, as a system without memory does."""
    stage.reset(case)
    (running,) = stage.start(case)
    while not (workers := descendants(running.pid)) and not stage.commands.has_ended(running):
        time.sleep(0.002)
    time.sleep(after)
    killed = bool(workers) and _killed(workers[-1])
    finished = [stage.commands.wait(running, BOUND_SECONDS)]
    happened = killed and finished[0].returncode != 0
    problems = _words(finished) if happened else []
    return Trial(
        case.name,
        "worker killed",
        f"{after} s after it started",
        (*problems, *_intact(stage, case, reference, finished), *_again(stage, case, reference)),
        happened,
    )


def small_disk(stage: Stage, case: Case, reference: Reference, kib: int) -> Trial:
    """Give a command a real file system of so many KiB, then a large one."""
    stage.reset(case)
    with mounted(stage.ground.work, f"size={kib}k"):
        finished = stage.wait(stage.start(case), BOUND_SECONDS)
        enough = finished[0].returncode == 0
        problems = [] if enough else [*_words(finished), *_intact(stage, case, reference, finished)]
        subprocess.run(["mount", "-o", "remount,size=1g", stage.ground.work], check=True)
        problems += _again(stage, case, reference)
    return Trial(case.name, "no space", f"tmpfs of {kib} KiB", tuple(problems), not enough)


def read_only_disk(stage: Stage, case: Case, reference: Reference) -> Trial:
    """Give a command a real file system that may not be written, then one that may."""
    stage.reset(case)
    with mounted(stage.ground.work, "size=1g"):
        subprocess.run(["mount", "-o", "remount,ro", stage.ground.work], check=True)
        finished = stage.wait(stage.start(case), BOUND_SECONDS)
        problems = [*_words(finished), *_intact(stage, case, reference, finished)]
        subprocess.run(["mount", "-o", "remount,rw", stage.ground.work], check=True)
        problems += _again(stage, case, reference)
    return Trial(case.name, "read-only", "tmpfs", tuple(problems))


def may_mount(folder: Path) -> bool:
    """Tell whether this process may mount a file system."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with mounted(folder, "size=64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory over a folder, with what the folder holds."""
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(kept)


def _refused(stage: Stage, case: Case, reference: Reference, kind: str, place: str, fault: dict[str, Any]) -> Trial:
    stage.reset(case)
    try:
        running = stage.start(case, dict.fromkeys(range(case.ranks), fault))
        finished = as_launched(stage, running, BOUND_SECONDS)
    except TimeoutError as error:
        return Trial(case.name, kind, place, (str(error),))
    if all(rank.returncode == 0 for rank in finished):  # what was refused is not needed: then all must be there
        has_gone = fault["do"] == "vanish" and not outcome(stage.ground.work)
        problems = [] if has_gone else compared(stage, reference.folders)
        return Trial(case.name, kind, place, tuple(problems), happened=False)
    problems = _words(finished)
    if fault["do"] != "vanish":  # what was there has vanished too
        problems += _intact(stage, case, reference, finished)
    return Trial(case.name, kind, place, (*problems, *_again(stage, case, reference)))


def _words(finished: list[Finished]) -> list[str]:
    """Say whether an end was without an error, in another's words, or too late."""
    problems = []
    if all(rank.returncode == 0 for rank in finished):
        problems.append("exit 0")
    for rank in finished:
        if "Traceback" in rank.output:
            problems.append(f"a traceback: {rank.output[-700:]}")
        elif rank.returncode != 0 and not OURS.search(rank.output):
            problems.append(f"no words of ours, exit {rank.returncode}: {rank.output[-400:]}")
    return problems


def _intact(stage: Stage, case: Case, reference: Reference, finished: list[Finished]) -> list[str]:
    """Say what of an earlier result is gone, unless the folder itself is."""
    problems = [f"still runs: {process}" for process in stage.commands.orphans()]
    if reference.earlier is None or finished[0].returncode == 0 or not stage.ground.work.is_dir():
        return problems
    got = outcome(stage.ground.work)
    return problems + [f"before: {line}" for line in differences(reference.earlier, got) if "left" not in line]


def _again(stage: Stage, case: Case, reference: Reference) -> list[str]:
    """Run the same command on a sound machine, and compare its end."""
    stage.ground.work.mkdir(exist_ok=True)
    again = stage.wait(stage.start(case))
    problems = [f"again: exit {rank.returncode}: {rank.output[-600:]}" for rank in again if rank.returncode]
    return problems + compared(stage, reference.folders)


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
