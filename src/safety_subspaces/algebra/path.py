"""How far a subspace turned between two moments of training, and where a short series changes its level.

Change points are described and not tested. What a run measures along its way is cumulative, or driven by the schedule
of its learning rate, and no null of a dozen such values holds. Permutations, which take values for exchangeable,
rejected 23 to 100 % of series without a change at a nominal 5 % (random walks with drift, mean-reverting walks,
saturating curves; 8 to 60 values, 400 of each). A process fitted to the series, ``c + r x + noise`` with r corrected
for its bias, held its level on those (at most 6 %) and not on others without a change: steps under a cosine schedule
15 %, snapshots spaced on a logarithmic scale up to 96 %, a noisy straight line 32 %, heavy tails 13 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log, nan, sqrt

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

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
        move: The first value after it minus the last before: what of the change happened at once.
        usual_move: Median absolute difference of neighbouring values of the series: the noise beside which to see it.
    """

    position: int
    mean_before: float
    mean_after: float
    move: float
    usual_move: float


@dataclass(frozen=True)
class ChangePoints:
    """The changes of level of a series.

    Args:
        n: Number of values.
        changes: In their order; none where one level describes the series best.
        reason: Why none was looked for, or ``None``.
    """

    n: int
    changes: tuple[ChangePoint, ...] = ()
    reason: str | None = None


def find_change_points(values: Sequence[float]) -> ChangePoints:
    """Describe a short series by segments of one level each.

    The segments (two values or more) have the least sum of squares about their means, by dynamic programming; their
    number has the least ``BIC = n log(S / n) + 2 c log n``, where each of the c changes costs a level and a place.

    *That a change is found says nothing*: BIC takes values for independent, and finds changes in plain noise where they
    are few, and in every steady trend, which it fits by steps. What tells a jump from a trend is the move at the change
    beside the usual one: about 1 on a straight line. It is no test: of 400 random walks with drift and without a jump,
    of 8 to 60 values, the largest at any change was above 5 in 5 to 10 %, and a curve that saturates moves most at its
    beginning.

    Args:
        values: The series, finite, at steps that need not be evenly spaced.
    """
    n = len(values)
    if n < LEAST_VALUES:
        return ChangePoints(n, reason=f"{n} values; expected {LEAST_VALUES} or more to tell two levels apart")
    series = np.asarray(values, dtype=np.float64)
    spread = float(series.std())
    if spread <= CONSTANT_WITHIN * float(np.abs(series).max()):
        return ChangePoints(n)
    ends = [0, *_best_segmentation((series - series.mean()) / spread)]
    means = [float(series[start:end].mean()) for start, end in pairwise(ends)]
    moves = np.diff(series)
    usual = float(np.median(np.abs(moves)))
    changes = tuple(
        ChangePoint(end, *levels, float(moves[end - 1]), usual)
        for end, levels in zip(ends[1:-1], pairwise(means), strict=True)
    )
    return ChangePoints(n, changes)


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
