"""What an update promises whatever its form; its measures stand in test_weight_space_properties.py."""

import pytest
import torch
from torch.testing import assert_close

from safety_subspaces.algebra.factors import check_orthonormal, drawn_factors, haar_basis
from safety_subspaces.algebra.update import LEFT, RIGHT, DenseUpdate, FactorUpdate, StreamedUpdate
from safety_subspaces.artefacts.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def forms(rows=7, columns=5):
    factors = FactorUpdate(
        torch.randn(rows, 3, generator=generator()), torch.randn(3, columns, generator=generator(1)), 0.5
    )
    dense = factors.dense()
    return {
        "dense": DenseUpdate(dense),
        "streamed": StreamedUpdate(lambda: dense, lambda: torch.zeros(rows, columns), dense.shape, torch.float32),
        "factors": factors,
    }


@pytest.mark.parametrize("form", ["dense", "streamed", "factors"])
def test_products_with_columns_that_are_not_orthonormal_are_plain_products(form):
    """An inner product of two updates in factors takes one's factor for columns; no basis is promised there."""
    update = forms()[form]
    columns = 3 * torch.randn(7, 4, generator=generator(2))
    assert_close(update.left_product(columns), columns.T @ update.dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "streamed", "factors"])
def test_a_side_is_that_of_a_matrix(form):
    update = forms()[form]
    assert update.on_side("left") is update
    assert_close(update.on_side("right").dense(), update.dense().T, rtol=0, atol=1e-6)
    basis = haar_basis(5, 2, generator(3))
    expected = (update.dense() @ basis).double().square().sum(dim=0)
    assert_close(update.energies_along(drawn_factors(basis), "right"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_what_is_no_matrix_is_one_column_with_one_side(shape):
    tensor = torch.randn(shape, generator=generator())
    streamed = StreamedUpdate(lambda: tensor, lambda: torch.zeros(shape), shape, torch.float32)
    basis = haar_basis(tensor.numel(), 2, generator(1))
    for update in (DenseUpdate(tensor), streamed):
        assert not update.is_matrix
        assert update.matrix_shape == (tensor.numel(), 1)
        assert update.on_side("right") is update
        assert_close(update.dense(), tensor)
        assert_close(torch.cat(list(update.rows(4))), tensor.reshape(-1, 1))
        for side in ("left", "right"):
            expected = (basis.T @ tensor.reshape(-1)).double().square()
            assert_close(update.energies_along(drawn_factors(basis), side), expected, rtol=1e-5, atol=1e-7)


def test_the_parts_of_an_update_are_what_is_stored_of_it():
    parts = {form: update.parts for form, update in forms().items()}
    assert {form: list(names) for form, names in parts.items()} == {
        "dense": [""], "streamed": [""], "factors": [LEFT, RIGHT]
    }  # fmt: skip
    assert_close(torch.cat(list(parts["streamed"][""].split(2))), parts["dense"][""])


def test_a_basis_that_is_not_orthonormal_is_refused_by_its_name():
    check_orthonormal(haar_basis(8, 3, generator()), "q")
    with pytest.raises(InputError, match="basis of q is not orthonormal"):
        check_orthonormal(1.01 * haar_basis(8, 3, generator()), "q")
    with pytest.raises(InputError, match=r"expected \(dim, rank\) with rank at most dim"):
        check_orthonormal(torch.ones(2, 3), "q")
