import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import left_factors, squared_norm
from safety_subspaces.algebra.nulls import haar_energy_variance
from safety_subspaces.algebra.subspace import (
    choose_rank,
    energy_matched_rank,
    haar_triangle,
    is_sampled_without_basis,
    random_order,
    sampled_haar_energy,
    sampled_haar_projection,
    seeded_generator,
    top_basis,
)
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.artefacts.errors import InputError


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "given", [{}, {"count": 2, "fraction": 0.5}, {"count": 0}, {"fraction": 0.0}, {"fraction": 1.0}, {"energy": 1.5}]
)
def test_a_rule_is_exactly_one_number_in_range(given):
    with pytest.raises(InputError):
        RankRule(**given)


@pytest.mark.parametrize(("fraction", "rank"), [(0.01, 1), (0.25, 2), (0.5, 5), (0.05, 1), (0.35, 4), (0.99, 10)])
def test_fraction_rounds_half_to_even_and_is_at_least_one(fraction, rank):
    # 0.25 * 10 = 2.5 goes down to 2; 0.35 * 10 is 3.5 in floating point and goes up to 4
    assert choose_rank(RankRule(fraction=fraction), left_factors(gaussian(30, 10)), 10).rank == rank


def test_rank_is_capped_at_the_numerical_rank_and_says_so():
    factors = left_factors(gaussian(30, 3) @ gaussian(3, 20))
    for rule in (RankRule(fraction=0.5), RankRule(count=10)):
        choice = choose_rank(rule, factors, 20)
        assert (choice.rank, choice.wanted, choice.capped) == (3, 10, True)
    assert not choose_rank(RankRule(energy=1.0), factors, 20).capped


def test_zero_matrix_has_rank_zero_under_every_rule():
    factors = left_factors(torch.zeros(6, 4))
    for rule in (RankRule(count=1), RankRule(fraction=0.5), RankRule(energy=0.9)):
        assert choose_rank(rule, factors, 4).rank == 0
    assert top_basis(factors, 0).shape == (6, 0)


@given(st.floats(0.01, 0.98), st.integers(1, 12), st.integers(1, 12))
def test_rank_grows_with_the_fraction(fraction, rows, columns):
    factors = left_factors(gaussian(rows, columns))
    here, there = (choose_rank(RankRule(fraction=f), factors, columns).rank for f in (fraction, fraction + 0.01))
    assert 1 <= here <= there <= min(rows, columns)


def test_random_k_takes_directions_without_replacement():
    factors = left_factors(gaussian(20, 12))
    order = random_order(factors, seeded_generator(0, "a"))
    assert sorted(order.tolist()) == list(range(12))


def test_random_k_takes_each_direction_equally_often():
    factors = left_factors(gaussian(20, 8))
    counts = torch.zeros(8)
    for draw in range(2000):
        counts[random_order(factors, seeded_generator(1, "a", draw))[:2]] += 1
    assert_close(counts / 2000, torch.full((8,), 0.25), rtol=0, atol=0.04)


def test_seeds_differ_by_every_part_of_the_key():
    keys = [
        (0, "a", "random", 0),
        (1, "a", "random", 0),
        (0, "b", "random", 0),
        (0, "a", "top", 0),
        (0, "a", "random", 1),
    ]
    firsts = {torch.randn(1, generator=seeded_generator(*key)).item() for key in keys}
    assert len(firsts) == len(keys)


def test_seeds_are_the_same_in_another_process():
    code = (
        "from safety_subspaces.algebra.subspace import seeded_generator as g; "
        "print(g(3, 'x', 'random', 1).initial_seed())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="src")
    assert int(found.stdout) == seeded_generator(3, "x", "random", 1).initial_seed()


def test_energy_matched_rank_keeps_that_share_on_average():
    assert energy_matched_rank(0.3, 40) == 12  # a Haar subspace of R^40 keeps 12/40 on average


@pytest.mark.parametrize(
    ("shape", "sampled"), [((6, 1), False), ((7, 1), True), ((8960, 1536), False), ((32000, 4096), True)]
)
def test_random_projections_of_embeddings_are_sampled_and_those_of_block_matrices_have_a_basis(shape, sampled):
    assert is_sampled_without_basis(shape) is sampled


@pytest.mark.parametrize("rank", [0, 2, 5, 30, 55, 60])
def test_sampled_projection_is_one_of_an_orthogonal_projector(rank):
    update = gaussian(60, 5) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0])
    projected = sampled_haar_projection(update, rank, seeded_generator(0, "x"))
    energy = squared_norm(projected)
    inner = (projected * update).sum().item()
    assert inner == pytest.approx(energy, abs=1e-3 * squared_norm(update))  # <P U, U> = ||P U||^2
    gram = projected.T @ projected
    assert_close(gram, projected.T @ update, rtol=0, atol=1e-3 * gram.abs().max().item() + 1e-5)
    again = sampled_haar_energy(haar_triangle(update), 60, rank, seeded_generator(0, "x"))
    assert again == pytest.approx(energy, abs=1e-4 * squared_norm(update))


@pytest.mark.parametrize("rank", [2, 30])
def test_sampled_energy_has_the_haar_moments(rank):
    update = gaussian(40, 3) * torch.tensor([3.0, 1.0, 0.5])
    total = squared_norm(update)
    variance = haar_energy_variance(40, rank, DenseUpdate(update).concentration(total))
    triangle = haar_triangle(update)
    shares = torch.tensor(
        [sampled_haar_energy(triangle, 40, rank, seeded_generator(0, draw)) / total for draw in range(3000)]
    )
    assert shares.mean().item() == pytest.approx(rank / 40, abs=4 * (variance / 3000) ** 0.5)
    assert shares.var().item() == pytest.approx(variance, rel=0.15)


def test_sampled_projection_of_a_wide_matrix_is_refused():
    with pytest.raises(InputError, match="twice as many rows"):
        sampled_haar_projection(gaussian(5, 4), 2, seeded_generator(0))
