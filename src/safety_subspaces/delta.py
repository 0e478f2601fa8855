"""Updates as differences of checkpoints, one tensor at a time, in float32 or better, never with a NaN."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safety_subspaces.checkpoint import AdapterCheckpoint, Checkpoint
from safety_subspaces.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorDeltas:
    """What alignment and each fine-tune did to one tensor.

    Args:
        name: Canonical name.
        alignment: ``delta_A = W_A - W_0``.
        tasks: ``delta_T = W_T - W_A`` by label.
    """

    name: str
    alignment: Float32[Tensor, "..."]
    tasks: dict[str, Float32[Tensor, "..."]]


def iterate_deltas(base: Checkpoint, aligned: Checkpoint, tuned: Mapping[str, Checkpoint]) -> Iterator[TensorDeltas]:
    """Yield the deltas of each tensor, in the order of the aligned checkpoint.

    Raises:
        InputError: A weight is NaN or infinite; the tensor and the checkpoint are named.
    """
    for name in aligned.names:
        yield TensorDeltas(
            name,
            update_of(aligned, base, name),
            {label: update_of(checkpoint, aligned, name) for label, checkpoint in tuned.items()},
        )


def iterate_updates(
    reference: Checkpoint, updates: Mapping[str, Checkpoint]
) -> Iterator[tuple[str, dict[str, Float32[Tensor, "..."]]]]:
    """Yield each tensor's name with the updates of the labelled checkpoints from the reference.

    Raises:
        InputError: As :func:`iterate_deltas`.
    """
    for name in reference.names:
        yield name, {label: update_of(checkpoint, reference, name) for label, checkpoint in updates.items()}


def update_of(tuned: Checkpoint, reference: Checkpoint, name: str) -> Float32[Tensor, "..."]:
    """Return ``W_tuned - W_reference`` of one tensor, in float32.

    The update of an adapter upon the reference itself is ``scale * B A``, without the rounding of a merge: it
    keeps its low rank.

    Raises:
        InputError: A weight is NaN or infinite.
    """
    if isinstance(tuned, AdapterCheckpoint) and is_upon(tuned, reference) and not tuned.is_whole(name):
        return _finite(tuned.low_rank_update(name), name, tuned.path)
    weight, origin = read_weight(tuned, name), read_weight(reference, name)
    return (weight - origin).float()


def read_weight(checkpoint: Checkpoint, name: str) -> Float[Tensor, "..."]:
    """Read one weight in float32, or float64 where it is stored so: half precision loses small updates.

    Raises:
        InputError: The weight is NaN or infinite somewhere.
    """
    stored = checkpoint.read(name)
    return _finite(stored.to(torch.promote_types(stored.dtype, torch.float32)), name, checkpoint.path)


def is_upon(adapter: AdapterCheckpoint, reference: Checkpoint) -> bool:
    """Tell whether an adapter's base is this very checkpoint."""
    return (
        not isinstance(reference, AdapterCheckpoint)
        and adapter.base.folder.resolve() == reference.full.folder.resolve()
    )


def warn_of_foreign_bases(reference: Checkpoint, updates: Mapping[str, Checkpoint]) -> None:
    """Log a warning for each adapter upon another base: its update then holds the bases' difference."""
    for label, checkpoint in updates.items():
        if isinstance(checkpoint, AdapterCheckpoint) and not is_upon(checkpoint, reference):
            logger.warning(
                "adapter %s is upon %s, not upon %s: their difference is part of its update",
                *(label, checkpoint.base.path, reference.path),
            )


def _finite(value: Tensor, name: str, path: str) -> Tensor:
    if not torch.isfinite(value).all():
        raise InputError(
            f"tensor {name} of {path} holds NaN or infinite weights; expected finite ones. "
            "Take an earlier checkpoint, or see whether training diverged"
        )
    return value
