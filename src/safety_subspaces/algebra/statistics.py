"""What several measurements reckon errors and p-values by: groups of prompts, the jackknife over them, permutations.

Prompts that share something stand and fall together. What they share is given by *groupings*: lists with a key for each
prompt. One list where prompts share one thing; two where they share two that cross, such as a verb and an object.
"""

from collections.abc import Callable, Hashable, Sequence
from math import isclose, isnan, nan, sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError

Groupings = Sequence[Sequence[Hashable]]
# Standard errors to each side of a normal 95 % interval, as those reach who read a table's errors.
Z95 = float(ndtri(0.975))
# With fewer groups than this of another answer than the common one an error rests on as few terms: it is then at least
# that of a sample without any, whose Wilson interval allows for as many, z^2 = 3.84.
FEW_DISSENTERS = 4


def number_groups(groups: Sequence[Hashable]) -> Int[Tensor, " prompt"]:
    """Return the number of each prompt's group, in the order of their first prompts."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups], dtype=torch.long)


def jackknife_error(left_out: Float[Tensor, " fold"] | Float[np.ndarray, " fold"]) -> float:
    """Return ``sqrt((k - 1) / k * sum_i (x_i - mean)^2)`` of k estimates that each leave one fold out.

    NaN below two folds, or where one of the estimates is.
    """
    count = len(left_out)
    spread = float(((left_out - left_out.mean()) ** 2).sum())
    return sqrt((count - 1) / count * spread) if count > 1 and spread == spread else nan


def clustered_error(values: Sequence[float] | NDArray[np.float64], groupings: Groupings) -> float:
    """Return the standard error of a mean, robust to items that share a key in one grouping, or in either of two.

    One-way: ``V = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2`` over G groups; with every item a group of
    its own the ordinary ``s^2 / n``. Two-way: ``V_1 + V_2 - V_12``, where the groups of ``V_12`` share both keys; each
    has its own factor ``G / (G - 1)``, and it is never below the larger of ``V_1`` and ``V_2``.

    Args:
        values: One for each item.
        groupings: One or two lists of keys, one for each item.

    Returns:
        NaN where one of the groupings has fewer than two groups.

    Raises:
        InputError: No grouping, more than two, or one that has not a key for each item.

    Source: Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 29 (2011), section 2.
    """
    items = np.asarray(values, dtype=float)
    residuals = items - items.mean() if len(items) else items

    def variance(numbers: NDArray[np.int64]) -> float:
        sums = np.bincount(numbers, residuals)
        count = len(sums)
        return count / (count - 1) * float(sums @ sums) / len(items) ** 2 if count > 1 else nan

    return sqrt(_over_groupings(variance, groupings, len(items)))


def clustered_jackknife_error(
    without_each: Callable[[NDArray[np.int64]], NDArray[np.float64]], groupings: Groupings, count: int
) -> float:
    """Return the jackknife standard error of any statistic, over groups of one grouping or of two that cross.

    As :func:`clustered_error`, with the variance of :func:`jackknife_error` in the place of that of a mean.

    Args:
        without_each: From the number of each item's group (0 to G - 1) to the statistic without each of the G groups.
        groupings: One or two lists of keys, one for each item.
        count: How many items there are.
    """

    def variance(numbers: NDArray[np.int64]) -> float:
        return jackknife_error(without_each(numbers)) ** 2

    return sqrt(_over_groupings(variance, groupings, count))


def fewest_groups(groupings: Groupings) -> int:
    """Return the number of groups of the grouping that has fewest: how many independent units there are at the most."""
    return min(len(set(keys)) for keys in groupings)


def wilson_interval(share: float, units: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share that was seen in so many independent units; NaN without a unit.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    if not units > 0 or not 0 <= share <= 1:
        return nan, nan
    middle = (share + Z95**2 / (2 * units)) / (1 + Z95**2 / units)
    half = Z95 * sqrt(share * (1 - share) / units + Z95**2 / (4 * units**2)) / (1 + Z95**2 / units)
    # At 0 and 1 an end is the share itself, but for rounding.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def unanimous_error(units: int | float) -> float:
    """Return the standard error of a share of 0 or 1: what reaches, 1.96 times, to the far end of Wilson's interval.

    ``z / (units + z^2)``. The whole interval lies on one side of the share, so half its width would reach half as far:
    a share of which 8 % of such samples show nothing would be left out. NaN below two units.
    """
    return Z95 / (units + Z95**2) if units > 1 else nan


def is_measured(share: float, stderr: float, units: int | float) -> bool:
    """Tell whether a share's standard error is the spread of its answers, not 0 or :func:`unanimous_error`.

    Where (nearly) all answers are alike it says how few groups there are, and nothing of how far their answers stand
    together.
    """
    if isnan(stderr) or stderr <= 0 or not 0 < share < 1:
        return False
    return isnan(units) or not isclose(stderr, unanimous_error(units), rel_tol=1e-6)  # a file may have rounded it


def units_behind(share: float, stderr: float, units: int | float) -> float:
    """Return how many independent answers stand behind a share: as many as would give it its standard error.

    ``share (1 - share) / stderr^2``; where the error is no spread of answers (:func:`is_measured`), the groups.

    Args:
        share: In [0, 1].
        stderr: Its standard error, as :func:`~safety_subspaces.evaluation.rates.estimate` has it; NaN gives NaN.
        units: Independent groups of answers.
    """
    if isnan(stderr):
        return nan
    return share * (1 - share) / stderr**2 if is_measured(share, stderr, units) else float(units)


def share_interval(share: float, stderr: float, units: int | float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share whose standard error is known, of :func:`units_behind` it."""
    return wilson_interval(share, units_behind(share, stderr, units))


def permutation_p_value(exceeding: int, draws: int) -> float:
    """Return ``(1 + #{null >= observed}) / (1 + draws)``: never 0, as the observed arrangement is one of the null's.

    Source: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010).
    """
    return (1 + exceeding) / (1 + draws)


def randomisation_p_value(value: float, draws: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the two-sided p-value of one value among draws that it is exchangeable with where there is nothing.

    ``(1 + #{j : |x_j - m| >= |x - m|}) / (draws + 1)``, ``m`` the mean of all of them: exact whatever their law, and
    never below ``1 / (draws + 1)``, so that 19 draws are the fewest that can give 0.05. Values that differ from the
    farthest by less than rounding are as far. NaN where one is missing or there are no draws.
    """
    values = np.array([value, *draws], dtype=float)
    if len(values) < 2 or np.isnan(values).any():
        return nan
    apart = np.abs(values - values.mean())
    as_far = apart[1:] >= apart[0] - 1e-12 * np.abs(values).max()  # float64 sums of some tens of values
    return permutation_p_value(int(as_far.sum()), len(values) - 1)


def _over_groupings(variance: Callable[[NDArray[np.int64]], float], groupings: Groupings, count: int) -> float:
    """Return the variance over one grouping, or over two that cross."""
    if not 1 <= len(groupings) <= 2 or any(len(keys) != count for keys in groupings):
        sizes = ", ".join(str(len(keys)) for keys in groupings) or "none"
        raise InputError(f"groupings of {sizes} keys for {count} items: expected one or two, each with a key an item")
    single = [variance(number_groups(keys).numpy()) for keys in groupings]
    if len(single) == 1:
        return single[0]
    both = variance(number_groups(list(zip(*groupings, strict=True))).numpy())
    return max(single[0] + single[1] - both, *single) if not any(np.isnan(single)) else nan
