"""Measures of an update against plain float64 algebra, dense and in factors."""

import math

import pytest
import torch
from support import oracle

from safety_subspaces.algebra import blocks as block_sizes
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import drawn_factors, haar_basis, left_factors, singular_values
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate, StreamedUpdate, Update
from safety_subspaces.weights.measures import (
    Comparison,
    compress,
    measure_update,
    pool_measures,
    spectral_ranks,
)
from safety_subspaces.weights.names import part_of
from safety_subspaces.weights.subspace_file import Subspace

NAME = "model.layers.3.mlp.up_proj.weight"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank(rows: int = 20, columns: int = 12, inner: int = 4) -> FactorUpdate:
    source = generator(1)
    return FactorUpdate(torch.randn(rows, inner, generator=source), torch.randn(inner, columns, generator=source), 0.7)


def inside(update: Update, basis: torch.Tensor, side: str) -> float:
    return float(update.energies_along(drawn_factors(basis), side).sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_update_in_factors_measures_as_its_product(side) -> None:
    update = low_rank()
    dense = (update.scale * update.left.double() @ update.right.double()).float()
    basis = haar_basis(20 if side == "left" else 12, 5, generator())
    assert inside(update, basis, side) == pytest.approx(inside(DenseUpdate(dense), basis, side), rel=1e-5)
    assert update.energy() == pytest.approx(oracle.energy(dense), rel=1e-6)
    torch.testing.assert_close(update.dense(), dense)
    torch.testing.assert_close(update.transposed().dense(), dense.T)
    mine, (left, values) = update.factors(), oracle.left_svd(dense)
    assert mine.numerical_rank == 4
    torch.testing.assert_close(mine.singular_values, values[:4], rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.singular_values, update.singular_values())
    assert torch.linalg.matrix_norm(mine.basis.double().T @ left[:, :4]).square() == pytest.approx(4, abs=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", [(207, 6), (6, 103), (19, 9), (55,)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_streamed_update_measures_as_the_difference(shape, side) -> None:
    weight, reference = (torch.randn(shape, generator=generator(seed)) for seed in (1, 2))
    update, dense = StreamedUpdate(lambda: weight, lambda: reference, weight.shape, torch.float32), weight - reference
    assert torch.equal(update.dense(), dense)
    dim = dense.numel() if dense.ndim == 1 else shape[0 if side == "left" else 1]
    basis = haar_basis(dim, 3, generator())
    subspace = Subspace({NAME: basis}, {}, side, {})
    mine, theirs = (measure_update(NAME, value, Comparison(subspace)) for value in (update, DenseUpdate(dense)))
    matrix = dense.double().reshape(len(dense), -1)
    matrix = matrix if side == "left" or dense.ndim == 1 else matrix.T
    assert mine.inside == pytest.approx(oracle.energy_along(basis, matrix), rel=1e-5)
    assert mine.energy == theirs.energy
    assert mine.inside == pytest.approx(theirs.inside, rel=1e-6)
    assert mine.energy == pytest.approx(oracle.energy(matrix), rel=1e-6)
    if dense.ndim == 2:
        torch.testing.assert_close(mine.spectrum, torch.linalg.svdvals(matrix), rtol=1e-5, atol=0)


def test_a_zero_update_in_factors_has_no_direction() -> None:
    zero = FactorUpdate(torch.zeros(6, 2), torch.randn(2, 4))
    assert zero.factors().numerical_rank == 0
    assert zero.singular_values().numel() == 0
    measures = measure_update(NAME, zero, Comparison(other={NAME: haar_basis(6, 2, generator())}))
    assert measures.energy == 0
    assert math.isnan(measures.overlap)
    assert math.isnan(measures.stable_rank)
    assert math.isnan(pool_measures([measures])["energy_fraction"])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that small matrices have several."""
    monkeypatch.setattr(block_sizes, "BLOCK", 50)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (300, 6), (6, 300)])
@pytest.mark.parametrize("size", [1.0, 1e-30])
@pytest.mark.parametrize("blocks", [None, "small_blocks"])
def test_singular_values_are_those_of_an_svd(shape, size, blocks, request) -> None:
    if blocks:
        request.getfixturevalue(blocks)
    matrix = torch.randn(shape, generator=generator(2)) * size
    left, values = oracle.left_svd(matrix)
    # A float32 Gram matrix errs by 1e-7 of the largest square: by 3e-6 of the least value where they lie 8 apart, as
    # those of 40 x 24 do. Over 40 seeds and two kinds of kernels it was up to 1.2e-6.
    torch.testing.assert_close(singular_values(matrix), values, rtol=5e-6, atol=0)
    torch.testing.assert_close(left_factors(matrix).singular_values, values, rtol=5e-6, atol=0)
    basis = left_factors(matrix).basis.double()
    assert torch.linalg.matrix_norm(basis[:, :3].T @ left[:, :3]).square() == pytest.approx(3, abs=1e-4)


def test_ill_conditioned_matrices_keep_their_small_end() -> None:
    left, right = haar_basis(30, 12, generator(3)).double(), haar_basis(16, 12, generator(4)).double()
    values = torch.logspace(0, -5, 12, dtype=torch.float64)
    matrix = (left * values @ right.T).float()
    torch.testing.assert_close(singular_values(matrix)[:12], values, rtol=2e-3, atol=0)


def test_ranks_of_a_spectrum() -> None:
    assert spectral_ranks(torch.ones(7, dtype=torch.float64)) == pytest.approx((7.0, 7.0))
    assert spectral_ranks(torch.tensor([3.0], dtype=torch.float64)) == pytest.approx((1.0, 1.0))
    stable, effective = spectral_ranks(torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert stable == pytest.approx(1.25)
    assert effective == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))))
    assert all(map(math.isnan, spectral_ranks(torch.zeros(0, dtype=torch.float64))))


def test_energy_inside_is_summed_before_it_is_divided() -> None:
    basis = haar_basis(10, 3, generator(5))
    inside, random = basis @ torch.randn(3, 8, generator=generator(6)), torch.randn(10, 8, generator=generator(7))
    vector = torch.randn(4, generator=generator(8))
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]
    subspace = Subspace({names[0]: basis, names[1]: basis}, {}, "left", {})
    against = Comparison(subspace)
    found = [
        measure_update(name, DenseUpdate(u), against) for name, u in zip(names, (inside, random, vector), strict=True)
    ]
    assert found[0].inside == pytest.approx(found[0].energy, rel=1e-6)
    assert found[1].inside == pytest.approx(oracle.energy(oracle.along(basis, random)), rel=1e-6)
    assert (found[2].inside, found[2].is_matrix, found[2].spectrum) == (0.0, False, None)
    pooled = pool_measures(found)
    whole = sum(m.energy for m in found)
    assert pooled["energy_fraction"] == pytest.approx((found[0].inside + found[1].inside) / whole)
    assert pooled["energy_fraction_chance"] == pytest.approx(0.3 * (found[0].energy + found[1].energy) / whole)
    assert pooled["frobenius_norm"] == pytest.approx(whole**0.5)


def test_the_overlap_is_one_with_itself_and_near_chance_with_a_random_subspace() -> None:
    update = torch.randn(200, 40, generator=generator(9))
    factors = left_factors(update)
    own = measure_update(NAME, DenseUpdate(update), Comparison(other={NAME: factors.basis[:, :20]}, energy=0.5))
    assert own.overlap == pytest.approx(1.0, abs=1e-5)
    random = measure_update(
        NAME, DenseUpdate(update), Comparison(other={NAME: haar_basis(200, 20, generator(10))}, energy=0.5)
    )
    assert random.overlap_chance == pytest.approx(0.1, abs=0.02)
    assert random.overlap == pytest.approx(random.overlap_chance, abs=0.02)


def test_compression_keeps_the_leading_directions_and_says_what_is_lost() -> None:
    update = torch.randn(30, 20, generator=generator(11))
    kept, lost = compress(update, left_factors(update), RankRule(count=3))
    values = torch.linalg.svdvals(update.double()).square()
    assert lost == pytest.approx(float(values[3:].sum() / values.sum()), rel=1e-5)
    error = update.double() - kept.dense().double()
    assert float(error.square().sum() / update.double().square().sum()) == pytest.approx(lost, rel=1e-5)
    whole, nothing = compress(update, left_factors(update), RankRule(fraction=0.9))
    assert whole.dense() is update  # its factors would take more room
    assert nothing == 0.0


def test_places_are_blocks_and_modules() -> None:
    assert part_of(NAME) == "layers.03"
    assert part_of("base_model.model.model.embed_tokens.weight") == "embed_tokens"
    assert part_of("lm_head.weight") == "lm_head"
