import numpy as np
import pytest
from scipy import stats

from safety_subspaces.algebra.statistics import unanimous_error
from safety_subspaces.findings.rates import (
    difference_interval,
    difference_p_value,
    effective_counts,
    exact_interval,
    p_above,
    p_below,
    variances,
)

RATES = np.array([0.0, 0.1, 0.5, 0.85, 1.0])


def effective(rates, errors, prompts, groups):
    full = np.full(len(rates), 1.0)
    return effective_counts(np.asarray(rates), np.asarray(errors), prompts * full, groups * full)


def test_prompts_that_each_stand_alone_are_worth_themselves():
    errors = np.sqrt(RATES * (1 - RATES) / 40)
    np.testing.assert_allclose(effective(RATES, errors, 40, 40), 40, rtol=1e-12)


def test_groups_that_answer_as_one_are_worth_one_answer_each():
    errors = np.sqrt(RATES * (1 - RATES) / 10)
    np.testing.assert_allclose(effective(RATES, errors, 40, 10), 10, rtol=1e-12)


def test_rates_of_0_and_1_alone_are_worth_their_groups_and_never_more_than_their_prompts():
    np.testing.assert_allclose(effective([0.0, 1.0], [0.0, 0.0], 40, 10), 10)
    assert (effective(RATES, np.full(5, 1e-6), 40, 40) <= 40).all()


def test_where_groups_answer_independently_that_shows_as_looks_come():
    few, many = (effective([0.5] * n, [np.sqrt(0.25 / 40)] * n, 40, 10)[0] for n in (1, 50))
    assert 10 < few < many < 40


def test_a_rate_whose_prompts_are_not_known_is_worth_no_more_than_the_others():
    errors, prompts, groups = np.zeros(3), np.array([40, np.nan, 60.0]), np.array([20, np.nan, 30.0])
    np.testing.assert_allclose(effective_counts(np.array([0.0, 0.0, 1.0]), errors, prompts, groups), [20, 20, 30])


def test_without_a_count_of_prompts_the_errors_tell_it_and_without_errors_nothing_does():
    known = effective([0.2, 0.5], np.sqrt([0.16 / 30, 0.25 / 30]), np.nan, np.nan)
    np.testing.assert_allclose(known, 30, rtol=1e-12)
    assert np.isnan(effective([0.0, 1.0], [0.0, 0.0], np.nan, np.nan)).all()


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("level", [0.2, 0.5])
def test_the_exact_p_values_are_the_binomial_sums(n, level):
    hits = np.arange(n + 1)
    counts = np.full(n + 1, float(n))
    np.testing.assert_allclose(p_above(hits / n, counts, level), stats.binom.sf(hits - 1, n, level), atol=1e-12)
    np.testing.assert_allclose(p_below(hits / n, counts, level), stats.binom.cdf(hits, n, level), atol=1e-12)


def test_the_exact_interval_is_where_neither_p_value_falls_below_its_tail():
    counts = np.full(len(RATES), 24.0)
    low, high = exact_interval(RATES, counts, 0.9)
    inside = slice(1, -1)
    np.testing.assert_allclose([p_above(RATES, counts, end)[i] for i, end in enumerate(low)][inside], 0.05, rtol=1e-9)
    np.testing.assert_allclose([p_below(RATES, counts, end)[i] for i, end in enumerate(high)][inside], 0.05, rtol=1e-9)
    assert (low[0], high[-1]) == (0, 1)
    assert high[0] > 0.1  # a rate of 0 is not known to be 0
    assert low[-1] < 0.9


def test_the_score_test_is_that_of_two_proportions():
    # Pearson's chi square without a correction is the square of the score statistic.
    table = [[6, 18], [14, 10]]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    first, then, n = np.array(6 / 24), np.array(14 / 24), np.array(24.0)
    assert difference_p_value(first, n, then, n) == pytest.approx(expected, rel=1e-12)
    assert difference_p_value(then, n, first, n) == pytest.approx(expected, rel=1e-12)
    assert difference_p_value(first, n, first, n) == 1
    assert difference_p_value(np.array(0.0), n, np.array(0.0), n) == 1


def test_a_difference_has_an_interval_at_the_ends_too_and_turns_with_its_sign():
    n = np.array(24.0)
    low, high = difference_interval(np.array(0.0), n, np.array(1.0), n)
    assert 0.5 < low < high == 1
    ends = difference_interval(np.array(0.2), n, np.array(0.7), n)
    turned = difference_interval(np.array(0.7), n, np.array(0.2), n)
    np.testing.assert_allclose(turned, [-ends[1], -ends[0]])
    wider = difference_interval(np.array(0.2), n, np.array(0.7), n, confidence=0.99)
    assert wider[0] < ends[0] < 0.5 < ends[1] < wider[1]


def test_no_rate_is_without_variance():
    assert (variances(RATES, np.full(len(RATES), 24.0)) > 0).all()
    np.testing.assert_allclose(variances(RATES, np.full(5, 1e9)) * 1e9, RATES * (1 - RATES), atol=1e-7)


def test_an_error_that_says_only_how_few_groups_there_are_is_no_design_effect():
    """All refused, then all answered: each rate is worth its groups, and not less."""
    rates, groups = np.array([0.0, 0.0, 1.0]), np.full(3, 14.0)
    errors = np.full(3, unanimous_error(14))
    np.testing.assert_allclose(effective_counts(rates, errors, np.full(3, 32.0), groups), 14)
    nearly = np.array([0.0, 1 / 32, 1.0])
    np.testing.assert_allclose(effective_counts(nearly, errors, np.full(3, 32.0), groups), 14)
    assert difference_p_value(0.0, 14.0, 1.0, 14.0) < 1e-5
