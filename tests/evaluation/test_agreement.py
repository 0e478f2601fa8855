"""Agreement of two judges against kappa by its definition, and what it says where judges agree fully or by chance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_subspaces.evaluation.agreement import judge_agreement

scores = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=40)


def kappa_by_hand(first, second, power=0):
    """The oracle, over pairs of answers: ``1 - distance of two scores of one answer / of any two answers``."""

    def distance(a, b):
        return float(a != b) * abs(a - b) ** power

    observed = np.mean([distance(a, b) for a, b in zip(first, second, strict=True)])
    chance = np.mean([distance(a, b) for a in first for b in second])
    return 1 - observed / chance if chance else math.nan


@given(scores)
@settings(deadline=None, max_examples=60)
def test_kappa_is_that_of_its_definition(pairs):
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    found = judge_agreement(first, second, ["one"] * len(pairs), 4)
    for value, power in ((found.kappa, 0), (found.kappa_weighted, 2)):
        expected = kappa_by_hand(first, second, power)
        # one and the same score throughout: nothing to agree on
        assert value == pytest.approx(expected, abs=1e-12) or (math.isnan(value) and math.isnan(expected))
    assert math.isnan(found.kappa_low)  # of one group there is no spread
    assert found.agreement == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_full_agreement_is_one_chance_is_nothing_and_the_unscored_are_counted():
    generator = np.random.default_rng(0)
    first = [float(score) for score in generator.integers(1, 6, 400)]
    same = judge_agreement([*first, None, 3.0], [*first, 2.0, None], range(402), 4)
    assert (same.n, same.n_unscored, same.kappa, same.harmful_kappa) == (400, 2, 1.0, 1.0)
    other = judge_agreement(first, [float(score) for score in generator.integers(1, 6, 400)], range(400), 4)
    assert other.kappa_low < 0 < other.kappa_high
    assert other.chance == pytest.approx(0.2, abs=0.01)
    # Two judges who differ by one point agree on what is harmful, and by weights.
    near = judge_agreement([1.0, 2.0, 4.0, 5.0] * 20, [2.0, 1.0, 5.0, 4.0] * 20, range(80), 4)
    assert near.kappa < 0
    assert near.kappa_weighted > 0.7
    assert near.harmful_kappa == 1


def test_the_interval_is_that_of_an_independent_bootstrap_over_groups():
    generator = np.random.default_rng(2)
    first = [float(score) for score in generator.integers(1, 6, 90)]
    second = [score if generator.random() < 0.6 else float(generator.integers(1, 6)) for score in first]
    groups = [number // 3 for number in range(90)]
    found = judge_agreement(first, second, groups, 4)
    assert found.kappa == pytest.approx(kappa_by_hand(first, second))
    assert found == judge_agreement(first, second, groups, 4)  # of a seed
    drawn = []
    for _ in range(2000):
        rows = [3 * group + member for group in generator.integers(30, size=30) for member in range(3)]
        drawn.append(kappa_by_hand([first[row] for row in rows], [second[row] for row in rows]))
    # Either end spreads by 0.005 over twenty seeds of 1,000 draws: six of that.
    assert [found.kappa_low, found.kappa_high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert found.kappa_low < found.kappa < found.kappa_high


def test_what_has_no_kappa_is_not_a_number():
    for first, second in (([], []), ([None], [3.0]), ([3.0, 3.0], [3.0, 3.0])):
        found = judge_agreement(first, second, range(len(first)), 4)
        assert math.isnan(found.kappa)
        assert math.isnan(found.kappa_low)
        assert math.isnan(found.harmful_kappa)
    assert found.agreement == found.chance == 1
    # Draws of one group alone have no kappa, and are left out.
    assert judge_agreement([1.0, 2.0], [1.0, 2.0], range(2), 4).kappa_low == 1


def test_repeated_prompts_widen_the_interval():
    generator = np.random.default_rng(1)
    first = [float(score) for score in generator.integers(1, 3, 60)]
    second = [score if generator.random() < 0.7 else 3 - score for score in first]
    apart = judge_agreement(first, second, range(60), 4)
    together = judge_agreement(first * 4, second * 4, list(range(60)) * 4, 4)
    assert together.kappa == pytest.approx(apart.kappa)
    width = apart.kappa_high - apart.kappa_low
    assert together.kappa_high - together.kappa_low == pytest.approx(width, rel=0.2)
    naive = judge_agreement(first * 4, second * 4, range(240), 4)
    assert naive.kappa_high - naive.kappa_low < 0.7 * width
