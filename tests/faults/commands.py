"""Runs commands in folders of their own, under faults, and sees what they leave: processes and files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What a launcher leaves in the environment of a test that runs under one.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK")
# How long what a killed command had started may live on.
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    returncode: int
    output: str
    seconds: float


@dataclass
class Running:
    """A command that was started."""

    pid: int
    output: Path
    began: float


@dataclass(frozen=True)
class Ground:
    """The folders that a command may write to; all of them are looked through for what it left."""

    root: Path

    @property
    def work(self) -> Path:
        """Where its results go."""
        return self.root / "work"

    @property
    def temporary(self) -> Path:
        """What TMPDIR names."""
        return self.root / "tmp"

    @property
    def home(self) -> Path:
        """The home folder, with the user's caches."""
        return self.root / "home"

    @property
    def logs(self) -> Path:
        """What the harness writes, apart."""
        return self.root / "logs"

    def folders(self) -> tuple[Path, ...]:
        """The folders that a command sees."""
        return (self.work, self.temporary, self.home)

    def size_of_work(self) -> int:
        """Return the KiB of what is in the work folder."""
        return sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file()) // 1024

    def clear(self) -> None:
        """Make all of them empty, and take away a disk that a harness which was killed has left."""
        while self.work.is_mount():
            subprocess.run(["umount", self.work], check=True)
        for folder in (*self.folders(), self.logs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)


@dataclass
class Commands:
    """Starts commands as forks of a process that has imported them, in a ground."""

    server: subprocess.Popen[str]
    number: int = 0
    ended: dict[int, int] = field(default_factory=dict)

    def start(
        self, ground: Ground, arguments: Sequence[object], environment: Mapping[str, str], fault: dict[str, Any] | None
    ) -> Running:
        """Start a script of this tree, without waiting for it."""
        self.number += 1
        output = ground.logs / f"output-{self.number}"
        output.touch()
        if fault:
            roots = [str(folder) for folder in ground.folders()]
            fault = {"roots": roots, "log": str(ground.logs / "operations"), **fault}
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(ROOT),
            "environment": environment_in(ground) | environment,
            "stdout": str(output),
            "stderr": str(output),
            "fault": fault,
        }
        return Running(self._ask({"start": request})["pid"], output, time.monotonic())

    def wait(self, running: Running, timeout: float = 240.0) -> Finished:
        """Wait for the end of a command.

        Raises:
            TimeoutError: It takes longer; it and what it started are killed.
        """
        while not self.has_ended(running):
            if time.monotonic() - running.began > timeout:
                self.end_all()
                raise TimeoutError(f"no end after {timeout} s: {read(running.output)[-2000:]}")
            time.sleep(0.01)
        return Finished(self.ended[running.pid], read(running.output), time.monotonic() - running.began)

    def has_ended(self, running: Running) -> bool:
        """Tell whether a command has ended."""
        self._poll()
        return running.pid in self.ended

    def kill(self, running: Running, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a command that has not ended, and to nothing that it has started."""
        if not self.has_ended(running):
            os.kill(running.pid, signum)

    def orphans(self, grace: float = GRACE_SECONDS) -> list[str]:
        """Return the command lines of what still runs after a time, and end it."""
        until = time.monotonic() + grace
        while self.children() and time.monotonic() < until:
            time.sleep(0.02)
        left = [f"{pid} {command_line_of(pid)}" for pid in self.children()]
        self.end_all()
        return left

    def children(self) -> list[int]:
        """Return the ids of all processes that were started and have not ended."""
        self._poll()
        return [pid for pid in descendants(self.server.pid) if state_of(pid) not in ("Z", "")]

    def end_all(self) -> None:
        """Kill whatever runs."""
        while running := self.children():
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)

    def _poll(self) -> None:
        self.ended |= {int(pid): code for pid, code in self._ask({"poll": True})["ended"].items()}

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@contextmanager
def serving() -> Iterator[Commands]:
    """Start the process that commands are forked from; it and all of them end with the block."""
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests")))
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "server.py")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    commands = Commands(server)
    try:
        yield commands
    finally:
        if server.poll() is None:
            commands.end_all()
        server.communicate(timeout=60)


def environment_in(ground: Ground) -> dict[str, str]:
    """Return the environment of a command that stays in its ground."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return inherited | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(ground.temporary),
        "HOME": str(ground.home),
        "XDG_CACHE_HOME": str(ground.home / ".cache"),
    }


def read(path: Path) -> str:
    """Read what a command wrote to its terminal."""
    return path.read_text(encoding="utf-8", errors="replace")


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, and of theirs."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def state_of(pid: int) -> str:
    """Return the letter of a process's state, empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def command_line_of(pid: int) -> str:
    """Return what a process was started with."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
