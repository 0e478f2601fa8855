"""What must hold of any update, whatever its shape, form and spectrum; each against plain linear algebra in float64."""

from itertools import combinations, pairwise
from math import log10

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from torch.testing import assert_close

from safety_subspaces.algebra import blocks
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import left_factors, singular_values, tall_factors
from safety_subspaces.algebra.nulls import haar_energy_variance, random_k_energy_moments
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.algebra.projection import Projection, TensorProjections, list_projections
from safety_subspaces.algebra.subspace import choose_rank
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate, StreamedUpdate

KINDS = ("top", "random", "random-k", "random-energy")
FRACTIONS = (0.2, 0.5, 0.8)
# Energies of a float32 product, as a share of the whole; a float32 Gram matrix turns directions a little more.
ENERGY = 1e-5
SHARES = (0.3, 0.7, 0.95)

seeds = st.integers(0, 2**20)
sides = st.integers(1, 14)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def frame(rows, columns, source):
    return torch.linalg.qr(torch.randn(rows, columns, generator=source, dtype=torch.float64)).Q


def spectrum(rank, decay):
    """From 1 to at most 10^-decay, neighbours always apart, so that every leading subspace is well defined."""
    steps = torch.arange(rank, dtype=torch.float64)
    return (1 - 0.5 * steps / rank) * 10 ** (-decay * steps / max(1, rank - 1))


def factored(rows, columns, rank, seed, decay=0.0):
    """A matrix of a known spectrum as the product of two thin factors, in float32."""
    source, rank = generator(seed), min(rows, columns, rank)
    left = frame(rows, rank, source) * spectrum(rank, decay)
    return FactorUpdate(left.float(), frame(columns, rank, source).T.float(), 2.0)


def matrix_with(rows, columns, seed, decay=0.0):
    return factored(rows, columns, min(rows, columns), seed, decay).dense()


def left_vectors(matrix):
    """By a full SVD in float64, directions of rounding apart."""
    left, values = oracle.left_svd(matrix)
    return left[:, values > 1e-6 * values[0]]


def assert_spectra_agree(found, expected):
    """In the squares: a float32 Gram matrix errs by 1e-7 of the largest of them, the small ones too."""
    assert_close(found.square(), expected.square(), rtol=0, atol=1e-6 * expected[0].item() ** 2)


def kept_at_every_rank(left, update):
    return (left.T @ update.double()).square().sum(dim=1).cumsum(dim=0)


def on_a_grid(matrix):
    """Multiples of 2^-20: sums with whole numbers up to 3 are exact in float32."""
    return (matrix * 2**20).round() / 2**20


def streamed(dense):
    """The same update as the difference of two weights of size one; exact of what is :func:`on_a_grid`."""
    reference = torch.randint(0, 2, dense.shape, generator=generator(0)) * 2.0 - 1.0
    weight = dense + reference
    return StreamedUpdate(lambda: weight, lambda: reference, dense.shape, torch.float32)


@pytest.fixture(scope="module")
def in_small_blocks():
    """Blocks of a few rows: what is summed over blocks is so here, however small the matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 24)
        yield


@given(sides, sides, st.floats(0, 4), seeds)
@settings(deadline=None)
def test_left_subspaces_are_blind_to_rotations_of_the_input(rows, columns, decay, seed):
    """Of the alignment update and of the task alike: they act on the output alone."""
    alignment, update = matrix_with(rows, columns, seed, decay), matrix_with(rows, columns, seed + 1)
    turns = [frame(columns, columns, generator(seed + number)) for number in (2, 3)]
    turned = [(one.double() @ turn).float() for one, turn in zip((alignment, update), turns, strict=True)]
    found = kept_at_every_rank(left_factors(turned[0]).basis.double(), turned[1])
    expected = kept_at_every_rank(left_vectors(alignment), update)
    # what a rotation rounds is 1e-7 of the largest direction, and may turn the least by that over its own size
    assert_close(found, expected, rtol=0, atol=(ENERGY + 1e-6 * 10**decay) * DenseUpdate(update).energy())


@given(st.integers(1, 9), st.integers(1, 50), st.floats(0, 5), seeds)
@settings(deadline=None)
def test_factors_of_a_tall_matrix_are_those_of_its_singular_vectors(columns, more, decay, seed):
    """Basis, coordinates, energies and products, down to singular values of 1e-5 of the largest."""
    alignment, update = (matrix_with(columns + more, columns, seed + n, decay * (1 - n)) for n in (0, 1))
    tall, plain, left = tall_factors(alignment), left_factors(alignment), left_vectors(alignment)
    assert tall.numerical_rank == plain.numerical_rank == left.shape[1] == columns
    assert_spectra_agree(tall.singular_values, torch.linalg.svdvals(alignment.double()))
    assert_close(tall.basis.T @ tall.basis, torch.eye(columns), rtol=0, atol=1e-4)
    whole = DenseUpdate(update).energy()
    expected = kept_at_every_rank(left, update)
    for found in (kept_at_every_rank(tall.basis.double(), update), DenseUpdate(update).energies_along(tall).cumsum(0)):
        assert_close(found, expected, rtol=0, atol=1e-4 * whole)
    # products are float32 down to singular values of 1e-3 of the largest, and what they round grows by their ratio
    rounding = 1e-6 * 10 ** min(decay, 3.0) * whole**0.5
    assert_close(tall.coordinates(update).double(), tall.basis.double().T @ update.double(), rtol=0, atol=rounding)
    for rank in range(1, columns + 1):
        projectors = [
            basis[:, :rank].double() @ basis[:, :rank].double().T for basis in (tall.basis, plain.basis, left)
        ]
        assert_close(projectors[0], projectors[2], rtol=0, atol=1e-3)
        assert_close(projectors[1], projectors[2], rtol=0, atol=1e-3)
    other = tall_factors(update)
    assert_close(tall.products(other, (columns, columns)).float(), tall.basis.T @ other.basis, rtol=0, atol=1e-4)


def test_only_matrices_with_more_rows_than_columns_are_tall():
    with pytest.raises(ValueError, match=r"expected more rows than columns, got \(8, 8\)"):
        tall_factors(matrix_with(8, 8, seed=0))


@given(sides, sides, st.integers(1, 5), st.floats(0, 3), seeds)
@settings(deadline=None)
def test_an_update_in_factors_is_its_dense_product(rows, columns, rank, decay, seed):
    update, other = factored(rows, columns, rank, seed, decay), matrix_with(rows, columns, seed + 1)
    dense = update.dense()
    # columns that say the same twice, as of an adapter of too high a rank, are no directions more
    doubled = FactorUpdate(torch.cat([update.left] * 2, dim=1), torch.cat([update.right] * 2), update.scale / 2)
    found, left = update.factors(), left_vectors(dense)
    assert found.numerical_rank == left.shape[1] == min(rank, rows, columns)
    assert doubled.factors().numerical_rank == doubled.singular_values().numel() == found.numerical_rank
    expected = torch.linalg.svdvals(dense.double())[: found.numerical_rank]
    for values in (found.singular_values, update.singular_values(), singular_values(dense)):
        assert_spectra_agree(values, expected)
    kept = kept_at_every_rank(found.basis.double(), other)
    assert_close(kept, kept_at_every_rank(left, other), rtol=0, atol=1e-4 * DenseUpdate(other).energy())
    assert update.energy() == pytest.approx(dense.double().square().sum().item(), rel=1e-5)
    along = update.energies_along(left_factors(other)).sum().item()
    assert along == pytest.approx(kept_at_every_rank(left_vectors(other), dense)[-1].item(), rel=1e-4)


@pytest.mark.usefixtures("in_small_blocks")
@given(sides, sides, st.integers(1, 5), seeds)
@settings(deadline=None)
def test_every_form_of_an_update_has_the_same_measures(rows, columns, rank, seed):
    alignment = matrix_with(rows, columns, seed)
    thin, other = factored(rows, columns, rank, seed + 1), factored(rows, columns, rank + 1, seed + 2)
    forms = [(DenseUpdate(one.dense()), streamed(one.dense()), one) for one in (thin, other)]
    exact, exact_other = (one.dense().double() for one in (thin, other))
    factors, left = DenseUpdate(alignment).factors(), left_vectors(alignment)
    whole, gram = exact.square().sum().item(), exact @ exact.T
    expected_along = left.T @ exact
    for update in forms[0]:
        assert update.energy() == pytest.approx(whole, rel=1e-5)
        assert update.concentration(update.energy()) == pytest.approx(gram.square().sum().item() / whole**2, rel=1e-4)
        along = update.coordinates(factors).double()
        assert_close(along.T @ along, expected_along.T @ expected_along, rtol=0, atol=ENERGY * whole)
        assert_close(along.square().sum(dim=1), update.energies_along(factors), rtol=0, atol=ENERGY * whole)
        energies = update.energies_along(factors).cumsum(0)
        assert_close(energies, kept_at_every_rank(left, exact), rtol=0, atol=ENERGY * whole)
        for step in (1, 3, rows):
            assert_close(torch.cat(list(update.rows(step))).double(), exact, rtol=0, atol=1e-6)
        inner, size = (exact * exact_other).sum().item(), (whole * exact_other.square().sum().item()) ** 0.5
        for second in forms[1]:
            assert update.inner(second) == pytest.approx(inner, abs=1e-6 * size)


@pytest.mark.usefixtures("in_small_blocks")
@given(sides, sides, st.floats(0, 4), seeds)
@settings(deadline=None)
def test_a_streamed_update_is_factorised_as_the_dense_one(rows, columns, decay, seed):
    alignment, update = (on_a_grid(matrix_with(rows, columns, seed + n, decay * (1 - n))) for n in (0, 1))
    assert torch.equal(streamed(alignment).dense(), alignment)
    here, there = streamed(alignment).factors(), DenseUpdate(alignment).factors()
    for factors in (here, there):
        assert (factors.turn is not None) is (rows > columns > 1)
    expected = kept_at_every_rank(left_vectors(alignment), update)
    for factors in (here, there):
        found = streamed(update).energies_along(factors).cumsum(0)
        assert_close(found, expected, rtol=0, atol=1e-4 * DenseUpdate(update).energy())
    assert_spectra_agree(singular_values(streamed(alignment)), here.singular_values)


@pytest.mark.usefixtures("in_small_blocks")
@given(sides, sides, st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_every_form_is_projected_alike(rows, columns, rank, seed):
    """Onto and away add up to the update; opposite is onto reversed; the part has the energy that was reported."""
    thin = factored(rows, columns, rank, seed + 1)
    exact, whole = thin.dense().double(), thin.energy()
    projections = TensorProjections("t", DenseUpdate(matrix_with(rows, columns, seed)).factors(), columns, seed)
    choices = list_projections(KINDS, FRACTIONS, 1)
    wanted = [(choice, method) for choice in choices for method in ("onto", "away", "opposite")]
    forms = {"dense": DenseUpdate(thin.dense()), "streamed": streamed(thin.dense()), "factors": thin}
    kept = projections.energies_kept(forms, dict.fromkeys(forms, whole), choices)
    for label, update in forms.items():
        blocks = zip(*projections.updated_blocks(update, wanted, 5), strict=True)
        made = {key: torch.cat(parts).double() for key, parts in zip(wanted, blocks, strict=True)}
        for choice in choices:
            onto, away, opposite = (made[choice, method] for method in ("onto", "away", "opposite"))
            assert_close(onto + away, exact, rtol=0, atol=1e-5)
            assert_close(opposite, -onto, rtol=0, atol=0)
            assert (onto * away).sum().item() == pytest.approx(0, abs=1e-5 * whole)  # at right angles
            found = kept[label, choice]
            assert onto.square().sum().item() == pytest.approx(found.energy, abs=ENERGY * whole)
            assert found.energy == pytest.approx(kept["dense", choice].energy, abs=ENERGY * whole)
            assert found.rank == kept["dense", choice].rank


@given(sides, sides, seeds)
@settings(deadline=None, max_examples=40)
def test_what_was_projected_once_is_not_changed_by_doing_it_again(rows, columns, seed):
    """But for random-energy, whose rank follows the update that it is given."""
    projections = TensorProjections("t", DenseUpdate(matrix_with(rows, columns, seed)).factors(), columns, seed)
    update = matrix_with(rows, columns, seed + 1)
    for choice in list_projections(KINDS[:3], FRACTIONS, 1):
        onto, away = (projections.updated(update, choice, method, 1.0) for method in ("onto", "away"))
        assert_close(projections.updated(onto, choice, "onto", 1.0), onto, rtol=0, atol=1e-5)
        assert_close(projections.updated(away, choice, "onto", 1.0), torch.zeros_like(update), rtol=0, atol=1e-5)


@given(sides, sides, seeds)
@settings(deadline=None)
def test_more_directions_keep_more_and_all_keep_what_the_column_space_holds(rows, columns, seed):
    projections = TensorProjections("t", DenseUpdate(matrix_with(rows, columns, seed)).factors(), columns, seed)
    update = matrix_with(rows, columns, seed + 1)
    choices = list_projections(KINDS[:3], (*FRACTIONS, 0.999), 1)
    kept = projections.energies_kept({"u": DenseUpdate(update)}, {"u": DenseUpdate(update).energy()}, choices)
    for kind in KINDS[:3]:
        row = [kept["u", choice].energy for choice in choices if choice.subspace == kind]
        assert all(first <= second + ENERGY for first, second in pairwise(row))
        assert row[-1] <= DenseUpdate(update).energy() * (1 + ENERGY)
    left = left_vectors(matrix_with(rows, columns, seed))
    full = choose_rank(RankRule(fraction=0.999), projections.factors, columns).rank
    if full == left.shape[1]:
        found = kept["u", Projection("top", 0.999, 0)].energy
        assert found == pytest.approx(
            kept_at_every_rank(left, update)[-1].item(), abs=ENERGY * DenseUpdate(update).energy()
        )


@given(st.integers(1, 9), st.integers(1, 30), seeds)
@settings(deadline=None)
def test_overlaps_of_tall_updates_are_those_of_their_singular_vectors(columns, more, seed):
    """In either form and mixed, symmetric, and blind to one rotation of the output that both are given."""
    rows = columns + more
    first, second = (matrix_with(rows, columns, seed + number, 1.0) for number in (0, 1))
    turn = frame(rows, rows, generator(seed + 2))
    turned = [left_factors((turn @ one.double()).float()) for one in (first, second)]
    left = [left_vectors(one) for one in (first, second)]
    pairs = {
        "tall": (tall_factors(first), tall_factors(second)),
        "mixed": (tall_factors(first), left_factors(second)),
        "plain": (left_factors(first), left_factors(second)),
        "turned": tuple(turned),
    }
    for pair in pairs.values():
        back = mode_subspace_overlap(pair[1], pair[0], SHARES)
        for found, reversed_ in zip(mode_subspace_overlap(*pair, SHARES), back, strict=True):
            smaller = min(found.rank_first, found.rank_second)
            bases = left[0][:, : found.rank_first], left[1][:, : found.rank_second]
            expected = oracle.overlap(*bases)
            assert found.value == pytest.approx(expected, abs=1e-4)
            assert found.value == pytest.approx(reversed_.value, abs=1e-5)
            assert max(0, found.rank_first + found.rank_second - rows) / smaller - 1e-4 <= found.value <= 1


@given(st.integers(2, 16), st.data())
@settings(deadline=None)
def test_overlaps_reach_both_of_their_bounds(dim, data):
    """Spaces as far apart as they can be share what they cannot help sharing; one inside the other, everything."""
    first = data.draw(st.integers(1, dim))
    second = data.draw(st.integers(1, dim))
    axes = frame(dim, dim, generator(data.draw(seeds)))
    low = max(0, first + second - dim) / min(first, second)
    for other, expected in ((axes[:, dim - second :], low), (axes[:, :second], 1.0)):
        pair = [left_factors((side * spectrum(side.shape[1], 0.0)).float()) for side in (axes[:, :first], other)]
        (found,) = mode_subspace_overlap(*pair, [1.0])
        assert (found.rank_first, found.rank_second) == (first, second)
        assert found.value == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_moments_of_random_k_are_those_of_all_its_subsets(energies, data):
    count = data.draw(st.integers(0, len(energies)))
    sums = np.array([sum(subset) for subset in combinations(energies, count)])
    found = random_k_energy_moments(torch.tensor(energies, dtype=torch.float64), count)
    assert found.mean == pytest.approx(sums.mean(), rel=1e-9, abs=1e-9)
    assert found.variance == pytest.approx(sums.var(), rel=1e-9, abs=1e-8)


@given(st.integers(2, 200), st.data())
def test_the_haar_variance_of_one_direction_is_that_of_a_beta(rows, data):
    """Exact where it is known: ``Beta(k/2, (m-k)/2)`` of an update of rank one, nothing of an isotropic one."""
    rank = data.draw(st.integers(0, rows))
    expected = 2 * rank * (rows - rank) / (rows**2 * (rows + 2))
    assert haar_energy_variance(rows, rank, 1.0) == pytest.approx(expected, rel=1e-12)
    assert haar_energy_variance(rows, rank, 1 / rows) == pytest.approx(0, abs=1e-15)
    spread = data.draw(st.floats(1 / rows, 1))
    complement = haar_energy_variance(rows, rows - rank, spread)
    assert haar_energy_variance(rows, rank, spread) == pytest.approx(complement, rel=1e-12)


@pytest.mark.usefixtures("in_small_blocks")
@pytest.mark.parametrize("shape", [(12, 12), (6, 30), (30, 6), (50, 2), (9, 1)], ids=str)
@pytest.mark.parametrize("form", ["dense", "streamed", "factors"])
def test_closed_forms_are_moments_of_plainly_drawn_subspaces(shape, form):
    """Of *random* and *random-energy*, in every form of the update: 20,000 Gaussian matrices by QR in float64."""
    draws, rows = 20_000, shape[0]
    thin = factored(*shape, 3, seed=1, decay=log10(3))
    update = {"dense": DenseUpdate(thin.dense()), "streamed": streamed(thin.dense()), "factors": thin}[form]
    projections = TensorProjections("t", DenseUpdate(matrix_with(*shape, seed=2)).factors(), shape[1], 0)
    choices = list_projections(["random", "random-energy"], [0.5], 1, "closed")
    for (_, choice), found in projections.energies_kept({"u": update}, {"u": update.energy()}, choices).items():
        bases = torch.randn(draws, rows, found.rank, generator=generator(3), dtype=torch.float64)
        along = torch.linalg.qr(bases).Q.mT @ thin.dense().double()
        energies = along.square().sum(dim=(1, 2))
        error = (found.variance / draws) ** 0.5
        assert energies.mean().item() == pytest.approx(found.energy, abs=4.5 * error + 1e-6), choice
        assert energies.var().item() == pytest.approx(found.variance, rel=0.08, abs=1e-9), choice
