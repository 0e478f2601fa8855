"""p-values are uniform where two sets have one distribution, grouped or not; a shift or another spread is found."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from support.uncompiled_hyppo import MMD

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.similarity import median_distance, squared_distances
from safety_subspaces.states.two_sample import two_sample_tests

# Samples of one distribution, for the shares of their p-values.
NULLS = 400
# Groups of one row against groups of eight.
SIZES = ((1, 4), (8, 3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, source):
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def in_groups(sizes, source, noise=0.1, dim=3):
    """States of groups of near copies, and the number of each row's group."""
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    return normal(len(sizes), dim, source=source)[groups] + noise * normal(len(groups), dim, source=source), groups


def naive_mmd(first, second, bandwidth, groups_first, groups_second):
    pooled, labels = [*first, *second], [*groups_first, *groups_second]
    sides = [range(len(first)), range(len(first), len(pooled))]

    def mean(one, other):
        pairs = [(i, j) for i in one for j in other if labels[i] != labels[j]]
        squares = [float((pooled[i] - pooled[j]).square().sum()) for i, j in pairs]
        return np.mean([math.exp(-square / (2 * bandwidth**2)) for square in squares])

    return mean(sides[0], sides[0]) + mean(sides[1], sides[1]) - 2 * mean(*sides)


def median_of(*sets):
    rows = torch.cat(sets)
    return median_distance(squared_distances(rows @ rows.T))


def rejection_rates(make, count=NULLS, draws=99, seed=11):
    """Shares of p-values of both tests at or below each level; ``make`` returns sets, and their groups or ``None``."""
    source = generator(seed)
    found = []
    for _ in range(count):
        first, second, *groups = make(source)
        tests = two_sample_tests(first, second, draws, source, *groups)
        found.append((tests.mmd.p_value, tests.mean_distance.p_value))
    values = torch.tensor(found, dtype=torch.float64)
    return {level: (values <= level).double().mean(dim=0).tolist() for level in (0.05, 0.1, 0.5)}


def assert_uniform(rates, count=NULLS):
    for level, values in rates.items():
        for value in values:
            assert value == pytest.approx(level, abs=3.5 * (level * (1 - level) / count) ** 0.5)


def test_values_are_their_definitions():
    source = generator(3)
    first, second = normal(7, 4, source=source) + 0.5, normal(11, 4, source=source)
    found = two_sample_tests(first, second, 0, source)
    expected = naive_mmd(first, second, median_of(first, second), range(7), range(7, 18))
    assert found.mmd.value == pytest.approx(expected, abs=1e-12)
    kernel = rbf_kernel(torch.cat([first, second]).numpy(), gamma=1 / (2 * found.bandwidth**2))
    np.fill_diagonal(kernel, 0)
    blocks = (kernel[:7, :7].sum() / 42, kernel[7:, 7:].sum() / 110, kernel[:7, 7:].mean())
    assert found.mmd.value == pytest.approx(blocks[0] + blocks[1] - 2 * blocks[2], abs=1e-12)
    difference = float((first.mean(dim=0) - second.mean(dim=0)).norm())
    assert found.mean_distance.value == pytest.approx(difference, rel=1e-12)
    squares = sum(float((rows - rows.mean(dim=0)).square().sum()) for rows in (first, second))
    assert found.standardised == pytest.approx(difference / math.sqrt(squares / 16), rel=1e-12)
    assert two_sample_tests(first, second, 0, source, bandwidth=0.7).mmd.value == pytest.approx(
        naive_mmd(first, second, 0.7, range(7), range(7, 18)), abs=1e-12
    )


def test_pairs_of_one_group_do_not_count():
    source = generator(4)
    first, second = normal(6, 3, source=source), normal(8, 3, source=source)
    groups = (["a", "a", "b", "c", "c", "d"], ["d", "d", "e", "f", "f", "f", "g", "c"])
    found = two_sample_tests(first, second, 20, source, *groups)
    expected = naive_mmd(first, second, median_of(first, second), *groups)
    assert found.mmd.value == pytest.approx(expected, abs=1e-12)
    counts = (found.mmd.n_first, found.mmd.n_second, found.mmd.n_groups_first, found.mmd.n_groups_second)
    assert (*counts, found.mmd.n_groups_shared) == (6, 8, 4, 5, 2)


def test_null_is_that_of_all_arrangements():
    source = generator(5)
    first, second = normal(4, 2, source=source) + 1, normal(5, 2, source=source)
    pooled, bandwidth = torch.cat([first, second]), median_of(first, second)
    values = []
    for chosen in itertools.combinations(range(9), 4):
        sides = [pooled[list(chosen)], pooled[[row for row in range(9) if row not in chosen]]]
        distance = float((sides[0].mean(dim=0) - sides[1].mean(dim=0)).norm())
        values.append((naive_mmd(*sides, bandwidth, range(4), range(4, 9)), distance))
    every = torch.tensor(values, dtype=torch.float64)
    draws = 4000
    found = two_sample_tests(first, second, draws, source)
    for column, test in enumerate((found.mmd, found.mean_distance)):
        exact = (every[:, column] >= every[0, column] - 1e-12).double().mean().item()
        assert test.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws) + 1 / draws)
        spread = every[:, column].std().item()
        assert test.null_mean == pytest.approx(every[:, column].mean().item(), abs=4 * spread / math.sqrt(draws))
        assert test.null_std == pytest.approx(spread, rel=0.05)
        assert test.least_p == pytest.approx(1 / 126, abs=1 / draws)


def arrangements_of_groups(pooled, labels, count_first, bandwidth):
    """Both statistics of every way of choosing as many groups, and the factor by which their squares are compared."""
    found = []
    for chosen in itertools.combinations(dict.fromkeys(labels), count_first):
        rows = [[row for row, label in enumerate(labels) if (label in chosen) == side] for side in (True, False)]
        sides, of_sides = [pooled[row] for row in rows], [[labels[r] for r in row] for row in rows]
        square = float((sides[0].mean(dim=0) - sides[1].mean(dim=0)).square().sum())
        weight = len(sides[0]) * len(sides[1]) / len(labels)
        found.append((naive_mmd(*sides, bandwidth, *of_sides), square, weight))
    return torch.tensor(found, dtype=torch.float64)


def share_exceeding(values):
    return (values >= values[0] - 1e-12).double().mean(dim=0)


def test_null_of_groups_is_that_of_all_arrangements_of_groups():
    draws, differences = 2000, []
    for seed in range(5):
        source = generator(seed)
        (first, groups_first), (second, groups_second) = (
            in_groups([size] * count, source, 0.5) for size, count in SIZES
        )
        labels = [*(("a", group) for group in groups_first), *(("b", group) for group in groups_second)]
        every = arrangements_of_groups(torch.cat([first, second]), labels, 4, median_of(first, second))
        exact = share_exceeding(every[:, :2] * every[:, 2:])
        differences.append(exact - share_exceeding(every[:, :2]))
        found = two_sample_tests(first, second, draws, source, labels[:4], labels[4:])
        for test, p_value in zip((found.mmd, found.mean_distance), exact.tolist(), strict=True):
            error = math.sqrt(p_value * (1 - p_value) / draws)
            assert test.p_value == pytest.approx(p_value, abs=4 * error + 1 / draws)
        assert found.mmd.null_mean == pytest.approx(every[:, 0].mean().item(), abs=0.1 * every[:, 0].std().item())
    # The factor matters: some of the 35 arrangements count otherwise, by either measure in each of 24 draws of all five.
    assert torch.stack(differences).abs().amax() > 0.9 / 35


@pytest.mark.parametrize("shift", [0.0, 0.35])
def test_p_value_agrees_with_that_of_hyppo(shift):
    source = generator(7)
    first, second = normal(25, 3, source=source) + shift, normal(25, 3, source=source)
    ours = two_sample_tests(first, second, 2000, source).mmd.p_value
    theirs = MMD(bias=True).test(first.numpy(), second.numpy(), reps=1000, auto=False, random_state=0)[1]
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(0.25 / 1000))


def test_p_values_are_uniform_where_the_distributions_are_the_same():
    assert_uniform(rejection_rates(lambda source: (normal(8, 3, source=source), normal(12, 3, source=source))))


def grouped_null(source):
    (first, labels), (second, others) = (in_groups([4] * 7, source) for _ in range(2))
    return first, second, labels, [-1 - group for group in others]


def test_p_values_of_groups_are_uniform_where_those_of_single_rows_are_not():
    assert_uniform(rejection_rates(grouped_null))
    alone = rejection_rates(lambda source: grouped_null(source)[:2], count=60)
    assert min(alone[0.05]) > 0.4


def half_shared(source):
    """Sets with five groups in common, and four and six of their own."""
    common, noise = 3 * normal(5, 3, source=source), 0.3
    own = [3 * normal(count, 3, source=source) for count in (4, 6)]
    sets = [torch.cat([common + noise * normal(5, 3, source=source), rows]) for rows in own]
    return *sets, list(range(9)), [*range(5), *range(9, 15)]


def test_p_values_of_sets_with_groups_in_common_are_uniform():
    assert_uniform(rejection_rates(half_shared))


def test_groups_in_common_cancel():
    source = generator(8)
    common = 5 * normal(40, 3, source=source)
    first, second = (common + shift + 0.2 * normal(40, 3, source=source) for shift in (0.0, 0.3))
    paired = two_sample_tests(first, second, 199, source, range(40), range(40))
    assert paired.mean_distance.p_value == paired.mmd.p_value == 1 / 200
    assert two_sample_tests(first, second, 199, source).mean_distance.p_value > 0.2


def test_a_shift_is_found():
    source = generator(9)
    tests = two_sample_tests(normal(40, 10, source=source) + 0.5, normal(60, 10, source=source), 199, source)
    assert tests.mmd.p_value == tests.mean_distance.p_value == 1 / 200
    assert tests.mmd.value > tests.mmd.null_mean + 5 * tests.mmd.null_std
    assert tests.standardised > 1.5 * tests.standardised_chance
    first, labels = in_groups([3] * 30, source, dim=10)
    second, others = in_groups([3] * 30, source, dim=10)
    others = [-1 - group for group in others]
    grouped = two_sample_tests(first + 1, second, 199, source, labels, others)
    assert grouped.mmd.p_value == grouped.mean_distance.p_value == 1 / 200


def test_a_difference_in_spread_is_found_by_mmd_and_not_by_the_means():
    def spread(source):
        return normal(25, 3, source=source), 3 * normal(25, 3, source=source)

    rates = rejection_rates(spread, count=100)
    assert rates[0.05][0] > 0.95
    assert rates[0.05][1] <= 0.15  # 5 expected of 100, standard deviation 2.2


def test_chance_level_of_the_standardised_distance_is_that_of_two_samples():
    source = generator(10)
    found = two_sample_tests(normal(30, 200, source=source), normal(60, 200, source=source), 99, source)
    assert found.standardised_chance == pytest.approx(math.sqrt(1 / 30 + 1 / 60), rel=0.02)
    assert found.standardised == pytest.approx(found.standardised_chance, rel=0.1)
    assert found.mmd.null_mean == pytest.approx(0, abs=4 * found.mmd.null_std / math.sqrt(99))


def test_rotation_and_shift_change_nothing_and_scale_the_distance_alone():
    first, second = normal(15, 4, source=generator(1)), normal(20, 4, source=generator(2)) + 0.3
    rotation = torch.linalg.qr(normal(4, 4, source=generator(3))).Q
    plain = two_sample_tests(first, second, 50, generator())
    moved = two_sample_tests(7 * first @ rotation + 1e4, 7 * second @ rotation + 1e4, 50, generator())
    assert moved.mmd.value == pytest.approx(plain.mmd.value, abs=1e-9)
    assert moved.mmd.p_value == plain.mmd.p_value
    assert moved.mean_distance.value == pytest.approx(7 * plain.mean_distance.value, rel=1e-9)
    assert moved.standardised == pytest.approx(plain.standardised, rel=1e-9)


def test_blocks_of_arrangements_change_nothing(monkeypatch):
    first, second = normal(9, 4, source=generator(1)), normal(6, 4, source=generator(2))
    labels = (range(9), range(9, 15))
    whole = two_sample_tests(first, second, 30, generator(), *labels)
    monkeypatch.setattr("safety_subspaces.states.two_sample.BLOCK_ENTRIES", 15 * 7)
    parts = two_sample_tests(first, second, 30, generator(), *labels)
    assert parts.mmd.p_value == whole.mmd.p_value
    assert parts.mmd.null_std == pytest.approx(whole.mmd.null_std, rel=1e-12)


def test_same_set_twice_is_no_evidence():
    states = normal(10, 3, source=generator())
    assert two_sample_tests(states, states, 99, generator()).mean_distance.p_value == 1
    paired = two_sample_tests(states, states, 99, generator(), range(10), range(10))
    assert paired.mmd.p_value == paired.mean_distance.p_value == 1


def test_undefined_is_missing():
    source = generator()
    states = normal(6, 3, source=source)
    without_draws = two_sample_tests(states, states + 1, 0, source)
    assert math.isnan(without_draws.mmd.p_value)
    assert math.isnan(without_draws.mmd.least_p)
    assert without_draws.mmd.value > 0
    one = two_sample_tests(states[:1], states[1:], 9, source)
    assert math.isnan(one.mmd.value)
    assert math.isnan(one.mmd.p_value)
    assert one.mean_distance.value > 0
    one_group = two_sample_tests(states, states + 1, 9, source, [0] * 6, range(1, 7))
    assert math.isnan(one_group.mmd.value)
    empty = two_sample_tests(states[:0], states, 9, source)
    assert math.isnan(empty.mean_distance.value)
    assert math.isnan(empty.mean_distance.p_value)
    same = two_sample_tests(torch.ones(5, 3), torch.ones(4, 3), 9, source)
    assert math.isnan(same.mmd.value)
    assert (same.mean_distance.value, same.mean_distance.p_value) == (0, 1)
    assert math.isnan(same.standardised)


def test_few_groups_cannot_show_anything_and_say_so():
    source = generator()
    first, second = normal(20, 3, source=source), normal(20, 3, source=source) + 100
    found = two_sample_tests(first, second, 499, source, [0] * 10 + [1] * 10, [2] * 10 + [3] * 10).mean_distance
    assert found.least_p == pytest.approx(2 / 6, abs=0.01)
    assert found.p_value == pytest.approx(found.least_p, abs=0.1)


def test_bad_input_is_refused():
    states = normal(6, 3, source=generator())
    with pytest.raises(InputError, match="3 and of 2 dimensions"):
        two_sample_tests(states, states[:, :2], 9, generator())
    with pytest.raises(InputError, match="second set's 6 prompts"):
        two_sample_tests(states, states, 9, generator(), None, [1, 2])
    with pytest.raises(InputError, match="-1 draws"):
        two_sample_tests(states, states, -1, generator())
    with pytest.raises(InputError, match=r"bandwidth 0\.0"):
        two_sample_tests(states, states, 9, generator(), bandwidth=0.0)
    with pytest.raises(InputError, match="NaN or an infinity"):
        two_sample_tests(states, states / 0, 9, generator())
