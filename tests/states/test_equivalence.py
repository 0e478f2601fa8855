"""Samples of one distribution are called overlapping, independent spaces are not; too few prompts decide nothing."""

from math import cos, isnan, sin

import numpy as np
import pytest
import torch

from safety_subspaces.states.equivalence import StateParts, deal, overlap_equivalence

HIDDEN = 48


class World:
    """A mean and coordinate scales that all sets share; each kind of set mixes directions of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mean = 2 * torch.randn(HIDDEN, generator=self.generator)
        self.scales = torch.exp(0.3 * torch.randn(HIDDEN, generator=self.generator))

    def kind(self) -> torch.Tensor:
        decay = torch.linspace(1, 0.02, HIDDEN)[:, None]
        return torch.randn(HIDDEN, HIDDEN, generator=self.generator) * decay * self.scales

    def states(self, kind: torch.Tensor, count: int) -> torch.Tensor:
        return self.mean + 0.3 * torch.randn(count, HIDDEN, generator=self.generator) @ kind

    def parts(self, kind: torch.Tensor, count: int, center: bool, groups=None) -> StateParts:
        return StateParts(self.states(kind, count), self.generator, center, groups)

    def test(self, first: StateParts, second: StateParts, energies: list[float]):
        return overlap_equivalence(first, second, energies, self.generator)


@pytest.mark.parametrize("center", [False, True])
def test_samples_of_one_distribution_overlap_and_independent_ones_are_distinct(center) -> None:
    world = World()
    one, other = world.kind(), world.kind()
    energies = [0.9, 0.99]
    for found in world.test(world.parts(one, 160, center), world.parts(one, 140, center), energies):
        assert found.verdict == "overlapping"
        assert found.parts == 6
        assert found.power > 0.9  # 0.99999 at least over 60 draws of the world
        # The two differ by 0.012 in standard deviation over those draws.
        assert found.overlap == pytest.approx(found.floor_overlap, abs=5 * 0.012)
    for found in world.test(world.parts(one, 160, center), world.parts(other, 140, center), energies):
        assert found.verdict == "distinct"
        assert found.overlap == pytest.approx(found.matched_chance, abs=5 * 0.012)
        assert found.margin == pytest.approx((found.floor_overlap + found.matched_chance) / 2)


def test_at_the_margin_claims_are_as_rare_as_the_level_says_and_the_error_is_that_of_samples() -> None:
    """Kinds that share as much as puts them on the margin: the mean over samples stands for it."""
    world = World(1)
    first, independent = world.kind(), world.kind()
    second = cos(0.8) * first + sin(0.8) * independent
    tests = [world.test(world.parts(first, 120, True), world.parts(second, 120, True), [0.9])[0] for _ in range(80)]
    above = np.array([test.overlap - test.margin for test in tests])
    errors = np.array([test.stderr for test in tests])
    deviation = above.std(ddof=1)
    assert abs(above.mean()) < 2 * deviation  # else no margin is near, and neither kind of claim could be wrong
    # 1.1 to 1.27 over 400 samples in each of seven worlds; a deviation of 80 samples is good to a twelfth.
    assert 0.85 < np.sqrt((errors**2).mean()) / deviation < 1.6
    # Both claims together, about the true mean: 10 % are nominal, 8 of 80, more than 17 in 2 of 1,000.
    wrong = sum(abs(value - above.mean()) > 1.86 * error for value, error in zip(above, errors, strict=True))
    assert wrong <= 17  # 1.86: Student's t at 8 degrees of freedom, which these samples have


def test_the_claim_is_rarely_made_where_it_does_not_hold_and_needs_power() -> None:
    verdicts = []
    for seed in range(40):
        world = World(seed)
        parts = [world.parts(world.kind(), 60, True) for _ in range(2)]
        verdicts.append(world.test(*parts, [0.9])[0].verdict)
    assert "overlapping" not in verdicts
    world = World()
    kind = world.kind()
    few = world.test(world.parts(kind, 20, True), world.parts(kind, 20, True), [0.5])[0]
    assert few.parts == 5
    assert few.power < 0.8  # in 80 draws of another world 0.4 in the mean, with 24 prompts


def test_too_few_groups_are_undefined() -> None:
    world = World()
    kind = world.kind()
    groups = [index // 3 for index in range(45)]  # fifteen groups: three parts, and one pair when one is left out
    (found,) = world.test(world.parts(kind, 45, False, groups), world.parts(kind, 40, False), [0.9])
    assert found.verdict == "undefined"
    assert isnan(found.p_overlapping)
    assert found.parts == 3


def test_sets_of_one_point_are_undefined_and_not_alike() -> None:
    """The last token of all chat prompts is the same in the embedding: floor and chance are both 1."""
    world = World()
    point = world.mean.repeat(40, 1)
    for center in (False, True):
        parts = [StateParts(point, world.generator, center) for _ in range(2)]
        (found,) = world.test(*parts, [0.9])
        assert found.verdict == "undefined"


def test_states_that_are_one_space_to_the_last_bit_overlap_without_an_error() -> None:
    axes = torch.eye(HIDDEN)[:3]
    parts = [
        StateParts(axes.repeat(48, 1), torch.Generator().manual_seed(0), groups=[*range(48)] * 3) for _ in range(2)
    ]
    (found,) = overlap_equivalence(*parts, [1.0], torch.Generator().manual_seed(0))
    assert found.overlap == pytest.approx(1)


def test_groups_stay_together_in_parts_of_like_size() -> None:
    groups = [f"g{index // 3}" for index in range(36)]
    dealt = deal(groups, torch.Generator().manual_seed(1))
    assert len(set(zip(groups, dealt.tolist(), strict=True))) == 12
    assert (dealt % 6).bincount().tolist() == [6] * 6


def test_repeated_prompts_count_once_by_their_group() -> None:
    """Sixteen prompts repeated ten times are no 160: by groups the floor is that of sixteen."""
    world = World()
    states = world.states(world.kind(), 16)
    others = world.states(world.kind(), 160)
    repeated = states.repeat_interleave(10, dim=0)
    groups = [index // 10 for index in range(160)]
    grouped, naive = (
        overlap_equivalence(
            StateParts(repeated, torch.Generator().manual_seed(3), True, labels),
            StateParts(others, torch.Generator().manual_seed(4), True),
            [0.9],
            torch.Generator().manual_seed(5),
        )[0]
        for labels in (groups, None)
    )
    assert grouped.floor_overlap < naive.floor_overlap - 0.2  # else parts hold the same prompts


def test_energies_and_the_order_of_the_sets_change_no_result() -> None:
    world = World(5)
    sets = [world.states(world.kind(), 60) for _ in range(2)]

    def parts() -> list[StateParts]:
        return [StateParts(states, torch.Generator().manual_seed(index), True) for index, states in enumerate(sets)]

    both = overlap_equivalence(*parts(), [0.5, 0.9], torch.Generator())
    (one,) = overlap_equivalence(*parts(), [0.9], torch.Generator())
    assert both[1] == one
    (turned,) = overlap_equivalence(*reversed(parts()), [0.9], torch.Generator())
    for name in ("overlap", "floor_overlap", "matched_chance", "stderr", "p_overlapping", "power"):
        assert getattr(turned, name) == pytest.approx(getattr(one, name))
    assert turned.verdict == one.verdict
