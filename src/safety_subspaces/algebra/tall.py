"""Left factors of a matrix with many more rows than columns: its singular vectors are never formed.

An embedding of 128,256 x 8,192 has left singular vectors as large as itself. ``L = D T`` with ``T = R S^-1`` of the
small Gram matrix ``D^T D = R S^2 R^T`` keeps the small factor alone, and ``L^T U = T^T (D^T U)`` reads both matrices
once, some rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import numerical_rank_of
from safety_subspaces.algebra.factors import ILL_CONDITIONED, LeftFactors, gram_eigh, scale_of
from safety_subspaces.algebra.streamed import BLOCK, StreamedUpdate, blocks_of

# A float32 Gram matrix errs by about 1e-7 of its largest eigenvalue, and nothing orthonormalises the columns of D T
# afterwards: below this ratio of the extreme eigenvalues they would leave orthonormality by more than 1e-4, so that the
# matrix is taken in float64.
TALL_ILL_CONDITIONED = 1e-3


@final
@dataclass(frozen=True)
class TallFactors:
    """The leading left singular vectors ``L = D T`` of a tall matrix, by descending singular value.

    Args:
        matrix: The matrix D.
        turn: ``T = R S^-1`` of the matrix over its scale, in the type that products with D are made in.
        singular_values: Those of D within its numerical rank, of which ``turn`` may hold the first alone.
        scale: A power of two by which D is divided before anything is made of it.
    """

    matrix: Float[Tensor, "out in"] | StreamedUpdate
    turn: Float[Tensor, "in held"]
    singular_values: Float64[Tensor, " rank"]
    scale: float = 1.0

    @property
    def rows(self) -> int:
        """Dimension of the output space."""
        return self.matrix.shape[0]

    @property
    def numerical_rank(self) -> int:
        """Number of directions."""
        return self.singular_values.numel()

    @property
    def held(self) -> int:
        """Number of directions that are held."""
        return self.turn.shape[1]

    @cached_property
    def basis(self) -> Float32[Tensor, "out held"]:
        """L as one matrix, as large as D: for tests and small cases."""
        return torch.cat(list(self.basis_blocks()))

    def factors(self) -> LeftFactors:
        """Return the same with L as one matrix."""
        return LeftFactors(self.basis, self.singular_values)

    def basis_blocks(self, rows: int | None = None) -> Iterator[Float32[Tensor, "part held"]]:
        """Yield L so many rows at a time; by default as :func:`~.streamed.blocks_of` splits D."""
        for block in blocks_of(self.matrix) if rows is None else self.matrix.split(rows):
            yield (self._scaled(block) @ self.turn).float()

    def coordinates(self, update: Float[Tensor, "out columns"] | StreamedUpdate) -> Float[Tensor, "held columns"]:
        """Return ``L^T U``; both matrices are read some rows at a time."""
        total = torch.zeros(())
        step = max(1, BLOCK // max(1, self.matrix.shape[1]))
        for number, (block, other) in enumerate(zip(self.matrix.split(step), update.split(step), strict=True)):
            product = self._scaled(block).T @ other.to(self.turn)
            total = total.add_(product) if number else product
        return self.turn.T @ total

    def products(self, other: "TallFactors") -> Float[Tensor, "rank_first rank_second"]:
        """Return ``L^T L'`` with the singular vectors of another matrix of this shape, ``T^T (D^T D') T'``."""
        if other.scale != 1:
            other = TallFactors(other.matrix, other.turn / other.scale, other.singular_values)
        along = self.coordinates(other.matrix)
        working = torch.promote_types(along.dtype, other.turn.dtype)
        return along.to(working) @ other.turn.to(working)

    def _scaled(self, block: Tensor) -> Tensor:
        return (block if self.scale == 1 else block / self.scale).to(self.turn.dtype)


def tall_factors(delta: Float[Tensor, "out in"] | StreamedUpdate, share: float = 1.0) -> TallFactors:
    """Factorise a matrix with more rows than columns by ``eigh`` of ``D^T D``.

    Args:
        delta: The matrix.
        share: Share of the energy that the directions are to hold.

    Raises:
        ValueError: It has no more rows than columns: its smaller Gram matrix is ``D D^T``.
        InputError: ``delta`` holds a NaN or an infinity.
    """
    if delta.shape[0] <= delta.shape[1]:
        raise ValueError(f"expected more rows than columns, got {tuple(delta.shape)}; left_factors serves this shape")
    scale = scale_of(delta)
    if scale == 0:
        device = next(iter(blocks_of(delta))).device
        empty = torch.zeros(delta.shape[1], 0, device=device)
        return TallFactors(delta, empty, torch.zeros(0, dtype=torch.float64, device=device))
    eigenvalues, vectors, working = gram_eigh(delta, scale, TALL_ILL_CONDITIONED, share)
    values = eigenvalues[: numerical_rank_of(eigenvalues)].sqrt()
    turn = vectors / values[: vectors.shape[1]]
    if working == torch.float64 and eigenvalues[-1] >= ILL_CONDITIONED * eigenvalues[0]:
        working = torch.float32  # the Gram matrix needed float64; products of this matrix do not yet
    return TallFactors(delta, turn.to(working), values * scale, scale)
