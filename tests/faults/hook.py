"""Counts a process's file operations, and at one of them kills it, refuses it, or takes the ground from under it.

Python tells an audit hook of each operation before it is done. What Rust and C do by themselves (the weights of a
safetensors file, a Parquet table, a database's pages) it does not see: kills at random times and at system calls
cover those.
"""

import errno
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

# Of each operation that changes the disk, which of its arguments are paths.
PATHS = {
    "open": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What a full disk or one that may not be written lets pass.
ALWAYS_ALLOWED = {"os.remove", "os.rmdir"}


def install(fault: dict[str, Any]) -> None:
    """Watch this process.

    Args:
        fault: ``roots``: folders whose operations count; ``log``: file that they are written to, one a line; ``do``:
            ``count``, ``kill``, ``raise``, ``vanish``, ``clock``, or ``stop`` (before the first line); ``at``: the
            operation, from one; ``errno``: name of the error to raise, from that operation on, on every one but what
            makes room; ``matching``: pattern of the paths that it is raised for; ``path``: the folder that vanishes;
            ``seconds``: by how much the clock jumps.
    """
    if fault["do"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    roots = tuple(os.path.realpath(root) + os.sep for root in fault["roots"])
    matching = re.compile(fault.get("matching", ""))
    log = os.open(fault["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    count, busy = 0, False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if event not in PATHS or busy:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        found = [_absolute(arguments[place], arguments) for place in PATHS[event]]
        if not any(path.startswith(roots) for path in found):
            return
        count += 1
        os.write(log, f"{count} {event} {' '.join(found)}\n".encode())
        if count >= fault.get("at", 1):
            busy = True
            try:
                act(event, found, exactly=count == fault.get("at"))
            finally:
                busy = False

    def act(event: str, paths: list[str], exactly: bool) -> None:
        if fault["do"] == "raise":
            lasting = exactly or fault.get("lasting", True)
            if lasting and event not in ALWAYS_ALLOWED and any(map(matching.search, paths)):
                number = getattr(errno, fault["errno"])
                raise OSError(number, os.strerror(number), paths[-1])
        elif exactly:
            ONCE[fault["do"]](fault)

    sys.addaudithook(watch)


def _kill(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _vanish(fault: dict[str, Any]) -> None:
    shutil.rmtree(fault["path"])


def _turn_clock(fault: dict[str, Any]) -> None:
    now, now_ns, ahead = time.time, time.time_ns, fault["seconds"]
    time.time = lambda: now() + ahead
    time.time_ns = lambda: now_ns() + int(ahead * 1e9)


ONCE: dict[str, Callable[[dict[str, Any]], None]] = {
    "count": lambda fault: None,
    "kill": _kill,
    "vanish": _vanish,
    "clock": _turn_clock,
}


def _absolute(path: Any, arguments: tuple[Any, ...]) -> str:
    """Return the path that an operation names: a text, bytes, a number of an open file, or one beside a folder's."""
    if isinstance(path, int):
        return _of_descriptor(path)
    text = os.fsdecode(path)
    folder = arguments[-1]
    if not text.startswith(os.sep) and isinstance(folder, int) and folder > 2 and len(arguments) > 1:
        text = os.path.join(_of_descriptor(folder), text)  # noqa: PTH118
    return os.path.abspath(text)  # noqa: PTH100


def _of_descriptor(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    except OSError:
        return ""
