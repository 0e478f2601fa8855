"""Angles between subspaces against scipy and chance; change points where they were planted."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.algebra.overlap import principal_angles
from safety_subspaces.algebra.path import (
    find_change_points,
    haar_rms_angle,
    rms_angle,
)
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("ranks", [(4, 4), (2, 7), (7, 2), (1, 1), (12, 15), (20, 3)])
def test_principal_angles_are_those_of_scipy(ranks) -> None:
    first, second = gaussian(20, ranks[0], seed=1), gaussian(20, ranks[1], seed=2)  # not orthonormal
    found = principal_angles(first, second)
    expected = np.sort(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))
    assert found.numpy() == pytest.approx(expected, abs=1e-7)  # directions in common are at 1e-8 in scipy
    assert torch.equal(found, found.sort().values)
    assert principal_angles(second, first).numpy() == pytest.approx(found.numpy(), abs=1e-12)


@pytest.mark.parametrize("angle", [1e-15, 1e-10, 1e-7, 1e-3, 0.7, 0.8, math.pi / 2 - 1e-7])
def test_tiny_and_large_angles_are_not_lost(angle) -> None:
    axes = torch.eye(6, dtype=torch.float64)
    turned = axes[:, :3].clone()
    turned[:, 1] = math.cos(angle) * axes[:, 1] + math.sin(angle) * axes[:, 4]
    assert principal_angles(axes[:, :3], turned)[-1].item() == pytest.approx(angle, rel=1e-8)
    rotation = scipy.linalg.qr(gaussian(6, 6, seed=3).numpy())[0]
    first, second = (torch.from_numpy(rotation @ basis.numpy()) for basis in (axes[:, :3], turned))
    found = principal_angles(first, second)
    assert found[-1].item() == pytest.approx(angle, rel=1e-6, abs=1e-15)
    assert found[:2].numpy() == pytest.approx(0, abs=1e-14)
    assert rms_angle(found) == pytest.approx(angle / math.sqrt(3), rel=1e-6, abs=1e-15)


def test_angles_of_equal_contained_and_orthogonal_subspaces() -> None:
    basis = haar_basis(12, 5, generator(4))
    mixed = basis @ gaussian(5, 5, seed=5).float()  # the same span
    assert rms_angle(principal_angles(basis, mixed)) == pytest.approx(0, abs=1e-5)
    assert rms_angle(principal_angles(basis, basis[:, 1:3])) == pytest.approx(0, abs=1e-7)
    frame = haar_basis(12, 12, generator(6))
    assert rms_angle(principal_angles(frame[:, :4], frame[:, 6:9])) == pytest.approx(math.pi / 2, abs=1e-6)
    empty = principal_angles(basis, basis[:, :0])
    assert empty.numel() == 0
    assert math.isnan(rms_angle(empty))


@pytest.mark.parametrize(("dim", "first", "second"), [(24, 3, 5), (16, 2, 2), (10, 7, 6), (5, 5, 2)])
def test_the_chance_level_is_that_of_independent_subspaces(dim, first, second) -> None:
    source = np.random.default_rng(7)
    drawn = []
    for _ in range(400):
        pair = (source.standard_normal((dim, rank)) for rank in (first, second))
        drawn.append(np.sqrt(np.mean(scipy.linalg.subspace_angles(*pair) ** 2)))
    found = haar_rms_angle(dim, first, second, draws=400, seed=0)
    assert found == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / 20 + 1e-6)
    assert found == haar_rms_angle(dim, second, first, draws=400, seed=0)
    assert (found == haar_rms_angle(dim, first, second, draws=400, seed=1)) == (first == dim)


def test_an_empty_subspace_has_no_chance_level() -> None:
    assert math.isnan(haar_rms_angle(10, 0, 3, draws=2, seed=0))


def test_distances_and_products_are_the_same_in_factors() -> None:
    factors = [
        FactorUpdate(gaussian(9, rank, seed=rank).float(), gaussian(rank, 6, seed=10 + rank).float(), scale)
        for rank, scale in ((2, 0.5), (3, -2.0))
    ]
    dense = [update.scale * update.left.double() @ update.right.double() for update in factors]
    distance, product = float((dense[0] - dense[1]).square().sum()), float((dense[0] * dense[1]).sum())
    for first in (factors[0], DenseUpdate(factors[0].dense())):
        for second in (factors[1], DenseUpdate(factors[1].dense())):
            assert first.minus(second).energy() == pytest.approx(distance, rel=1e-5)
            assert first.inner(second) == pytest.approx(product, rel=1e-5)
    assert factors[0].minus(factors[0]).energy() == pytest.approx(0, abs=1e-12)
    assert factors[1].inner(factors[1]) == pytest.approx(factors[1].energy(), rel=1e-12)
    vector = DenseUpdate(torch.arange(3.0))
    assert vector.minus(DenseUpdate(torch.zeros(3))).energy() == 5


@pytest.mark.parametrize("seed", range(8))
def test_a_planted_change_is_found_with_its_move(seed) -> None:
    noise = np.random.default_rng(seed).standard_normal(16)
    series = np.where(np.arange(16) < 6, 1.0, 13.0) + noise
    found = find_change_points(series.tolist())
    change = next(change for change in found.changes if change.position == 6)
    # BIC may cut the noise on a side once more: a mean of two values has a deviation of 0.7, a difference of two 1.
    assert change.mean_after - change.mean_before == pytest.approx(12, abs=5)
    assert change.move == pytest.approx(series[6] - series[5])
    assert change.usual_move == pytest.approx(np.median(np.abs(np.diff(series))))
    assert change.move > 4 * change.usual_move
    assert found.n == 16


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e6, 3e6), (-1.0, 0.0)])
def test_changes_follow_the_scale_of_the_series(factor, shift) -> None:
    series = np.cumsum(np.random.default_rng(3).standard_normal(24))
    plain, scaled = find_change_points(series.tolist()), find_change_points((factor * series + shift).tolist())
    assert plain.changes
    for before, after in zip(plain.changes, scaled.changes, strict=True):
        assert after.position == before.position
        assert after.mean_after == pytest.approx(factor * before.mean_after + shift, rel=1e-9)
        assert after.move == pytest.approx(factor * before.move, rel=1e-6)
        assert after.usual_move == pytest.approx(abs(factor) * before.usual_move, rel=1e-6)


def test_several_changes_are_found_in_their_order() -> None:
    found = find_change_points([0.0, 0.1, 0.0, 0.1, 9.0, 9.1, 9.0, 9.1, 9.0, 5.0, 5.1, 5.0, 5.1])
    assert [change.position for change in found.changes] == [4, 9]
    assert [change.mean_after for change in found.changes] == pytest.approx([9.04, 5.05])
    assert found.changes[1].mean_before == found.changes[0].mean_after
    assert [change.move for change in found.changes] == pytest.approx([8.9, -4.0])


def test_a_steady_trend_changes_its_level_and_moves_nowhere_more_than_elsewhere() -> None:
    found = find_change_points(list(map(float, range(12))))
    assert found.changes
    assert all(change.move == change.usual_move == 1.0 for change in found.changes)


def test_a_series_without_change_or_with_too_few_values_has_none() -> None:
    constant = find_change_points([0.3] * 6)
    assert (constant.changes, constant.reason) == ((), None)
    assert find_change_points([0.0] * 6).changes == ()
    short = find_change_points([1.0, 2.0, 3.0])
    assert (short.n, short.changes) == (3, ())
    assert "3 values" in short.reason
