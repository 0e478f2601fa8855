import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from torch.testing import assert_close

from safety_subspaces.algebra.factors import haar_basis, left_factors
from safety_subspaces.algebra.projection import Projector, complete_update
from safety_subspaces.artefacts.errors import InputError

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**20))


def case(rows, columns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return Projector(haar_basis(rows, min(rank, rows), generator)), torch.randn(rows, columns, generator=generator)


@given(shapes)
@settings(deadline=None)
def test_onto_plus_away_is_identity(shape):
    projector, delta = case(*shape)
    assert_close(projector.onto(delta) + projector.away(delta), delta, rtol=0, atol=1e-5)


@given(shapes)
@settings(deadline=None)
def test_projecting_twice_changes_nothing(shape):
    projector, delta = case(*shape)
    for project in (projector.onto, projector.away):
        assert_close(project(project(delta)), project(delta), rtol=0, atol=1e-5)


@given(shapes)
@settings(deadline=None)
def test_energy_kept_is_that_of_the_projection(shape):
    projector, delta = case(*shape)
    share = projector.onto(delta).double().square().sum() / delta.double().square().sum()
    assert projector.energy_kept(delta) == pytest.approx(share.item(), abs=1e-5)
    assert -1e-6 <= projector.energy_kept(delta) <= 1 + 1e-6


def test_projection_agrees_with_a_float64_svd_of_the_alignment_update():
    generator = torch.Generator().manual_seed(0)
    alignment, delta = torch.randn(18, 11, generator=generator), torch.randn(18, 11, generator=generator)
    left = oracle.left_svd(alignment)[0][:, :4]
    projector = Projector(left_factors(alignment).basis[:, :4])
    assert_close(projector.onto(delta), oracle.along(left, delta).float(), rtol=0, atol=1e-5)
    assert_close(projector.matrix, (left @ left.T).float(), rtol=0, atol=1e-5)


def test_dense_matrix_is_symmetric_and_idempotent():
    matrix = case(9, 4, 3, 0)[0].matrix
    assert_close(matrix, matrix.T)
    assert_close(matrix @ matrix, matrix, rtol=0, atol=1e-6)


def test_opposite_is_the_update_that_reverses_the_kept_part():
    projector, delta = case(8, 5, 3, 1)
    assert_close(projector.opposite(delta), -projector.onto(delta))
    for method in ("onto", "away", "opposite"):
        assert_close(projector.apply(delta, method), getattr(projector, method)(delta))


def test_empty_subspace_keeps_nothing_and_whole_space_everything():
    _, delta = case(6, 4, 0, 2)
    empty, whole = Projector(torch.zeros(6, 0)), Projector(torch.eye(6))
    assert_close(empty.onto(delta), torch.zeros(6, 4))
    assert_close(empty.away(delta), delta)
    assert_close(whole.onto(delta), delta)


def test_tensors_that_are_not_matrices_are_projected_as_one_vector():
    direction = torch.randn(12, generator=torch.Generator().manual_seed(0))
    projector = Projector(left_factors(direction.reshape(-1, 1)).basis)
    vector = torch.randn(12, generator=torch.Generator().manual_seed(1))
    expected = (vector @ direction) / (direction @ direction) * direction
    assert_close(projector.onto(vector), expected)
    assert_close(projector.onto(vector.reshape(2, 3, 2)), expected.reshape(2, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_type_of_the_update(dtype):
    projector, delta = case(8, 5, 3, 1)
    assert projector.onto(delta.to(dtype)).dtype == projector.away(delta.to(dtype)).dtype == dtype


def test_zero_update_has_no_energy_share():
    assert Projector(torch.eye(3)).energy_kept(torch.zeros(3, 2)) != Projector(torch.eye(3)).energy_kept(
        torch.zeros(3, 2)
    )


def test_update_of_another_height_is_refused():
    with pytest.raises(InputError, match="8 rows"):
        case(8, 5, 3, 1)[0].onto(torch.ones(5, 8))


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match="onto, away or opposite"):
        complete_update.__wrapped__(torch.ones(2), torch.ones(2), "along")
