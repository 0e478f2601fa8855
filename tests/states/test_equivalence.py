"""Samples of one distribution are called overlapping, independent spaces are not; too few prompts decide nothing."""

from math import isnan

import pytest
import torch

from safety_subspaces.algebra.nulls import matched_control, matched_overlap
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.states.capture import state_factors
from safety_subspaces.states.equivalence import StateHalves, deal, overlap_equivalence

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

    def halves(self, kind: torch.Tensor, count: int, center: bool, groups=None) -> StateHalves:
        return StateHalves(self.states(kind, count), self.generator, center, groups)


@pytest.mark.parametrize("center", [False, True])
def test_samples_of_one_distribution_overlap_and_independent_ones_are_distinct(center) -> None:
    world = World()
    one, other = world.kind(), world.kind()
    energies = [0.9, 0.99]
    same = overlap_equivalence(world.halves(one, 160, center), world.halves(one, 140, center), energies)
    for found in same:
        assert found.verdict == "overlapping"
        assert found.power > 0.3  # over 60 draws of the world 0.49 at least, 0.9 or more in all but five of 240
        assert found.overlap == pytest.approx(found.floor_overlap, abs=5 * 0.022)  # the deviation over those draws
    for found in overlap_equivalence(world.halves(one, 160, center), world.halves(other, 140, center), energies):
        assert found.verdict == "distinct"
        assert found.overlap == pytest.approx(found.matched_chance, abs=5 * 0.0175)
        assert found.margin == pytest.approx((found.floor_overlap + found.matched_chance) / 2)


def test_the_claim_is_rarely_made_where_it_does_not_hold_and_needs_power() -> None:
    verdicts = []
    for seed in range(40):
        world = World(seed)
        halves = (world.halves(world.kind(), 60, True) for _ in range(2))
        verdicts.append(overlap_equivalence(*halves, [0.9])[0].verdict)
    assert "overlapping" not in verdicts
    world = World()
    kind = world.kind()
    few = overlap_equivalence(world.halves(kind, 12, True), world.halves(kind, 12, True), [0.5])[0]
    assert few.power < 0.8


def test_too_few_groups_are_undefined() -> None:
    world = World()
    kind = world.kind()
    groups = ["a"] * 10 + ["b"] * 10  # two groups: no fold can be left out of a half
    (found,) = overlap_equivalence(world.halves(kind, 20, False, groups), world.halves(kind, 20, False), [0.9])
    assert found.verdict == "undefined"
    assert isnan(found.p_overlapping)


def test_groups_stay_together_in_halves_of_like_size() -> None:
    groups = [f"g{index // 3}" for index in range(30)]
    dealt = deal(groups, torch.Generator().manual_seed(1))
    assert len(set(zip(groups, dealt.tolist(), strict=True))) == 10
    assert abs(int((dealt % 2).sum()) - 15) <= 3


def test_repeated_prompts_count_once_by_their_group() -> None:
    """Ten prompts repeated ten times are no hundred: by groups the error is that of ten."""
    world = World()
    states = world.states(world.kind(), 16)
    others = world.states(world.kind(), 160)
    repeated = states.repeat_interleave(10, dim=0)
    groups = [index // 10 for index in range(160)]
    grouped, naive = (
        overlap_equivalence(
            StateHalves(repeated, torch.Generator().manual_seed(3), True, labels),
            StateHalves(others, torch.Generator().manual_seed(4), True),
            [0.9],
        )[0]
        for labels in (groups, None)
    )
    assert grouped.floor_overlap < naive.floor_overlap - 0.2  # else both halves hold the same prompts


@pytest.mark.parametrize("center", [False, True])
def test_the_matched_null_is_uniform_for_sets_that_share_mean_and_scales_alone(center) -> None:
    p_values, unkept_small = [], 0
    for seed in range(60):
        world = World(seed)
        first, second = (world.states(world.kind(), 60) for _ in range(2))
        kept = None if center else first.mean(dim=0) + second.mean(dim=0)
        factors = [state_factors(rows, center) for rows in (first, second)]
        overlaps = mode_subspace_overlap(*factors, [0.95])
        (control,) = matched_control(*factors, overlaps, 39, torch.Generator().manual_seed(seed), kept)
        p_values.append(control.p_value)
        bases = [
            f.basis[:, :rank]
            for f, rank in zip(factors, (overlaps[0].rank_first, overlaps[0].rank_second), strict=True)
        ]
        assert control.mean == pytest.approx(matched_overlap(*bases, kept), abs=0.02)
        if not center:
            (naive,) = matched_control(*factors, overlaps, 39, torch.Generator().manual_seed(seed))
            unkept_small += naive.p_value <= 0.05
    share = sum(p <= 0.1 for p in p_values) / 60
    assert share <= 0.25  # 0.1 and three standard errors of 0.039
    assert 0.3 < sum(p_values) / 60 < 0.7
    assert center or unkept_small > 15  # 3 are nominal: without its mean kept in place most pairs are significant


def test_a_shared_space_is_found_by_the_matched_control() -> None:
    world = World()
    kind = world.kind()
    first, second = (world.states(kind, 60) for _ in range(2))
    factors = [state_factors(rows) for rows in (first, second)]
    overlaps = mode_subspace_overlap(*factors, [0.95])
    kept = first.mean(dim=0) + second.mean(dim=0)
    (control,) = matched_control(*factors, overlaps, 39, world.generator, kept)
    assert control.p_value == pytest.approx(1 / 40)
    assert overlaps[0].value > control.mean + 0.1
