"""What a reading is made of: a finding, and a mean with its interval."""

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


@dataclass(frozen=True)
class Finding:
    """One conclusion: topic, verdict in a word, headline for the answer, sentence with the numbers."""

    topic: str
    verdict: str
    headline: str
    sentence: str


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
        """The two-sided p-value of the t-test that the interval belongs to."""
        if self.reach == 0:
            return 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.reach * t_quantile(self.n - 1), self.n - 1))

    @property
    def sign(self) -> int:
        """+1 or -1 where the whole interval is on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.mean:+z.2f} (95 % interval {self.low:+z.2f} to {self.high:+z.2f}, n = {self.n})"


def t_interval(values: pd.Series) -> Interval:
    """Return the mean of the finite values and ``mean -+ t_(n-1) s / sqrt(n)``."""
    finite = values.dropna().astype(float).to_numpy()
    n = len(finite)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    reach = float(t_quantile(n - 1) * finite.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - reach, mean + reach, n)


def fisher_interval(rhos: pd.Series) -> Interval:
    """Return the mean of rank correlations with its t interval, both on Fisher's z scale and back, within -1 and 1."""
    over = t_interval(rhos.astype(float).clip(-LARGEST_RHO, LARGEST_RHO).map(np.arctanh))
    mean, low, high = (float(np.tanh(value)) for value in (over.mean, over.low, over.high))
    return Interval(mean, low, high, over.n)


def over_seeds(
    frame: pd.DataFrame, keys: list[str], measures: Iterable[str], described: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return a row for each cell of ``keys``: each measure's mean over seeds with its interval.

    Args:
        frame: A row for each cell and seed.
        keys: What names a cell.
        measures: Columns; each has its mean, ``<measure>_reach`` (half the t interval, NaN below two seeds) and
            ``<measure>_seeds``.
        described: Further columns, each with the pandas aggregation over seeds, such as ``max``.

    Returns:
        The columns ``keys``, those of the measures, and ``described``.
    """
    rows, described = [], described or {}
    for values, cell in frame.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, values, strict=True))
        for measure in measures:
            interval = t_interval(cell[measure])
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


# Standard errors to each side of a normal 95 % interval.
Z: Final = 1.96


def joint_error(first: pd.Series, second: pd.Series, measure: str) -> float:
    """Return the standard error of a difference of two models; an error that is missing counts as none."""
    errors = [float(row[f"{measure}_stderr"]) for row in (first, second)]
    return float(np.sqrt(np.nansum(np.square(errors))))
