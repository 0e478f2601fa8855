"""From numbers of single tensors to one number with an interval: aggregation and the hierarchical bootstrap.

Vectorised over columns, which are choices of rank and subjects: for a linear aggregation a resample of tensors is a
vector of counts, and all resamples of all columns are one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

Array = np.ndarray
Aggregation = Literal["pooled", "mean", "median", "blocks"]
AGGREGATIONS: Final[tuple[Aggregation, ...]] = get_args(Aggregation)
CONFIDENCE: Final = 0.95
# Fewer tensors (or seeds) than this have no interval: the range of two covers their centre half of the time, that of
# three in three cases of four.
LEAST_UNITS: Final = 3
# A share of energy below a millionth of chance is rounding of float32, and its logarithm would be anything.
LEAST_RATIO: Final = 2.0**-20
# The most numbers that an array of counts has in memory: 64 MB.
CHUNK: Final = 2**24


@dataclass(frozen=True)
class Term:
    """``sum_t w_t x_t / sum_t w_t y_t`` over tensors t; every array is ``(seed, tensor, column)``.

    Args:
        x: What is summed above.
        y: What is summed below.
        weight: w of the pooled aggregation; all others weigh tensors alike.
    """

    x: Float[Array, "seed tensor column"]
    y: Float[Array, "seed tensor column"]
    weight: Float[Array, "seed tensor column"]


@dataclass(frozen=True)
class Statistic:
    """A number of each tensor, and of many: a signed sum of terms.

    Args:
        terms: The terms.
        signs: The factor of each.
        each: What one tensor has, for the median; NaN where a tensor is left out, of all aggregations.
        logarithm: Whether the base-2 logarithm of the sum is taken.
    """

    terms: tuple[Term, ...]
    signs: tuple[float, ...]
    each: Float[Array, "seed tensor column"]
    logarithm: bool = False

    @property
    def defined(self) -> Bool[Array, "seed tensor column"]:
        """Which tensors count."""
        return ~np.isnan(self.each)

    def part(self, tensors: Sequence[int] | Int[Array, " tensor"]) -> "Statistic":
        """Return the statistic of some tensors."""
        terms = tuple(Term(term.x[:, tensors], term.y[:, tensors], term.weight[:, tensors]) for term in self.terms)
        return Statistic(terms, self.signs, self.each[:, tensors], self.logarithm)


@dataclass(frozen=True)
class Resamples:
    """Resamples of seeds, and of the tensors of each drawn seed.

    Args:
        seeds: Which seeds were drawn.
        counts: How often each tensor was, for each of them.
    """

    seeds: Int[Array, "resample draw"]
    counts: Int[Array, "resample draw tensor"]


def resample(seeds: Sequence[int], tensors: int, count: int, generator: np.random.Generator) -> Resamples:
    """Draw as many seeds as there are with replacement, then for each as many tensors as there are."""
    drawn = generator.integers(0, len(seeds), (count, len(seeds)))
    counts = generator.multinomial(tensors, np.full(tensors, 1 / tensors), size=(count, len(seeds)))
    return Resamples(np.asarray(seeds)[drawn], counts)


def estimate(statistic: Statistic, seeds: Sequence[int], aggregation: Aggregation) -> Float[Array, " column"]:
    """Aggregate the tensors of each seed, and average the seeds that have a number."""
    every = np.ones((1, statistic.each.shape[1]))
    return _mean(np.stack([aggregate(statistic, seed, every, aggregation)[0] for seed in seeds], axis=0), axis=0)


def bootstrap(statistic: Statistic, resamples: Resamples, aggregation: Aggregation) -> Float[Array, "resample column"]:
    """Return the estimate of every resample.

    Seeds are drawn before tensors, since tensors of one seed share its models: resampled alone they would show what
    another set of tensors would give, not another training. Three seeds give a coarse interval: there are ten
    different draws of them, and one in nine is of a single seed.
    """
    columns = statistic.each.shape[2]
    estimates = np.full((*resamples.seeds.shape, columns), np.nan)
    for seed in np.unique(resamples.seeds):
        rows = resamples.seeds == seed
        estimates[rows] = aggregate(statistic, int(seed), resamples.counts[rows], aggregation)
    return _mean(estimates, axis=1)


def aggregate(
    statistic: Statistic,
    seed: int,
    counts: Float[Array, "row tensor"] | Int[Array, "row tensor"],
    aggregation: Aggregation,
) -> Float[Array, "row column"]:
    """Return the number of one seed's tensors, each taken so many times; NaN where none of them is defined.

    ``pooled`` weighs by energy; ``mean`` and ``blocks`` weigh tensors alike (blocks is of tensors that were chosen
    before); ``median`` is that of the tensors.
    """
    defined = statistic.defined[seed]
    if aggregation == "median":
        return _weighted_median(np.where(defined, statistic.each[seed], np.nan), counts.astype(np.int32))
    counts, total = counts.astype(np.float64), 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for sign, term in zip(statistic.signs, statistic.terms, strict=True):
            weight = term.weight[seed] if aggregation == "pooled" else 1.0
            above, below = (np.where(defined, weight * side[seed], 0.0) for side in (term.x, term.y))
            total = total + sign * (counts @ above) / (counts @ below)
        return np.log2(np.maximum(total, LEAST_RATIO)) if statistic.logarithm else np.asarray(total)


def interval(
    samples: Float[Array, "resample column"], units: Int[Array, " column"]
) -> tuple[Float[Array, " column"], Float[Array, " column"]]:
    """Return the two-sided 95 % percentile interval of resampled estimates, widened where there are few units.

    Percentiles of the bootstrap are too narrow by ``sqrt((n - 1) / n)`` and by the normal's quantile in the place of
    Student's: the levels are those at which a normal would have the right width. NaN below three units.

    Args:
        samples: Estimates of the resamples; NaN is left out.
        units: n of each column: seeds where there are several, else tensors.

    Source: Hesterberg, The American Statistician 69 (2015), the expanded percentile interval.
    """
    enough = units >= LEAST_UNITS
    n = np.where(enough, units, LEAST_UNITS)
    reach = np.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)
    level = stats.norm.cdf(-reach)
    ordered = np.sort(samples, axis=0)  # NaN comes last
    last = (~np.isnan(samples)).sum(axis=0) - 1
    enough &= last >= 0
    low, high = (_quantile(ordered, last, q) for q in (level, 1 - level))
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _quantile(ordered: Array, last: Array, level: Array) -> Array:
    position = np.maximum(last, 0) * level
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, np.maximum(last, 0))
    columns = np.arange(ordered.shape[1])
    lower, upper = ordered[below, columns], ordered[above, columns]
    return lower + (position - below) * (upper - lower)


def _weighted_median(values: Float[Array, "tensor column"], counts: Int[Array, "row tensor"]) -> Array:
    """Return the median of each column, every tensor taken as often as a row says; NaN is left out."""
    medians = np.full((len(counts), values.shape[1]), np.nan)
    step = max(1, CHUNK // max(1, counts.size))
    for start in range(0, values.shape[1], step):
        part = values[:, start : start + step]
        order = np.argsort(part, axis=0)  # NaN comes last
        ordered = np.take_along_axis(part, order, axis=0)
        number = counts[:, order] * ~np.isnan(ordered)  # (row, tensor, column)
        reached = 2 * number.cumsum(axis=1, dtype=np.int32)
        total = reached[:, -1:] // 2
        lower, upper = (reached >= total).argmax(axis=1), (reached > total).argmax(axis=1)
        columns = np.arange(part.shape[1])
        median = (ordered[lower, columns] + ordered[upper, columns]) / 2
        medians[:, start : start + step] = np.where(total[:, 0] > 0, median, np.nan)
    return medians


def _mean(values: Array, axis: int) -> Array:
    known = ~np.isnan(values)
    number = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
