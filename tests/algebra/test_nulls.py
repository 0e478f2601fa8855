import math

import pytest
import torch
from scipy import stats

from safety_subspaces.algebra.factors import Factors, drawn_factors, haar_basis, left_factors, squared_norm
from safety_subspaces.algebra.nulls import (
    draw_haar_energies,
    draw_random_k_energies,
    haar_energy_variance,
    matched_control,
    overlap_moments,
    overlap_p_value,
    pooled_p_value,
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


@pytest.mark.parametrize(("rows", "rank"), [(12, 1), (12, 5), (40, 20)])
def test_drawn_energies_of_a_rank_one_update_are_those_of_haar_subspaces(rows, rank):
    update = torch.zeros(rows, 3)
    update[0] = 1.0
    source = generator(2)
    haar = torch.stack([haar_basis(rows, rank, source)[0].square().sum() for _ in range(1000)])
    (drawn,) = draw_haar_energies([rank], rows, DenseUpdate(update).concentration(3.0), 1000, generator(3))
    assert stats.ks_2samp(haar.numpy(), drawn.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("rank", [4, 12, 20])
def test_drawn_energies_have_the_tails_of_haar_subspaces(rank):
    """Of a spectrum between flat and one spike; the benchmark of nulls has more of them."""
    update = DenseUpdate(torch.randn(24, 24, generator=generator()) * torch.arange(1, 25) ** -0.7)
    total = update.energy()
    source = generator(1)
    bases = [haar_basis(24, rank, source) for _ in range(1500)]
    kept = torch.stack([update.left_product(basis).square().sum() for basis in bases]) / total
    (drawn,) = draw_haar_energies([rank], 24, update.concentration(total), 20_000, generator(2))
    low, high = drawn.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    # Four deviations of a rate of 0.05 among 1,500 are 2.3 %; the law itself misses by up to 1.5 % at these ranks.
    assert (kept <= low).double().mean().item() == pytest.approx(0.05, abs=0.038)
    assert (kept >= high).double().mean().item() == pytest.approx(0.05, abs=0.038)


def test_energies_that_cannot_vary_are_drawn_all_alike():
    flat = draw_haar_energies([0, 2, 8], 8, 1 / 8, 3, generator())
    assert flat.tolist() == [[mean] * 3 for mean in (0.0, 0.25, 1.0)]
    assert draw_haar_energies([1, 0], 1, 1.0, 3, generator()).tolist() == [[1.0] * 3, [0.0] * 3]
    ends = draw_haar_energies([8, 0, 3], 8, 0.5, 3, generator())
    assert (ends[0] == 1).all()
    assert (ends[1] == 0).all()
    assert len(set(ends[2].tolist())) == 3


def test_drawn_energies_of_ranks_are_nested_and_vary_together_as_those_of_haar_subspaces():
    """Means over ranks of independent draws would have a third of the variance here."""
    ranks, rows, count = [9, 2, 16], 24, 4000
    update = DenseUpdate(torch.randn(rows, 24, generator=generator()) * torch.arange(1, 25) ** -0.7)
    total = update.energy()
    spread = update.concentration(total)
    drawn = draw_haar_energies(ranks, rows, spread, count, generator(1))
    assert ((drawn[1] <= drawn[0]) & (drawn[0] <= drawn[2])).all()
    for place, rank in enumerate(ranks):
        variance = haar_energy_variance(rows, rank, spread)
        assert drawn[place].mean().item() == pytest.approx(rank / rows, abs=4 * (variance / count) ** 0.5)
        assert drawn[place].var().item() == pytest.approx(variance, rel=0.15)
    expected = haar_energy_variance(rows, 2, spread) * (rows - 9) / (rows - 2)
    assert torch.cov(drawn)[0, 1].item() == pytest.approx(expected, rel=0.2)
    # And of subspaces themselves: the mean over ranks.
    source = generator(2)
    along = [update.left_product(haar_basis(rows, rows, source)).square().sum(dim=1) for _ in range(1500)]
    haar = torch.stack([sum(each[:rank].sum() for rank in ranks) for each in along]) / (3 * total)
    assert drawn.mean(dim=0).var().item() == pytest.approx(haar.var().item(), rel=0.2)


def test_drawn_energies_of_random_k_are_sums_of_different_directions():
    energies = torch.tensor([8.0, 4.0, 2.0, 1.0])
    drawn = draw_random_k_energies(energies, 2, 600, generator())
    assert set(drawn.tolist()) == {12.0, 10.0, 9.0, 6.0, 5.0, 3.0}
    counts = torch.tensor([(drawn == value).sum() for value in drawn.unique()])
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4  # all six pairs alike
    assert draw_random_k_energies(energies, 4, 3, generator()).tolist() == [15.0] * 3
    assert draw_random_k_energies(energies[:0], 0, 3, generator()).tolist() == [0.0] * 3


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


def test_matched_level_is_the_exact_mean_over_all_signs_and_the_deviation_theirs():
    """Of nine rows all 512 signs are tried; the seed changes the p and the deviation, never the level."""
    first, second = (left_factors(update) for update in independent_pair(0, rows=9))
    overlaps = mode_subspace_overlap(first, second, [0.5, 0.9])
    found = [matched_control(first, second, overlaps, 400, generator(seed)) for seed in (0, 1)]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 9)
    for number, overlap in enumerate(overlaps):
        left, right = first.basis[:, : overlap.rank_first].double(), second.basis[:, : overlap.rank_second].double()
        smaller = min(overlap.rank_first, overlap.rank_second)
        every = torch.stack([(left.T @ (right * s[:, None])).square().sum() for s in signs]) / smaller
        for control in (part[number] for part in found):
            assert control.mean == pytest.approx(every.mean().item(), abs=1e-6)
            # of 400 draws with the kurtosis of a quadratic form: 4 to 6 %
            assert control.deviation == pytest.approx(every.std().item(), rel=0.25)
        assert found[0][number].mean == found[1][number].mean


def test_matched_p_is_a_count_of_draws_in_double_precision():
    for seed in range(5):
        _, found = control(*independent_pair(seed, rows=24), draws=199, seed=seed)
        count = round(found.p_value * 200)
        assert found.p_value == count / 200


def test_pooled_p_of_one_tensor_is_that_of_its_moments_and_of_more_falls():
    moments = overlap_moments(24, 5, 5)
    one, deviation = overlap_p_value(0.5, 24, 5, 5), moments.variance**0.5
    assert pooled_p_value([0.5], [moments.mean], [deviation]) == pytest.approx(one)
    many = [pooled_p_value([0.5] * n, [moments.mean] * n, [deviation] * n) for n in (1, 2, 4)]
    assert many == sorted(many, reverse=True)
    assert pooled_p_value([moments.mean], [moments.mean], [0.0]) == 1
    assert math.isnan(pooled_p_value([], [], []))


@pytest.mark.parametrize(("tensors", "energy"), [(1, 0.1), (3, 0.5)])
def test_pooled_p_values_are_calibrated(tensors, energy):
    """Of one tensor at a rank of 1 or 2, where a normal is wrong, and of several."""
    p_values = []
    for seed in range(60):
        found = []
        for tensor in range(tensors):
            pair = independent_pair(1000 * seed + tensor, rows=32)
            overlap, matched = control(*pair, draws=49, energy=energy, seed=tensor)
            found.append((overlap.value, matched.mean, matched.deviation))
        p_values.append(pooled_p_value(*zip(*found, strict=True)))
    assert sum(p <= 0.05 for p in p_values) <= 9  # more in 0.1 % of runs of 60 at 0.05


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
