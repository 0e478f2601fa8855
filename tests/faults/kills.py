"""Kills a command, runs it again, and says in what its end differs from that of one that nobody disturbed."""

import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults.cases import Case
from faults.commands import Commands, Finished, Ground, Running, read
from faults.outcome import differences, outcome

# Ranks that are left see a lost connection by themselves, but where they wait for the first one to begin; a launcher
# then ends them by SIGTERM, as torchrun does, and they obey.
NOTICE_SECONDS, OBEY_SECONDS = 10.0, 30.0
LONGEST_SECONDS = 240.0  # of any command


@dataclass(frozen=True)
class Reference:
    """What a command does when it is left alone.

    Args:
        folders: What it leaves in each folder of the ground.
        operations: The file operations of each rank, in their order.
        seconds: How long it takes.
        earlier: What was in the way of its result, if it replaces another.
    """

    folders: tuple[dict[str, str], ...]
    operations: tuple[tuple[str, ...], ...]
    seconds: float
    earlier: dict[str, str] | None


@dataclass(frozen=True)
class Trial:
    """One disturbance and what it came to: no problem is a success."""

    case: str
    kind: str
    place: str
    problems: tuple[str, ...] = ()
    happened: bool = True


@dataclass(frozen=True)
class Stage:
    """Where commands are tried: who starts them, in which folders, on which inputs, beside which server."""

    commands: Commands
    ground: Ground
    inputs: Path
    server: str

    @property
    def places(self) -> dict[str, object]:
        """What the names in a command line stand for."""
        return {"inputs": self.inputs, "work": self.ground.work, "server": self.server}

    def start(self, case: Case, faults: Mapping[int, dict[str, Any]] | None = None) -> list[Running]:
        """Start all ranks of a case, with the faults of some."""
        launched = [{}] if case.ranks == 1 else launcher_variables(case.ranks)
        return [
            self.commands.start(
                self.ground,
                case.command(self.places),
                variables,
                (faults or {}).get(rank),
            )
            for rank, variables in enumerate(launched)
        ]

    def wait(self, running: Sequence[Running], timeout: float = LONGEST_SECONDS) -> list[Finished]:
        """Wait for all ranks."""
        return [self.commands.wait(rank, timeout) for rank in running]

    def reset(self, case: Case) -> None:
        """Empty the folders, but for what stands in them before a case: what it replaces, or works in."""
        self.ground.clear()
        if case.earlier is not None:
            shutil.copytree(self._kept(case), self.ground.work, dirs_exist_ok=True)
        if case.copies_inputs:
            shutil.copytree(self.inputs, self.ground.work, dirs_exist_ok=True)

    def keep_earlier(self, case: Case) -> dict[str, str] | None:
        """Make the result that a case replaces, to be put in its place before each trial."""
        if case.earlier is None:
            return None
        self.ground.clear()
        command = case.command(self.places, case.earlier)
        made = self.commands.wait(self.commands.start(self.ground, command, {}, None))
        assert made.returncode == 0, made.output
        shutil.rmtree(self._kept(case), ignore_errors=True)
        shutil.copytree(self.ground.work, self._kept(case))
        return outcome(self.ground.work)

    def outcomes(self) -> tuple[dict[str, str], ...]:
        """Describe what is in each folder of the ground."""
        return tuple(outcome(folder) for folder in self.ground.folders())

    def refer(self, case: Case) -> Reference:
        """Run a case undisturbed."""
        earlier = self.keep_earlier(case)
        self.reset(case)
        logs = [self.ground.logs / f"operations-{rank}" for rank in range(case.ranks)]
        finished = self.wait(
            self.start(case, {rank: {"do": "count", "log": str(log)} for rank, log in enumerate(logs)})
        )
        assert all(rank.returncode == 0 for rank in finished), "\n".join(rank.output for rank in finished)
        operations = tuple(tuple(read(log).splitlines()) for log in logs)
        return Reference(self.outcomes(), operations, max(rank.seconds for rank in finished), earlier)

    def _kept(self, case: Case) -> Path:
        return self.ground.root / "earlier" / case.name.replace(" ", "_")


def launcher_variables(ranks: int) -> list[dict[str, str]]:
    """Return what a launcher tells each rank, with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    return [{**shared, "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def kill_at(stage: Stage, case: Case, reference: Reference, operation: int, rank: int = 0) -> Trial:
    """Kill one rank before its n-th file operation, and run the command again."""
    stage.reset(case)
    running = stage.start(case, {rank: {"do": "kill", "at": operation}})
    return ended(stage, case, reference, running, named(reference, operation, rank))


def kill_after(stage: Stage, case: Case, reference: Reference, seconds: float, rank: int = 0) -> Trial:
    """Kill one rank after a time, and run the command again."""
    stage.reset(case)
    running = stage.start(case)
    while time.monotonic() < running[rank].began + seconds:
        time.sleep(0.002)
    stage.commands.kill(running[rank])
    of_rank = f" of rank {rank}" if case.ranks > 1 else ""
    return ended(stage, case, reference, running, f"after {seconds:.3f} s{of_rank}")


def places(count: int, wanted: int, seed: int) -> list[int]:
    """Return operations to kill at: all where that many are wanted, else one at random in each of equal spans."""
    if count <= wanted:
        return list(range(1, count + 1))
    generator = random.Random(seed)
    bounds = [round(number * count / wanted) for number in range(wanted + 1)]
    return [generator.randint(low + 1, high) for low, high in pairwise(bounds)]


def ended(stage: Stage, case: Case, reference: Reference, running: list[Running], place: str) -> Trial:
    """See how a killed command ended, run it again, and compare."""
    problems = []
    try:
        killed = as_launched(stage, running)
    except TimeoutError as error:
        return Trial(case.name, "kill", place, (f"a rank does not end: {error}",))
    happened = any(rank.returncode == -9 for rank in killed)
    problems += [f"still runs: {process}" for process in stage.commands.orphans()]
    problems += [f"after the kill: {problem}" for problem in _torn(stage, case, reference)]
    again = stage.wait(stage.start(case))
    problems += [f"again: exit {rank.returncode}: {rank.output[-600:]}" for rank in again if rank.returncode]
    problems += [f"still runs after the second: {process}" for process in stage.commands.orphans(5.0)]
    return Trial(case.name, "kill", place, (*problems, *compared(stage, reference.folders)), happened)


def as_launched(stage: Stage, running: list[Running], longest: float = LONGEST_SECONDS) -> list[Finished]:
    """Wait for the end of all ranks, of which a launcher ends those that are left a while after the first.

    Raises:
        TimeoutError: None ends in time, or one does not obey.
    """
    commands = stage.commands
    while not any(commands.has_ended(rank) for rank in running):
        if time.monotonic() > running[0].began + longest:
            raise TimeoutError("no rank has ended")
        time.sleep(0.01)
    first = time.monotonic()
    while not all(commands.has_ended(rank) for rank in running) and time.monotonic() < first + NOTICE_SECONDS:
        time.sleep(0.01)
    for rank in running:
        commands.kill(rank, signal.SIGTERM)
    return [commands.wait(rank, time.monotonic() - rank.began + OBEY_SECONDS) for rank in running]


def compared(stage: Stage, wanted: Sequence[dict[str, str]]) -> list[str]:
    """Say what of each folder of the ground is other than it should be."""
    return [
        f"{folder.name}: {difference}"
        for folder, expected, got in zip(stage.ground.folders(), wanted, stage.outcomes(), strict=True)
        for difference in differences(expected, got)
    ]


def named(reference: Reference, operation: int, rank: int = 0) -> str:
    """Name an operation of a rank by its number and what it does, without the numbers of processes."""
    number, event, *paths = reference.operations[rank][operation - 1].split()
    files = " ".join(re.sub(r"\d{3,}$", "", Path(path).name) for path in paths)
    return f"operation {number} {event} {files}" + (f" of rank {rank}" if len(reference.operations) > 1 else "")


def _torn(stage: Stage, case: Case, reference: Reference) -> list[str]:
    """Say whether what stands under the result's name is neither whole, nor the earlier one, nor nothing."""
    if case.is_training:
        return []
    got = {name: value for name, value in outcome(stage.ground.work).items() if _is_within(name, case.out)}
    allowed = [{name: value for name, value in reference.folders[0].items() if _is_within(name, case.out)}]
    allowed.append({} if reference.earlier is None else reference.earlier)
    return [] if got in allowed else [f"{case.out} is neither whole nor what it was: {sorted(got)[:5]}"]


def _is_within(name: str, out: str) -> bool:
    return name == out or name.startswith(f"{out}/")
