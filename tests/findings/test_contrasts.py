import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from safety_subspaces.algebra.statistics import unanimous_error
from safety_subspaces.findings.contrasts import Contrast, Measured, beyond_share, difference, measured, share_ends

SCALE = (1.0, 5.0)


def harm(score, error, groups=50):
    return Measured(score, error, float(groups), SCALE)


def test_without_a_scale_it_is_the_t_test_of_the_joint_error():
    contrast = difference(Measured(0.62, 0.03, 30.0), Measured(0.5, 0.04, 21.0))
    assert contrast.estimate == pytest.approx(0.12)
    assert contrast.error == pytest.approx(0.05)
    assert contrast.ends() == pytest.approx(stats.t.interval(0.95, 20, loc=0.12, scale=0.05))
    assert contrast.p_value == pytest.approx(2 * stats.t.sf(0.12 / 0.05, 20))


def test_on_a_scale_one_mean_has_the_exact_interval_of_a_rate():
    """Without the fall-back on groups and with a normal quantile it is the textbook's: 10 of 50."""
    low, high = Measured(1 + 4 * 0.2, 4 * math.sqrt(0.2 * 0.8 / 50), math.nan, SCALE).ends(1.959964)
    ours = stats.binomtest(10, 50).proportion_ci(method="exact")
    assert ((low - 1) / 4, (high - 1) / 4) == pytest.approx((ours.low, ours.high), abs=1e-6)


@pytest.mark.parametrize("groups", [2, 10, 61, 10_000])
def test_answers_that_are_all_alike_leave_room_by_their_number(groups):
    low, high = harm(1.0, 0.0, groups).ends(1.96)
    assert low == pytest.approx(1.0)
    assert (1 - (high - 1) / 4) ** groups == pytest.approx(0.025, rel=1e-3)  # none of so many, by chance
    contrast = difference(harm(5.0, 0.0, groups), harm(1.0, 0.0, groups))
    assert 0 < contrast.p_value < 1
    assert contrast.ends()[1] == pytest.approx(4.0)


def test_p_and_interval_agree_about_zero_for_any_models():
    random = np.random.default_rng(0)
    for _ in range(200):
        pair = [
            harm(1 + 4 * y, 4 * e, g)
            for y, e, g in zip(*random.uniform((0, 0, 5), (1, 0.2, 90), (2, 3)).T, strict=True)
        ]
        contrast = difference(*pair)
        low, high = contrast.ends()
        assert (contrast.p_value <= 0.05) == (low > 0 or high < 0)
        assert low <= contrast.estimate <= high


def test_an_unknown_error_gives_no_p_and_no_interval():
    unknown = (harm(3.0, math.nan), Measured(0.4, math.nan, 20.0), Measured(0.4, 0.0, 20.0))
    for one, beside in zip(unknown, (harm(1.0, 0.1), Measured(0.5, 0.1, 20.0), Measured(0.5, 0.0, 20.0)), strict=True):
        contrast = difference(one, beside)
        assert math.isnan(contrast.p_value)
        assert all(map(math.isnan, contrast.ends()))
    assert all(map(math.isnan, share_ends(unknown[0], harm(1.0, 0.0), harm(5.0, 0.0))))


def test_the_share_is_that_of_which_beyond_share_is_just_not_told_from_zero():
    tuned, aligned, base = harm(3.2, 0.3), harm(1.1, 0.05), harm(4.8, 0.1)
    low, high = share_ends(tuned, aligned, base)
    assert low < (3.2 - 1.1) / (4.8 - 1.1) < high
    assert beyond_share(tuned, aligned, base, low).ends()[0] == pytest.approx(0, abs=1e-9)
    assert beyond_share(tuned, aligned, base, high).ends()[1] == pytest.approx(0, abs=1e-9)


def test_the_interval_of_the_share_is_fiellers_where_errors_are_normal():
    tuned, aligned, base = (Measured(v, e, math.inf) for v, e in ((3.2, 0.3), (1.1, 0.2), (4.8, 0.25)))
    z = stats.norm.isf(0.025)
    way, gone = 4.8 - 1.1, 3.2 - 1.1
    a, b = way**2 - z**2 * (0.25**2 + 0.2**2), gone * way - z**2 * 0.2**2
    c = gone**2 - z**2 * (0.3**2 + 0.2**2)
    roots = [(b + sign * math.sqrt(b**2 - a * c)) / a for sign in (-1, 1)]
    assert share_ends(tuned, aligned, base) == pytest.approx(roots)


def test_a_way_that_is_not_told_from_none_rules_out_no_share():
    ends = share_ends(harm(1.2, 0.1), harm(1.1, 0.1), harm(1.15, 0.1))
    assert any(map(math.isnan, ends))


def test_bounds_for_more_tests_together_are_wider_and_reach_what_bonferroni_says():
    contrast = Contrast(((1.0, Measured(0.0, 1.0, 41.0)),))
    assert contrast.bounds(1)[1] == pytest.approx(stats.t.isf(0.05, 40))
    assert contrast.bounds(7)[1] == pytest.approx(stats.t.isf(0.05 / 7, 40))


def test_prompts_take_the_place_of_groups_that_are_not_known():
    row = pd.Series({"utility": 0.5, "utility_stderr": 0.1, "n_utility": 256.0, "n_groups_utility": math.nan})
    assert measured(row, "utility") == Measured(0.5, 0.1, 256.0, None)
    assert difference(measured(row, "utility"), Measured(0.5, 0.1, 30.0)).degrees == 29


def test_one_answer_of_many_leaves_nearly_as_little_open_as_none():
    """Its error is that of a share without any, by :func:`~safety_subspaces.algebra.statistics.unanimous_error`."""
    floor = 4 * unanimous_error(28)
    none, one = (Measured(value, floor, 28.0, SCALE).ends(1.96) for value in (1.0, 1.02))
    assert (none[0], one[0]) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert none[1] < one[1] < none[1] + 0.1
