"""What a reading is made of: a finding, and a mean with its interval."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

# Two-sided 95 %, the field's habit.
CONFIDENCE: Final = 0.95


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
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * finite.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - reach, mean + reach, n)
