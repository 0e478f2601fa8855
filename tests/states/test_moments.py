"""Moments of batches that pass are those of all vectors at once."""

import pytest
import torch

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.capture import state_factors
from safety_subspaces.states.moments import MomentsBuilder, no_moments

HIDDEN = 24


def drawn(count: int, seed: int = 0, mean: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(HIDDEN, HIDDEN, generator=generator) * torch.linspace(1, 0.05, HIDDEN)[:, None]
    return mean * torch.randn(HIDDEN, generator=generator) + torch.randn(count, HIDDEN, generator=generator) @ mixing


def moments_of(rows: torch.Tensor):
    return built(rows, len(rows))


def built(rows: torch.Tensor, *sizes: int):
    builder = MomentsBuilder(rows.shape[1])
    for part in rows.split(list(sizes)):
        builder.add(part)
    return builder.moments()


@pytest.mark.parametrize("sizes", [(200,), (1,) * 200, (7, 90, 3, 100), (0, 200)])
@pytest.mark.parametrize("buffered", [1, 50, 4096])
def test_streaming_equals_one_shot(sizes, buffered, monkeypatch) -> None:
    monkeypatch.setattr("safety_subspaces.states.moments.BUFFERED_ROWS", buffered)
    rows = drawn(200)
    found = built(rows, *sizes)
    exact = rows.double()
    assert found.count == 200
    torch.testing.assert_close(found.mean, exact.mean(dim=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scatter, 199 * exact.T.cov(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("count", [9, 200])
def test_factors_are_those_of_the_states_one_by_one(center, count) -> None:
    rows, others = drawn(count), drawn(count, seed=1)
    streamed = [built(part, *[5] * (count // 5), count % 5).factors(center) for part in (rows, others)]
    direct = [state_factors(part, center) for part in (rows, others)]
    energies = [0.3, 0.5, 0.9, 0.99]
    for found, expected in zip(
        mode_subspace_overlap(*streamed, energies), mode_subspace_overlap(*direct, energies), strict=True
    ):
        assert (found.rank_first, found.rank_second) == (expected.rank_first, expected.rank_second)
        assert found.value == pytest.approx(expected.value, abs=1e-6)
    assert streamed[0].numerical_rank == direct[0].numerical_rank == min(HIDDEN, count - center)
    torch.testing.assert_close(streamed[0].singular_values, direct[0].singular_values, rtol=1e-6, atol=1e-6)


def test_a_mean_far_from_the_origin_costs_no_digits() -> None:
    rows = drawn(100, mean=0.0).double()
    near, far = moments_of(rows), built((rows + 1e6), 40, 60)
    torch.testing.assert_close(far.scatter, near.scatter, rtol=1e-6, atol=1e-6)  # 1e6 in float64 leaves 1e-10


def test_sets_merge_in_any_order() -> None:
    parts = [moments_of(drawn(count, seed)) for seed, count in enumerate((3, 50, 17))]
    one, two = parts[0].merged(parts[1]).merged(parts[2]), parts[2].merged(parts[1].merged(parts[0]))
    torch.testing.assert_close(one.scatter, two.scatter)
    torch.testing.assert_close(one.mean, two.mean)
    assert no_moments(HIDDEN).merged(parts[1]) is parts[1]
    assert parts[1].merged(no_moments(HIDDEN)) is parts[1]


def test_no_states_and_constant_states_span_nothing_that_was_not_there() -> None:
    assert no_moments(HIDDEN).factors().numerical_rank == 0
    constant = moments_of(torch.ones(9, HIDDEN))
    assert constant.factors().numerical_rank == 1
    assert constant.factors(center=True).numerical_rank == 0


def test_states_that_are_not_finite_are_refused() -> None:
    rows = drawn(10)
    rows[3, 2] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        built(rows, 10)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_leading_factors_are_the_first_of_all(share) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 100, generator=generator) * torch.linspace(1, 0.01, 100)
    moments = moments_of(rows)
    leading, whole = moments.factors(share=share), moments.factors()
    torch.testing.assert_close(leading.singular_values, whole.singular_values, rtol=1e-12, atol=1e-12)
    assert leading.held == rank_of_energy(whole.singular_values, share) < 100
    products = leading.basis.double().T @ whole.basis[:, : leading.held].double()
    torch.testing.assert_close(products.abs(), torch.eye(leading.held).double(), rtol=0, atol=1e-6)


def test_memory_does_not_grow_with_the_number_of_vectors(monkeypatch) -> None:
    monkeypatch.setattr("safety_subspaces.states.moments.BUFFERED_ROWS", 100)
    builder, held = MomentsBuilder(HIDDEN), []
    for _ in range(300):
        builder.add(drawn(7))
        held.append(sum(map(len, builder._buffer)))
    assert max(held) < 100
    assert builder.moments().count == 2100
