"""The leading eigenvectors of a rank-one update are those of an eigendecomposition, also of equal values."""

import pytest
import torch

from safety_subspaces.algebra.rank_one import leading_of_rank_one_update

CASES = ("plain", "equal values", "axis", "no update", "update alone", "large update")


def update(case: str, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rank, generator=generator, dtype=torch.float64).sort(descending=True).values
    vector = torch.randn(rank, generator=generator, dtype=torch.float64)
    match case:
        case "equal values":
            values = torch.ones_like(values)
        case "axis":
            vector[1:] = 0
        case "no update":
            vector = 0 * vector
        case "update alone":
            values = 0 * values
        case "large update":
            values, vector = values.index_fill(0, torch.tensor(rank - 1), 0.0), 100 * vector
    return values, vector


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [1, 2, 3, 40])
def test_values_and_vectors_are_those_of_the_whole_matrix(case, rank) -> None:
    values, vector = update(case, rank, seed=rank)
    matrix = values.square().diag() + torch.outer(vector, vector)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    found, vectors = leading_of_rank_one_update(values, vector)
    scale = float(expected[0])
    assert len(found) == rank or float(expected[len(found) :].max()) <= 1e-12 * scale  # what is beyond numerical rank
    # Values are moved apart by up to 4 roundings a row of the largest: 40 rows come to 4e-14.
    assert torch.allclose(found, expected[: len(found)], rtol=0, atol=1e-12 * scale)
    assert torch.allclose(vectors.T @ vectors, torch.eye(len(found), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix @ vectors, vectors * found, rtol=0, atol=1e-11 * scale)


def test_no_more_are_made_than_hold_the_share() -> None:
    values, vector = update("plain", 40, seed=0)
    whole, _ = leading_of_rank_one_update(values, vector)
    total = float(values.square().sum() + vector.square().sum())
    for share in (0.1, 0.5, 0.9, 0.99):
        found, vectors = leading_of_rank_one_update(values, vector, share)
        assert found.sum() >= share * total > found[:-1].sum()
        assert torch.equal(found, whole[: len(found)])
        assert vectors.shape == (40, len(found))
