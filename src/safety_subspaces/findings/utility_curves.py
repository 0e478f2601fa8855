"""Two sweeps at equal utility: each measure as a function of the utility that a sweep has bought.

The estimand: walk along the sweep of one kind (one seed, method and draw) from little energy to all of it. Utility
grows, and the margin is a function of the utility that it has bought. The difference of two such functions is averaged
evenly over the utilities that both reach. A kind that keeps more margin because it learns less moves along its curve
and makes no difference here; at equal energy it would.

Utility is made non-decreasing in energy (isotonic least squares) first: a dip within the noise of the evaluation would
give one utility several margins. Points of equal utility are averaged; between points the curve is linear.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import optimize

from safety_subspaces.findings.sweep_arrays import Sweep
from safety_subspaces.findings.thresholds import LEAST_RANGE

MATCHED: Final = ("harm_score", "refusal_margin")
# Utilities at which two curves are compared: four times as many as a curve of the study has points.
GRID_POINTS: Final = 41

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Walk:
    """The sweep of one kind in one seed, method and draw, each measure as a function of utility.

    Args:
        curves: Distinct utilities and the mean value at each, by measure; of ``utility`` the utilities themselves.
        points: How many projected models it has.
    """

    curves: Mapping[str, Curve]
    points: int

    @property
    def span(self) -> float:
        """How far its utility moves."""
        utility = self.curves["utility"][0]
        return float(np.ptp(utility)) if len(utility) else np.nan


def walks_of(sweep: Sweep) -> list[list[Walk]]:
    """Return the walk of each seed and draw."""
    seeds, draws, _ = sweep.energy.shape
    return [[_walk(sweep, seed, draw) for draw in range(draws)] for seed in range(seeds)]


def utility_curve(energy: np.ndarray, utility: np.ndarray, values: np.ndarray) -> Curve:
    """Return distinct utilities, made non-decreasing in energy, and the mean value at each; NaN is left out."""
    known = ~np.isnan([energy, utility, values]).any(axis=0)
    if not known.any():
        return np.empty(0), np.empty(0)
    order = np.argsort(energy[known], kind="stable")
    smooth = optimize.isotonic_regression(utility[known][order], increasing=True).x
    distinct, index = np.unique(smooth, return_inverse=True)
    return distinct, np.bincount(index, weights=values[known][order]) / np.bincount(index)


def compare(first: Walk, second: Walk) -> dict[str, float]:
    """Compare two walks at equal utility.

    Returns:
        ``utility_low`` and ``utility_high``, between which both have utilities, and ``utility_range``, how far that is
        (0 where they share none); ``utility_span``, how far the shorter walk moves by itself; the difference of each of
        ``MATCHED`` under its name, NaN where they share less utility than ``LEAST_RANGE``; ``fractions``, the points
        of the shorter.
    """
    low, high = _common(first, second, "utility")
    shared = float(np.maximum(high - low, 0))
    row = {"utility_range": shared, "utility_span": min(first.span, second.span)}
    row |= {"utility_low": low, "utility_high": high} if shared > 0 else {}
    for measure in MATCHED:
        row[measure] = difference(first, second, measure)
    return row | {"fractions": float(min(first.points, second.points))}


def difference(first: Walk, second: Walk, measure: str) -> float:
    """Return the mean difference in a measure over the utilities that both reach with it; NaN where these are few."""
    start, end = _common(first, second, measure)
    if not end - start >= LEAST_RANGE["utility"]:
        return np.nan
    grid = np.linspace(start, end, GRID_POINTS)
    own, other = (np.interp(grid, *walk.curves[measure]) for walk in (first, second))
    return float((own - other).mean())


def _walk(sweep: Sweep, seed: int, draw: int) -> Walk:
    energy, utility = sweep.energy[seed, draw], sweep.values["utility"][seed, draw]
    curves = {m: utility_curve(energy, utility, sweep.values[m][seed, draw]) for m in ("utility", *MATCHED)}
    return Walk(curves, int((~np.isnan(energy)).sum()))


def _common(first: Walk, second: Walk, measure: str) -> tuple[float, float]:
    """Return the least and the largest utility that both have with a measure; NaN where one has none."""
    reached = [walk.curves[measure][0] for walk in (first, second)]
    if not all(map(len, reached)):
        return np.nan, np.nan
    return float(max(ends[0] for ends in reached)), float(min(ends[-1] for ends in reached))
