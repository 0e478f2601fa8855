"""Work shared out tensor by tensor: over processes of one thread each, or over the ranks of Lightning Fabric.

What is done with a tensor depends on nothing but that tensor, so that tensors are dealt out, each one's rows are kept
on disk as they come, and an interrupted analysis goes on from those that are there. One process of many threads is
three to five times slower than as many processes of one.
"""

import errno
import inspect
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from safety_subspaces.artefacts import ending
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import KEY_FILE, UNFINISHED, holding, read_json, write_json
from safety_subspaces.artefacts.progress import Bar
from safety_subspaces.artefacts.provenance import check_unchanged, code_state, describe_all, sha256_of_file
from safety_subspaces.constraint.rank_watch import RankWatch
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.update_checkpoint import open_checkpoint

Record = dict[str, list[dict[str, Any]]]
Result = TypeVar("Result")

# rows x columns x the smaller of them, over all tensors: less is done in about a second, sooner than processes start.
WORTH_PROCESSES = 2e10
# A rank that is stopped is waited for so long, and one that has much to do as long as it takes.
SILENT_SECONDS = 300.0
LONGEST_WORK = timedelta(days=30)
GOES_ON = "What is done is kept: the same command goes on from there"


@runtime_checkable
class TensorTask(Protocol):
    """What is done with one tensor: a picklable value of paths and settings, which opens what it reads by itself."""

    def __call__(self, name: str, device: torch.device) -> Record:
        """Return rows of JSON values by table; NaN is allowed."""


@dataclass(frozen=True)
class Workers:
    """The processes and ranks that do the work.

    Args:
        workers: Processes of one thread each on this machine; by default one a core, or none beside this one where the
            models are small.
        devices: Ranks on each node that share the tensors, one a GPU where there are GPUs.
        num_nodes: Nodes; they must see one file system.

    Raises:
        InputError: A number below one.
    """

    workers: int | None = None
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    def processes(self, costs: Mapping[str, float]) -> int:
        """Return how many processes one rank starts for tensors of these costs; 1 is this process itself."""
        if self.workers is not None:
            return self.workers
        if sum(costs.values()) < WORTH_PROCESSES:
            return 1
        return max(1, min(len(os.sched_getaffinity(0)) // self.devices, len(costs)))


@dataclass(frozen=True)
class UnfinishedWork:
    """A folder of the tensors that are done, and of files that belong to them.

    Args:
        folder: The hidden folder beside the results.
        done_before: How many tensors an interrupted analysis left in it.
        fabric: The ranks that share the work; ``None`` where this process is the only one.
        device: Where this process computes.
    """

    folder: Path
    done_before: int
    fabric: Any
    device: torch.device

    @property
    def is_first_rank(self) -> bool:
        """Whether this process makes what all share, and the results."""
        return self.fabric is None or self.fabric.global_rank == 0

    def path(self, name: str) -> Path:
        """Return the file of one tensor's rows."""
        return self.folder / "tensors" / f"{file_stem(name)}.json"

    def wait_for_all(self) -> None:
        """Wait until every rank has come this far."""
        if self.fabric is not None:
            self.fabric.barrier()

    def forget(self) -> None:
        """Count no tensor as done: what its rows tell of is gone."""
        shutil.rmtree(self.folder / "tensors", ignore_errors=True)  # a kill may have come between these two lines
        (self.folder / "tensors").mkdir()


def file_stem(tensor: str) -> str:
    """Return what files of a tensor are called: its name comes with a checkpoint, and may be a path to anywhere."""
    return sha256(tensor.encode(errors="surrogatepass")).hexdigest()[:32]


@contextmanager
def unfinished_work(
    out: str | Path, command: str, arguments: Mapping[str, Any], inputs: Sequence[str], workers: Workers
) -> Iterator[UnfinishedWork]:
    """Start the other ranks, hold the results' name, and yield the folder of what is done so far.

    The folder goes when the block ends, and stays when it is interrupted. It is taken up again by the same command with
    the same arguments, the same bytes of inputs and of this program; else it starts empty. An :class:`InputError` and a
    full disk remove it too: what they ask for changes the inputs, or is room.

    Args:
        out: Folder of the results; the work is kept beside it.
        command: Name of the subcommand.
        arguments: What decides its numbers, as plain values.
        inputs: Paths of the models that it reads.
        workers: The processes and ranks that do it.

    Raises:
        InputError: Another process works on these results, there is no room, or an input changed meanwhile.
    """
    target = Path(out)
    folder = target.with_name(UNFINISHED.format(target.name))
    fabric, device = _launch(workers)
    unfinished = UnfinishedWork(folder, 0, fabric, device)
    with ExitStack() as held:
        held.enter_context(_watched(fabric))
        if unfinished.is_first_rank:
            held.enter_context(holding(target))
            described = describe_all(inputs)
            key = {"command": command, "arguments": dict(arguments), "inputs": described, **code_state()}
            unfinished = replace(unfinished, done_before=_take_up(folder, json.loads(json.dumps(key, default=str))))
        unfinished.wait_for_all()
        try:
            yield unfinished
            if unfinished.is_first_rank:
                check_unchanged(described)
        except ending.Stopped as stopped:
            stopped.add_note(GOES_ON)
            raise
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"there is no room on the disk for {out} ({error}); nothing is left of it. Make room, or choose "
                "another out"
            ) from error
        if unfinished.is_first_rank:
            shutil.rmtree(folder)


def work_through(
    task: TensorTask, costs: Mapping[str, float], unfinished: UnfinishedWork, workers: Workers, label: str
) -> dict[str, Record] | None:
    """Do a task for every tensor, those apart that are done already.

    Args:
        task: What is done.
        costs: The tensors in the order of the result, each with what it costs in any unit.
        unfinished: Where the rows are kept.
        workers: The processes and ranks that do it.
        label: What the progress bar calls it.

    Returns:
        Each tensor's rows; ``None`` on every rank but the first, whose part ends here.

    Raises:
        InputError: What a task raises; or a worker was killed, as by a system without memory.
    """
    fabric, device = unfinished.fabric, unfinished.device
    if unfinished.is_first_rank:
        _forget_other_code(task, unfinished)
    unfinished.wait_for_all()
    todo = [name for name in costs if not unfinished.path(name).is_file()]
    todo.sort(key=lambda name: -costs[name])  # the largest first: no worker is left alone with it at the end
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    mine = todo[rank::ranks]
    with _progress(costs, [name for name in costs if name not in mine] if ranks == 1 else [], mine, label, rank) as bar:
        for name in _do_all(task, mine, costs, unfinished, workers, device):
            bar(name)
    unfinished.wait_for_all()
    if rank:
        return None
    return {name: read_json(unfinished.path(name)) for name in costs}


def in_worker(work: Callable[..., Result], *arguments: Any) -> Result:
    """Do something in a process of its own, as a worker of one thread does a tensor, and return what it returns.

    Raises:
        LostProcessError: The process was killed; also whatever ``work`` raises.
    """
    pool = ProcessPoolExecutor(1, _context(), initializer=_start_worker, initargs=(os.getpid(),))
    with _ending_workers(pool, 1):
        return pool.submit(work, *arguments).result()


@lru_cache(maxsize=64)
def opened(path: str) -> Checkpoint:
    """Open a checkpoint; it is cached, so that each process opens it only at first use."""
    return open_checkpoint(path)


def factorisation_cost(shape: Sequence[int]) -> float:
    """Return what a factorisation costs: rows x columns x the smaller of them; of a vector its numbers."""
    if len(shape) != 2:
        return float(torch.Size(shape).numel())
    return float(shape[0]) * shape[1] * min(shape)


def _do_all(
    task: TensorTask,
    names: Sequence[str],
    costs: Mapping[str, float],
    unfinished: UnfinishedWork,
    workers: Workers,
    device: torch.device,
) -> Iterator[str]:
    processes = 1 if device.type != "cpu" else workers.processes({name: costs[name] for name in names})
    if processes == 1 or len(names) < 2:
        for name in names:
            yield _do(task, name, unfinished, device)
        return
    processes = min(processes, len(names))
    pool = ProcessPoolExecutor(processes, _context(), initializer=_start_worker, initargs=(os.getpid(),))
    with _ending_workers(pool, processes):
        for future in as_completed([pool.submit(_do, task, name, unfinished, device) for name in names]):
            yield future.result()


def _context() -> Any:
    """A fork is ready at once, a new interpreter needs seconds for its imports; but a CUDA context survives no fork."""
    return get_context("fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn")


@contextmanager
def _ending_workers(pool: ProcessPoolExecutor, processes: int) -> Iterator[None]:
    """End the processes of a pool with the block, however it ends."""
    try:
        yield
    except BrokenProcessPool as error:
        raise ending.LostProcessError(
            f"a worker process was killed, as when memory ends ({processes} were at work); say fewer with --workers. "
            f"{GOES_ON}"
        ) from error
    except (ending.Stopped, KeyboardInterrupt):
        for process in active_children():  # they would first end what they are at
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _do(task: TensorTask, name: str, unfinished: UnfinishedWork, device: torch.device) -> str:
    write_json(unfinished.path(name), task(name, device))
    return name


def _start_worker(parent: int) -> None:
    torch.set_num_threads(1)
    ending.end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all, and the parent ends its workers
    for signum in (signal.SIGTERM, signal.SIGHUP):  # else a fork would do what its parent does at them
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _launch(workers: Workers) -> tuple[Any, torch.device]:
    """Start the other ranks, if any; return Fabric and the device of this one."""
    cuda = torch.cuda.is_available()
    if workers.devices * workers.num_nodes == 1:
        return None, torch.device("cuda" if cuda else "cpu")
    from lightning.fabric import Fabric  # one rank need not pay its import
    from lightning.fabric.strategies import DDPStrategy

    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=workers.devices,
        num_nodes=workers.num_nodes,
        strategy=DDPStrategy(timeout=LONGEST_WORK),
    )
    fabric.launch()
    return fabric, fabric.device


def _take_up(folder: Path, key: Mapping[str, Any]) -> int:
    """Make the folder of the work that a key names, empty if it held another's; return how many tensors are done."""
    stored = folder / KEY_FILE
    if not stored.is_file() or read_json(stored) != key:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tensors").mkdir(parents=True)
        write_json(stored, key)
    return sum(1 for _ in (folder / "tensors").glob("[!.]*.json"))


def _forget_other_code(task: TensorTask, unfinished: UnfinishedWork) -> None:
    """Count no tensor as done by another version of a task, which may be a plug-in's outside this package."""
    source, mark = inspect.getsourcefile(type(task)), unfinished.folder / "task.json"
    code = {"sha256": sha256_of_file(Path(source)) if source else None}
    if mark.is_file() and read_json(mark) != code:
        unfinished.forget()
    write_json(mark, code)


@contextmanager
def _watched(fabric: Any) -> Iterator[None]:
    """End this process when another rank is silent meanwhile."""
    watch = RankWatch(SILENT_SECONDS, _end_without)
    if fabric is not None:
        watch.start()
    try:
        yield
    finally:
        watch.stop()


def _end_without(ranks: Sequence[int]) -> None:
    ending.end_at_once(f"error: rank {', '.join(map(str, ranks))} was silent for {SILENT_SECONDS:g} s. {GOES_ON}")


@contextmanager
def _progress(
    costs: Mapping[str, float], done: Sequence[str], mine: Sequence[str], label: str, rank: int
) -> Iterator[Any]:
    """A bar of this rank's tensors whose time left goes by cost, not by number."""
    total = sum(costs[name] for name in mine)
    shape = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
    with Bar(total=total, desc=label, bar_format=shape, disable=rank > 0) as bar:
        count = len(done)
        bar.set_postfix_str(f"{count}/{count + len(mine)} tensors")

        def advance(name: str) -> None:
            nonlocal count
            count += 1
            bar.set_postfix_str(f"{count}/{len(done) + len(mine)} tensors", refresh=False)
            bar.update(costs[name])

        yield advance
