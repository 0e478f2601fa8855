"""Theorems of projections, on what sweeps, written models and constraints really run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from torch.testing import assert_close

from safety_subspaces.algebra.factors import drawn_factors, haar_basis, left_factors
from safety_subspaces.algebra.projection import Projection, TensorProjections, complete_update, project_onto
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.matrix import forbidden_part

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**20))
TOP = Projection("top", 0.999, 0)


def case(rows, columns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return haar_basis(rows, min(rank, rows), generator), torch.randn(rows, columns, generator=generator)


def update_under(basis, delta, method):
    """The update that a sweep makes with all directions of a basis."""
    wide = DenseUpdate(delta).matrix_shape[1]
    projections = TensorProjections("t", drawn_factors(basis), max(wide, len(basis)), 0)
    assert projections.rank(0.999) == basis.shape[1] or basis.shape[1] == 0
    return projections.updated(delta, TOP, method, 1.0)


@given(shapes)
@settings(deadline=None)
def test_onto_plus_away_is_identity(shape):
    basis, delta = case(*shape)
    onto, away = (update_under(basis, delta, method) for method in ("onto", "away"))
    assert_close(onto + away, delta, rtol=0, atol=1e-5)
    for mode in ("away", "onto"):
        allowed = delta - forbidden_part(basis, mode, delta)
        assert_close(allowed, onto if mode == "onto" else away, rtol=0, atol=1e-5)


@given(shapes)
@settings(deadline=None)
def test_projecting_twice_changes_nothing(shape):
    basis, delta = case(*shape)
    for method in ("onto", "away"):
        made = update_under(basis, delta, method)
        assert_close(update_under(basis, made, method), made, rtol=0, atol=1e-5)


@given(shapes)
@settings(deadline=None)
def test_energies_along_a_basis_add_up_to_that_of_the_projection(shape):
    basis, delta = case(*shape)
    energies = DenseUpdate(delta).energies_along(drawn_factors(basis))
    projected = project_onto(basis, delta).double().square().sum().item()
    assert energies.sum().item() == pytest.approx(projected, rel=1e-4, abs=1e-5)
    assert -1e-6 <= energies.sum().item() <= DenseUpdate(delta).energy() * (1 + 1e-6)


def test_projection_agrees_with_a_float64_svd_of_the_alignment_update():
    generator = torch.Generator().manual_seed(0)
    alignment, delta = torch.randn(18, 11, generator=generator), torch.randn(18, 11, generator=generator)
    left = oracle.left_svd(alignment)[0][:, :4]
    basis = left_factors(alignment).basis[:, :4]
    expected = oracle.along(left, delta).float()
    assert_close(project_onto(basis, delta), expected, rtol=0, atol=1e-5)
    assert_close(update_under(basis, delta, "onto"), expected, rtol=0, atol=1e-5)


def test_opposite_is_the_update_that_reverses_the_kept_part():
    basis, delta = case(8, 5, 3, 1)
    assert_close(update_under(basis, delta, "opposite"), -update_under(basis, delta, "onto"), rtol=0, atol=0)


def test_empty_subspace_keeps_nothing_and_whole_space_everything():
    _, delta = case(6, 4, 0, 2)
    empty, whole = torch.zeros(6, 0), torch.eye(6)
    assert_close(update_under(empty, delta, "onto"), torch.zeros(6, 4))
    assert_close(update_under(empty, delta, "away"), delta)
    assert_close(project_onto(whole, delta), delta)
    assert_close(forbidden_part(empty, "onto", delta), delta)


def test_tensors_that_are_not_matrices_are_projected_as_one_vector():
    direction = torch.randn(12, generator=torch.Generator().manual_seed(0))
    factors = DenseUpdate(direction).factors()
    vector = torch.randn(12, generator=torch.Generator().manual_seed(1))
    expected = (vector @ direction) / (direction @ direction) * direction
    for shape in ((12,), (2, 3, 2)):
        made = TensorProjections("t", factors, 1, 0).updated(vector.reshape(shape), TOP, "onto", 1.0)
        assert_close(made, expected.reshape(shape))


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match="onto, away or opposite"):
        complete_update.__wrapped__(torch.ones(2), torch.ones(2), "along")
