"""An update in factors, as LoRA has it and a compressed snapshot keeps it: measured without making the product."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import RANK_TOLERANCE
from safety_subspaces.algebra.factors import LeftFactors


@final
@dataclass(frozen=True)
class LowRank:
    """``scale * left @ right``, never made dense unless asked for.

    Args:
        left: ``(out, inner)``.
        right: ``(inner, in)``.
        scale: A factor of the product.
    """

    left: Float[Tensor, "out inner"]
    right: Float[Tensor, "inner in"]
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product, in the factors' type, from a float64 multiplication."""
        return (self.scale * (self.left.double() @ self.right.double())).to(self.left.dtype)

    def squared_norm(self) -> float:
        """Return ``||scale left right||_F^2 = scale^2 <left^T left, right right^T>``, in float64."""
        return self.scale**2 * _inner_of_grams(self.left, self.right)

    def squared_norm_along(self, basis: Float[Tensor, "out rank"]) -> float:
        """Return ``||basis^T (scale left right)||_F^2``, in float64."""
        return self.scale**2 * _inner_of_grams(basis.double().T @ self.left.double(), self.right)

    @property
    def transposed(self) -> "LowRank":
        """The transposed product."""
        return LowRank(self.right.T, self.left.T, self.scale)

    def left_factors(self) -> LeftFactors:
        """Factorise the product: QR of each factor, then an SVD of the small core."""
        core, frame = self._core()
        vectors, values, _ = torch.linalg.svd(core)
        rank = _numerical_rank(values)
        return LeftFactors((frame @ vectors[:, :rank]).float(), values[:rank])

    def singular_values(self) -> Float64[Tensor, " rank"]:
        """Return the singular values within the numerical rank, in descending order."""
        values = torch.linalg.svdvals(self._core()[0])
        return values[: _numerical_rank(values)]

    def _core(self) -> tuple[Float64[Tensor, "a b"], Float64[Tensor, "out a"]]:
        frame, left = torch.linalg.qr(self.left.double())
        right = torch.linalg.qr(self.right.double().T, mode="r").R
        return self.scale * (left @ right.T), frame


def _numerical_rank(values: Tensor) -> int:
    return int((values > RANK_TOLERANCE * values[0]).sum()) if values.numel() and values[0] > 0 else 0


def _inner_of_grams(left: Tensor, right: Tensor) -> float:
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right @ right.T)).sum())
