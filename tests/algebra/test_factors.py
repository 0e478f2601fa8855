import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from threadpoolctl import threadpool_info
from torch.testing import assert_close

from safety_subspaces.algebra.eigen import (
    FEW_VECTORS,
    RANK_TOLERANCE,
    _threads_of_torch,
    gram_of_blocks,
    gram_of_rows,
    rank_of_energy,
    symmetric_eigh,
)
from safety_subspaces.algebra.factors import (
    haar_basis,
    left_factors,
    squared_norm,
    squared_row_norms,
)
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.artefacts.errors import InputError

SHAPES = [(24, 24), (16, 40), (40, 16), (90, 8), (1, 7), (7, 1)]


def gaussian(*shape, seed=0, decay=0.0, dtype=torch.float32):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return matrix * torch.logspace(0, -decay, shape[-1], dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 2.0, 4.0])
def test_factors_agree_with_a_float64_svd(shape, decay):
    delta, other = gaussian(*shape, decay=decay), gaussian(*shape, seed=1)
    factors = left_factors(delta)
    left, values = oracle.left_svd(delta)
    assert factors.numerical_rank == int((values > RANK_TOLERANCE * values[0]).sum())
    values, left = values[: factors.numerical_rank], left[:, : factors.numerical_rank]
    # A float32 Gram holds eigenvalues to 2^-24 of the largest, and s differs by half of what s^2 does, over s. Over 200
    # draws of each case at most 0.62 of this.
    bounds = values[0] * (1e-6 + 2**-24 * values[0] / values)
    assert ((factors.singular_values - values).abs() <= bounds).all()
    kept = squared_row_norms(factors.basis.T @ other).cumsum(0)
    expected = squared_row_norms(left.T @ other.double()).cumsum(0)
    # 1e-7 as a rule; a float32 Gram just short of ill-conditioned turns the last directions: over 200 draws by 4e-6 and
    # 3.3e-5 at most in the two spectra that decay, by 3e-7 in the one that does not.
    assert_close(kept, expected, rtol=0, atol=(1e-4 if decay else 3e-6) * squared_norm(other))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 5.0])
def test_basis_is_orthonormal_even_when_ill_conditioned(shape, decay):
    basis = left_factors(gaussian(*shape, decay=decay)).basis
    assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_directions_beyond_the_numerical_rank_are_dropped(shape):
    delta = gaussian(shape[0], 3) @ gaussian(3, shape[1], seed=1)
    factors = left_factors(delta)
    assert factors.numerical_rank == factors.basis.shape[1] == 3
    assert_close(factors.basis @ (factors.basis.T @ delta), delta, rtol=0, atol=1e-5)


def test_zero_matrix_has_an_empty_basis():
    factors = left_factors(torch.zeros(5, 3))
    assert factors.basis.shape == (5, 0)
    assert factors.numerical_rank == 0


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_factors_do_not_depend_on_scale(scale):
    delta = gaussian(12, 9)
    here, there = left_factors(delta), left_factors(delta * scale)
    assert_close(there.singular_values / scale, here.singular_values, rtol=1e-5, atol=0)
    assert_close((here.basis * there.basis).sum(0).abs(), torch.ones(9), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_matrix_is_refused(bad):
    delta = gaussian(4, 4)
    delta[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        left_factors(delta)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_rank_of_energy_is_the_smallest_that_reaches_the_share(values, share):
    spectrum = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    cumulative = spectrum.square().cumsum(0) / spectrum.square().sum()
    rank = rank_of_energy(spectrum, share)
    assert cumulative[rank - 1] >= share - 1e-12
    assert rank == 1 or cumulative[rank - 2] < share + 1e-12


def test_rank_of_energy_of_nothing_is_zero_and_of_everything_is_all():
    assert rank_of_energy(torch.zeros(0), 0.5) == 0
    assert rank_of_energy(torch.tensor([3.0, 2.0, 1.0]), 1.0) == 3


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_energy_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="must be in"):
        rank_of_energy(torch.ones(3), share)


def test_haar_basis_is_orthonormal_seeded_and_nested_over_ranks():
    small, large = (haar_basis(20, rank, torch.Generator().manual_seed(3)) for rank in (4, 20))
    assert_close(large.T @ large, torch.eye(20), rtol=0, atol=1e-5)
    assert_close(small, large[:, :4], rtol=0, atol=1e-5)
    assert not torch.allclose(small, haar_basis(20, 4, torch.Generator().manual_seed(4)))


def test_haar_basis_has_no_preferred_direction():
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([(b := haar_basis(6, 2, generator)) @ b.T for _ in range(3000)]).mean(0)
    assert_close(mean, torch.eye(6) * 2 / 6, rtol=0, atol=0.03)


@pytest.mark.parametrize("rank", [-1, 6])
def test_haar_basis_of_impossible_rank_is_refused(rank):
    with pytest.raises(InputError, match="between 0 and 5"):
        haar_basis(5, rank, torch.Generator())


def test_norms_and_inner_products_agree_with_float64():
    first, second = gaussian(30, 17), gaussian(30, 17, seed=1)
    inner = DenseUpdate(first).inner(DenseUpdate(second))
    assert squared_norm(first) == pytest.approx(first.double().square().sum().item(), rel=1e-6)
    assert inner == pytest.approx((first.double() * second.double()).sum().item(), abs=1e-3)
    assert squared_norm(first[0]) == pytest.approx(first[0].double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(100, 240), (240, 100), (130, 130), (20, 30)])
def test_leading_factors_are_the_first_of_all(shape, share):
    matrix = gaussian(*shape, decay=2.0)
    whole, leading = left_factors(matrix), left_factors(matrix, share)
    held = rank_of_energy(whole.singular_values, share)
    assert leading.held == held < min(shape)
    assert leading.numerical_rank == whole.numerical_rank
    assert_close(leading.singular_values, whole.singular_values, rtol=1e-9, atol=1e-12)
    products = leading.basis.double().T @ whole.basis[:, :held].double()
    assert_close(products.abs(), torch.eye(held).double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95, 1.0])
def test_a_decomposition_is_that_of_torch_for_every_size(share):
    for dim in (1, 2, 3, 63, 64, 65, 200):
        matrix = gaussian(dim, dim + 3, decay=1.0).double()
        gram = matrix @ matrix.T
        expected = torch.linalg.eigvalsh(gram).flip(0)
        values, vectors = symmetric_eigh(gram.clone(), share)
        assert_close(values, expected, rtol=1e-10, atol=1e-10)
        rank = vectors.shape[1]
        assert rank == (dim if share == 1 else rank_of_energy(expected.sqrt(), share))
        assert_close(gram @ vectors, vectors * values[:rank], rtol=0, atol=1e-9 * float(values[0]))
        assert_close(vectors.T @ vectors, torch.eye(rank).double(), rtol=0, atol=1e-11)


def test_a_single_vector_is_found_where_one_direction_holds_the_share():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    for dim in (64, 200):
        direction = torch.nn.functional.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
        gram = 100 * direction[:, None] * direction + torch.eye(dim).double() * 1e-2
        values, vectors = symmetric_eigh(gram, 0.9)
        assert vectors.shape == (dim, 1)
        assert abs(float(vectors[:, 0] @ direction)) == pytest.approx(1, abs=1e-12)
        assert float(values[0]) == pytest.approx(100.01)
    zero_but_one = basis[:, :1] @ basis[:, :1].T
    assert symmetric_eigh(zero_but_one, 0.5)[1].shape == (64, 1)


def test_few_vectors_are_those_of_divide_and_conquer_also_where_eigenvalues_come_in_clusters():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    for values in (torch.linspace(1, 3, 200), torch.tensor([5.0] * 10 + [1.0] * 190), torch.arange(200) ** 4 + 1.0):
        gram = (basis * values.double().sort(descending=True).values) @ basis.T
        few, many = (symmetric_eigh(gram.clone(), share)[1] for share in (0.05, 0.9999))
        assert few.shape[1] <= 200 // FEW_VECTORS < many.shape[1]  # either way was taken
        assert_close(few.T @ few, torch.eye(few.shape[1]).double(), rtol=0, atol=1e-11)
        kept = [float(torch.linalg.vector_norm(gram @ part) ** 2) for part in (few, many[:, : few.shape[1]])]
        assert kept[0] == pytest.approx(kept[1], rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gram_matrix_is_symmetric_to_the_bit_however_its_rows_lie(dtype):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 60, generator=generator, dtype=dtype)
    cases = (rows, rows.T, rows[::2], rows[:, ::2], rows[:1], rows[:, :1], rows[:0], rows[0].expand(3, 60))
    for matrix in cases:
        before, gram = matrix.clone(), gram_of_rows(matrix)
        assert torch.equal(gram, gram.T)
        assert_close(gram, matrix @ matrix.T, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-12)
        assert torch.equal(matrix, before)
    blocks = [*rows.split(7, dim=1), rows[:, :0]]
    summed = gram_of_blocks(blocks)
    assert torch.equal(summed, summed.T)
    assert_close(summed, gram_of_rows(rows), rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert torch.equal(torch.cat(blocks, dim=1), rows)


def test_blas_uses_as_many_threads_as_torch():
    seen = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with _threads_of_torch():
                seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
    finally:
        torch.set_num_threads(threads)
    assert seen == [{1}, {2}]
