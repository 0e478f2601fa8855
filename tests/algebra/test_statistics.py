"""Errors of means that share something in one way or two, shares at their ends, and ranks among draws."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from safety_subspaces.algebra.statistics import (
    Z95,
    clustered_error,
    clustered_jackknife_error,
    fewest_groups,
    randomisation_p_value,
    share_interval,
    unanimous_error,
    wilson_interval,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.organism import evaluation_sets

REQUESTS = evaluation_sets("test").harmful
ACTS, OBJECTS = ([item.group[way] for item in REQUESTS] for way in (0, 1))
PAIRS = [item.group for item in REQUESTS]


def by_pairs_of_items(values: list[float], keys: list) -> float:
    """The oracle: the sum of products of residuals over all pairs of items that share a key, one by one."""
    mean = math.fsum(values) / len(values)
    count = len(set(keys))
    shared = math.fsum(
        (a - mean) * (b - mean)
        for a, one in zip(values, keys, strict=True)
        for b, other in zip(values, keys, strict=True)
        if one == other
    )
    return count / (count - 1) * shared / len(values) ** 2


def test_errors_are_those_of_the_formula_over_pairs_of_items() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, count, 40).tolist() for count in (7, 9))
    values = rng.normal(size=40) + np.array(first) + np.array(second)
    parts = [
        by_pairs_of_items(values.tolist(), keys) for keys in (first, second, list(zip(first, second, strict=True)))
    ]
    assert clustered_error(values, [first]) == pytest.approx(math.sqrt(parts[0]), rel=1e-12)
    assert clustered_error(values, [first, second]) == pytest.approx(
        math.sqrt(parts[0] + parts[1] - parts[2]), rel=1e-12
    )
    assert clustered_error(values, [second, first]) == pytest.approx(clustered_error(values, [first, second]))
    # With every item for itself it is the ordinary one, and so it is beside a grouping that adds nothing.
    ordinary = values.std(ddof=1) / math.sqrt(40)
    assert clustered_error(values, [range(40)]) == pytest.approx(ordinary, rel=1e-12)
    assert clustered_error(values, [range(40), range(40)]) == pytest.approx(ordinary, rel=1e-12)
    assert clustered_error(values, [first, range(40)]) == pytest.approx(clustered_error(values, [first]))


def test_a_two_way_error_is_never_below_the_larger_one_way_one() -> None:
    first, second = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    values = [1.0, -1.0, -1.0, 1.0, 1.0, -1.0]  # what one grouping adds the other takes away
    single = [clustered_error(values, [keys]) for keys in (first, second)]
    both = clustered_error(values, [list(zip(first, second, strict=True))])
    assert single[0] ** 2 + single[1] ** 2 - both**2 < max(single) ** 2
    assert clustered_error(values, [first, second]) == max(single)


def test_a_jackknife_of_means_is_the_clustered_error_where_groups_are_of_one_size() -> None:
    values = np.random.default_rng(1).normal(size=24)
    groupings = [[row // 4 for row in range(24)], [row % 4 for row in range(24)]]

    def without_each(numbers):
        return np.array([values[numbers != number].mean() for number in range(numbers.max() + 1)])

    for keys in ([groupings[0]], [groupings[1]], groupings):
        assert clustered_jackknife_error(without_each, keys, 24) == pytest.approx(clustered_error(values, keys))


def test_too_few_groups_have_no_error_and_other_groupings_are_refused() -> None:
    assert math.isnan(clustered_error([1.0, 2.0], [["a", "a"]]))
    assert math.isnan(clustered_error([1.0, 2.0], [["a", "b"], ["c", "c"]]))
    assert math.isnan(clustered_error([], [[]]))
    for wrong in ([], [["a"]], [["a", "b"]] * 3):
        with pytest.raises(InputError, match="expected one or two, each with a key an item"):
            clustered_error([1.0, 2.0], wrong)


def test_two_way_intervals_hold_where_requests_share_acts_and_objects_and_one_way_ones_do_not() -> None:
    """The organism's own requests: 200 in 61 pairs of 29 acts and 28 objects."""
    held = np.zeros(2)
    sizes = [{key: number for number, key in enumerate(dict.fromkeys(keys))} for keys in (ACTS, OBJECTS)]
    places = [np.array([size[key] for key in keys]) for size, keys in zip(sizes, (ACTS, OBJECTS), strict=True)]
    for seed in range(200):
        rng = np.random.default_rng(seed)
        effects = [rng.normal(size=len(size))[place] for size, place in zip(sizes, places, strict=True)]
        values = sum(effects) + rng.normal(size=len(REQUESTS))
        errors = [clustered_error(values, [PAIRS]), clustered_error(values, [ACTS, OBJECTS])]
        held += [abs(values.mean()) <= Z95 * error for error in errors]
    # 0.788 and 0.932 of 2,000 such studies; a share of 200 has a standard error of 0.029 and 0.018.
    assert held[0] / 200 < 0.91
    assert held[1] / 200 > 0.85
    assert fewest_groups([ACTS, OBJECTS]) == 28


@pytest.mark.parametrize(("right", "count"), [(0, 12), (1, 40), (17, 61), (61, 61)])
def test_wilson_is_scipys_and_the_error_of_a_share_at_its_end_reaches_to_its_far_end(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, float(count)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    if right in (0, count):
        assert Z95 * unanimous_error(count) == pytest.approx(expected.high - expected.low, abs=1e-12)
        for error in (0.0, unanimous_error(count)):
            assert share_interval(right / count, error, count) == wilson_interval(right / count, float(count))
    else:
        ordinary = math.sqrt(right / count * (1 - right / count) / (count - 1))
        found = share_interval(right / count, ordinary, count)
        assert found == pytest.approx(wilson_interval(right / count, count - 1.0))


def test_a_share_without_units_has_no_interval() -> None:
    assert np.isnan(wilson_interval(0.5, 0.0)).all()
    assert np.isnan(share_interval(math.nan, math.nan, 0)).all()
    assert math.isnan(unanimous_error(1))


@pytest.mark.parametrize("draws", [1, 5, 19])
def test_ranks_are_uniform_whichever_of_exchangeable_values_is_named(draws: int) -> None:
    """Over all choices of the one that is named each p-value comes once: a test of the level ``p <= a`` keeps it."""
    values = np.exp(2 * np.random.default_rng(2).normal(size=draws + 1))  # far from normal
    found = sorted(randomisation_p_value(value, np.delete(values, place)) for place, value in enumerate(values))
    expected = np.arange(1, draws + 2) / (draws + 1)
    if draws == 1:  # both are as far from their mean
        expected = np.ones(2)
    assert found == pytest.approx(expected)


def test_equal_values_have_no_rank_and_a_missing_one_no_p_value() -> None:
    assert randomisation_p_value(0.1, [0.1] * 19) == 1.0
    assert randomisation_p_value(9.0, [0.1] * 19) == 1 / 20
    assert math.isnan(randomisation_p_value(math.nan, [0.1] * 19))
    assert math.isnan(randomisation_p_value(0.1, []))
