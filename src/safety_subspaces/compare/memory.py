"""What a piece of work took: seconds by the clock, and by how much it made this process larger at its largest."""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safety_subspaces.artefacts.provenance import peak_memory_bytes

# Written here, the kernel forgets how large this process was (proc_pid_clear_refs(5)).
RESET_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True)
class Usage:
    """What some work took.

    Args:
        seconds: By the clock.
        memory_bytes: How much more memory than before was in use at once: of a GPU, where it computes, else of this
            process's resident set.
    """

    seconds: float
    memory_bytes: float


def measured(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Usage:
    """Do some work, and say what it took.

    Args:
        work: What is done.
        clock: Tells seconds.
    """
    on_gpu = torch.cuda.is_initialized()
    _give_back()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated() if on_gpu else resident_bytes(), clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes()
    return Usage(seconds, max(0.0, float(peak - before)))


def resident_bytes() -> int:
    """Return the resident set of this process now, in bytes; where the system does not tell, its largest so far."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return peak_memory_bytes()
    return int(status.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    """Give back memory that was let go of, which new work would else take without growing; and forget the peak."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    path, word = RESET_PEAK
    with suppress(OSError):  # another system, or a kernel that does not let it
        path.write_text(word, encoding="ascii")
