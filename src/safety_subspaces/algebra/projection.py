"""Onto, away and opposite: what a subspace of a weight's output space does to an update of that weight."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.factors import squared_norm, squared_row_norms
from safety_subspaces.artefacts.errors import InputError

Method = Literal["onto", "away", "opposite"]


@dataclass(frozen=True)
class Projector:
    """The orthogonal projector ``P = L L^T``, held as its thin basis; applied from the left.

    A 2-D update ``(out, in)`` is projected column by column; an update of another shape as the one vector of
    its entries, with ``out`` their number. Arithmetic is float32 or better, results have the update's dtype.
    With an empty basis *onto* gives zero and *away* the update itself.

    Args:
        basis: Orthonormal columns L.
    """

    basis: Float32[Tensor, "out rank"]

    def onto(self, delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``L L^T delta``."""
        matrix = self._matrix_of(delta)
        basis = self.basis.to(matrix.dtype)
        return (basis @ (basis.T @ matrix)).reshape(delta.shape).to(delta.dtype)

    def away(self, delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``delta - L L^T delta``."""
        working = self._matrix_of(delta).reshape(delta.shape)
        return (working - self.onto(working)).to(delta.dtype)

    def opposite(self, delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``-L L^T delta``: the update that steps against the kept part."""
        return -self.onto(delta)

    def apply(self, delta: Float[Tensor, "*shape"], method: Method) -> Float[Tensor, "*shape"]:
        """Return the update to add to the aligned weight under the named method."""
        return complete_update(delta, self.onto(delta), method)

    def energies(self, delta: Float[Tensor, "*shape"]) -> Float64[Tensor, " rank"]:
        """Return ``||l_i^T delta||^2`` for each direction: their cumulative sum is the energy kept."""
        matrix = self._matrix_of(delta)
        return squared_row_norms(self.basis.to(matrix.dtype).T @ matrix)

    def energy_kept(self, delta: Float[Tensor, "*shape"]) -> float:
        """Return ``||P delta||^2 / ||delta||^2`` in [0, 1]; NaN for a zero update, which has none to keep."""
        total = squared_norm(delta.double())
        return self.energies(delta).sum().item() / total if total > 0 else float("nan")

    @property
    def matrix(self) -> Float32[Tensor, "out out"]:
        """The dense ``L L^T``, for tests and small cases."""
        return self.basis @ self.basis.T

    def _matrix_of(self, delta: Tensor) -> Tensor:
        rows = self.basis.shape[0]
        if (delta.shape[0] if delta.ndim == 2 else delta.numel()) != rows and not (delta.numel() == rows):
            raise InputError(
                f"the basis has {rows} rows, which an update of shape {tuple(delta.shape)} does not: "
                "expected a basis made from the same tensor, with weights as (out, in)"
            )
        working = delta if delta.dtype == torch.float64 else delta.float()
        return working.reshape(rows, -1)


def complete_update(
    delta: Float[Tensor, "*shape"], projected: Float[Tensor, "*shape"], method: Method
) -> Float[Tensor, "*shape"]:
    """Return the update of a method from the update and its projection: ``P d``, ``d - P d`` or ``-P d``.

    Raises:
        InputError: ``method`` is none of the three.
    """
    if method == "onto":
        return projected
    if method == "away":
        return delta - projected
    if method == "opposite":
        return -projected
    raise InputError(f"unknown method {method!r}; expected onto, away or opposite")
