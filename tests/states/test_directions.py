"""A planted direction is found by each method, with its sign and length; prompts without a difference give none."""

import pytest
import torch

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.directions import (
    mean_difference,
    overlap_vectors,
    paired_differences,
    probe_direction,
    random_direction,
)

HIDDEN, GAP = 32, 3.0


@pytest.fixture
def planted():
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(HIDDEN, generator=generator), dim=0)
    shared = torch.randn(100, HIDDEN, generator=generator)
    noise = [0.3 * torch.randn(100, HIDDEN, generator=generator) for _ in range(2)]
    return direction, shared + noise[0] + GAP * direction, shared + noise[1]


PAIRS = [(row, row) for row in range(100)]


# Cosines over 200 seeds: 0.994 to 0.999 from differences of means, 0.78 to 0.93 from a probe; 0.18 is chance.
@pytest.mark.parametrize(
    ("find", "least"),
    [(mean_difference, 0.98), (lambda p, n: paired_differences(p, n, PAIRS), 0.98), (probe_direction, 0.65)],
)
def test_a_planted_direction_is_found_with_sign_and_length(planted, find, least) -> None:
    direction, positive, negative = planted
    found = find(positive, negative)
    assert found.basis.shape == (HIDDEN, 1)
    cosine = float(found.basis[:, 0] @ direction)
    assert cosine > least
    # The gap along what was found; over 200 seeds within 4 % for the means, standard deviation 1.3 %.
    assert found.scale == pytest.approx(GAP * cosine, rel=0.08)
    back = find(negative, positive)
    assert float(back.basis[:, 0] @ direction) < -least
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(1))


def test_a_random_direction_is_no_better_than_chance_and_has_the_same_length(planted) -> None:
    direction, positive, negative = planted
    found = mean_difference(positive, negative)
    generator = torch.Generator().manual_seed(1)
    draws = [random_direction(HIDDEN, found, generator) for _ in range(800)]
    cosines = torch.tensor([float(draw.basis[:, 0] @ direction) for draw in draws])
    # A squared cosine has a standard deviation of 1.4 times its mean, that of 800 draws 5 %.
    assert cosines.square().mean() == pytest.approx(1 / HIDDEN, rel=0.3)
    assert all(draw.scale == found.scale for draw in draws)


def test_vectors_of_the_overlap_lie_in_both_subspaces() -> None:
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(HIDDEN, 2, generator=generator), torch.randn(2, HIDDEN, 3, generator=generator)
    sets = [torch.randn(60, 5, generator=generator) @ torch.cat([common, part], dim=1).T for part in own]
    found = overlap_vectors(*sets, energy=1.0, count=2)
    exact = torch.linalg.qr(common).Q
    assert torch.linalg.matrix_norm(exact.T @ found.basis).square() == pytest.approx(2, abs=1e-4)
    with pytest.raises(InputError, match="6 vectors of an overlap of rank 5"):
        overlap_vectors(*sets, energy=1.0, count=6)


def test_sets_without_a_difference_have_no_direction() -> None:
    same = torch.ones(10, HIDDEN)
    for find in (mean_difference, probe_direction, lambda p, n: paired_differences(p, n, PAIRS[:10])):
        with pytest.raises(InputError):
            find(same, same)
