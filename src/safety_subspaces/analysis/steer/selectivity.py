"""How much harm a direction moves for what it costs in utility, beside random directions of the same length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import hypot, isnan, nan, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from safety_subspaces.algebra.statistics import (
    Groupings,
    clustered_jackknife_error,
    fewest_groups,
    permutation_p_value,
    randomisation_p_value,
    unanimous_error,
)
from safety_subspaces.evaluation.rates import SCORE

# What a verdict may be wrong in, and what an interval may miss: the field's habit.
LEVEL = 0.05
MEASURES = ("harm_score", "refusal_margin")
Cost = Literal["utility", "perplexity"]
Verdict = Literal["higher", "lower", "not shown", "too few draws", "unknown"]


@dataclass(frozen=True)
class Dose:
    """What one dose did, prompt by prompt.

    Args:
        size: Strength or angle, 0 without an intervention.
        harm: Score of each harmful prompt, NaN where it could not be read.
        margin: Refusal margin of each harmful prompt, NaN where it has none.
        utility: Score of each utility prompt.
        nats: Nats a token of each utility prompt's worked solution.
    """

    size: float
    harm: NDArray[np.float64]
    margin: NDArray[np.float64]
    utility: NDArray[np.float64]
    nats: NDArray[np.float64]

    def of(self, name: str) -> NDArray[np.float64]:
        """Return a measure of harm, or a cost, prompt by prompt."""
        return {
            "harm_score": self.harm,
            "refusal_margin": self.margin,
            "utility": self.utility,
            "perplexity": self.nats,
        }[name]


@dataclass(frozen=True)
class Selectivity:
    """Change in a measure of harm at a matched cost, a direction's less that of random ones.

    Args:
        measure: ``harm_score`` or ``refusal_margin``.
        matched_on: ``utility`` (share of problems solved, lost) or ``perplexity`` (nats a token of their solutions,
            added).
        selectivity: The difference, in the measure's units; NaN with a reason where it is undefined.
        low: End of its 95 % interval, for a further direction among the random ones and for other prompts; NaN of the
            harm score, which jumps: a few directions move it by all of its scale and the others not at all, and no
            interval by a deviation holds there.
        high: The other.
        p: Two-sided p-value of the same, the larger of the two sources of error; of the harm score that over prompts.
        p_rank: That of its rank among the random directions, with these prompts.
        verdict: ``higher`` or ``lower`` where both p-values are at most 0.05, ``not shown`` elsewhere; ``too few
            draws`` below 19, where no rank can be as rare; ``unknown`` without a value.
        change: Change that the direction makes.
        change_random: Mean change that random directions make.
        sd_random: Standard deviation of the changes that random directions make.
        stderr_prompts: Standard error of the difference over prompts, by a jackknife over their groups.
        dose: At what dose the direction costs as much.
        dose_random: The same of random ones, their mean.
        cost: The cost at which they are compared.
        n_draws: Random directions.
        reason: Why it is undefined, or what is compared otherwise.
    """

    measure: str
    matched_on: Cost
    selectivity: float = nan
    low: float = nan
    high: float = nan
    p: float = nan
    p_rank: float = nan
    verdict: Verdict = "unknown"
    change: float = nan
    change_random: float = nan
    sd_random: float = nan
    stderr_prompts: float = nan
    dose: float = nan
    dose_random: float = nan
    cost: float = nan
    n_draws: int = 0
    reason: str | None = None


def selectivity(
    doses: Sequence[Dose],
    random: Sequence[Sequence[Dose]],
    groupings_harmful: Groupings,
    groupings_utility: Groupings,
    matched_on: Cost,
    cost: float,
) -> list[Selectivity]:
    """Compare a direction with random ones at the dose at which each costs the same.

    Doses are interpolated linearly; a direction that never costs as much is taken at its largest dose, and the reason
    says so. All directions go through the same rule, so that one of the random ones in the place of the direction is
    nothing special. The interval is the wider of two: that of the difference between one more random direction and the
    mean of these, ``t_(D-1) s sqrt(1 + 1 / D)`` to each side over D of them, and that over groups of prompts,
    ``t_(G-1) stderr``. Their squares are not added: what prompts add to each random direction is in ``s``.

    Args:
        doses: Of the direction, from 0 outwards in one sense.
        random: The same of each random direction.
        groupings_harmful: What harmful prompts that stand and fall together share, in one way or two.
        groupings_utility: The same of utility prompts.
        matched_on: What is paid: solved problems, or perplexity of their solutions.
        cost: How much: a share of the problems, or nats a token.

    Source: both tests to be passed, Berger, Technometrics 24 (1982).
    """
    curves = [doses, *random]
    known: dict[str, Any] = {"matched_on": matched_on, "cost": cost, "n_draws": len(random)}
    results = []
    for measure in MEASURES:
        compared = _Compared(curves, measure, matched_on, cost)
        if all(np.isnan(dose.of(measure)).all() for dose in doses):
            results.append(Selectivity(measure, **known, reason="no harmful prompt has this measure"))
            continue
        changes, at = compared.changes()
        change, change_random = float(changes[0]), float(changes[1:].mean())
        groups = min(fewest_groups(groupings_harmful), fewest_groups(groupings_utility))
        error = compared.error_over_prompts(groupings_harmful, groupings_utility)
        spread = float(changes[1:].std(ddof=1)) if len(random) > 1 else nan
        over_prompts = _Reach(error, groups - 1)
        sources = [over_prompts, _Reach(spread * sqrt(1 + 1 / len(random)), len(random) - 1)]
        found, half = change - change_random, float(np.max([source.half_width for source in sources]))
        if measure == "harm_score":
            sources, half = [over_prompts], nan
        p = float(np.max([source.p_value(found) for source in sources]))
        p_rank = randomisation_p_value(change, changes[1:])
        results.append(
            Selectivity(
                measure,
                **known,
                selectivity=found,
                low=found - half,
                high=found + half,
                p=p,
                p_rank=p_rank,
                verdict=_verdict(found, max(p, p_rank), len(random)),
                change=change,
                change_random=change_random,
                sd_random=spread,
                stderr_prompts=error,
                dose=float(at[0]),
                dose_random=float(at[1:].mean()),
                reason=compared.not_reached(),
            )
        )
    return results


@dataclass(frozen=True)
class _Reach:
    """A standard error with its degrees of freedom; there is none with fewer than one."""

    stderr: float
    degrees: int

    @property
    def half_width(self) -> float:
        """Half the width of the two-sided 95 % interval."""
        return float(stats.t.isf(LEVEL / 2, self.degrees)) * self.stderr if self.degrees > 0 else nan

    def p_value(self, found: float) -> float:
        """Return the two-sided p-value of a difference."""
        if not self.degrees > 0 or isnan(self.stderr):
            return nan
        if self.stderr == 0:
            return 1.0 if found == 0 else 0.0
        return float(2 * stats.t.sf(abs(found) / self.stderr, self.degrees))


class _Compared:
    """The curves of a direction and of random ones, and what each changes where it costs the same."""

    def __init__(self, curves: Sequence[Sequence[Dose]], measure: str, matched_on: Cost, cost: float) -> None:
        self._sizes = np.array([[dose.size for dose in curve] for curve in curves])
        # (direction, dose, prompt)
        self._measured = np.array([[dose.of(measure) for dose in curve] for curve in curves])
        sign = -1.0 if matched_on == "utility" else 1.0
        self._paid = sign * np.array([[dose.of(matched_on) for dose in curve] for curve in curves])
        self._matched_on, self._cost = matched_on, cost
        self._length = SCORE[1] - SCORE[0] if measure == "harm_score" else 0.0

    def changes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the change and the dose of each direction."""
        changed, at = self._at_cost(*(np.ones((values.shape[2], 1)) for values in (self._measured, self._paid)))
        return changed[:, 0], at[:, 0]

    def error_over_prompts(self, harmful: Groupings, utility: Groupings) -> float:
        """Return the standard error of the difference over harmful and utility prompts.

        The harm score has two ends, at which it may not vary: the error is at least that of one that never did.
        """
        counts = self._measured.shape[2], self._paid.shape[2]

        def without_each(side: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
            groups = numbers.max() + 1
            weights = [np.ones((count, groups)) for count in counts]
            weights[side] -= np.eye(groups)[numbers]
            changed, _ = self._at_cost(*weights)
            difference: NDArray[np.float64] = changed[0] - changed[1:].mean(axis=0)
            return difference

        errors = [
            clustered_jackknife_error(partial(without_each, side), groupings, counts[side])
            for side, groupings in enumerate((harmful, utility))
        ]
        return max(hypot(*errors), self._length * unanimous_error(fewest_groups(harmful)))

    def not_reached(self) -> str | None:
        """Say how many directions never cost as much."""
        means = _means(self._paid, np.ones((self._paid.shape[2], 1)))[:, :, 0]
        fewer: NDArray[np.bool_] = np.asarray((means - means[:, :1] < self._cost).all(axis=1))
        if not fewer.any():
            return None
        whose = "the direction" if fewer.sum() == fewer[0] else f"{fewer.sum()} of {len(fewer)} directions"
        return f"{self._matched_on}: a cost of {self._cost:g} is not reached by {whose}; compared at the largest dose"

    def _at_cost(
        self, harmful: NDArray[np.float64], utility: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Change ``(direction, column)`` where the cost is first reached, else at the largest dose; and that dose.

        Args:
            harmful: Weights of the harmful prompts ``(prompt, column)``.
            utility: Weights of the utility prompts, in as many columns.
        """
        values, prices = _means(self._measured, harmful), _means(self._paid, utility)
        paid = prices - prices[:, :1]
        over = paid >= self._cost
        reached = over.any(axis=1)
        row = np.where(reached, over.argmax(axis=1), over.shape[1] - 1)
        before = np.maximum(row - 1, 0)

        def at(curve: NDArray[np.float64], place: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.take_along_axis(curve, place[:, None], axis=1)[:, 0]

        step = at(paid, row) - at(paid, before)
        part = np.where(reached, (self._cost - at(paid, before)) / np.where(reached, step, 1.0), 1.0)
        found = []
        for curve in (values - values[:, :1], np.repeat(self._sizes[:, :, None], row.shape[1], axis=2)):
            found.append(at(curve, before) + part * (at(curve, row) - at(curve, before)))
        return found[0], found[1]


def _means(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means ``(direction, dose, column)`` of what is not missing."""
    scored = ~np.isnan(values)
    total = scored @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = np.where(scored, values, 0.0) @ weights / np.where(total > 0, total, nan)
    return means


def _verdict(found: float, p: float, draws: int) -> Verdict:
    if isnan(p):
        return "unknown"
    if permutation_p_value(0, draws) > LEVEL:
        return "too few draws"
    if p > LEVEL:
        return "not shown"
    return "higher" if found > 0 else "lower"


def scores_of(generations: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Return the scores of a prompt set, NaN where an answer could not be read."""
    return np.array(
        [np.nan if g["score"] is None else g["score"] for g in generations if g["set"] == name], dtype=float
    )
