"""Means that carry their standard error, their n, and how many answers could not be scored."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from safety_subspaces.algebra.statistics import (
    FEW_DISSENTERS,
    Groupings,
    clustered_error,
    fewest_groups,
    unanimous_error,
)

# Ends of the scale of a share, and of the judges' scores.
SHARE, SCORE = (0.0, 1.0), (1.0, 5.0)


@dataclass(frozen=True)
class Estimate:
    """A mean over scored items; NaN where there are none, and a NaN standard error below two groups.

    ``n_groups`` counts the groups of items that stand and fall together; where they do in two ways, those of the
    grouping with fewest.
    """

    mean: float
    stderr: float
    n: int
    n_unscored: int
    n_groups: int


def estimate(
    values: Sequence[float | None],
    groupings: Sequence[Sequence[Hashable]] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Return mean and standard error of the values that are not ``None``.

    Items of one group (the same operands) stand and fall together, also in two ways that cross (the same act, the same
    object). The standard error is robust to that: that of
    :func:`~safety_subspaces.algebra.statistics.clustered_error`. With every item a group of its own it is the ordinary
    ``s / sqrt(n)``, with ``s`` the sample standard deviation (n - 1).

    Values on a scale with two ends may all be the same, and then they do not tell how sure their mean is. The error is
    then the length of the scale times that of a share that was 0 in as many independent groups
    (:func:`~safety_subspaces.algebra.statistics.unanimous_error`): of all other answers nothing is known but that they
    are so rare. It is at least that where fewer than four groups have another value than the commonest one.

    Args:
        values: One for each item, ``None`` where there is none.
        groupings: One or two lists of keys, one for each item, which items that stand and fall together share; every
            item for itself by default.
        bounds: Ends of the scale, such as 0 and 1 of a share; ``None`` where it has none.
    """
    keys: Groupings = [range(len(values))] if groupings is None else groupings
    scored = [value for value in values if value is not None]
    groups = [[key for key, value in zip(own, values, strict=True) if value is not None] for own in keys]
    n, count = len(scored), fewest_groups(groups)
    mean = math.fsum(scored) / n if n else math.nan
    stderr = clustered_error(scored, groups)
    if bounds is not None and n:
        common = Counter(scored).most_common(1)[0][0]
        others = [[key for key, value in zip(own, scored, strict=True) if value != common] for own in groups]
        if fewest_groups(others) < FEW_DISSENTERS:
            stderr = max(stderr, (bounds[1] - bounds[0]) * unanimous_error(count))
    return Estimate(mean, stderr, n, len(values) - n, count)
