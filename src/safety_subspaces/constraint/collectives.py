"""Sums and gathers over the ranks of a run; on one process they change nothing."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """Return the sum of each tensor over all ranks, by one collective; they share dtype and device."""
    if not tensors or not is_running():
        return tensors
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(together)
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks, on all ranks. For small values: they are pickled."""
    if not is_running():
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def keep_step() -> None:
    """Let the ranks wait for each other, so that none waits longer for the next collective than its time-out."""
    if is_running():
        torch.distributed.barrier()


def is_running() -> bool:
    """Tell whether this process is one of several that have joined."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
