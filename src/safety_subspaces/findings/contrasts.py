"""Models of one study beside each other: sums of their measures, with what the prompts leave open.

Models answer the same prompts, and a table keeps no answers: their errors are joined as if the answers had nothing in
common, which is too wide rather than too narrow where what is hard for one model is hard for the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf, isnan, nan, sqrt
from sys import float_info
from typing import Final

import pandas as pd
from scipy import optimize, special, stats

from safety_subspaces.algebra.statistics import units_behind
from safety_subspaces.findings.finding import ALPHA

# The set of prompts behind each measure, and the ends of its scale where it jumps between them: there a normal interval
# is too short, and most of all the end that says how much harm a model may do.
PROMPTS_OF: Final = {"utility": "utility", "harm_score": "harmful", "refusal_margin": "harmful"}
SCALE_OF: Final = {"harm_score": (1.0, 5.0)}
# Quantiles and shares are looked for this far out: t with 10 degrees of freedom has a p of 1e-36 there, and no share of
# a fall by a whole step of the judge's scale, which has four, is as large.
FARTHEST: Final = 1e4
# Beyond it (p = 1e-88) SciPy has no quantiles of Beta for some rates: nothing within the scale is ruled out.
FARTHEST_EXACT: Final = 20.0


@dataclass(frozen=True)
class Measured:
    """A measure of one model.

    Args:
        value: Its mean over prompts.
        error: Its standard error over groups of prompts; NaN where it is not known.
        groups: Independent groups of prompts.
        scale: The least and the largest value that an answer can have, where the interval must not leave them.
    """

    value: float
    error: float = nan
    groups: float = nan
    scale: tuple[float, float] | None = None

    def ends(self, quantile: float) -> tuple[float, float]:
        """Return the interval of so many standard errors to each side; on a scale it is an exact one of a rate.

        As many answers stand behind it as its error tells (:func:`~safety_subspaces.algebra.statistics.units_behind`),
        and never more than there are groups: where all answers are alike, or nearly, their number alone tells how far
        the mean may be off. No values within the scale vary more than those at its ends do.

        Source: Clopper and Pearson, Biometrika 26 (1934); Korn and Graubard, Surv. Methodol. 24 (1998), for answers in
            groups. Wilson's is wider at the ends: there none of 61 groups shows too little to be under a tenth, if it
            is one model of nine.
        """
        if self.scale is None:
            return self.value - quantile * self.error, self.value + quantile * self.error
        low, width = self.scale[0], self.scale[1] - self.scale[0]
        share = (self.value - low) / width
        told = units_behind(share, self.error / width, self.groups)
        n = told if isnan(self.groups) else min(told, self.groups)
        if isnan(n) or isnan(share):
            return nan, nan
        if quantile > FARTHEST_EXACT:
            return self.scale
        tail, yes = special.ndtr(-quantile), n * share
        least = 0.0 if yes <= 0 else float(special.betaincinv(yes, n - yes + 1, tail))
        most = 1.0 if yes >= n else float(special.betainccinv(yes + 1, n - yes, tail))
        return low + width * least, low + width * most


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of measures of several models: ``parts`` are the weights with the measures."""

    parts: tuple[tuple[float, Measured], ...]

    @property
    def estimate(self) -> float:
        """The sum."""
        return sum(weight * part.value for weight, part in self.parts)

    @property
    def error(self) -> float:
        """Its standard error; NaN where that of a part is not known, or all are 0."""
        return sqrt(sum((weight * part.error) ** 2 for weight, part in self.parts)) or nan

    @property
    def degrees(self) -> float:
        """Degrees of freedom of Student's t: the fewest groups of any part, less one.

        With a normal the p of no difference is at or under 0.05 for 8 % of pairs of models on 5 or 10 groups of four
        prompts, and 6 % on 20; with t for at most 5 % on 5 to 50 (4,000 pairs each, rates of .05 to .5).
        """
        groups = [part.groups for weight, part in self.parts if weight and not isnan(part.groups)]
        return max(min(groups) - 1, 1.0) if groups else inf

    @property
    def p_value(self) -> float:
        """The two-sided p-value of a sum of 0: how far the interval has to reach to touch it. NaN without an error."""
        if isnan(self._reaching(1.0)[0]):
            return nan
        side = 0 if self.estimate > 0 else 1
        if self._reaching(0.0)[0] <= 0 <= self._reaching(0.0)[1]:  # an exact interval has a width from the start
            return 1.0
        quantile = _root(lambda reached: self._reaching(reached)[side], 0.0, FARTHEST)
        p = float(2 * stats.t.sf(FARTHEST if isnan(quantile) else quantile, self.degrees))
        return max(p, float_info.min)  # no p is 0; one of 10,000 groups that all differ is below what a float holds

    def ends(self) -> tuple[float, float]:
        """Return the two-sided 95 % interval."""
        return self._reaching(_quantile(self.degrees, ALPHA / 2))

    def bounds(self, tests: int) -> tuple[float, float]:
        """Return what the sum is at least, and what it is at most, each with 95 % for so many sums together."""
        return self._reaching(_quantile(self.degrees, ALPHA / tests))

    def _reaching(self, quantile: float) -> tuple[float, float]:
        """Return the sum less, and plus, the root of the squares of how far its parts reach down, and up.

        NaN where the error of a part is not known, or none of them has any.

        Source: Zou and Donner, Stat. Med. 27 (2008).
        """
        down = up = 0.0
        for weight, part in self.parts:
            low, high = sorted(weight * (end - part.value) for end in part.ends(quantile))
            down, up = down + low**2, up + high**2
        reach = (nan, nan) if quantile and not (down or up) else (sqrt(down), sqrt(up))
        return self.estimate - reach[0], self.estimate + reach[1]


def measured(row: pd.Series, measure: str) -> Measured:
    """Return a measure of an evaluated model; each prompt is a group of its own where groups are not known."""
    groups, prompts = (float(row[f"{kind}_{PROMPTS_OF[measure]}"]) for kind in ("n_groups", "n"))
    independent = prompts if isnan(groups) else groups
    return Measured(float(row[measure]), float(row[f"{measure}_stderr"]), independent, SCALE_OF.get(measure))


def difference(first: Measured, second: Measured) -> Contrast:
    """Return the first measure minus the second."""
    return Contrast(((1.0, first), (-1.0, second)))


def beyond_share(tuned: Measured, aligned: Measured, base: Measured, share: float) -> Contrast:
    """Return how far a fine-tune went from aligned towards base, beyond a share of that way: 0 where it is just there.

    ``(tuned - aligned) - share (base - aligned)``; a test of it is a test of the ratio, without dividing by anything.
    """
    return Contrast(((1.0, tuned), (share - 1.0, aligned), (-share, base)))


def share_ends(tuned: Measured, aligned: Measured, base: Measured) -> tuple[float, float]:
    """Return the 95 % interval of the share of the way from aligned to base, ``(tuned - aligned) / (base - aligned)``.

    The shares for which :func:`beyond_share` is not told from 0; an end is NaN where no share is ruled out there.

    Source: Fieller, J. R. Stat. Soc. B 16 (1954).
    """

    def end(side: int) -> float:
        return _root(lambda share: beyond_share(tuned, aligned, base, share).ends()[side], -FARTHEST, FARTHEST)

    return end(0), end(1)


@cache  # a root takes some twenty intervals of the same few kinds, and SciPy longer for this than for all the rest
def _quantile(degrees: float, tail: float) -> float:
    return float(stats.t.isf(tail, degrees))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function passes through 0 between two numbers; NaN where it does not."""
    ends = function(low), function(high)
    if any(map(isnan, ends)) or ends[0] * ends[1] > 0:
        return nan
    return float(optimize.brentq(function, low, high))
