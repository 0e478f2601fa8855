import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle

from safety_subspaces.algebra.factors import Factors, left_factors
from safety_subspaces.algebra.overlap import (
    mode_subspace_overlap,
    nested_principal_angles,
    principal_angles,
    summarise_angles,
)
from safety_subspaces.artefacts.errors import InputError

ENERGIES = [0.1, 0.5, 0.9, 0.99, 1.0]


def gaussian(*shape, seed=0, decay=1.0):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return matrix * torch.logspace(0, -decay, shape[1])


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (50, 8)])
def test_overlap_agrees_with_a_float64_svd_at_each_share(shape):
    first, second = gaussian(*shape), gaussian(*shape, seed=1)
    found = mode_subspace_overlap(left_factors(first), left_factors(second), ENERGIES[:-1])
    for overlap in found:
        bases = (oracle.basis_at_energy(update, overlap.energy) for update in (first, second))
        assert overlap.value == pytest.approx(oracle.overlap(*bases), abs=1e-5)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16), st.integers(0, 1000))
@settings(deadline=None)
def test_overlap_is_between_its_bounds(rows, columns_first, columns_second, seed):
    first, second = gaussian(rows, columns_first, seed=seed), gaussian(rows, columns_second, seed=seed + 1)
    for overlap in mode_subspace_overlap(left_factors(first), left_factors(second), ENERGIES):
        smaller = min(overlap.rank_first, overlap.rank_second)
        low = max(0, overlap.rank_first + overlap.rank_second - rows) / smaller
        assert low - 1e-5 <= overlap.value <= 1


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_overlap_is_symmetric_and_blind_to_rotations_of_the_input(seed):
    first, second = left_factors(gaussian(10, 7, seed=seed)), left_factors(gaussian(10, 7, seed=seed + 1))
    rotation = torch.linalg.qr(gaussian(7, 7, seed=seed + 2))[0]
    rotated = left_factors(gaussian(10, 7, seed=seed) @ rotation)
    for one, other, turned in zip(
        mode_subspace_overlap(first, second, [0.5, 0.95]),
        mode_subspace_overlap(second, first, [0.5, 0.95]),
        mode_subspace_overlap(rotated, second, [0.5, 0.95]),
        strict=True,
    ):
        assert one.value == pytest.approx(other.value, abs=1e-5)
        assert one.value == pytest.approx(turned.value, abs=1e-4)


def test_an_update_overlaps_itself_wholly_and_a_disjoint_one_not_at_all():
    update = gaussian(12, 5)
    for overlap in mode_subspace_overlap(left_factors(update), left_factors(3 * update), ENERGIES):
        assert overlap.value == pytest.approx(1, abs=1e-5)
    upper, lower = torch.zeros(12, 5), torch.zeros(12, 5)
    upper[:6], lower[6:] = update[:6], update[6:]
    for overlap in mode_subspace_overlap(left_factors(upper), left_factors(lower), ENERGIES):
        assert overlap.value == pytest.approx(0, abs=1e-6)


def test_zero_updates_have_no_overlap_but_a_reason():
    zero, update = left_factors(torch.zeros(6, 4)), left_factors(gaussian(6, 4))
    for pair, word in (((zero, update), "first"), ((update, zero), "second"), ((zero, zero), "first and the second")):
        (overlap,) = mode_subspace_overlap(*pair, [0.9])
        assert math.isnan(overlap.value)
        assert overlap.reason == f"the {word} update is zero"


def test_updates_of_different_heights_are_refused():
    with pytest.raises(InputError, match="share no space"):
        mode_subspace_overlap(left_factors(gaussian(4, 3)), left_factors(gaussian(5, 3)), [0.5])


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (50, 8)])
def test_angles_of_every_share_are_those_of_scipy(shape):
    first, second = left_factors(gaussian(*shape)), left_factors(gaussian(*shape, seed=1))
    overlaps = mode_subspace_overlap(first, second, ENERGIES)
    ranks = [(overlap.rank_first, overlap.rank_second) for overlap in overlaps]
    found = nested_principal_angles(first.basis, second.basis, ranks)
    for overlap, (ku, kh), angles in zip(overlaps, ranks, found, strict=True):
        left, right = first.basis[:, :ku].double().numpy(), second.basis[:, :kh].double().numpy()
        expected = np.sort(scipy.linalg.subspace_angles(left, right))
        assert angles.numpy() == pytest.approx(expected, abs=1e-7)
        assert angles.numpy() == pytest.approx(principal_angles(first.basis[:, :ku], second.basis[:, :kh]).numpy())
        assert overlap.value == pytest.approx(np.mean(np.cos(expected) ** 2), abs=1e-5)
        assert overlap.projection_distance == pytest.approx(np.linalg.norm(np.sin(expected)), abs=2e-3)
        summary = summarise_angles(angles)
        assert summary.grassmann_distance == pytest.approx(np.linalg.norm(expected), abs=1e-6)
        assert (summary.smallest, summary.largest) == pytest.approx((expected[0], expected[-1]), abs=1e-7)
        assert summary.mean == pytest.approx(expected.mean(), abs=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, math.pi / 4, math.pi / 2 - 1e-9, math.pi / 2])
def test_angles_near_both_ends_are_not_lost_among_others(angle):
    frame = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    turned = torch.stack([frame[:, 0], math.cos(0.9) * frame[:, 1] + math.sin(0.9) * frame[:, 4]], dim=1)
    turned = torch.cat([turned, math.cos(angle) * frame[:, 2:3] + math.sin(angle) * frame[:, 5:6]], dim=1)
    expected = sorted([0.0, 0.9, angle])
    (found,) = nested_principal_angles(frame[:, :3], turned, [(3, 3)])
    assert found.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    narrow, wide = nested_principal_angles(frame[:, :3], turned, [(1, 3), (3, 1)])
    assert (narrow.numel(), wide.numel()) == (1, 1)
    assert (narrow.item(), wide.item()) == pytest.approx((0, 0), abs=1e-14)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_distances_are_metric_like_and_blind_to_rotations(dim, first, second, seed):
    first, second = min(first, dim), min(second, dim)
    bases = [torch.linalg.qr(gaussian(dim, k, seed=seed + k, decay=0).double()).Q for k in (first, second)]
    rotation = torch.linalg.qr(gaussian(dim, dim, seed=seed + 99, decay=0).double()).Q
    angles = principal_angles(*bases)
    assert angles.numel() == min(first, second)
    assert 0 <= angles.min() <= angles.max() <= math.pi / 2
    assert angles.numpy() == pytest.approx(principal_angles(bases[1], bases[0]).numpy(), abs=1e-12)
    assert angles.numpy() == pytest.approx(principal_angles(*(rotation @ b for b in bases)).numpy(), abs=1e-7)
    shared = max(0, first + second - dim)  # directions that the two cannot help sharing
    assert angles[:shared].numpy() == pytest.approx(0, abs=1e-12)
    summary = summarise_angles(angles)
    chordal = angles.sin().norm().item()
    assert chordal - 1e-12 <= summary.grassmann_distance <= math.pi / 2 * chordal + 1e-12


def test_nothing_has_no_angle_and_no_distance():
    zero, update = left_factors(torch.zeros(6, 4)), left_factors(gaussian(6, 4))
    (overlap,) = mode_subspace_overlap(zero, update, [0.9])
    assert math.isnan(overlap.projection_distance)
    assert principal_angles(zero.basis, update.basis).numel() == 0
    assert nested_principal_angles(update.basis, update.basis, []) == []
    assert all(math.isnan(value) for value in vars(summarise_angles(torch.zeros(0, dtype=torch.float64))).values())


def test_a_basis_that_is_too_short_for_a_share_is_missing_there_and_right_elsewhere():
    first, second = left_factors(gaussian(20, 12)), left_factors(gaussian(20, 12, seed=1))
    held = Factors(first.basis[:, :3], first.singular_values)
    whole = mode_subspace_overlap(first, second, ENERGIES)
    for order in ((held, second), (second, held)):
        for expected, found in zip(whole, mode_subspace_overlap(*order, ENERGIES), strict=True):
            if expected.rank_first <= 3:
                assert found.reason is None
                assert found.value == pytest.approx(expected.value, abs=1e-6)
            else:
                assert math.isnan(found.value)
                assert "holds 3 directions" in found.reason
    assert {overlap.rank_first <= 3 for overlap in whole} == {True, False}
