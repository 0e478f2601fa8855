"""Whether two sets of prompts have states of one distribution: kernel MMD and the distance of means, by permutation.

Prompts that stand and fall together (paraphrases, turns of one conversation, requests of one template) are not
independent, and permuting them one by one gives p-values that are far too small. So what is permuted is whole groups.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import comb, nan

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.statistics import number_groups, permutation_p_value
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.similarity import centred_gram, median_distance, rbf_kernel, squared_distances

# Statistics of two arrangements that differ by less, as a share of their full scale, are ties: sums of float64 over
# thousands of prompts in another order.
TIE_TOLERANCE = 1e-10
# Entries of a block of arrangements: 32 MB in float64.
BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class TwoSample:
    """A statistic of two sets of states and its permutation test; NaN where it is undefined.

    Args:
        value: The statistic.
        p_value: ``(1 + #{null >= observed}) / (1 + draws)``.
        null_mean: Mean of the statistic over the permutations: its chance level.
        null_std: Standard deviation over them.
        least_p: The p-value to expect where no other arrangement of the groups comes near the observed one. With few
            groups it is large, and then the test cannot find anything.
        n_first: Prompts of the first set.
        n_second: Of the second.
        n_groups_first: Groups of the first set.
        n_groups_second: Of the second.
        n_groups_shared: Groups with prompts in both.
    """

    value: float
    p_value: float
    null_mean: float
    null_std: float
    least_p: float
    n_first: int
    n_second: int
    n_groups_first: int
    n_groups_second: int
    n_groups_shared: int


@dataclass(frozen=True)
class TwoSampleTests:
    """Both tests of one pair of sets, under the same permutations.

    Args:
        mmd: The unbiased squared MMD, at most 2.
        mean_distance: The Euclidean distance of the means, in the units of the states.
        standardised: That distance in root-mean-square deviations of states from the mean of their set, pooled.
        standardised_chance: Its mean over the permutations.
        bandwidth: Bandwidth of the MMD's kernel, in the units of the states.
    """

    mmd: TwoSample
    mean_distance: TwoSample
    standardised: float
    standardised_chance: float
    bandwidth: float


def two_sample_tests(
    first: Float[Tensor, "prompt_first dim_first"],
    second: Float[Tensor, "prompt_second dim_second"],
    draws: int,
    generator: torch.Generator,
    groups_first: Sequence[Hashable] | None = None,
    groups_second: Sequence[Hashable] | None = None,
    bandwidth: float | None = None,
) -> TwoSampleTests:
    """Test whether two sets of states have one distribution (MMD), and one mean.

    ``MMD^2 = mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)``, each mean over pairs of
    prompts of different groups, with ``k = exp(-|x - y|^2 / (2 s^2))``. Without groups that is the usual unbiased
    estimate; with them it stays unbiased, as prompts of one group are alike whatever the distributions. Its mean is 0
    where the distributions are the same, so it can be negative.

    What is permuted. A group that lies in one set goes to either side as a whole; as many groups stay first as were. A
    group that has prompts in both sets is split as it was, and the two parts change sides or not: as in a paired test,
    what they have in common cancels. A label therefore has to mean the same in both sets, or be different.

    The null hypothesis is that groups are exchangeable, with their sizes. A permutation whose sides have other sizes
    than observed is compared by the squared statistic times ``n_first n_second / (n_first + n_second)``, which takes
    out most of how its spread depends on them; for the means that is the pseudo-F of PERMANOVA. What is left matters
    where groups are small in one set and large in the other: 40 single prompts against 5 groups of 8 near copies, of
    one distribution, had p-values below 0.05 in 9 to 12 % of 400 samples. One prompt of each group is then a better
    sample.

    All permutations are products with one kernel and one Gram matrix, summed over groups.

    Args:
        first: One row a prompt.
        second: Other prompts in the same space.
        draws: Permutations, drawn with replacement; 0 gives values without p-values.
        generator: Source of the permutations.
        groups_first: What prompts of the first set that stand and fall together share; each for itself by default.
        groups_second: The same of the second.
        bandwidth: ``s``; by default the median distance of two prompts of the pooled sets.

    Returns:
        Both tests. MMD is NaN for fewer than two groups in a set or without a bandwidth above 0 (the median distance
        is 0 where most states are the same); the distance is NaN for an empty set, and 0 with a p-value of 1 where all
        states are the same; the standardised one is NaN where the states of each set are all the same.

    Raises:
        InputError: Different dimensions, a NaN or an infinity, a number of groups that is not that of the prompts,
            negative draws, or a bandwidth that is not positive.

    Source: Gretton et al., JMLR 13 (2012), lemma 6; Anderson, Austral Ecology 26 (2001); p-values by Phipson and Smyth,
        Stat. Appl. Genet. Mol. Biol. 9 (2010).
    """
    _check(first, second, draws, groups_first, groups_second, bandwidth)
    arranged = _Arrangements(len(first), len(second), groups_first, groups_second)
    gram = centred_gram(torch.cat([first, second]))
    squared = squared_distances(gram)
    if bandwidth is None:
        bandwidth = median_distance(squared)
    sizes, total = arranged.sizes(gram), gram.trace()
    pairs = [arranged.summed(rbf_kernel(squared, bandwidth)), sizes.outer(sizes)]
    sums = torch.stack([*map(arranged.between_groups, pairs), arranged.summed(gram)])
    blocks = arranged.blocks(draws, generator, gram)
    statistics = [_statistics(sums, sizes, total, chosen) for chosen in blocks]
    mmd, distance, standardised, weight = torch.cat(statistics, dim=1).cpu()
    # Full scales: a kernel is at most 1, and what lies between the means is part of the whole sum of squares.
    return TwoSampleTests(
        arranged.tested(mmd, weight * mmd, float(len(gram))),
        arranged.tested(distance, weight * distance.square(), float(total)),
        float(standardised[0]),
        float(standardised[1:].nanmean()),
        bandwidth,
    )


class _Arrangements:
    """All assignments of groups of prompts to two sides; a group with prompts in both sets is one unit in each."""

    def __init__(
        self, first: int, second: int, groups_first: Sequence[Hashable] | None, groups_second: Sequence[Hashable] | None
    ) -> None:
        labels = [
            [object() for _ in range(count)] if groups is None else list(groups)
            for count, groups in ((first, groups_first), (second, groups_second))
        ]
        self._prompts = (first, second)
        self._unit_of_row = number_groups([(side, label) for side in (0, 1) for label in labels[side]])
        # For each side, its groups numbered from 0.
        numbers = [{label: number for number, label in enumerate(dict.fromkeys(of_side))} for of_side in labels]
        self._groups = (len(numbers[0]), len(numbers[1]))
        shared = [label for label in numbers[0] if label in numbers[1]]
        self._pairs = torch.tensor(
            [[numbers[0][label], self._groups[0] + numbers[1][label]] for label in shared], dtype=torch.long
        ).reshape(-1, 2)
        self._observed = torch.arange(sum(self._groups)) < self._groups[0]
        self._alone = torch.ones_like(self._observed).index_fill_(0, self._pairs.flatten(), 0).nonzero()[:, 0]

    def sizes(self, like: Tensor) -> Tensor:
        """Return how many prompts each unit has."""
        return self._unit_of_row.bincount(minlength=len(self._observed)).to(like)

    def summed(self, matrix: Tensor) -> Tensor:
        """Return the sums of a matrix of prompts over pairs of units."""
        units, of_row = len(self._observed), self._unit_of_row.to(matrix.device)
        rows = matrix.new_zeros(units, len(matrix)).index_add_(0, of_row, matrix)
        return matrix.new_zeros(units, units).index_add_(1, of_row, rows)

    def between_groups(self, sums: Tensor) -> Tensor:
        """Return sums over pairs of units with 0 for pairs of one group."""
        sums = sums.clone().fill_diagonal_(0)
        rows, columns = self._pairs.T.to(sums.device)
        sums[rows, columns] = sums[columns, rows] = 0
        return sums

    def blocks(self, draws: int, generator: torch.Generator, like: Tensor) -> Iterator[Tensor]:
        """Yield the observed arrangement and then random ones: ``(unit, arrangement)``, 1 for the first side."""
        yield self._observed[:, None].to(like)
        at_once = max(1, BLOCK_ENTRIES // max(1, len(self._observed)))
        remain_first = int(self._observed[self._alone].sum())
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            chosen = torch.zeros(count, len(self._observed), dtype=torch.bool)
            order = torch.rand(count, len(self._alone), generator=generator).argsort(dim=1)
            chosen.scatter_(1, self._alone[order[:, :remain_first]], True)
            swapped = torch.randint(0, 2, (count, len(self._pairs)), generator=generator, dtype=torch.bool)
            chosen[:, self._pairs[:, 0]] = ~swapped
            chosen[:, self._pairs[:, 1]] = swapped
            yield chosen.T.to(like)

    def tested(self, values: Tensor, compared: Tensor, full_scale: float) -> TwoSample:
        """Test the first, observed value against the permuted ones.

        Args:
            values: The statistic of each arrangement.
            compared: A statistic of each that allows for sides of different sizes.
            full_scale: Largest value of ``compared``, for ties.
        """
        observed, null = compared[0], compared[1:]
        draws = len(null)
        undefined = draws == 0 or bool(observed.isnan())
        exceeding = int((null >= observed - TIE_TOLERANCE * full_scale).sum())
        p_value = nan if undefined else permutation_p_value(exceeding, draws)
        least_p = nan if undefined else (1 + draws * self._share_of_ties()) / (1 + draws)
        spread = float(values[1:].std()) if draws > 1 else nan
        return TwoSample(
            value=float(values[0]),
            p_value=p_value,
            null_mean=float(values[1:].mean()),
            null_std=spread,
            least_p=least_p,
            n_first=self._prompts[0],
            n_second=self._prompts[1],
            n_groups_first=self._groups[0],
            n_groups_second=self._groups[1],
            n_groups_shared=len(self._pairs),
        )

    def _share_of_ties(self) -> float:
        """Share of all arrangements that equal the observed one, or that one with its sides exchanged."""
        alone, remain_first = len(self._alone), int(self._observed[self._alone].sum())
        arrangements = 2 ** len(self._pairs) * comb(alone, remain_first)
        return min(1.0, (2 if 2 * remain_first == alone else 1) / arrangements)


def _statistics(sums: Tensor, sizes: Tensor, total: Tensor, chosen: Tensor) -> Tensor:
    """MMD^2, distance of means, the same standardised, and ``n_first n_second / n``, of each arrangement.

    Args:
        sums: Kernel, number of pairs that count, and centred Gram matrix, over pairs of units ``(3, unit, unit)``.
        sizes: Prompts of each unit.
        total: Sum of squared distances of all states from their mean.
        chosen: 1 where a unit is on the first side ``(unit, arrangement)``.
    """
    first = sizes @ chosen
    weight = first * (sizes.sum() - first) / sizes.sum()
    products = sums @ chosen
    within_first = (chosen * products).sum(dim=1)
    across = products.sum(dim=1) - within_first
    within_second = sums.sum(dim=(1, 2))[:, None] - within_first - 2 * across
    kernels, pairs, gram = torch.stack([within_first, within_second, across], dim=1)
    means = torch.where(pairs > 0, kernels / pairs, nan)
    mmd = means[0] + means[1] - 2 * means[2]
    # The pooled mean is 0: the sum over the second side is that over the first with its sign turned.
    between = (gram[0] / weight).clamp(min=0)
    distance = (between / weight).sqrt()
    within = total - between
    within[within <= TIE_TOLERANCE * total] = nan  # each set repeats one point: no deviation to standardise by
    return torch.stack([mmd, distance, distance / (within / (sizes.sum() - 2)).sqrt(), weight])


def _check(
    first: Tensor,
    second: Tensor,
    draws: int,
    groups_first: Sequence[Hashable] | None,
    groups_second: Sequence[Hashable] | None,
    bandwidth: float | None,
) -> None:
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"states of {first.shape[1]} and of {second.shape[1]} dimensions: expected two sets from one layer"
        )
    for word, states, groups in (("first", first, groups_first), ("second", second, groups_second)):
        if groups is not None and len(groups) != len(states):
            raise InputError(f"{len(groups)} groups of the {word} set's {len(states)} prompts: expected one for each")
    if draws < 0:
        raise InputError(f"{draws} draws: expected 0 or more permutations")
    if bandwidth is not None and not bandwidth > 0:
        raise InputError(f"bandwidth {bandwidth}: expected a positive distance, or None for the median")
