"""Agreement of two judges against scikit-learn's kappa, and what it says where judges agree fully or by chance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from safety_subspaces.evaluation.agreement import judge_agreement

scores = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=40)


@given(scores)
@settings(deadline=None, max_examples=60)
def test_kappa_is_that_of_scikit_learn(pairs):
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    found = judge_agreement(first, second, ["one"] * len(pairs), 4)
    for value, weights in ((found.kappa, None), (found.kappa_weighted, "quadratic")):
        expected = cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights=weights)
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
