"""Holding a trained matrix's update inside or outside a subspace, step by step and exactly.

The projection is applied to the weight after the optimizer's step, not to the gradient before it: an elementwise
preconditioner (Adam) and weight decay both move a weight along directions that its gradient does not have.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Mode = Literal["away", "onto", "observe"]


@dataclass(frozen=True)
class StepEnergies:
    """What one step's increment carried, as squared Frobenius norms.

    Args:
        forbidden: Its part that the constraint does not allow.
        removed: What of that was taken out: ``strength^2`` times the forbidden part.
    """

    forbidden: Tensor
    removed: Tensor


@final
class MatrixConstraint:
    """Keeps ``W - W_ref`` outside the span of a basis (away) or inside it (onto).

    With ``L`` orthonormal and ``s`` the strength, each step's increment ``u`` loses ``s`` times its forbidden part:
    ``L L^T u`` for *away*, ``u - L L^T u`` for *onto*. At ``s = 1`` throughout, ``L^T (W - W_ref) = 0`` (away) or
    ``W - W_ref = L L^T (W - W_ref)`` (onto), to the rounding of float32. What an earlier, weaker step let through
    stays: it is neither removed later nor counted twice.

    The update is taken as ``W - W_ref`` before it is multiplied by L, so that the rounding of the product follows the
    update and not the weight. That costs one float32 copy of each constrained weight.

    Args:
        basis: Orthonormal columns L.
        mode: ``away`` or ``onto``; ``observe`` measures as ``away`` does and changes nothing.
        reference: The weight that the update is counted from, as a matrix whose rows L acts on.
    """

    def __init__(self, basis: Float32[Tensor, "dim rank"], mode: Mode, reference: Float[Tensor, "dim columns"]) -> None:
        self.mode = mode
        self.basis = basis
        self.inside = mode == "onto"
        if self.inside and 2 * basis.shape[1] > basis.shape[0]:  # the complement is the smaller one to multiply by
            self.basis, self.inside = _complement(basis), False
        # The reference, plus what weaker steps let through: what the weights are held to.
        self.anchor = reference.detach().float().clone()

    @torch.no_grad()
    def hold(self, weight: Float32[Tensor, "dim columns"], strength: float) -> StepEnergies:
        """Take the forbidden part of the last step out of ``weight``, in place."""
        delta = weight - self.anchor
        forbidden = self.forbidden_part(delta)
        energy = forbidden.square().sum()
        kept = 1.0 if self.mode == "observe" else 1.0 - strength
        if kept < 1:
            weight.copy_(self.anchor + (delta - (1 - kept) * forbidden))
        if kept > 0:
            self.anchor += kept * forbidden
        return StepEnergies(energy, (1 - kept) ** 2 * energy)

    def forbidden_part(self, delta: Float[Tensor, "dim columns"]) -> Float[Tensor, "dim columns"]:
        """Return the part of an update or gradient that the constraint does not allow, in its dtype."""
        working = delta.float()
        inside = self.basis @ (self.basis.T @ working)
        return (working - inside if self.inside else inside).to(delta.dtype)

    def energies(self, delta: Float[Tensor, "dim columns"]) -> tuple[Tensor, Tensor]:
        """Return the squared norms of an update's forbidden part and of the whole, in float64.

        Measured on the basis itself, in double precision: the figure proves the constraint, so it must not share its
        rounding.
        """
        basis, working = self.basis.double(), delta.double()
        along = (basis.T @ working).square().sum()
        whole = working.square().sum()
        if not self.inside:
            return along, whole
        return (working - basis @ (basis.T @ working)).square().sum(), whole


def schedule_strength(step: int, strength: float, start_step: int, ramp_steps: int) -> float:
    """Return the strength at an optimizer step (1 for the first): 0 before ``start_step``, then a linear ramp."""
    if step < start_step:
        return 0.0
    return strength if ramp_steps == 0 else strength * min(1.0, (step - start_step + 1) / ramp_steps)


def rounding_floor(weight_norm: float, delta_norm: float) -> float:
    """Return the share of an update's energy that float32 weights cannot help to leak: ``(2^-24 ||W|| / ||d||)^2``."""
    return (2.0**-24 * weight_norm / delta_norm) ** 2 if delta_norm > 0 else float("nan")


def _complement(basis: Float32[Tensor, "dim rank"]) -> Float32[Tensor, "dim rest"]:
    whole, _ = torch.linalg.qr(basis.double(), mode="complete")
    return whole[:, basis.shape[1] :].float()
