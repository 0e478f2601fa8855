import math

import pytest
import torch

from safety_subspaces.algebra.factors import Factors, drawn_factors, haar_basis, left_factors, squared_norm
from safety_subspaces.algebra.nulls import (
    haar_energy_variance,
    matched_control,
    overlap_moments,
    overlap_p_value,
    random_k_energy_moments,
)
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.algebra.update import DenseUpdate

RANKS = [(24, 1, 1), (24, 2, 5), (24, 12, 12), (24, 20, 10), (24, 23, 23)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def haar_overlaps(dim, first, second, draws):
    source = generator()
    fixed = torch.eye(dim)[:, :first]  # one subspace may stand still: the other is uniform
    values = [(fixed.T @ haar_basis(dim, second, source)).square().sum().item() for _ in range(draws)]
    return torch.tensor(values, dtype=torch.float64) / min(first, second)


@pytest.mark.parametrize(("dim", "first", "second"), RANKS)
def test_overlap_of_haar_subspaces_has_the_closed_form_moments(dim, first, second):
    values, expected = haar_overlaps(dim, first, second, 2000), overlap_moments(dim, first, second)
    assert values.mean().item() == pytest.approx(expected.mean, abs=4 * (expected.variance / 2000) ** 0.5 + 1e-6)
    assert values.var().item() == pytest.approx(expected.variance, rel=0.2)


@pytest.mark.parametrize(("dim", "first", "second"), RANKS)
def test_p_values_of_haar_subspaces_are_calibrated(dim, first, second):
    values = haar_overlaps(dim, first, second, 2000)
    p = torch.tensor([overlap_p_value(value.item(), dim, first, second) for value in values])
    for level in (0.01, 0.05, 0.5):
        error = (level * (1 - level) / 2000) ** 0.5
        assert (p <= level).double().mean().item() == pytest.approx(level, abs=4 * error)


def test_p_value_falls_with_overlap_and_is_tiny_for_the_same_subspace():
    values = [overlap_p_value(value / 10, 64, 8, 8) for value in range(11)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert values[-1] < 1e-12


def test_overlap_that_cannot_vary_has_p_one_and_undefined_none():
    assert overlap_p_value(1.0, 10, 10, 3) == 1
    assert overlap_p_value(1.0, 1, 1, 1) == 1
    assert math.isnan(overlap_p_value(float("nan"), 10, 3, 3))
    assert math.isnan(overlap_p_value(0.5, 10, 0, 3))


@pytest.mark.parametrize(("shape", "rank"), [((20, 6), 5), ((8, 30), 3), ((15, 1), 4)])
def test_energy_kept_by_haar_subspaces_has_the_closed_form_moments(shape, rank):
    update = torch.randn(*shape, generator=generator()) * torch.logspace(0, -1, shape[1])
    source = generator(1)
    bases = [haar_basis(shape[0], rank, source) for _ in range(2000)]
    kept = [DenseUpdate(update).energies_along(drawn_factors(basis)).sum() for basis in bases]
    total = DenseUpdate(update).energy()
    shares = torch.stack(kept) / total
    variance = haar_energy_variance(shape[0], rank, DenseUpdate(update).concentration(total))
    assert shares.mean().item() == pytest.approx(rank / shape[0], abs=4 * (variance / 2000) ** 0.5)
    assert shares.var().item() == pytest.approx(variance, rel=0.2)


def test_energy_of_random_k_has_the_closed_form_moments():
    energies = torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    source = generator()
    sums = torch.stack([energies[torch.randperm(6, generator=source)[:2]].sum() for _ in range(5000)])
    expected = random_k_energy_moments(energies, 2)
    assert sums.mean().item() == pytest.approx(expected.mean, rel=0.03)
    assert sums.var().item() == pytest.approx(expected.variance, rel=0.1)
    assert random_k_energy_moments(energies, 6).variance == 0
    assert random_k_energy_moments(energies[:0], 0).mean == 0


def test_zero_update_has_no_concentration():
    assert math.isnan(DenseUpdate(torch.zeros(4, 3)).concentration(0.0))


def control(first, second, draws=99, energy=0.5, seed=0):
    factors = left_factors(first), left_factors(second)
    overlaps = mode_subspace_overlap(*factors, [energy])
    return overlaps[0], matched_control(*factors, overlaps, draws, generator(seed))[0]


def independent_pair(seed, rows=96, spread=0.8):
    """Two updates that share nothing but the scale of their rows."""
    source = generator(seed)
    scales = (spread * torch.randn(rows, 1, generator=source)).exp()
    return tuple(scales * torch.randn(rows, 24, generator=source) for _ in range(2))


@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_matched_control_forgives_shared_row_scales_where_haar_does_not(spread):
    haar, matched = [], []
    for seed in range(60):
        overlap, found = control(*independent_pair(seed, spread=spread), seed=seed)
        haar.append(overlap_p_value(overlap.value, 96, overlap.rank_first, overlap.rank_second))
        matched.append(found.p_value)
    assert sum(p <= 0.05 for p in haar) > 30
    assert sum(p <= 0.05 for p in matched) <= 8  # 3 expected, standard deviation 1.7


def test_matched_chance_is_the_overlap_of_leverages():
    first, second = (left_factors(update) for update in independent_pair(0))
    overlaps = mode_subspace_overlap(first, second, [0.3, 0.8])
    found = matched_control(first, second, overlaps, 400, generator())
    for overlap, matched in zip(overlaps, found, strict=True):
        leverages = [
            factors.basis[:, :rank].square().sum(1)
            for factors, rank in ((first, overlap.rank_first), (second, overlap.rank_second))
        ]
        expected = (leverages[0] * leverages[1]).sum().item() / min(overlap.rank_first, overlap.rank_second)
        assert matched.mean == pytest.approx(expected, rel=0.03)


def test_matched_control_sees_a_shared_direction():
    first, second = independent_pair(0)
    shared = 3 * torch.randn(96, 4, generator=generator(9))
    overlap, found = control(
        first + shared @ torch.randn(4, 24, generator=generator(1)),
        second + shared @ torch.randn(4, 24, generator=generator(2)),
    )
    assert found.p_value == pytest.approx(0.01)
    assert overlap.value > found.mean


def test_matched_control_of_nothing_is_missing():
    update = independent_pair(0)[0]
    for pair, draws in (((update, update), 0), ((update, torch.zeros(96, 24)), 9)):
        _, found = control(*pair, draws=draws)
        assert math.isnan(found.mean)
        assert math.isnan(found.p_value)


def test_signs_of_the_basis_are_signs_of_the_rows():
    first, second = independent_pair(3)
    signs = torch.randint(0, 2, (96, 1), generator=generator(5)) * 2.0 - 1.0
    direct = mode_subspace_overlap(left_factors(first), left_factors(second * signs), [0.7])[0]
    left = left_factors(first).basis[:, : direct.rank_first]
    right = (left_factors(second).basis * signs)[:, : direct.rank_second]
    smaller = min(direct.rank_first, direct.rank_second)
    assert direct.value == pytest.approx(squared_norm(left.T @ right) / smaller, abs=1e-5)


def test_matched_control_takes_leading_directions_and_skips_what_lies_beyond_them():
    first, second = (left_factors(update) for update in independent_pair(4))
    whole = mode_subspace_overlap(first, second, [0.3, 0.9])
    held = whole[0].rank_second
    leading = Factors(second.basis[:, :held], second.singular_values)
    overlaps = mode_subspace_overlap(first, leading, [0.3, 0.9])
    near, beyond = matched_control(first, leading, overlaps, 19, generator())
    assert near == matched_control(first, second, whole[:1], 19, generator())[0]
    assert math.isnan(beyond.mean)
    assert math.isnan(beyond.p_value)
