"""Unbiased CKA is what its definition says, feels neither rotation nor scale, and is 0 for what is independent."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.uncompiled_hyppo import Dcorr, Hsic

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.similarity import cka_with_error, median_distance, squared_distances


def linear_cka(first, second):
    return cka_with_error(first, second).value


def rbf_cka(first, second, bandwidth_factor=1.0):
    return cka_with_error(first, second, bandwidth_factor).value


MEASURES = {"linear": linear_cka, "rbf": rbf_cka}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def related(count=40, dims=(7, 12), seed=0):
    """Two sets of states of the same prompts that share some of their variance."""
    common = normal(count, 5, seed=seed)
    return [
        common @ normal(5, dim, seed=seed + 10 * place) + 1.5 * normal(count, dim, seed=seed + 100 * place)
        for place, dim in enumerate(dims, start=1)
    ]


def naive_kernel(rows, bandwidth_factor=None):
    count = len(rows)
    if bandwidth_factor is None:
        return [[float(rows[i] @ rows[j]) for j in range(count)] for i in range(count)]
    distances = [[float((rows[i] - rows[j]).norm()) for j in range(count)] for i in range(count)]
    bandwidth = bandwidth_factor * np.median([distances[i][j] for i in range(count) for j in range(i)])
    return [[math.exp(-((d / bandwidth) ** 2) / 2) for d in row] for row in distances]


def naive_hsic(first, second):
    """HSIC_1 as the mean of its defining products over all tuples of different prompts."""
    everyone = range(len(first))
    pairs = [first[i][j] * second[i][j] for i, j in itertools.permutations(everyone, 2)]
    triples = [first[i][j] * second[i][k] for i, j, k in itertools.permutations(everyone, 3)]
    quadruples = [first[i][j] * second[k][m] for i, j, k, m in itertools.permutations(everyone, 4)]
    return np.mean(pairs) - 2 * np.mean(triples) + np.mean(quadruples)


def naive_cka(first, second, bandwidth_factor=None):
    kernels = [naive_kernel(rows, bandwidth_factor) for rows in (first, second)]
    norms = [naive_hsic(kernel, kernel) for kernel in kernels]
    return naive_hsic(*kernels) / math.sqrt(norms[0] * norms[1])


def biased_cka(first, second):
    grams = [rows @ rows.T for rows in (first - first.mean(dim=0), second - second.mean(dim=0))]
    return float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))


@pytest.mark.parametrize("count", [4, 7, 10])
def test_value_is_its_definition_over_all_tuples_of_prompts(count):
    first, second = related(count)
    assert linear_cka(first, second) == pytest.approx(naive_cka(first, second), abs=1e-10)
    for factor in (1.0, 0.4):
        assert rbf_cka(first, second, factor) == pytest.approx(naive_cka(first, second, factor), abs=1e-10)


@pytest.mark.parametrize("dims", [(7, 12), (3, 200)])
def test_linear_value_is_the_bias_corrected_correlation_of_squared_distances(dims):
    pair = related(dims=dims)
    squared = [torch.cdist(rows, rows).square().numpy() for rows in pair]
    assert linear_cka(*pair) == pytest.approx(Dcorr(compute_distance=None).statistic(*squared), abs=1e-12)


def test_rbf_value_is_that_of_hyppo_with_its_median_bandwidth():
    # hyppo takes the bandwidth of the first set for both: each is brought to the same median.
    first, second = (rows / median_distance(squared_distances(rows @ rows.T)) for rows in related())
    expected = Hsic(compute_kernel="gaussian", bias=False).statistic(first.numpy(), second.numpy())
    assert rbf_cka(first, second) == pytest.approx(expected, abs=1e-12)


def test_median_distance_is_over_pairs_of_different_rows():
    for count in (2, 3, 4, 7):
        rows = normal(count, 3)
        distances = [float((rows[i] - rows[j]).norm()) for i in range(count) for j in range(i)]
        assert median_distance(squared_distances(rows @ rows.T)) == pytest.approx(np.median(distances), rel=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_shift_and_order_change_nothing(measure):
    cka = MEASURES[measure]
    first, second = related()
    rotated = 37 * second @ haar_basis(12, 12, generator(5)).double() + 4
    order = torch.randperm(len(first), generator=generator(6))
    assert cka(first, rotated) == pytest.approx(cka(first, second), abs=1e-6)  # the rotation is float32
    assert cka(second[order], first[order]) == pytest.approx(cka(first, second), abs=1e-12)
    stretched = second * torch.logspace(0, 2, 12, dtype=torch.float64)
    assert abs(cka(first, stretched) - cka(first, second)) > 0.01  # what is no isotropic scaling, it feels


@pytest.mark.parametrize("measure", MEASURES)
def test_a_set_is_like_itself_and_less_like_itself_with_noise(measure):
    cka = MEASURES[measure]
    states = normal(60, 9)
    values = [cka(states, states + noise * normal(60, 9, seed=1)) for noise in (0, 0.3, 1, 3)]
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values == sorted(values, reverse=True)
    assert values[1] > 0.7
    assert values[-1] < 0.3


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dim", [3, 300])
def test_independent_states_have_mean_zero_where_the_biased_estimate_does_not(measure, dim):
    pairs = [(normal(30, dim, seed=2 * seed), normal(30, dim, seed=2 * seed + 1)) for seed in range(200)]
    values = torch.tensor([MEASURES[measure](*pair) for pair in pairs], dtype=torch.float64)
    # The quotient of two unbiased quantities is biased by O(1 / n) of its spread.
    assert values.mean().item() == pytest.approx(0, abs=4 * values.std().item() / 200**0.5)
    assert min(biased_cka(*pair) for pair in pairs) > (0.85 if dim == 300 else 0.01)


def leave_out(pair, groups, bandwidth_factor):
    """A jackknife that forms everything again but the bandwidths."""
    values = []
    for group in dict.fromkeys(groups):
        kept = torch.tensor([label != group for label in groups])
        rest = [rows[kept] for rows in pair]
        if bandwidth_factor is None:
            values.append(linear_cka(*rest))
            continue
        kernels = [
            torch.tensor(naive_kernel(rows, bandwidth_factor), dtype=torch.float64)[kept][:, kept] for rows in pair
        ]
        values.append(Dcorr(compute_distance=None).statistic(*((1 - kernel).numpy() for kernel in kernels)))
    values = np.array(values)
    return math.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())


@pytest.mark.parametrize("bandwidth_factor", [None, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_error_is_that_of_leaving_out_each_group_in_turn(bandwidth_factor, grouped):
    pair = related(24)
    groups = [index // 3 if index < 9 else index for index in range(24)] if grouped else list(range(24))
    found = cka_with_error(*pair, bandwidth_factor, groups if grouped else None)
    assert found.value == cka_with_error(*pair, bandwidth_factor).value
    assert found.stderr == pytest.approx(leave_out(pair, groups, bandwidth_factor), rel=1e-9)
    assert found.n == 24


def test_error_covers_the_spread_over_samples():
    maps = [normal(5, dim, seed=dim) for dim in (7, 12)]
    found = []
    for seed in range(100):
        common = normal(100, 5, seed=seed)
        pair = [common @ each + 1.5 * normal(100, each.shape[1], seed=1000 + 7 * seed + each.shape[1]) for each in maps]
        found.append(cka_with_error(*pair))
    spread = float(np.std([each.value for each in found], ddof=1))
    # The spread is known to 7 %.
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("measure", MEASURES)
def test_undefined_is_missing(measure):
    cka = MEASURES[measure]
    states = normal(20, 6)
    constant = torch.full((20, 6), 0.1, dtype=torch.float64)
    one_differs = constant.clone()
    one_differs[3] += 1
    assert math.isnan(cka(states[:3], states[:3]))
    assert math.isnan(cka(states[:0], states[:0]))
    assert not math.isnan(cka(states[:4], states[:4] + normal(4, 6, seed=1)))
    for other in (constant, constant.float(), one_differs, torch.eye(20), 1e6 * torch.eye(20)):
        assert math.isnan(cka(states, other))
        assert math.isnan(cka(other, states))
        found = cka_with_error(states, other, None if measure == "linear" else 1.0)
        assert math.isnan(found.value)
        assert math.isnan(found.stderr)
        assert found.n == 20


def test_large_common_mean_and_half_precision_are_no_obstacle():
    first, second = related()
    assert linear_cka(first + 1e5, second) == pytest.approx(linear_cka(first, second), abs=1e-8)
    halves = (first.bfloat16(), second.bfloat16())
    assert linear_cka(*halves) == linear_cka(*(rows.double() for rows in halves))


def test_bad_input_is_refused():
    states = normal(10, 3)
    with pytest.raises(InputError, match="10 and of 9 prompts"):
        linear_cka(states, states[:9])
    with pytest.raises(InputError, match="NaN or an infinity"):
        linear_cka(states, states / 0)
    with pytest.raises(InputError, match="bandwidth_factor 0"):
        rbf_cka(states, states, 0.0)
    with pytest.raises(InputError, match="3 groups of 10 prompts"):
        cka_with_error(states, states, groups=[1, 2, 3])
