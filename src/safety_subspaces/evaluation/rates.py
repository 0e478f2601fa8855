"""Means that carry their standard error, their n, and how many answers could not be scored."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over scored items; NaN where there are none, and a NaN standard error below two groups."""

    mean: float
    stderr: float
    n: int
    n_unscored: int
    n_groups: int


def estimate(values: Sequence[float | None], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return mean and standard error of the values that are not ``None``.

    Items of one group (the same act and object, the same operands) stand and fall together. The standard error is
    robust to that: ``sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n`` over G groups. With every item a
    group of its own it is the ordinary ``s / sqrt(n)``, with ``s`` the sample standard deviation (n - 1).

    For a rate of exactly 0 or 1 it is 0: the sample then says no more than that the rate is likely within ``3 / G`` of
    the end (the rule of three), which is why the numbers stand beside it.
    """
    keys = range(len(values)) if groups is None else groups
    scored = [(value, key) for value, key in zip(values, keys, strict=True) if value is not None]
    n = len(scored)
    mean = math.fsum(value for value, _ in scored) / n if n else math.nan
    sums: dict[Hashable, float] = defaultdict(float)
    for value, key in scored:
        sums[key] += value - mean
    count = len(sums)
    squares = math.fsum(total**2 for total in sums.values())
    stderr = math.sqrt(squares * count / (count - 1)) / n if count > 1 else math.nan
    return Estimate(mean, stderr, n, len(values) - n, count)
