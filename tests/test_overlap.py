import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_subspaces.errors import InputError
from safety_subspaces.linalg import left_factors
from safety_subspaces.overlap import mode_subspace_overlap

ENERGIES = [0.1, 0.5, 0.9, 0.99, 1.0]


def gaussian(*shape, seed=0, decay=1.0):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return matrix * torch.logspace(0, -decay, shape[1])


def oracle(first, second, share):
    """By full SVD in float64, each share on its own."""
    bases = []
    for matrix in (first, second):
        left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
        cumulative = values.square().cumsum(0)
        rank = min(int((cumulative < share * cumulative[-1]).sum()) + 1, values.numel())
        bases.append(left[:, :rank])
    return (bases[0].T @ bases[1]).square().sum().item() / min(b.shape[1] for b in bases)


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (50, 8)])
def test_overlap_agrees_with_a_float64_svd_at_each_share(shape):
    first, second = gaussian(*shape), gaussian(*shape, seed=1)
    found = mode_subspace_overlap(left_factors(first), left_factors(second), ENERGIES[:-1])
    for overlap in found:
        assert overlap.value == pytest.approx(oracle(first, second, overlap.energy), abs=1e-5)


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
