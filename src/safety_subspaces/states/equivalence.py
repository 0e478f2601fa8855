"""Whether two sets of states span one space: a claim with an error bar, instead of a missing p-value.

The overlap of two sets is compared with two levels: that of chance, and the floor, at which two halves of one set
overlap. "Overlapping" is claimed where the overlap is significantly above the middle of the two; this rule is fixed
before anything is measured. The power is the probability of the claim if the sets were of one kind.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import nan
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import Factors, left_factors
from safety_subspaces.algebra.nulls import matched_overlap
from safety_subspaces.algebra.overlap import prefix_sums
from safety_subspaces.algebra.statistics import jackknife_error, number_groups

Verdict = Literal["overlapping", "distinct", "undecided", "undefined"]
LEVEL = 0.05
# Folds of the jackknife: its t distribution has one degree of freedom less, and from 20 on is close to the normal.
FOLDS = 20


@dataclass(frozen=True)
class Equivalence:
    """The overlap of two sets of states beside its floor and its chance level, all of halves of the sets.

    Args:
        energy: Share of energy that each subspace holds.
        overlap: Mean overlap of a half of the first set with a half of the second.
        floor_overlap: Mean over the two sets of the overlap of a set's halves with each other: what one kind has.
        matched_chance: Mean overlap under the matched control of :func:`~.nulls.matched_control`.
        margin: ``(floor_overlap + matched_chance) / 2``.
        stderr: Jackknife standard error of ``overlap - margin``.
        p_overlapping: One-sided p-value of "the overlap is at most the margin".
        power: Probability of a p-value below 0.05 if the overlap were the floor, with this standard error.
        verdict: ``overlapping`` or ``distinct`` where the overlap is above or below the margin at 5 %, else
            ``undecided``; ``undefined`` where the floor is not above chance or there are too few prompts.
    """

    energy: float
    overlap: float
    floor_overlap: float
    matched_chance: float
    margin: float
    stderr: float
    p_overlapping: float
    power: float
    verdict: Verdict


def overlap_equivalence(first: "StateHalves", second: "StateHalves", energies: Sequence[float]) -> list[Equivalence]:
    """Test whether two sets of states overlap as much as halves of one set do, at several energy shares.

    Overlap, floor and chance all compare halves, as an overlap depends on how many prompts span its subspaces. The
    standard error is that of a jackknife that leaves out one of up to 20 folds of the groups of both sets, with
    Student's t.

    Args:
        first: The first set.
        second: The second.
        energies: The shares.

    Returns:
        One result for each share.

    Source: equivalence tests, Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987); the grouped jackknife, Shao and Tu,
        The Jackknife and Bootstrap (1995), section 2.3.
    """
    folds = min(FOLDS, first.fewest_groups, second.fewest_groups)
    if folds < 2:
        return [Equivalence(energy, nan, nan, nan, nan, nan, nan, nan, "undefined") for energy in energies]
    whole = [_compare(first, second, energy, folds, None) for energy in energies]
    left_out = [[_compare(first, second, energy, folds, fold) for fold in range(folds)] for energy in energies]
    return [_judge(*row) for row in zip(energies, whole, left_out, strict=True)]


class StateHalves:
    """A set of states in two random halves, each in folds, whole groups of prompts at a time; factorised when needed.

    Args:
        states: One row a prompt.
        generator: Source of the halves and folds.
        center: Whether the mean of each half is taken out.
        groups: What prompts that stand and fall together share; each for itself by default.
    """

    def __init__(
        self,
        states: Float[Tensor, "prompt hidden"],
        generator: torch.Generator,
        center: bool = False,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        self._states = states.double()
        self._center = center
        self._dealt = deal(range(len(states)) if groups is None else groups, generator)
        self.fewest_groups = (int(self._dealt.max()) + 1) // 2 if len(states) else 0
        self._factors: Callable[[int, int, int | None], Factors] = cache(self._factorise)
        self._mean = self._states.mean(dim=0)

    def bases(self, energy: float, folds: int, left_out: int | None) -> Iterator[Float[Tensor, "hidden rank"]]:
        """Yield the basis of each half at an energy share, without one of its folds."""
        for half in (0, 1):
            factors = self._factors(half, folds, left_out)
            yield factors.basis[:, : rank_of_energy(factors.singular_values, energy)]

    @property
    def mean_direction(self) -> Tensor | None:
        """The mean, which the matched control leaves as it is; ``None`` where it was taken out of the states."""
        return None if self._center else self._mean

    def _factorise(self, half: int, folds: int, left_out: int | None) -> Factors:
        chosen = self._dealt % 2 == half
        if left_out is not None:
            chosen &= (self._dealt // 2) % folds != left_out
        rows = self._states[chosen]
        return left_factors((rows - rows.mean(dim=0) if self._center else rows).T)


def deal(groups: Sequence[Hashable], generator: torch.Generator) -> Int[Tensor, " prompt"]:
    """Number the groups in random order, and return each prompt's number: even and odd ones are its halves.

    Dealt out like cards: the halves differ by at most one group.
    """
    return torch.randperm(len(set(groups)), generator=generator)[number_groups(groups)]


def _compare(
    first: StateHalves, second: StateHalves, energy: float, folds: int, left_out: int | None
) -> tuple[float, ...]:
    """Overlap, floor and chance, without one fold."""
    bases = [list(halves.bases(energy, folds, left_out)) for halves in (first, second)]
    common = shared_direction(first.mean_direction, second.mean_direction)
    across = list(product(*bases))
    overlap = np.mean([_overlap(one, other) for one, other in across])
    floor = np.mean([_overlap(one, other) for one, other in bases])
    chance = np.mean([matched_overlap(one, other, common) for one, other in across])
    return float(overlap), float(floor), float(chance)


def shared_direction(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the direction between two means, each at unit length; ``None`` where there is none."""
    if first is None or second is None or not first.any() or not second.any():
        return None
    return first / first.norm() + second / second.norm()


def _overlap(first: Tensor, second: Tensor) -> float:
    ranks = (first.shape[1], second.shape[1])
    return prefix_sums(first.T @ second, [ranks])[0] / min(ranks) if min(ranks) else nan


def _judge(energy: float, whole: tuple[float, ...], left_out: Sequence[tuple[float, ...]]) -> Equivalence:
    overlap, floor, chance = whole
    margin = (floor + chance) / 2
    values = np.array([o - (f + c) / 2 for o, f, c in left_out])
    folds = len(values)
    stderr = jackknife_error(values)
    if not floor > chance or not np.isfinite(values).all() or not np.isfinite(overlap):
        return Equivalence(energy, overlap, floor, chance, margin, stderr, nan, nan, "undefined")
    # Halves of one set can be the same space to the last bit: then nothing varies, and the sign alone decides.
    statistic = (overlap - margin) / stderr if stderr > 0 else float(np.copysign(np.inf, overlap - margin))
    p_value = float(stats.t.sf(statistic, folds - 1))
    threshold = float(stats.t.isf(LEVEL, folds - 1))
    distance = (floor - margin) / stderr if stderr > 0 else np.inf
    power = float(stats.nct.sf(threshold, folds - 1, distance)) if np.isfinite(distance) and distance < 30 else 1.0
    verdict: Verdict = "overlapping" if p_value < LEVEL else "distinct" if p_value > 1 - LEVEL else "undecided"
    return Equivalence(energy, overlap, floor, chance, margin, stderr, p_value, power, verdict)
