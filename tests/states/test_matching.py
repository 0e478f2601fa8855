"""Matched prompts are alike in length and template, each is used once, and no further pair would fit."""

import random

from safety_subspaces.states.matching import match_prompts


def test_pairs_are_one_to_one_and_within_the_caliper() -> None:
    rng = random.Random(0)
    first, second = ([rng.randint(5, 60) for _ in range(count)] for count in (40, 70))
    pairs = match_prompts(first, second)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 20
    assert all(abs(first[a] - second[b]) <= max(1, 0.1 * max(first[a], second[b])) for a, b in pairs)
    taken = ({a for a, _ in pairs}, {b for _, b in pairs})
    left = [(a, b) for a in range(40) if a not in taken[0] for b in range(70) if b not in taken[1]]
    assert not any(abs(first[a] - second[b]) <= 1 for a, b in left)  # as many as possible


def test_the_nearest_is_chosen() -> None:
    assert match_prompts([10, 11], [11, 10]) == [(0, 1), (1, 0)]
    assert match_prompts([10], [11, 9, 10]) == [(0, 2)]


def test_only_prompts_of_one_template_are_paired_where_sets_share_any() -> None:
    pairs = match_prompts([10, 10, 10], [10, 10], ["a", "b", "c"], ["c", "a"])
    assert sorted(pairs) == [(0, 1), (2, 0)]
    assert len(match_prompts([10, 10], [10, 10], ["a", "b"], ["c", "d"])) == 2  # none in common: by length
    assert len(match_prompts([10, 10], [10, 10], ["a", "b"], [None, None])) == 2


def test_nothing_fits() -> None:
    assert match_prompts([10, 12], [40, 50]) == []
    assert match_prompts([], [1]) == []
