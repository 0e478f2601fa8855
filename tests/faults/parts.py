"""What ``make faults`` tries, part by part: each trial has a name before it is made, so that a stopped run goes on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from faults import machine, together
from faults.cases import ANALYSES, CASES, TRAININGS, Case
from faults.kills import Reference, Stage, Trial, kill_after, kill_at, places
from faults.system_calls import count_calls, has_strace, kill_at_call

# Operations that a command is killed at: all of them where there are not more. What else is tried goes by it.
MOST_OPERATIONS = 60


@dataclass(frozen=True)
class Attempt:
    """A trial that has not been made: its name, and how to make it."""

    case: str
    name: str
    make: Callable[[], Trial]


def kills(stage: Stage, seed: int, most: int = MOST_OPERATIONS) -> Iterator[Attempt]:
    """Kill every command at its file operations, at system calls that write, and at random times.

    Ranks take several times as long as one process, and more where each has an interpreter of its own: fewer kills.
    """
    for case in installed():
        reference = stage.refer(case)
        for rank, operations in enumerate(reference.operations):
            for operation in places(len(operations), most if case.ranks == 1 else -(-most // 3), seed):
                make = partial(kill_at, stage, case, reference, operation, rank)
                yield Attempt(case.name, f"operation {operation} of rank {rank}", make)
        yield from _random_kills(stage, case, reference, -(-most // 8), seed)
        if case.ranks == 1 and has_strace():
            calls = count_calls(stage, case)
            for call in places(calls, -(-most // 5), seed):
                make = partial(kill_at_call, stage, case, reference, call)
                yield Attempt(case.name, f"call {call}", make)
    for case in TRAININGS:
        if case.ranks > 1:
            launched = replace(case, name=f"{case.name}, launched by Lightning", ranks=1)
            yield from _random_kills(stage, launched, stage.refer(launched), -(-most // 15), seed)


def failing_machine(stage: Stage, seed: int, most: int = MOST_OPERATIONS) -> Iterator[Attempt]:
    """Take disk, folders, workers and the clock away from every command."""
    for case in installed():
        reference = stage.refer(case)
        few = places(len(reference.operations[0]), -(-most // 12), seed)
        tried: list[tuple[str, Callable[[], Trial]]] = [
            ("read-only", partial(machine.read_only, stage, case, reference)),
        ]
        for kind in (machine.disk_full_at, machine.broken_disk_at, machine.folder_vanishes_at):
            tried += [(f"{kind.__name__} {at}", partial(kind, stage, case, reference, at)) for at in few]
        for kind in (machine.input_vanishes_at, machine.clock_jumps_back_at):
            tried += [(f"{kind.__name__} {at}", partial(kind, stage, case, reference, at)) for at in few[1::2]]
        if case.is_training:
            tried.append(("events", partial(machine.events_refused, stage, case, reference)))
            last = len(reference.operations[0]) - 20
            tried.append(("clock", partial(machine.clock_is_back_after_a_kill, stage, case, reference, last)))
        if case.takes_workers:
            shared = replace(case, arguments=[*case.arguments, "--workers=2"])
            undisturbed = stage.refer(shared)
            for after in (0.0, 0.02, 0.1):
                tried.append((f"worker {after}", partial(machine.worker_killed, stage, shared, undisturbed, after)))
        yield from (Attempt(case.name, name, make) for name, make in tried)
    if machine.may_mount(stage.ground.root / "mounted"):
        yield from _real_disks(stage, seed, -(-most // 12))


def at_once(stage: Stage, seed: int, most: int = MOST_OPERATIONS) -> Iterator[Attempt]:
    """Start two commands on one name, some time apart."""
    for name, pair in together.PAIRS.items():
        if all(case.is_installed for case in pair):
            wanted, seconds = together.in_turn(stage, pair)
            for part in (0.5, 0.0, 0.2, 0.9)[: -(-most // 15)]:
                make = partial(together.at_once, stage, name, pair, wanted, part * seconds)
                yield Attempt(name, f"after {part} of the first", make)


def installed() -> list[Case]:
    """Return the cases that can run here."""
    return [case for case in CASES.values() if case.is_installed]


def _random_kills(stage: Stage, case: Case, reference: Reference, count: int, seed: int) -> Iterator[Attempt]:
    for number, thousandth in enumerate(places(1000, count, seed)):
        rank = number % case.ranks
        make = partial(kill_after, stage, case, reference, reference.seconds * thousandth / 1000, rank)
        yield Attempt(case.name, f"random {number} of rank {rank}", make)


def _real_disks(stage: Stage, seed: int, count: int) -> Iterator[Attempt]:
    """Try file systems of several sizes: from one that holds nothing to one that holds all."""
    for case in (*(case for case in ANALYSES if case.is_installed), TRAININGS[0]):
        reference = stage.refer(case)
        size = stage.ground.size_of_work()
        yield Attempt(case.name, "read-only tmpfs", partial(machine.read_only_disk, stage, case, reference))
        for part in places(100, count, seed):
            kib = max(4, size * part // 100)
            yield Attempt(case.name, f"tmpfs {part}", partial(machine.small_disk, stage, case, reference, kib))
