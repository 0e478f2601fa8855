"""What two sets of states overlap by chance: the matched control of :mod:`~safety_subspaces.algebra.nulls` for states.

Some coordinates of a residual stream are large whatever the prompt says, and so is their mean, which nearly all prompts
share. Sets that have nothing else in common overlap far more than uniformly random subspaces do. The control keeps the
scale of each coordinate, and the mean where it was not taken out, and lets the rest point anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.nulls import TIE_TOLERANCE, matched_control, matched_overlap
from safety_subspaces.algebra.overlap import Overlap, prefix_sums
from safety_subspaces.algebra.rank_one import leading_of_rank_one_update
from safety_subspaces.algebra.statistics import permutation_p_value
from safety_subspaces.states.capture import state_factors
from safety_subspaces.states.moments import StateMoments

# A mean that lies in the span of the deviations but for less than this share is inside it: bases are kept in float32,
# orthonormal to a few 1e-6.
INSIDE_WITHIN = 1e-5


@dataclass(frozen=True)
class StatesControl:
    """The level and the p-value of an overlap under the matched control; NaN where the overlap is undefined."""

    mean: float
    p_value: float


@final
class StateSpace:
    """The directions of a set of states, and of their deviations from the mean; each factorised when it is needed.

    Args:
        states: One row a state, or the moments of any number of them.
        center: Whether the mean is taken out.
        share: Share of the energy that the directions are to hold.
    """

    def __init__(
        self, states: Float[Tensor, "prompt hidden"] | StateMoments, center: bool = False, share: float = 1.0
    ) -> None:
        self._states, self._share = states, share
        self.center = center

    def __len__(self) -> int:
        """Return how many states there are."""
        return len(self._states) if isinstance(self._states, Tensor) else self._states.count

    @cached_property
    def factors(self) -> Factors:
        """The directions that are compared."""
        return self._factorised(self.center, self._share)

    @cached_property
    def deviations(self) -> Factors:
        """All directions of the states less their mean."""
        return self._factorised(True, 1.0)

    @cached_property
    def mean(self) -> Float64[Tensor, " hidden"]:
        """The mean."""
        return self._states.double().mean(dim=0) if isinstance(self._states, Tensor) else self._states.mean

    def _factorised(self, center: bool, share: float) -> Factors:
        states = self._states
        return state_factors(states, center) if isinstance(states, Tensor) else states.factors(center, share)


def matched_states_control(
    first: StateSpace, second: StateSpace, overlaps: Sequence[Overlap], draws: int, generator: torch.Generator
) -> list[StatesControl]:
    """Compare overlaps with those of the same pair after each coordinate of one set gets a random sign.

    ``p = (1 + #{null >= observed}) / (1 + draws)``. Of centred sets this is :func:`~.nulls.matched_control`. Of
    uncentred ones the deviations from the mean get the signs and the mean does not: with ``n m m^T + S`` the second
    moments of a set, its scatter S becomes ``D S D`` with a diagonal D of signs, and each draw's subspace is that of
    ``n m m^T + D S D``, cut at the same share of energy. Where means, and scales of coordinates, are all that two sets
    share, and deviations are as likely with any signs as without, observed and drawn overlaps have one distribution,
    whatever the scales and means. Of 400 pairs in each of 26 worlds (32 to 96 dimensions, lognormal scales of 0.3 to
    1.2, five kinds of means, 60 to 200 prompts, shares 0.5 and 0.9) p was at most 0.05 in 3.5 to 7 %, 5.1 % in the
    mean. Turning the mean onto a coordinate axis, and giving signs to all other axes, rejects up to 46 % there: the
    turn mixes large coordinates with small ones.

    Which of the two gets the signs makes no difference to what is tested: the one of fewer states, as it costs less.

    Args:
        first: The first set.
        second: The second, centred or not as the first is.
        overlaps: What :func:`~safety_subspaces.algebra.overlap.mode_subspace_overlap` gave for the two.
        draws: Sets of signs; 0 gives NaN.
        generator: Source of the signs.

    Returns:
        Mean and p-value for each overlap, NaN where it is undefined.
    """
    if first.center:
        controls = matched_control(first.factors, second.factors, overlaps, draws, generator)
        return [StatesControl(control.mean, control.p_value) for control in controls]
    missing = StatesControl(float("nan"), float("nan"))
    defined = [overlap for overlap in overlaps if overlap.reason is None]
    if draws == 0 or not defined:
        return [missing for _ in overlaps]
    null = _signed_overlaps(first, second, [overlap.energy for overlap in defined], draws, generator)
    observed = torch.tensor([overlap.value for overlap in defined], dtype=torch.float64)
    exceeding = (null >= observed - TIE_TOLERANCE).sum(dim=0).tolist()
    p_values = [permutation_p_value(count, draws) for count in exceeding]
    levels = iter(zip(null.mean(dim=0).tolist(), p_values, strict=True))
    return [StatesControl(*next(levels)) if overlap.reason is None else missing for overlap in overlaps]


def chance_overlaps(
    first: StateSpace, second: StateSpace, energies: Sequence[float], draws: int, generator: torch.Generator
) -> list[float]:
    """Return the mean overlap under the matched control at each share of energy; NaN where a set has no direction.

    Of centred sets over all signs, in closed form; of uncentred ones over so many draws.
    """
    if first.factors.numerical_rank == 0 or second.factors.numerical_rank == 0:
        return [float("nan")] * len(energies)
    if not first.center:
        return _signed_overlaps(first, second, energies, draws, generator).mean(dim=0).tolist()
    bases = [
        [space.factors.basis[:, : rank_of_energy(space.factors.singular_values, share)] for share in energies]
        for space in (first, second)
    ]
    return [matched_overlap(*pair) for pair in zip(*bases, strict=True)]


def _signed_overlaps(
    first: StateSpace, second: StateSpace, energies: Sequence[float], draws: int, generator: torch.Generator
) -> Float64[Tensor, "draw energy"]:
    """Overlaps of uncentred sets after the deviations of the smaller one get random signs, and its mean does not."""
    fixed, signed = (first, second) if len(second) <= len(first) else (second, first)
    ranks = [rank_of_energy(fixed.factors.singular_values, share) for share in energies]
    basis, mean = fixed.factors.basis[:, : max(ranks)], signed.mean * sqrt(len(signed))
    directions = signed.deviations.basis
    values = torch.cat([signed.deviations.singular_values, torch.zeros(1, dtype=torch.float64)])
    held = torch.tensor(energies, dtype=torch.float64) * (values.square().sum() + mean.square().sum())
    null = torch.empty(draws, len(energies), dtype=torch.float64)
    for draw in range(draws):
        # Seen from the deviations, it is the mean and the other set that get the signs: they stay factorised.
        signs = torch.randint(0, 2, (len(mean),), generator=generator, dtype=torch.float64) * 2 - 1
        turned, turned_mean = basis * signs[:, None].to(basis), mean * signs
        along = directions.T.double() @ turned_mean
        beyond = turned_mean - directions.double() @ along
        length = float(beyond.norm())
        if length <= INSIDE_WITHIN * float(turned_mean.norm()):
            beyond, length = torch.zeros_like(beyond), 0.0
        rest = beyond / length if length else beyond
        coordinates = torch.cat([directions.T @ turned, (rest.to(basis) @ turned)[None]])
        changed = torch.cat([along, torch.tensor([length], dtype=torch.float64)])
        squares, vectors = leading_of_rank_one_update(values, changed, max(energies))
        widths = (torch.searchsorted(squares.cumsum(0), held) + 1).clamp(max=len(squares))
        pairs = list(zip(ranks, widths.tolist(), strict=True))
        sums = prefix_sums(coordinates.T @ vectors.to(basis), pairs)
        null[draw] = torch.tensor([value / min(pair) for value, pair in zip(sums, pairs, strict=True)])
    return null
