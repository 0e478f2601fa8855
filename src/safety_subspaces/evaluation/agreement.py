"""Whether two judges agree on the same answers beyond chance: Cohen's kappa, its interval over groups of prompts."""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap
from sklearn.metrics import cohen_kappa_score

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

    The interval is the percentile one, over the draws of groups whose kappa is defined; SciPy says what a seed draws.

    Source: Cohen, Educational and Psychological Measurement 20 (1960), with weights Psychological Bulletin 70 (1968).
    """
    both = [(a, b, group) for a, b, group in zip(first, second, groups, strict=True) if a is not None and b is not None]
    a, b = (np.array([row[side] for row in both], dtype=float) for side in (0, 1))
    numbered = {group: number for number, group in enumerate(dict.fromkeys(row[2] for row in both))}
    levels, codes = np.unique([a, b], return_inverse=True)
    # For each group, the counts of each pair of scores.
    tables = np.zeros((len(numbered), len(levels), len(levels)))
    np.add.at(tables, ([numbered[row[2]] for row in both], *codes.reshape(2, -1)), 1)
    observed, chance = _agreements(tables.sum(axis=0))
    low, high = _interval(tables, seed)
    return Agreement(
        n=len(both),
        n_groups=len(numbered),
        n_unscored=len(first) - len(both),
        agreement=observed,
        chance=chance,
        kappa=_kappa(a, b),
        kappa_low=low,
        kappa_high=high,
        kappa_weighted=_kappa(a, b, "quadratic"),
        harmful_kappa=_kappa((a >= harmful_from).astype(float), (b >= harmful_from).astype(float)),
    )


def _kappa(a: NDArray[np.float64], b: NDArray[np.float64], weights: str | None = None) -> float:
    levels = np.union1d(a, b)
    if len(levels) < 2:  # nothing, or one and the same score throughout
        return nan
    # With the scores in between: scikit-learn weights by the distance of positions in this list.
    return float(cohen_kappa_score(a, b, labels=np.arange(levels[0], levels[-1] + 1), weights=weights))


def _agreements(table: NDArray[np.float64]) -> tuple[float, float]:
    """Return the observed agreement and that of chance."""
    n = table.sum()
    return (table.trace() / n, table.sum(axis=0) @ table.sum(axis=1) / n**2) if n else (nan, nan)


def _interval(tables: NDArray[np.float64], seed: int) -> tuple[float, float]:
    if len(tables) < 2:
        return nan, nan

    def kappa(groups: NDArray[np.int64]) -> float:  # as scikit-learn's, which would take seconds for the draws
        observed, chance = _agreements(tables[groups].sum(axis=0))
        return (observed - chance) / (1 - chance) if chance < 1 else nan

    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):  # draws without a kappa are left out
        drawn = bootstrap(
            (np.arange(len(tables)),), kappa, n_resamples=DRAWS, vectorized=False, method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
    if np.isnan(drawn).all():
        return nan, nan
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
