"""Whether two sets of states span one space: a claim with an error bar, instead of a missing p-value.

The overlap of parts of two sets is compared with two levels: that of chance, and the floor, at which parts of one set
overlap. "Overlapping" is claimed where the overlap is significantly above the middle of the two; this rule is fixed
before anything is measured. The power is the probability of the claim if the sets were of one kind.

The error comes from parts that have no prompt in common. An overlap jumps where a subspace gains a direction, and bends
where prompts are few for it; leaving prompts out and factorising again counted both twice, and gave errors of 1.6 to
2.7 times the true deviation. Parts are factorised once, and their overlaps are averaged: of an average the jackknife is
right but for what belongs to single pairs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import nan
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from safety_subspaces.algebra.nulls import TIE_TOLERANCE
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.algebra.statistics import jackknife_error, number_groups
from safety_subspaces.states.chance import StateSpace, chance_overlaps

Verdict = Literal["overlapping", "distinct", "undecided", "undefined"]
LEVEL = 0.05
# Parts of a set. More have fewer prompts each, and so noisier subspaces; fewer leave few degrees of freedom. From 4 to
# 10 the ratio of the floor's distance to its error was the same to a fifth, over six kinds of spectra.
PARTS = 6
# Of three parts, leaving one out leaves a single pair within a set.
FEWEST_PARTS = 4
# Groups of prompts of a part, at least. Of 80 sets of one kind each, in 48 and 96 dimensions, parts of four to six had
# the claim as often as the stated power to 0.15; parts of two had it in 6 %, and a stated power of 0.2 to 0.3.
FEWEST_GROUPS = 4
# Draws of the matched control of each pair of parts, where their mean is kept: 36 pairs have 144, whose mean is good to
# a twelfth of the deviation of one.
CHANCE_DRAWS = 4
# SciPy's noncentral t loses its digits far out, where the power is 1 in any case.
MOST_NONCENTRAL = 30


@dataclass(frozen=True)
class Equivalence:
    """The overlap of two sets of states beside its floor and its chance level, all of parts of the sets.

    Args:
        energy: Share of energy that each subspace holds.
        overlap: Mean overlap of a part of the first set with a part of the second.
        floor_overlap: Mean over the two sets of the overlap of two parts of a set with each other: what one kind has.
        matched_chance: Mean overlap of a part of the first with a part of the second under
            :func:`~.chance.matched_states_control`.
        margin: ``(floor_overlap + matched_chance) / 2``.
        stderr: Jackknife standard error of ``overlap - margin``, over parts; 1.0 to 1.3 times the true deviation.
        p_overlapping: One-sided p-value of "the overlap is at most the margin".
        power: Probability of a p-value below 0.05 if the overlap were the floor, with this standard error.
        verdict: ``overlapping`` or ``distinct`` where the overlap is above or below the margin at 5 %, else
            ``undecided``; ``undefined`` where the floor is not above chance or there are too few prompts.
        parts: Into how many parts each set was cut.
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
    parts: int


def overlap_equivalence(
    first: "StateParts", second: "StateParts", energies: Sequence[float], generator: torch.Generator
) -> list[Equivalence]:
    """Test whether two sets of states overlap as much as parts of one set do, at several energy shares.

    Each set is cut into up to six parts without a group in common. Overlap, floor and chance all compare parts, as an
    overlap depends on how many prompts span its subspaces. With ``o_ij`` and ``c_ij`` the overlap and the chance level
    of part i of the first set and part j of the second, and ``f`` the overlaps of two parts of one set, what is tested
    is ``mean(o) - (mean(f) + mean(c)) / 2``; its variance is the sum of the two sets' jackknife variances, each
    leaving out one part, with Student's t and Welch's degrees of freedom.

    The jackknife counts what belongs to single pairs of parts twice, so that the test is somewhat conservative. At the
    margin it claimed "overlapping" in 2 to 5 % of 400 samples and "distinct" in as many, where 5 % are nominal
    (``benchmarks/nulls/states.py``).

    Args:
        first: The first set.
        second: The second.
        energies: The shares.
        generator: Source of the signs that chance is drawn with, where the mean is kept.

    Returns:
        One result for each share.

    Source: equivalence tests, Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987); the jackknife of averages over pairs,
        Arvesen, Ann. Math. Stat. 40 (1969), which is conservative by Efron and Stein, Ann. Stat. 9 (1981).
    """
    count = min(PARTS, *(parts.n_groups // FEWEST_GROUPS for parts in (first, second)))
    if count < FEWEST_PARTS:
        return [Equivalence(energy, nan, nan, nan, nan, nan, nan, nan, "undefined", count) for energy in energies]
    spaces = first.spaces(count), second.spaces(count)
    pairs = [[(one, other) for other in spaces[1]] for one in spaces[0]]
    across = np.array([[_overlaps(*pair, energies) for pair in row] for row in pairs])
    chance = np.array([[chance_overlaps(*pair, energies, CHANCE_DRAWS, generator) for pair in row] for row in pairs])
    within = [parts.overlaps_within(count, tuple(energies)) for parts in (first, second)]
    compared = [
        _Compared(*(values[:, :, index] for values in (across, chance, *within))) for index in range(len(energies))
    ]
    return [_judge(energy, levels) for energy, levels in zip(energies, compared, strict=True)]


class StateParts:
    """A set of states in random parts, whole groups of prompts at a time; factorised when needed.

    Args:
        states: One row a prompt.
        generator: Source of the parts.
        center: Whether the mean of each part is taken out.
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
        self.n_groups = int(self._dealt.max()) + 1 if len(states) else 0
        self.spaces = cache(self._cut)
        self.overlaps_within = cache(self._compare_within)

    def _cut(self, count: int) -> list[StateSpace]:
        """The parts, numbered by turns."""
        return [StateSpace(self._states[self._dealt % count == part], self._center) for part in range(count)]

    def _compare_within(self, count: int, energies: tuple[float, ...]) -> np.ndarray:
        """Overlaps of each part with each other one ``(part, part, energy)``; 0 on the diagonal."""
        overlaps = np.zeros((count, count, len(energies)))
        spaces = self.spaces(count)
        for one, other in combinations(range(count), 2):
            overlaps[one, other] = overlaps[other, one] = _overlaps(spaces[one], spaces[other], energies)
        return overlaps


def deal(groups: Sequence[Hashable], generator: torch.Generator) -> Int[Tensor, " prompt"]:
    """Number the groups in random order, and return each prompt's number: by turns they go to the parts.

    Dealt out like cards: parts differ by at most one group.
    """
    return torch.randperm(len(set(groups)), generator=generator)[number_groups(groups)]


@dataclass(frozen=True)
class _Compared:
    """Overlaps and chance levels of parts of two sets, and of two parts of each, at one share of energy."""

    across: np.ndarray
    chance: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def levels(self, without: tuple[int | None, int | None] = (None, None)) -> tuple[float, float, float]:
        """Return overlap, floor and chance, without a part of the first set or of the second."""
        kept = [[part for part in range(len(self.across)) if part != left_out] for left_out in without]
        floors = [
            inside[np.ix_(parts, parts)].sum() / (len(parts) * (len(parts) - 1))
            for inside, parts in zip((self.first, self.second), kept, strict=True)
        ]
        chosen = np.ix_(*kept)
        return float(self.across[chosen].mean()), float(np.mean(floors)), float(self.chance[chosen].mean())

    def from_margin(self, without: tuple[int | None, int | None] = (None, None)) -> float:
        """Return how far the overlap lies above the margin."""
        overlap, floor, chance = self.levels(without)
        return overlap - (floor + chance) / 2

    def variances(self) -> np.ndarray:
        """Return the jackknife variance that each set's parts have of it."""
        count = range(len(self.across))
        left_out = [
            [self.from_margin((part, None)) for part in count],
            [self.from_margin((None, part)) for part in count],
        ]
        return np.array([jackknife_error(np.array(values)) ** 2 for values in left_out])


def _overlaps(first: StateSpace, second: StateSpace, energies: Sequence[float]) -> list[float]:
    return [overlap.value for overlap in mode_subspace_overlap(first.factors, second.factors, energies)]


def _judge(energy: float, compared: _Compared) -> Equivalence:
    overlap, floor, chance = compared.levels()
    count = len(compared.across)
    margin, variances = (floor + chance) / 2, compared.variances()
    stderr = float(np.sqrt(variances.sum()))
    if not floor > chance + TIE_TOLERANCE or not np.isfinite([overlap, stderr]).all():
        return Equivalence(energy, overlap, floor, chance, margin, stderr, nan, nan, "undefined", count)
    if stderr > 0:
        freedom = float(variances.sum() ** 2 / (variances**2).sum()) * (count - 1)
        p_value = float(stats.t.sf((overlap - margin) / stderr, freedom))
        distance = (floor - margin) / stderr
        threshold = float(stats.t.isf(LEVEL, freedom))
        power = float(stats.nct.sf(threshold, freedom, distance)) if distance < MOST_NONCENTRAL else 1.0
    else:  # parts that are one space to the last bit: nothing varies, and the sign alone decides
        p_value, power = float(overlap <= margin), 1.0
    verdict: Verdict = "overlapping" if p_value < LEVEL else "distinct" if p_value > 1 - LEVEL else "undecided"
    return Equivalence(energy, overlap, floor, chance, margin, stderr, p_value, power, verdict, count)
