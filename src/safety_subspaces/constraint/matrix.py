"""Holding a trained matrix's update inside or outside a subspace, step by step and exactly.

The projection is applied to the weight after the optimizer's step, not to the gradient before it: an elementwise
preconditioner (Adam) and weight decay both move a weight along directions that its gradient does not have. A rank that
owns a piece of a weight projects its piece; only the coordinates of the update in the subspace cross the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safety_subspaces.algebra.projection import complete_update, project_onto
from safety_subspaces.algebra.update import FactorUpdate

Mode = Literal["away", "onto", "observe"]
# Sums each tensor over the ranks that own pieces of the weights; the identity where weights are whole.
SumOverRanks = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Piece:
    """A contiguous run of a matrix's numbers in row-major order: what one rank owns of it.

    Args:
        shape: Rows and columns of the whole matrix.
        start: Where the run starts.
        length: How many numbers it has; 0 on a rank that owns nothing.
    """

    shape: tuple[int, int]
    start: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole matrix."""
        return self.length == self.shape[0] * self.shape[1]

    @property
    def row_range(self) -> slice:
        """The rows that it touches."""
        columns = self.shape[1]
        first = self.start // columns
        return slice(first, -(-(self.start + self.length) // columns) if self.length else first)

    def rows(self, flat: Float[Tensor, " length"]) -> Float[Tensor, "rows columns"]:
        """Return its numbers as whole rows, with zeros for what other ranks own of them."""
        columns = self.shape[1]
        if self.is_whole:
            return flat.view(self.shape)
        touched = self.row_range
        padded = flat.new_zeros(touched.stop - touched.start, columns)
        offset = self.start - touched.start * columns
        padded.view(-1)[offset : offset + self.length] = flat
        return padded

    def flat(self, rows: Float[Tensor, "rows columns"]) -> Float[Tensor, " length"]:
        """Return the piece's own numbers out of the rows that it touches."""
        offset = self.start - self.row_range.start * self.shape[1]
        return rows.reshape(-1)[offset : offset + self.length]


@final
class MatrixConstraint:
    """Keeps ``W - W_ref`` outside the span of a basis (away) or inside it (onto), on one rank's piece of ``W``.

    With ``L`` orthonormal and ``s`` the strength, each step's increment ``u`` loses ``s`` times its forbidden part:
    ``L L^T u`` for *away*, ``u - L L^T u`` for *onto*. At ``s = 1`` throughout, ``L^T (W - W_ref) = 0`` (away) or
    ``W - W_ref = L L^T (W - W_ref)`` (onto), to the rounding of the weights. What an earlier, weaker step let through
    stays: it is neither removed later nor counted twice.

    The update is taken as ``W - W_ref`` before it is multiplied by L, so that the rounding of the product follows the
    update and not the weight. That costs one copy of each constrained weight, sharded as the weight is.

    Args:
        basis: Orthonormal columns L.
        mode: ``away`` or ``onto``; ``observe`` measures as ``away`` does.
        reference: This rank's numbers of the weight that the update is counted from.
        piece: Where they lie in the matrix.
        transposed: Whether the basis acts on the columns (input space) instead of the rows (output space).
        weakens: Whether the strength is ever below 1, so that what it lets through has to be kept.
    """

    def __init__(
        self,
        basis: Float32[Tensor, "dim rank"],
        mode: Mode,
        reference: Float[Tensor, " length"],
        piece: Piece,
        transposed: bool = False,
        weakens: bool = False,
    ) -> None:
        self.mode = mode
        self.basis = basis
        self.reference = reference
        self.piece = piece
        self.transposed = transposed
        # Multiply by the smaller of the two bases. What a strength below 1 lets through is stored as coordinates in the
        # forbidden space.
        smaller = 2 * basis.shape[1] > basis.shape[0]
        self.keeps_inside = mode == "onto" and not (smaller or weakens)
        working = _complement(basis) if mode == "onto" and not self.keeps_inside else basis
        self._working = self._touched(working).to(reference.dtype)
        size = piece.shape[0] if transposed else piece.shape[1]
        self.let_through = reference.new_zeros(working.shape[1], size) if weakens else None

    def coordinates(self, delta: Float[Tensor, " length"]) -> Float[Tensor, "rank columns"]:
        """Return the piece's share of the update's coordinates; their sum over the ranks is ``L^T delta``."""
        return self._project(self._working.to(delta.dtype), delta)

    def part(self, coordinates: Float[Tensor, "rank columns"]) -> Float[Tensor, " length"]:
        """Return this piece of ``L`` times coordinates."""
        return self._expand(self._working.to(coordinates.dtype), coordinates)

    @torch.no_grad()
    def hold(
        self, weight: Float[Tensor, " length"], coordinates: Float[Tensor, "rank columns"], strength: float
    ) -> None:
        """Take the forbidden part of the last step out of this piece of the weight, in place.

        Args:
            weight: The piece of the weight after the step.
            coordinates: Coordinates of the whole update, summed over the ranks.
            strength: Share of the forbidden part that is taken out.
        """
        if self.keeps_inside:
            torch.add(self.reference, self.part(coordinates), out=weight)
        elif self.let_through is None:
            weight -= self.part(coordinates)
        else:
            increment = coordinates - self.let_through
            weight -= self.part(strength * increment)
            self.let_through += (1 - strength) * increment

    def energies(self, delta: Float[Tensor, " length"], total: SumOverRanks) -> Float[Tensor, " two"]:
        """Return the squared norms of an update's forbidden part and of the whole, in float64, over all ranks.

        Measured on the basis itself, in double precision: the figure proves the constraint, so it must not share its
        rounding.

        Args:
            delta: This piece of the update.
            total: Sums over the ranks.
        """
        working, basis = delta.double(), self._touched(self.basis).double()
        (along,) = total([self._project(basis, working)])
        if self.mode != "onto":
            (whole,) = total([working.square().sum()])
            return torch.stack([along.square().sum(), whole])
        outside = working - self._expand(basis, along)
        return total([torch.stack([outside.square().sum(), working.square().sum()])])[0]

    def _touched(self, basis: Tensor) -> Tensor:
        return basis if self.transposed else basis[self.piece.row_range]

    def _project(self, basis: Tensor, delta: Tensor) -> Tensor:
        rows = self.piece.rows(delta)
        if not self.transposed:
            return basis.T @ rows
        if self.piece.is_whole:
            return (rows @ basis).T
        coordinates = delta.new_zeros(basis.shape[1], self.piece.shape[0])
        coordinates[:, self.piece.row_range] = (rows @ basis).T
        return coordinates

    def _expand(self, basis: Tensor, coordinates: Tensor) -> Tensor:
        if not self.transposed:
            return self.piece.flat(basis @ coordinates)
        return self.piece.flat(coordinates.T[self.piece.row_range] @ basis.T)


@torch.no_grad()
def hold_all(
    constraints: Sequence[MatrixConstraint],
    weights: Sequence[Float[Tensor, " _"]],
    strength: float,
    total: SumOverRanks,
) -> None:
    """Hold several weights after one step of the optimizer, in place, with one sum over the ranks."""
    deltas = [weight - constraint.reference for constraint, weight in zip(constraints, weights, strict=True)]
    shares = [constraint.coordinates(delta) for constraint, delta in zip(constraints, deltas, strict=True)]
    for constraint, weight, coordinates in zip(constraints, weights, total(shares), strict=True):
        constraint.hold(weight, coordinates, strength)


def forbidden_part(
    basis: Float[Tensor, "dim rank"], mode: Mode, delta: Float[Tensor, "dim columns"]
) -> Float[Tensor, "dim columns"]:
    """Return the part of a whole update or gradient that a constraint does not allow, in the dtype of the basis."""
    working = delta.to(basis.dtype)
    return complete_update(working, project_onto(basis, working), "away" if mode == "onto" else "onto")


def update_energies(
    basis: Float[Tensor, "dim rank"], mode: Mode, delta: Float[Tensor, "dim columns"]
) -> Float[Tensor, " two"]:
    """Return the squared norms of an update's forbidden part and of the whole, in float64."""
    return torch.stack([part.square().sum() for part in (forbidden_part(basis.double(), mode, delta), delta.double())])


def factor_energies(
    basis: Float[Tensor, "dim rank"],
    mode: Mode,
    factor: Float[Tensor, "dim inner"],
    partner: Float[Tensor, "inner columns"],
) -> Float[Tensor, " two"]:
    """Return the squared norms of the forbidden part and of the whole of ``factor @ partner``, in float64.

    ``||F P||^2 = <F^T F, P P^T>``: the product, as large as the weight, is never made.
    """
    parts = (forbidden_part(basis.double(), mode, factor), factor.double())
    return torch.tensor([FactorUpdate(part, partner).energy() for part in parts], dtype=torch.float64)


def schedule_strength(step: int, strength: float, start_step: int, ramp_steps: int) -> float:
    """Return the strength at an optimizer step: 0 before ``start_step``, then a linear ramp.

    The first of ``ramp_steps`` steps has ``strength / ramp_steps``, the last and all later ones the whole strength.

    Args:
        step: The step, 1 for the first.
        strength: The strength after the ramp.
        start_step: First step with a strength above 0; 0 and 1 are both the first step of training.
        ramp_steps: Length of the ramp; 0 and 1 are both none.
    """
    done = step - max(1, start_step) + 1
    return strength * min(1.0, max(0, done) / max(1, ramp_steps))


def rounding_floor(weight_norm: float, delta_norm: float) -> float:
    """Return the share of an update's energy that float32 weights cannot help to leak: ``(2^-24 ||W|| / ||d||)^2``."""
    return (2.0**-24 * weight_norm / delta_norm) ** 2 if delta_norm > 0 else float("nan")


def _complement(basis: Float32[Tensor, "dim rank"]) -> Float32[Tensor, "dim rest"]:
    whole, _ = torch.linalg.qr(basis.double(), mode="complete")
    return whole[:, basis.shape[1] :].float()
