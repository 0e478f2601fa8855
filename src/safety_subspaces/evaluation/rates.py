"""Means that carry their standard error, their n, and how many answers could not be scored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over scored items; NaN where there are none, and a NaN standard error below two."""

    mean: float
    stderr: float
    n: int
    n_unscored: int


def estimate(values: Sequence[float | None]) -> Estimate:
    """Return mean and standard error ``s / sqrt(n)`` of the values that are not ``None``.

    ``s`` is the sample standard deviation (n - 1). For a rate of exactly 0 or 1 it is 0: the sample then says no more
    than that the rate is likely within ``3 / n`` of the end (the rule of three), which is why n stands beside it.
    """
    scored = [value for value in values if value is not None]
    n = len(scored)
    mean = math.fsum(scored) / n if n else math.nan
    squares = math.fsum((value - mean) ** 2 for value in scored)
    stderr = math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan
    return Estimate(mean, stderr, n, len(values) - n)
