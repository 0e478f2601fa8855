"""Both estimates are those of scikit-dimension, find the dimension of cubes and spheres, and know their error."""

import math

import numpy as np
import pytest
import skdim
import torch

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.intrinsic_dimension import mle_dimension, two_nn

ESTIMATES = {"two_nn": two_nn, "mle": mle_dimension}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cube(count, dim, seed=0):
    return torch.rand(count, dim, generator=generator(seed), dtype=torch.float64)


def sphere(count, dim, seed=0):
    """Points on the unit sphere of ``dim + 1`` dimensions."""
    points = torch.randn(count, dim + 1, generator=generator(seed), dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def embedded(points, dim, seed=0):
    """The same points, rotated into a space of more dimensions."""
    return points @ haar_basis(dim, points.shape[1], generator(seed)).double().T


@pytest.mark.parametrize("points", [cube(300, 3), embedded(sphere(250, 5), 60)], ids=["cube", "sphere"])
def test_values_are_those_of_scikit_dimension(points):
    for share in (0.0, 0.1, 0.25):
        if share > 0:  # without a discarded share its fit holds log 0
            expected = skdim.id.TwoNN(discard_fraction=share).fit(points.numpy()).dimension_
            assert two_nn(points, share).value == pytest.approx(expected, rel=1e-6)
        assert two_nn(points, share).value > 2
    for neighbours in (2, 5, 20):
        expected = skdim.id.MLE().fit(points.numpy(), n_neighbors=neighbours, comb="mle").dimension_
        assert mle_dimension(points, neighbours).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("measure", ESTIMATES)
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_dimension_of_a_sphere_is_found_in_any_space(measure, dim):
    found = ESTIMATES[measure](embedded(sphere(1000, dim), 40))
    # Spheres have no edge; what remains is curvature within twenty neighbours.
    assert found.value == pytest.approx(dim, abs=4 * found.stderr + 0.03 * dim)
    assert found.stderr < 0.1 * dim


@pytest.mark.parametrize("measure", ESTIMATES)
def test_dimension_of_cubes_grows_with_theirs_and_falls_short_in_many(measure):
    values = [ESTIMATES[measure](cube(600, dim)).value for dim in (1, 2, 4, 8)]
    assert values == sorted(values)
    for dim, value in zip((1, 2, 4, 8), values, strict=True):
        assert 0.75 * dim < value < 1.15 * dim  # the edge of a cube has neighbours on one side alone


@pytest.mark.parametrize("measure", ESTIMATES)
def test_noise_in_all_directions_is_seen(measure):
    flat = embedded(cube(400, 2), 20)
    noise = torch.randn(400, 20, generator=generator(1), dtype=torch.float64)
    assert ESTIMATES[measure](flat).value < 2.5
    assert ESTIMATES[measure](flat + noise).value > 8


@pytest.mark.parametrize("measure", ESTIMATES)
def test_error_is_the_spread_over_samples(measure):
    found = [ESTIMATES[measure](cube(200, 3, seed)) for seed in range(60)]
    spread = np.std([each.value for each in found], ddof=1)
    # The spread is known to 9 %, and the error of so few points to 20 %.
    assert math.sqrt(np.mean([each.stderr**2 for each in found])) == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize("measure", ESTIMATES)
def test_scale_shift_rotation_and_order_change_nothing(measure):
    points = cube(150, 4)
    value = ESTIMATES[measure](points).value
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator(2), dtype=torch.float64)).Q
    moved = 1e-3 * points[torch.randperm(150, generator=generator(3))] @ rotation
    assert ESTIMATES[measure](moved).value == pytest.approx(value, rel=1e-9)
    assert ESTIMATES[measure](points + 1000).value == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("measure", ESTIMATES)
def test_duplicates_are_dropped_and_counted(measure):
    points = cube(100, 3).float()
    once, twice = ESTIMATES[measure](points), ESTIMATES[measure](torch.cat([points, points[:30], points[:10]]))
    assert (once.n, once.duplicates) == (100, 0)
    assert (twice.n, twice.duplicates) == (100, 40)
    assert twice.value == once.value
    assert twice.stderr == once.stderr
    assert math.isfinite(once.value)


def test_distances_of_near_copies_are_kept():
    points = cube(100, 3)
    moved = points + 1e-11 * torch.randn(100, 3, generator=generator(4), dtype=torch.float64)
    pairs = torch.cat([points, moved]) + 5
    # 1e-11 apart is below what a Gram matrix in float64 resolves.
    distances = torch.cdist(pairs, pairs, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    nearest = distances.topk(3, largest=False).values
    expected = 1 / (nearest[:, -1:] / nearest[:, :-1]).log().mean()
    assert mle_dimension(pairs, 3).value == pytest.approx(float(expected), rel=1e-7)


def test_too_few_points_are_missing():
    points = cube(50, 3)
    for count in (0, 1, 2):
        assert math.isnan(two_nn(points[:count]).value)
        assert two_nn(points[:count]).n == count
    assert math.isnan(mle_dimension(points[:20]).value)
    without_error = mle_dimension(points[:21])
    assert without_error.value > 0
    assert math.isnan(without_error.stderr)
    assert math.isfinite(mle_dimension(points[:42]).stderr)
    same = two_nn(torch.ones(9, 4))
    assert (math.isnan(same.value), same.n, same.duplicates) == (True, 1, 8)
    for measure in ESTIMATES.values():
        assert math.isnan(measure(0.3 * torch.eye(60)).value)  # all at one distance, but for rounding
    assert mle_dimension(torch.zeros(5, 0)).duplicates == 4


def test_bad_input_is_refused():
    points = cube(30, 2)
    with pytest.raises(InputError, match="discard_share 1"):
        two_nn(points, 1.0)
    with pytest.raises(InputError, match="neighbours 1"):
        mle_dimension(points, 1)
    with pytest.raises(InputError, match="NaN or an infinity"):
        two_nn(points / 0)
