"""The numerical audit of one tensor's update, with what the checkpoints say of its rounding."""

from collections.abc import Sequence
from math import fsum, nan
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from safety_subspaces.algebra.audit import audit_update, rounding_energy
from safety_subspaces.algebra.blocks import rows_in_block
from safety_subspaces.weights.checkpoint import Checkpoint, FullCheckpoint


def audit_row(
    name: str,
    singular_values: Float64[Tensor, " rank"],
    rounding: float,
    shape: Sequence[int],
    energies: Sequence[float] = (),
    ranks: Sequence[int] = (),
) -> dict[str, Any]:
    """Return one row of an audit table.

    Args:
        name: Canonical name of the tensor.
        singular_values: Of its update, all within the numerical rank, in descending order.
        rounding: Expected energy of rounding in the update: of both weights that it is the difference of.
        shape: Shape of the tensor.
        energies: Energy shares at which the update was cut.
        ranks: Ranks at which it was.
    """
    full_rank = min(shape) if len(shape) == 2 else 1
    return {"tensor": name, **audit_update(singular_values, full_rank, rounding, energies, ranks).row()}


def stored_rounding(checkpoint: Checkpoint, name: str) -> float:
    """Return the expected energy of rounding in one stored weight, read some rows at a time; NaN of an adapter."""
    if not isinstance(checkpoint, FullCheckpoint):
        return nan
    shape = checkpoint.shape(name)
    if len(shape) != 2:
        return rounding_energy(checkpoint.read(name))
    step = rows_in_block(shape[1])
    blocks = (checkpoint.open_slice(name)[start : start + step] for start in range(0, shape[0], step))
    return fsum(rounding_energy(torch.as_tensor(block)) for block in blocks)
