"""How much harm a direction moves for what it costs in utility, beside random directions of the same length."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safety_subspaces.algebra.statistics import number_groups

# Resamples of the bootstrap: an end of a 95 % interval then has a standard error of under a tenth of its width.
RESAMPLES = 1000
Cost = Literal["utility", "perplexity"]


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


@dataclass(frozen=True)
class Selectivity:
    """Change in a measure of harm at a matched cost, a direction's less that of random ones.

    Args:
        measure: ``harm_score`` or ``refusal_margin``.
        matched_on: ``utility`` (share of problems solved, lost) or ``perplexity`` (nats a token of their solutions,
            added).
        selectivity: The difference, in the measure's units; NaN with a reason where it is undefined.
        low: End of its 95 % interval.
        high: The other.
        change: Change that the direction makes.
        change_random: Mean change that random directions make.
        dose: At what dose the direction costs as much.
        dose_random: The same of random ones, their mean.
        cost: The cost at which they are compared.
        n_draws: Random directions.
        reason: Why it is undefined, or what is compared otherwise.
    """

    measure: str
    matched_on: Cost
    selectivity: float
    low: float
    high: float
    change: float
    change_random: float
    dose: float
    dose_random: float
    cost: float
    n_draws: int
    reason: str | None


def selectivity(
    doses: Sequence[Dose],
    random: Sequence[Sequence[Dose]],
    groups_harmful: Sequence[Hashable],
    groups_utility: Sequence[Hashable],
    matched_on: Cost,
    cost: float,
    generator: np.random.Generator,
) -> list[Selectivity]:
    """Compare a direction with random ones at the dose at which each costs the same.

    Doses are interpolated linearly. Where the direction, or the random ones in their mean, never cost as much, all are
    compared at the largest dose, and the reason says so. The interval is a bootstrap over groups of prompts, the same
    resampled prompts for all directions and doses, and over the random directions.

    Args:
        doses: Of the direction, from 0 outwards in one sense.
        random: The same of each random direction.
        groups_harmful: What harmful prompts that stand and fall together share.
        groups_utility: The same of utility prompts.
        matched_on: What is paid: solved problems, or perplexity of their solutions.
        cost: How much: a share of the problems, or nats a token.
        generator: Source of the resamples.
    """
    everything = [doses, *random]
    harmful, useful = (_resampled(groups, generator) for groups in (groups_harmful, groups_utility))
    sign = -1.0 if matched_on == "utility" else 1.0
    paid = []
    for curve in everything:
        prices = _means([dose.utility if matched_on == "utility" else dose.nats for dose in curve], useful)
        paid.append(sign * (prices - prices[0]))
    sizes = [np.array([dose.size for dose in curve]) for curve in everything]
    reached = min(float(paid[0][:, 0].max()), float(np.mean([cell[:, 0].max() for cell in paid[1:]])))
    reason = (
        None if reached >= cost else f"{matched_on}: a cost of {cost:g} is not reached; compared at the largest dose"
    )
    drawn = generator.integers(len(random), size=(len(random), RESAMPLES))
    results = []
    for measure in ("harm_score", "refusal_margin"):
        values = [[dose.harm if measure == "harm_score" else dose.margin for dose in curve] for curve in everything]
        if all(np.isnan(part).all() for part in values[0]):
            missing = "no harmful prompt has this measure"
            results.append(
                Selectivity(measure, matched_on, nan, nan, nan, nan, nan, nan, nan, cost, len(random), missing)
            )
            continue
        at = [
            _at_cost(size, cell, _means(curve, harmful), cost if reason is None else None)
            for size, cell, curve in zip(sizes, paid, values, strict=True)
        ]
        changes, dose = np.array([pair[0] for pair in at]), [float(pair[1][0]) for pair in at]
        # The first column is the sample itself; the others resample prompts, and directions too.
        difference = changes[0, 1:] - np.take_along_axis(changes[1:, 1:], drawn, axis=0).mean(axis=0)
        low, high = (float(end) for end in np.nanpercentile(difference, [2.5, 97.5]))
        change, change_random = float(changes[0, 0]), float(changes[1:, 0].mean())
        results.append(
            Selectivity(
                measure,
                matched_on,
                selectivity=change - change_random,
                low=low,
                high=high,
                change=change,
                change_random=change_random,
                dose=dose[0],
                dose_random=float(np.mean(dose[1:])),
                cost=cost,
                n_draws=len(random),
                reason=reason,
            )
        )
    return results


def _resampled(groups: Sequence[Hashable], generator: np.random.Generator) -> NDArray[np.float64]:
    """Weights of prompts ``(prompt, 1 + resamples)``: first all 1, then the counts of a bootstrap of their groups."""
    of_prompt, different = number_groups(groups).numpy(), len(set(groups))
    counts = generator.multinomial(different, np.full(different, 1 / different), size=RESAMPLES).T
    return np.concatenate([np.ones((len(groups), 1)), counts[of_prompt]], axis=1)


def _means(values: Sequence[NDArray[np.float64]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means ``(dose, 1 + resamples)`` of what is not missing."""
    rows = []
    for value in values:
        scored = ~np.isnan(value)
        total = weights[scored].sum(axis=0)
        with np.errstate(invalid="ignore"):
            rows.append(value[scored] @ weights[scored] / np.where(total > 0, total, np.nan))
    return np.array(rows)


def _at_cost(
    sizes: NDArray[np.float64], paid: NDArray[np.float64], curve: NDArray[np.float64], cost: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Change of a measure where the cost is first reached, else at the largest dose; and the dose."""
    changed, dose = curve[-1] - curve[0], np.full(curve.shape[1], sizes[-1])
    if cost is None:
        return changed, dose
    over = paid >= cost
    first = np.where(over.any(axis=0), over.argmax(axis=0), 0)
    for column in np.flatnonzero(first):
        row = first[column]
        before, after = paid[row - 1, column], paid[row, column]
        part = (cost - before) / (after - before)
        dose[column] = sizes[row - 1] + part * (sizes[row] - sizes[row - 1])
        value = curve[row - 1, column] + part * (curve[row, column] - curve[row - 1, column])
        changed[column] = value - curve[0, column]
    return changed, dose


def scores_of(generations: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Return the scores of a prompt set, NaN where an answer could not be read."""
    return np.array(
        [np.nan if g["score"] is None else g["score"] for g in generations if g["set"] == name], dtype=float
    )
