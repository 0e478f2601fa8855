"""Pairs of prompts of similar length and the same template, so that two sets differ in their content alone."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

# Two prompts whose lengths differ by more than this share of the longer one, and by more than a token, are no pair.
LENGTH_CALIPER = 0.1


def match_prompts(
    first_lengths: Sequence[int],
    second_lengths: Sequence[int],
    first_sources: Sequence[Hashable] | None = None,
    second_sources: Sequence[Hashable] | None = None,
    caliper: float = LENGTH_CALIPER,
) -> list[tuple[int, int]]:
    """Pair prompts of two sets one to one: as many pairs as possible, of least total difference in length.

    Args:
        first_lengths: Length of each prompt of the first set, in tokens.
        second_lengths: The same of the second.
        first_sources: Source or template of each. Where the sets share any, only prompts of one source are paired;
            where they share none, or it is not known, length alone decides.
        second_sources: The same of the second.
        caliper: Largest difference in length, as a share of the longer one; one token is always let pass.

    Returns:
        Indices into the first and the second set, in the order of the first; empty where nothing fits.

    Source: optimal matching within calipers, Rosenbaum, J. Am. Stat. Assoc. 84 (1989).
    """
    if not first_lengths or not second_lengths:
        return []
    lengths = (np.array(first_lengths)[:, None], np.array(second_lengths)[None, :])
    difference = np.abs(lengths[0] - lengths[1])
    allowed = difference <= np.maximum(1, caliper * np.maximum(*lengths))
    if first_sources is not None and second_sources is not None and share_sources(first_sources, second_sources):
        numbers = {source: number for number, source in enumerate(dict.fromkeys([*first_sources, *second_sources]))}
        codes = [np.array([numbers[source] for source in sources]) for sources in (first_sources, second_sources)]
        allowed &= codes[0][:, None] == codes[1][None, :]
    # More than any sum of differences, so that one more pair always outweighs its difference in length.
    forbidden = float(difference.max() + 1) * (min(difference.shape) + 1)
    rows, columns = linear_sum_assignment(np.where(allowed, difference, forbidden))
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]


def share_sources(first: Sequence[Hashable], second: Sequence[Hashable]) -> bool:
    """Tell whether two sets have a known source in common."""
    return bool((set(first) & set(second)) - {None})
