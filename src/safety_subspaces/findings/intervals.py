"""Intervals and p-values: of means over seeds and prompts, of rank correlations, of one among exchangeable draws."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

# Two-sided 95 %, the field's habit.
CONFIDENCE: Final = 0.95
# A rho of 1 has no finite z; 0.999 is nearer to it than the points behind any rho here can tell.
LARGEST_RHO: Final = 0.999
# Standard errors to each side of a normal 95 % interval.
Z: Final = 1.96
# The fewest draws among which a rank can have a p-value of 0.05: one in twenty.
LEAST_DRAWS: Final = 19
# Values that differ by less, relatively, are ties: rounding of float64 sums.
TIE: Final = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided t interval; ``low`` and ``high`` are NaN below two values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def reach(self) -> float:
        """Half the width."""
        return self.high - self.mean

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the t-test that the interval belongs to.

        NaN without an interval, and where it has no width: equal values are no certainty, only too few to see a spread.
        """
        if not self.reach > TIE * max(1.0, abs(self.mean)):
            return np.nan
        return float(2 * stats.t.sf(abs(self.mean) / self.reach * t_quantile(self.n - 1), self.n - 1))

    @property
    def sign(self) -> int:
        """+1 or -1 where the whole interval is on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.mean:+z.2f} (95 % interval {self.low:+z.2f} to {self.high:+z.2f}, n = {self.n})"


def t_interval(values: pd.Series, errors: pd.Series | None = None) -> Interval:
    """Return the mean of the finite values and ``mean -+ t_(n-1) s / sqrt(n)``.

    Args:
        values: One value a seed, or another unit.
        errors: The standard error of each over its prompts. All seeds answer the same prompts, so that no number of
            seeds averages it out: the interval is at least the normal one of its root mean square, however alike
            the values are. Values without one lower no floor.
    """
    known = values.notna().to_numpy()
    finite = values.to_numpy(dtype=float)[known]
    n = len(finite)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    reach = float(t_quantile(n - 1) * finite.std(ddof=1) / np.sqrt(n))
    if errors is not None:
        over_prompts = errors.to_numpy(dtype=float)[known]
        over_prompts = over_prompts[~np.isnan(over_prompts)]
        reach = max(reach, Z * float(np.sqrt(np.mean(over_prompts**2)))) if len(over_prompts) else reach
    return Interval(mean, mean - reach, mean + reach, n)


def prompts_interval(estimate: float, error: float) -> Interval:
    """Return the normal 95 % interval of one run's number by its standard error over prompts; ``n`` is 1."""
    return Interval(estimate, estimate - Z * error, estimate + Z * error, 1)


def normal_p_value(estimate: float, error: float) -> float:
    """Return the two-sided p-value of an estimate with a standard error; NaN without one."""
    return float(2 * stats.norm.sf(abs(estimate) / error)) if error > 0 else np.nan


def rank_p_value(value: float, draws: np.ndarray) -> float:
    """Return the p-value that one value is exchangeable with some draws: its rank by distance from the mean of all.

    ``(1 + #{|d - c| >= |x - c|}) / (draws + 1)``, with ``c`` the mean of the draws and the value together, which no
    order of them changes: the level is exact at every number of draws. With fewer than ``LEAST_DRAWS`` it can never be
    as small as 0.05. NaN without draws, or where the value is missing.
    """
    known = draws[~np.isnan(draws)]
    if len(known) == 0 or np.isnan(value):
        return np.nan
    centre = (known.sum() + value) / (len(known) + 1)
    reached = abs(value - centre)
    tie = TIE * max(1.0, reached)
    return (1 + int((np.abs(known - centre) >= reached - tie).sum())) / (1 + len(known))


def joint_rank_p_values(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return a p-value for each of several measures of one unit that is exchangeable with some draws, all corrected.

    Each measure is a distance from the mean of all in standard deviations of all, ``z``. A measure's p is the rank of
    its ``z`` among the largest ``z`` of each draw, ``(1 + #{max_j z_dj >= z_j}) / (draws + 1)``: the chance that one
    of them is at most ``a`` is at most ``a`` where the unit is one more draw, however the measures hang together.

    Args:
        values: The unit's measures.
        draws: Those of each draw, a row a draw; a draw that lacks one counts in none.

    Returns:
        A p for each measure; NaN without draws, or where the unit lacks one.

    Source: the single-step maxT procedure of Westfall and Young, Resampling-Based Multiple Testing (1993).
    """
    known = draws[~np.isnan(draws).any(axis=1)]
    if len(known) == 0 or np.isnan(values).any():
        return np.full(len(values), np.nan)
    every = np.vstack([values, known])
    distances = np.abs(every - every.mean(axis=0))
    spread = every.std(axis=0)
    # What does not vary but by rounding is at no distance.
    varies = spread > TIE * np.maximum(1.0, np.abs(every).max(axis=0))
    z = np.divide(distances, spread, out=np.zeros_like(distances), where=varies)
    reached = (z[1:].max(axis=1)[:, None] >= z[0] * (1 - TIE)).sum(axis=0)
    return np.asarray((1 + reached) / (1 + len(known)))


def prediction_interval(draws: np.ndarray) -> Interval:
    """Return where one more draw of the same kind would fall: ``mean -+ t_(n-1) s sqrt(1 + 1 / n)``.

    ``n`` counts the draws; the ends are NaN below two.
    """
    known = pd.Series(draws).dropna().to_numpy(dtype=float)
    n = len(known)
    mean = float(known.mean()) if n else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan, n)
    reach = float(t_quantile(n - 1) * known.std(ddof=1) * np.sqrt(1 + 1 / n))
    return Interval(mean, mean - reach, mean + reach, n)


def fisher_interval(rhos: pd.Series) -> Interval:
    """Return the mean of rank correlations with its t interval, both on Fisher's z scale and back, within -1 and 1."""
    over = t_interval(rhos.astype(float).clip(-LARGEST_RHO, LARGEST_RHO).map(np.arctanh))
    mean, low, high = (float(np.tanh(value)) for value in (over.mean, over.low, over.high))
    return Interval(mean, low, high, over.n)


def over_seeds(
    frame: pd.DataFrame,
    keys: list[str],
    measures: Iterable[str],
    described: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return a row for each cell of ``keys``: each measure's mean over seeds with its interval.

    Args:
        frame: A row for each cell and seed.
        keys: What names a cell.
        measures: Columns; each has its mean, ``<measure>_reach`` (half the t interval, NaN below two seeds) and
            ``<measure>_seeds``.
        described: Further columns, each with the pandas aggregation over seeds, such as ``max``.
        errors: The column of a measure's standard error over prompts, below which no interval falls.

    Returns:
        The columns ``keys``, those of the measures, and ``described``.
    """
    rows, described, errors = [], described or {}, errors or {}
    for values, cell in frame.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, values, strict=True))
        for measure in measures:
            interval = t_interval(cell[measure], cell[errors[measure]] if measure in errors else None)
            row |= {measure: interval.mean, f"{measure}_reach": interval.reach, f"{measure}_seeds": interval.n}
        rows.append(row | {name: cell[name].agg(rule) for name, rule in described.items()})
    columns = [name for m in measures for name in (m, f"{m}_reach", f"{m}_seeds")]
    return pd.DataFrame(rows, columns=[*keys, *columns, *described])


def interval_of(row: pd.Series, measure: str) -> Interval:
    """Return a mean of :func:`over_seeds` with its interval."""
    mean, reach = float(row[measure]), float(row[f"{measure}_reach"])
    return Interval(mean, mean - reach, mean + reach, int(row[f"{measure}_seeds"]))


@cache  # thousands of intervals of a page have the same few n, and this takes scipy longer than all the rest of one
def t_quantile(degrees: int) -> float:
    """Return the quantile of Student's t that a two-sided interval reaches to."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees))
