"""How far a subspace turned between two moments of training, and where a short series changes its level."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import comb, log, nan, sqrt

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from safety_subspaces.algebra.statistics import permutation_p_value
from safety_subspaces.algebra.subspace import seeded_generator

# Fewest values of a segment: the mean of a single value is no level.
LEAST_SEGMENT = 2
# A series of fewer values cannot be cut into two segments.
LEAST_VALUES = 2 * LEAST_SEGMENT
# The dynamic programme costs n^2 for each further change; a run that changes its level more often has no levels.
MOST_CHANGES = 5
# What rounding leaves of a series that does not vary, as a share of its size; and the least share of the variance that
# a segmentation can leave, so that a logarithm of zero is none.
CONSTANT_WITHIN = 1e-12
LEAST_SHARE = 1e-12
# Gains of permuted series that differ by less are ties: rounding of float64 sums.
TIE_TOLERANCE = 1e-9


def rms_angle(angles: Float64[Tensor, " count"]) -> float:
    """Return ``sqrt(mean theta_i^2)``: the geodesic distance on the Grassmannian over the root of its dimension.

    In ``[0, pi / 2]``, whatever the rank; NaN without an angle.
    """
    return float(angles.square().mean().sqrt()) if angles.numel() else nan


def haar_rms_angle(dim: int, rank_first: int, rank_second: int, draws: int, seed: int) -> float:
    """Return the rms angle that two independent Haar-random subspaces have, as the mean of seeded draws.

    Only one of the two is drawn: the distribution knows only how they lie to each other. NaN where one is empty.
    """
    smaller, larger = sorted((rank_first, rank_second))
    return _haar_rms_angle(dim, smaller, larger, draws, seed) if smaller else nan


@dataclass(frozen=True)
class ChangePoint:
    """A change of level in a series.

    Args:
        position: Index of the first value after it.
        mean_before: Mean of the segment that ends there.
        mean_after: Mean of the segment that begins there.
        p_value: Of the strongest change of the series, see :func:`find_change_points`; NaN at the others.
    """

    position: int
    mean_before: float
    mean_after: float
    p_value: float


@dataclass(frozen=True)
class ChangePoints:
    """The changes of level of a series.

    Args:
        n: Number of values.
        changes: In their order; none where one level describes the series best.
        p_value: Of the hypothesis that the order of the values says nothing; NaN where it was not tested.
        reason: Why it was not, or ``None``.
    """

    n: int
    changes: tuple[ChangePoint, ...] = ()
    p_value: float = nan
    reason: str | None = None


def find_change_points(values: Sequence[float], permutations: int, generator: torch.Generator) -> ChangePoints:
    """Find where a short series changes its level, and test whether it does at all.

    The segments (two values or more) have the least sum of squares about their means, by dynamic programming; their
    number has the least ``BIC = n log(S / n) + 2 c log n``, where each of the c changes costs a level and a place. In a
    series of a dozen values BIC finds changes in plain noise: read the p-value. It is
    ``(1 + #{permuted >= observed}) / (1 + permutations)`` of the largest drop in the sum of squares that any single
    change gives, and belongs to the strongest change.

    A *trend counts as a change of level* too: a steady rise is fitted by steps, and no permuted series rises steadily.
    The permutations assume values that are *exchangeable* when nothing changes; those of neighbouring snapshots are
    often alike for other reasons, and then p is too small.

    Args:
        values: The series, finite, at steps that need not be evenly spaced.
        permutations: How many; the p-value is not below ``1 / (1 + permutations)``.
        generator: Source of the permutations.
    """
    n = len(values)
    if n < LEAST_VALUES:
        return ChangePoints(n, reason=f"{n} values; expected {LEAST_VALUES} or more to tell two levels apart")
    series = np.asarray(values, dtype=np.float64)
    spread = float(series.std())
    if spread <= CONSTANT_WITHIN * float(np.abs(series).max()):
        return ChangePoints(n, p_value=1.0)
    standard = torch.from_numpy((series - series.mean()) / spread)
    order = torch.rand(permutations, n, generator=generator).argsort(dim=1)
    observed, permuted = _largest_gain(standard[None]), _largest_gain(standard[order])
    p_value = permutation_p_value(int((permuted >= observed - TIE_TOLERANCE).sum()), permutations)
    ends = [0, *_best_segmentation(standard.numpy())]
    means = [float(series[start:end].mean()) for start, end in pairwise(ends)]
    gains = [
        (means[i] - means[i + 1]) ** 2 / (1 / (ends[i + 1] - ends[i]) + 1 / (ends[i + 2] - ends[i + 1]))
        for i in range(len(means) - 1)
    ]
    strongest = int(np.argmax(gains)) if gains else -1
    changes = tuple(
        ChangePoint(ends[i + 1], means[i], means[i + 1], p_value if i == strongest else nan) for i in range(len(gains))
    )
    return ChangePoints(n, changes, p_value)


def least_p_value(n: int) -> float:
    """Return the least p-value that permutations of n different values can give: ``2 / C(n, n // 2)``.

    That of two levels of equal length: one order of the halves and the other have the same gain. 0.1 of six values,
    below 0.05 of eight or more.
    """
    return min(1.0, 2 / comb(n, n // 2))


def _best_segmentation(series: np.ndarray) -> list[int]:
    """Return the ends of the segments that BIC chooses, the last one at the end of the series of variance 1."""
    import ruptures  # other subcommands need not pay for it

    n = len(series)
    search = ruptures.Dynp(model="l2", min_size=LEAST_SEGMENT, jump=1).fit(series)
    best, lowest = [n], 0.0  # one segment of variance 1
    for changes in range(1, min(MOST_CHANGES, n // LEAST_SEGMENT - 1) + 1):
        ends = search.predict(n_bkps=changes)
        share = max(search.cost.sum_of_costs(ends) / n, LEAST_SHARE)
        criterion = n * log(share) + 2 * changes * log(n)
        if criterion < lowest:
            best, lowest = ends, criterion
    return [int(end) for end in best]


def _largest_gain(series: Float64[Tensor, "many step"]) -> Float64[Tensor, " many"]:
    """Return how much one change at the best place takes from the sum of squares of each series of mean 0."""
    n = series.shape[1]
    before = torch.arange(LEAST_SEGMENT, n - LEAST_SEGMENT + 1, dtype=torch.float64)
    sums = series.cumsum(dim=1)[:, LEAST_SEGMENT - 1 : n - LEAST_SEGMENT]
    return (sums.square() * n / (before * (n - before))).amax(dim=1)


@cache
def _haar_rms_angle(dim: int, smaller: int, larger: int, draws: int, seed: int) -> float:
    if larger == dim:  # the whole space contains every other
        return 0.0
    generator = seeded_generator(seed, "angle", dim, smaller, larger)
    total = 0.0
    for _ in range(draws):
        frame = torch.linalg.qr(torch.randn(dim, smaller, generator=generator, dtype=torch.float64)).Q
        # The other subspace is spanned by the first axes: the cosines are the singular values of these rows.
        cosines = torch.linalg.svdvals(frame[:larger])
        total += sqrt(float(cosines.clamp(max=1).arccos().square().mean()))
    return total / draws
