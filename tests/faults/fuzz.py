"""Feeds every reader of the suite files that are wrong, and says which of them it neither read nor refused by name.

``python tests/faults/fuzz.py --inputs 20000 --seed 0 --out counts.json`` needs no network. An input is known by the
seed and its number: ``--only 123`` reads that one again, and shows the traceback. Each is read in a process that was
forked from one with all imports, with a bound on memory; one that hangs or crashes it is counted, and another goes on.
"""

import argparse
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [
        str(Path(__file__).parents[2]),
        str(Path(__file__).parents[2] / "src"),
        str(Path(__file__).parents[1]),
    ]

from fuzz_mutations import mutate_file
from fuzz_readers import READERS
from huggingface_hub import constants

from safety_subspaces.artefacts.errors import InputError

# What reading one wrong input may take, beside its reader's seconds.
BYTES = 2**30
# A process that says nothing for so long hangs, however busy the machine is.
SILENT_SECONDS = 60.0
# Enough room that a large allocation is measured, not refused, and little enough that the machine stands it.
ROOM_BYTES = 4 * 2**30
READ, REFUSED, FAILED = "read", "refused", "failed"


@dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Args:
        number: The input.
        reader: What read it.
        what: ``read``, ``refused`` by an :class:`InputError`, or ``failed``.
        seconds: Of computing.
        bytes: By which the memory of the process grew, at most.
        message: The refusal, or what was wrong.
    """

    number: int
    reader: str
    what: str
    seconds: float
    bytes: int
    message: str


def fuzz(inputs: int, seed: int, jobs: int, first: int = 0) -> list[Outcome]:
    """Read so many wrong inputs.

    Args:
        inputs: How many.
        seed: Decides all of them.
        jobs: Processes at once.
        first: Number of the first.

    Returns:
        What came of each, by number.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        valid = build_valid(Path(folder) / "valid")
        gc.collect()
        gc.freeze()  # else each collection of a child copies all that was imported
        lanes = [
            _Lane(
                list(range(first + lane, first + inputs, jobs)),
                partial(read_one, seed, valid, Path(folder) / str(lane)),
            )
            for lane in range(jobs)
        ]
        outcomes: list[Outcome] = []
        while lanes:
            for lane in lanes:
                lane.start()
            ready, _, _ = select.select([lane.answers for lane in lanes], [], [], 1.0)
            for lane in lanes:
                new = lane.take(lane.answers in ready, seed)
                outcomes += new
                for outcome in new:
                    if outcome.what == FAILED:
                        print(f"{outcome.number} {outcome.reader}: {outcome.message}", flush=True)
            lanes = [lane for lane in lanes if lane.numbers]
        return sorted(outcomes, key=lambda outcome: outcome.number)


def build_valid(folder: Path, names: Iterable[str] = READERS) -> Path:
    """Write the valid files of every reader, and check that it reads them."""
    for name in names:
        reader = READERS[name]
        (folder / name).mkdir(parents=True)
        reader.build(folder / name)
        copy = folder / "copy"
        shutil.copytree(folder / name, copy)
        with chdir(copy):
            reader.read(copy)
        shutil.rmtree(copy)
    return folder


def reader_of(number: int, seed: int) -> tuple[str, random.Random]:
    """Return which reader an input is for, and what draws the rest of it."""
    draw = random.Random(f"{seed} {number}")
    return draw.choices(list(READERS), [reader.weight for reader in READERS.values()])[0], draw


def read_one(seed: int, valid: Path, folder: Path, number: int, shows: bool = False) -> Outcome:
    """Make one wrong input, and have it read; a failure's traceback is shown where that is asked for."""
    name, draw = reader_of(number, seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid / name, folder)
    files = sorted({path for pattern in READERS[name].mutated for path in folder.glob(pattern) if path.is_file()})
    for path in draw.sample(files, min(len(files), draw.choice((1, 1, 1, 2)))):
        mutate_file(draw, path)
    before, started = _reset_peak(), time.process_time()
    what, message = READ, ""
    try:
        with chdir(folder):
            READERS[name].read(folder)
    except InputError as error:
        what, message = REFUSED, str(error)
    except BaseException as error:  # noqa: BLE001 - what else comes out is what is looked for
        if shows:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)
        ours = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "safety_subspaces" in frame.filename
        ]
        what, message = FAILED, f"{type(error).__name__}: {str(error)[:200]} at {' '.join(ours[-3:])}"
    seconds, grown = time.process_time() - started, _peak() - before
    if seconds > READERS[name].seconds or grown > BYTES:
        what, message = FAILED, f"{seconds:.1f} s, {grown / 2**20:.0f} MiB: {message[:200]}"
    return Outcome(number, name, what, round(seconds, 3), grown, message)


def counts_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Count outcomes by reader."""
    counts = Counter((outcome.reader, outcome.what) for outcome in outcomes)
    by_reader = {name: {what: counts[name, what] for what in (READ, REFUSED, FAILED)} for name in READERS}
    return {"inputs": len(outcomes), "by_reader": by_reader}


class _Lane:
    """Inputs that are read one after the other, by a process that is started again where one has ended it."""

    def __init__(self, numbers: list[int], read: Callable[[int], Outcome]) -> None:
        self.numbers = numbers
        self._read = read
        self.answers = -1
        self._process = 0
        self._heard = 0.0
        self._rest = b""

    def start(self) -> None:
        """Start the process, where none runs."""
        if self._process:
            return
        self.answers, end = os.pipe()
        sys.stdout.flush()
        self._process, self._heard, self._rest = os.fork(), time.monotonic(), b""
        if self._process == 0:
            try:
                _serve(self.numbers, self._read, end)
            finally:  # never back into what belongs to the process that this one was forked from
                os._exit(1)
        os.close(end)

    def take(self, is_ready: bool, seed: int) -> list[Outcome]:
        """Return what the process has answered; of one that hangs or has ended, that the input at hand failed."""
        if is_ready and (answer := os.read(self.answers, 2**16)):
            self._heard = time.monotonic()
            *lines, self._rest = (self._rest + answer).split(b"\n")
            outcomes = [Outcome(**json.loads(line)) for line in lines]
            self.numbers = self.numbers[len(outcomes) :]
            return outcomes
        if not is_ready and time.monotonic() - self._heard < SILENT_SECONDS:
            return []
        if not is_ready:
            os.kill(self._process, signal.SIGKILL)
        _, status = os.waitpid(self._process, 0)
        os.close(self.answers)
        self._process = 0
        if not self.numbers:
            return []
        number, self.numbers = self.numbers[0], self.numbers[1:]
        message = f"ended its process with {os.waitstatus_to_exitcode(status)}" if is_ready else "hangs"
        return [Outcome(number, reader_of(number, seed)[0], FAILED, 0.0, 0, message)]


def _serve(numbers: Sequence[int], read: Callable[[int], Outcome], answers: int) -> None:
    """Read inputs in this process, bounded, and write what came of each."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    room = _status("VmSize") + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    constants.HF_HUB_OFFLINE = True  # what is no folder any more may look like the id of a model
    for number in numbers:
        os.write(answers, json.dumps(asdict(read(number))).encode() + b"\n")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def main() -> None:
    """Read wrong inputs, count what came of them, and end with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the counts.")
    parser.add_argument("--only", type=int, default=None, help="Read the input of this number alone, in this process.")
    parser.add_argument("--keep", type=Path, default=None, help="Folder to copy the files of that input to.")
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            name, _ = reader_of(options.only, options.seed)
            valid = build_valid(Path(folder) / "valid", [name])
            wrong = Path(folder) / "wrong"
            print(read_one(options.seed, valid, wrong, options.only, shows=True))
            if options.keep:
                shutil.copytree(wrong, options.keep)
        return
    outcomes = fuzz(options.inputs, options.seed, options.jobs)
    counts = counts_of(outcomes)
    print(json.dumps(counts))
    if options.out is not None:
        options.out.write_text(json.dumps(counts, indent=2) + "\n")
    sys.exit(any(outcome.what == FAILED for outcome in outcomes))


if __name__ == "__main__":
    main()
