"""Updates as differences of checkpoints, one tensor at a time, in float32 or better, never with a NaN."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safety_subspaces.algebra.update import DenseUpdate, StreamedUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.checkpoint import Checkpoint, FullCheckpoint
from safety_subspaces.weights.update_checkpoint import UpdateCheckpoint

# Tensors of more numbers than this (512 MB of float32) are subtracted one block at a time.
STREAM_ABOVE = 2**27

logger = logging.getLogger(__name__)


def open_update(tuned: Checkpoint, reference: Checkpoint, name: str) -> Update:
    """Return ``W_tuned - W_reference`` of one tensor in the smallest form that there is, in float32 or better.

    An update upon the reference itself stays in its factors, without the rounding of a merge; the difference of large
    tensors is made a block at a time; others are dense.

    Raises:
        InputError: A weight is NaN or infinite; of one that streams, when that block is taken.
    """
    return open_updates({"": tuned}, reference, name)[""]


def open_updates(tuned: Mapping[str, Checkpoint], reference: Checkpoint, name: str) -> dict[str, Update]:
    """Return the :func:`open_update` of several models by label; their reference is read once."""
    weight: Tensor | None = None
    updates: dict[str, Update] = {}
    for label, checkpoint in tuned.items():
        update = _small_update(checkpoint, reference, name)
        if update is None:
            weight = read_weight(reference, name) if weight is None else weight
            update = DenseUpdate(_difference(checkpoint, weight, name))
        updates[label] = update
    return updates


def _difference(tuned: Checkpoint, weight: Tensor, name: str) -> Tensor:
    stored = tuned.read(name)
    widest = torch.promote_types(stored.dtype, weight.dtype)
    # A copy in a wider type is ours, so that it may be subtracted from in place.
    difference = stored.to(widest).sub_(weight) if stored.dtype != widest else stored - weight
    if not math.isfinite(float(difference.sum())):
        _finite(stored, name, tuned.path)
    return difference.float()


def _small_update(tuned: Checkpoint, reference: Checkpoint, name: str) -> Update | None:
    """The update as it is stored, or made a block at a time; ``None`` where it is neither."""
    if isinstance(tuned, UpdateCheckpoint) and is_upon(tuned, reference) and not tuned.is_whole(name):
        update = tuned.update(name)
        if update is None:
            return DenseUpdate(torch.zeros(reference.shape(name)))
        for part in update.parts.values():
            _finite(torch.as_tensor(part), name, tuned.path)
        return update
    shape = reference.shape(name)
    readers = [_opener(checkpoint, name) for checkpoint in (tuned, reference)]
    if len(shape) == 2 and shape[0] * shape[1] > STREAM_ABOVE and all(readers):

        def check(block: Tensor) -> None:
            _finite(block, name, f"{tuned.path} or {reference.path}")

        return StreamedUpdate(readers[0], readers[1], shape, torch.float32, check)  # type: ignore[arg-type]
    return None


def update_of(tuned: Checkpoint, reference: Checkpoint, name: str) -> Float32[Tensor, "..."]:
    """Return ``W_tuned - W_reference`` of one tensor, whole and dense in float32; else as :func:`open_update`."""
    return open_update(tuned, reference, name).dense().float()


def read_weight(checkpoint: Checkpoint, name: str) -> Float[Tensor, "..."]:
    """Read one weight in float32, or float64 where it is stored so: half precision loses small updates.

    Raises:
        InputError: The weight is NaN or infinite somewhere.
    """
    stored = checkpoint.read(name)
    return _finite(stored.to(torch.promote_types(stored.dtype, torch.float32)), name, checkpoint.path)


def is_upon(update: UpdateCheckpoint, reference: Checkpoint) -> bool:
    """Tell whether an adapter's or a snapshot's base is this very checkpoint."""
    return (
        not isinstance(reference, UpdateCheckpoint)
        and update.base.location.resolve() == reference.full.location.resolve()
    )


def warn_of_foreign_bases(reference: Checkpoint, updates: Mapping[str, Checkpoint]) -> None:
    """Log a warning for each update upon another base: it then holds the bases' difference."""
    for label, checkpoint in updates.items():
        if isinstance(checkpoint, UpdateCheckpoint) and not is_upon(checkpoint, reference):
            logger.warning(
                "%s is an update upon %s, not upon %s: their difference is part of its update",
                label,
                checkpoint.base.path,
                reference.path,
            )


def _opener(checkpoint: Checkpoint, name: str) -> Callable[[], Any] | None:
    """Return what opens a stored tensor anew, unread; ``None`` where a tensor is more than what one file holds."""
    if isinstance(checkpoint, FullCheckpoint):
        return lambda: checkpoint.open_slice(name)
    return None


def _finite(value: Tensor, name: str, path: str) -> Tensor:
    # Summing is faster than testing every number; but a sum may overflow, so where it is not finite all are tested.
    if not math.isfinite(float(value.sum())) and not bool(torch.isfinite(value).all()):
        raise InputError(
            f"tensor {name} of {path} holds NaN or infinite weights; expected finite ones. "
            "Take an earlier checkpoint, or see whether training diverged"
        )
    return value
