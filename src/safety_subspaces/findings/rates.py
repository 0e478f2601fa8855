"""Rates of prompts that stand and fall together: how many answers each is worth, exact intervals, and tests.

A rate of 0 or 1 has no spread among its answers, and a clustered error of exactly 0. Here it has an interval and a
p-value all the same, for they follow from the number of answers and not from their spread.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from safety_subspaces.algebra.statistics import is_measured

Numbers = npt.NDArray[np.float64]
Values = float | Numbers
# The variance of the answers at a rate of one half, the most uncertain one.
WIDEST: Final = 0.25
# Stands for a Beta parameter of 0 where the value is not looked at: SciPy says NaN there, and warns.
TINY: Final = 1e-9


def effective_counts(rates: Numbers, errors: Numbers, prompts: Numbers, groups: Numbers) -> Numbers:
    """Return how many independent answers each of some rates on the same prompts is worth: ``n / d``, at most ``n``.

    The design effect ``d = (sum n s^2 + (n / G) / 4) / (sum r (1 - r) + 1 / 4)`` is one for all of them, since one
    error from two harmful answers says little; those whose error is no spread of their answers
    (:func:`~safety_subspaces.algebra.statistics.is_measured`) are in neither sum. What is added to both sums is one
    rate of one half whose groups answer as one: without it, rates of 0 and 1 alone would not say how far a group stands
    together. It fades as others come.

    Args:
        rates: The rates, 0 to 1.
        errors: Their clustered standard errors.
        prompts: How many answers each is of. NaN where that is not known: then the fewest of the others, or what the
            errors say where none is known.
        groups: In how many groups these are; as many as prompts where no rate knows.

    Returns:
        One number for each rate; NaN where nothing tells it.
    """
    units = np.where(np.isnan(groups), prompts, groups)
    measured = [is_measured(*row) for row in zip(rates.tolist(), errors.tolist(), units.tolist(), strict=True)]
    spread, squares = float((rates * (1 - rates))[measured].sum()), float((errors**2)[measured].sum())
    counted = _filled(prompts, spread / squares if squares > 0 else np.nan)
    within = counted / np.where(np.isnan(groups).all(), counted, _filled(groups, np.nan))
    design = (float((counted * errors**2)[measured].sum()) + WIDEST * within) / (spread + WIDEST)
    return np.asarray(counted / np.maximum(design, 1.0))


def exact_interval(rates: Values, counts: Values, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """Return the Clopper-Pearson interval of each rate, with effective counts for the numbers of answers.

    NaN where the count is.

    Source: Korn and Graubard, Survey Methodology 24 (1998).
    """
    tail, hits, counts = (1 - confidence) / 2, np.asarray(rates * counts), np.asarray(counts)
    low = np.where(hits <= 0, 0.0, stats.beta.ppf(tail, np.maximum(hits, TINY), counts - hits + 1))
    high = np.where(hits >= counts, 1.0, stats.beta.ppf(1 - tail, hits + 1, np.maximum(counts - hits, TINY)))
    return low, high


def p_above(rates: Values, counts: Values, level: float) -> Numbers:
    """Return the one-sided exact p-value that the true rate is at most ``level``; it belongs to the interval above."""
    hits = rates * counts
    return np.where(hits <= 0, 1.0, stats.beta.cdf(level, np.maximum(hits, TINY), counts - hits + 1))


def p_below(rates: Values, counts: Values, level: float) -> Numbers:
    """Return the one-sided exact p-value that the true rate is at least ``level``."""
    return p_above(1 - rates, counts, 1 - level)


def variances(rates: Values, counts: Values) -> Numbers:
    """Return the variance of each rate, with two answers of each kind added: none at 0 or 1 is no certainty.

    Source: Agresti and Coull, The American Statistician 52 (1998).
    """
    centred = (rates * counts + 2) / (counts + 4)
    return np.asarray(centred * (1 - centred) / (counts + 4))


def difference_p_value(first: Values, first_counts: Values, then: Values, then_counts: Values) -> Numbers:
    """Return the two-sided p-value that two rates are the same: the score test, with the rate of both together.

    It takes the answers for independent. The same prompts answered twice are alike, and it then errs on the safe side.
    """
    pooled = (first * first_counts + then * then_counts) / (first_counts + then_counts)
    variance = np.asarray(pooled * (1 - pooled) * (1 / first_counts + 1 / then_counts))
    # Both are 0, or both 1, where there is none.
    z = np.divide(then - first, np.sqrt(np.maximum(variance, 0)), out=np.zeros_like(variance), where=variance != 0)
    return np.asarray(2 * stats.norm.sf(np.abs(z)))


def difference_interval(
    first: Values, first_counts: Values, then: Values, then_counts: Values, confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Return the interval of ``then - first`` from the exact intervals of both, by squaring and adding.

    Source: Newcombe, Statistics in Medicine 17 (1998).
    """
    first_low, first_high = exact_interval(first, first_counts, confidence)
    low, high = exact_interval(then, then_counts, confidence)
    change = then - first
    below, above = np.hypot(then - low, first_high - first), np.hypot(high - then, first - first_low)
    return np.asarray(change - below), np.asarray(change + above)


def _filled(numbers: Numbers, otherwise: float) -> Numbers:
    """Put the least of the numbers that are known where one is not, ``otherwise`` where none is."""
    known = numbers[~np.isnan(numbers)]
    return np.where(np.isnan(numbers), known.min() if len(known) else otherwise, numbers)
