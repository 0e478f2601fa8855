"""Whether two judges agree on the same answers beyond chance: Cohen's kappa, its interval over groups of prompts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

DRAWS, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree.

    Args:
        n: Answers that both scored.
        n_groups: Independent groups among them.
        n_unscored: Answers that one of them, or both, left unscored.
        agreement: Share of equal scores.
        chance: Share that two judges would have who score by chance as often as these do.
        kappa: ``(agreement - chance) / (1 - chance)``: 0 is chance, 1 is full agreement; NaN where both judges gave one
            and the same score throughout.
        kappa_low: Lower end of its 95 % interval, by a bootstrap over groups; NaN below two groups.
        kappa_high: Upper end.
        kappa_weighted: The same with squared distances of scores as weights: near misses count less.
        harmful_kappa: Kappa of what the rates count: a score of 4 or 5 or none such.
    """

    n: int
    n_groups: int
    n_unscored: int
    agreement: float
    chance: float
    kappa: float
    kappa_low: float
    kappa_high: float
    kappa_weighted: float
    harmful_kappa: float


def judge_agreement(
    first: Sequence[float | None],
    second: Sequence[float | None],
    groups: Sequence[Hashable],
    harmful_from: int,
    seed: int = 0,
) -> Agreement:
    """Compare two judges' scores of the same answers.

    Args:
        first: Scores from 1 to 5; ``None`` where unscored.
        second: The other's, in the same order.
        groups: What answers that stand and fall together share.
        harmful_from: Score from which an answer counts as harmful.
        seed: Of the bootstrap.

    Source: Cohen, Educational and Psychological Measurement 20 (1960), with weights Psychological Bulletin 70 (1968).
    """
    both = [(a, b, group) for a, b, group in zip(first, second, groups, strict=True) if a is not None and b is not None]
    a, b = (np.array([row[side] for row in both], dtype=float) for side in (0, 1))
    numbered = {group: number for number, group in enumerate(dict.fromkeys(row[2] for row in both))}
    numbers = np.array([numbered[row[2]] for row in both], dtype=int)
    kappa, observed, chance = _kappa(a, b)
    low, high = _interval(a, b, numbers, len(numbered), seed)
    return Agreement(
        n=len(both),
        n_groups=len(numbered),
        n_unscored=len(first) - len(both),
        agreement=observed,
        chance=chance,
        kappa=kappa,
        kappa_low=low,
        kappa_high=high,
        kappa_weighted=_kappa(a, b, weighted=True)[0],
        harmful_kappa=_kappa((a >= harmful_from).astype(float), (b >= harmful_from).astype(float))[0],
    )


def _kappa(a: NDArray[np.float64], b: NDArray[np.float64], weighted: bool = False) -> tuple[float, float, float]:
    """Return kappa, the observed agreement and that of chance."""
    if not len(a):
        return nan, nan, nan
    levels = np.unique(np.concatenate([a, b]))
    table = np.array([[np.mean((a == x) & (b == y)) for y in levels] for x in levels])
    apart = (levels[:, None] - levels[None, :]) ** 2 if weighted else (levels[:, None] != levels[None, :]).astype(float)
    expected = float((apart * np.outer(table.sum(axis=1), table.sum(axis=0))).sum())
    observed = float((apart * table).sum())
    return (1 - observed / expected if expected > 0 else nan), 1 - observed, 1 - expected


def _interval(
    a: NDArray[np.float64], b: NDArray[np.float64], numbers: NDArray[np.int64], count: int, seed: int
) -> tuple[float, float]:
    if count < 2:
        return nan, nan
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(numbers == number) for number in range(count)]
    drawn = []
    for _ in range(DRAWS):
        rows = np.concatenate([members[number] for number in generator.integers(count, size=count)])
        drawn.append(_kappa(a[rows], b[rows])[0])
    known = [value for value in drawn if value == value]
    if not known:
        return nan, nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
