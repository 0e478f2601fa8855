"""Sweeps of projected fine-tunes over seeds: what each keeps, what energy orders, and what differs at equal energy.

Tables in, tables out; missing stays NaN. A seed is the unit: draws are averaged within it before anything is said over
seeds. ``projections`` is the table of :class:`Study` for one organism, with a column ``seed`` and one sweep for each
seed and fine-tune.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import optimize, stats

from safety_subspaces.findings.comparisons import COMPARED, SAMPLE_SIZES, without_trivial
from safety_subspaces.findings.intervals import fisher_interval, over_seeds
from safety_subspaces.findings.models import MEASURED
from safety_subspaces.findings.thresholds import LEAST_MODELS, LEAST_RANGE, SELECTIVE_SIGN

CONFIGURATION: Final = ["tuned", "subspace", "method", "fraction"]
# What a difference is of: one subspace minus another of equal energy, by one method.
CONTRAST: Final = ["tuned", "subspace", "other", "method"]
METHODS: Final = ("onto", "away")
# Kinds that keep equal energy at equal fractions.
PAIRS: Final = (("top", "random-energy"), ("top", "scaled"), ("random-energy", "scaled"))
# Stands in the column of methods where a seed's difference is the mean over them, signed so that positive is selective.
BOTH: Final = "both"
MATCHED: Final = ("harm_score", "refusal_margin")
# Where two curves share utility: from, to, how far, and how far the shorter of them moves by itself.
UTILITIES: Final = ("utility_low", "utility_high", "utility_range", "utility_span")
# Utilities at which two curves are compared: four times as many as a curve of the study has points.
GRID_POINTS: Final = 41

Curve = tuple[np.ndarray, np.ndarray]


def sweep_over_seeds(projections: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each fine-tune, subspace, method and fraction, its draws averaged within each seed.

    Columns: ``CONFIGURATION``; ``energy_kept``, ``chance_energy`` and each of ``MEASURED`` as means over seeds, with
    ``_reach`` (half the width of the two-sided 95 % t interval, NaN below two seeds) and ``_seeds``. ``draws`` is the
    most of a seed, and the numbers of prompts and of their groups the largest of any model.
    """
    measures = ["energy_kept", "chance_energy", *MEASURED]
    numbers = projections.astype(dict.fromkeys([*measures, *SAMPLE_SIZES], float))
    by_seed = numbers.groupby([*CONFIGURATION, "seed"], sort=False)
    frame = by_seed[measures].mean().join(by_seed[list(SAMPLE_SIZES)].max())
    frame = frame.assign(draws=by_seed["draw"].nunique()).reset_index()
    return over_seeds(frame, CONFIGURATION, measures, dict.fromkeys(("draws", *SAMPLE_SIZES), "max"))


def energy_correlations(projections: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho of kept energy with each of ``COMPARED``, over all subspaces, methods and fractions.

    A seed's rho is the mean over draws of the rho of one draw: the points of draw d of every random kind, and those of
    the kinds that have no draws. It is NaN, as in ``read_energy``, with fewer than
    ``LEAST_MODELS`` points or where the measure moves less than ``LEAST_RANGE``.

    Returns:
        A row for each fine-tune (``tuned``) and ``measure``: ``rho`` and its 95 % t interval ``low`` to ``high`` over
        ``seeds``, both on Fisher's z scale and back, so that they stay within -1 and 1; ``draw_spread``, the mean over
        seeds of the standard deviation over draws; ``draws``, the most of a seed; ``points`` and ``models``, the fewest
        behind one rho and behind one seed.
    """
    rows: list[dict[str, Any]] = []
    for tuned, of_tuned in _onto_or_away(projections).groupby("tuned", sort=False):
        seeds = [_draws_of(of_seed) for _, of_seed in of_tuned.groupby("seed", sort=False)]
        for measure in COMPARED:
            correlations = [[energy_order(draw, measure, _steady_move) for draw in draws] for draws in seeds]
            rhos = pd.DataFrame([[rho for rho, _ in draws] for draws in correlations])
            over = fisher_interval(rhos.mean(axis=1))
            scored = of_tuned[of_tuned[measure].notna()].groupby("seed").size()
            rows.append(
                {
                    "tuned": tuned,
                    "measure": measure,
                    "rho": over.mean,
                    "low": over.low,
                    "high": over.high,
                    "draw_spread": rhos.std(axis=1, ddof=1).mean(),
                    "seeds": over.n,
                    "draws": max(map(len, seeds)),
                    "points": min(n for draws in correlations for _, n in draws),
                    "models": int(scored.min()) if len(scored) else 0,
                }
            )
    columns = ["tuned", "measure", "rho", "low", "high", "draw_spread", "seeds", "draws", "points", "models"]
    return pd.DataFrame(rows, columns=columns)


def equal_energy_differences(projections: pd.DataFrame) -> pd.DataFrame:
    """Subtract kinds that keep equal energy at equal fractions, seed by seed.

    Each measure's difference is averaged over draws at each fraction, then over the fractions that every seed has
    which has the measure at all. Fractions at which both keep all or nothing are left out.

    Returns:
        A row for each of ``CONTRAST`` and seed: ``<measure>_difference`` for each of ``MEASURED``, ``draws``, the
        number of ``fractions`` behind the refusal margin (behind utility where no margin was taken), and
        ``energy_gap``, the largest difference in the energy that the two keep.
    """
    rows: list[dict[str, Any]] = []
    for (tuned, method), cell in _onto_or_away(projections).groupby(["tuned", "method"], sort=False):
        for pair in PAIRS:
            paired = _paired(cell, pair)
            if paired.empty:
                continue
            by_fraction = paired.groupby(["seed", "fraction"])[list(MEASURED)].mean().unstack("fraction")
            means = {m: _mean_over_fractions(pd.DataFrame(by_fraction[m])) for m in MEASURED}
            sizes = paired.groupby(["seed", "fraction"]).size().groupby("seed").max()
            gaps = (paired["energy_top"] - paired["energy_random"]).abs().groupby(paired["seed"]).max()
            fractions = means["refusal_margin"][1] or means["utility"][1]
            for seed in dict.fromkeys(paired["seed"]):
                differences = {f"{m}_difference": float(of.get(seed, np.nan)) for m, (of, _) in means.items()}
                names = {"seed": seed, "tuned": tuned, "subspace": pair[0], "other": pair[1], "method": method}
                described = {"draws": int(sizes[seed]), "fractions": fractions, "energy_gap": float(gaps[seed])}
                rows.append(names | differences | described)
    columns = ["seed", *CONTRAST, *_differences(MEASURED), "draws", "fractions", "energy_gap"]
    return pd.DataFrame(rows, columns=columns)


def matched_utility_differences(projections: pd.DataFrame) -> pd.DataFrame:
    """Subtract the refusal margin, and the harm score, of two kinds at equal utility, seed by seed.

    The estimand: walk along the sweep of one kind (one seed, method and draw) from little energy to all of it. Utility
    grows, and the margin is a function of the utility that it has bought. The difference of two such functions is
    averaged evenly over the utilities that both reach, then over draws. A kind that keeps more margin because it learns
    less moves along its curve and makes no difference here; at equal energy it would.

    Utility is made non-decreasing in energy (isotonic least squares) first: a dip within the noise of the evaluation
    would give one utility several margins. Points of equal utility are averaged; between points the curve is linear.

    Returns:
        A row for each of ``CONTRAST`` and seed: ``<measure>_difference`` for each of ``MATCHED``; the common range from
        ``utility_low`` to ``utility_high`` and ``utility_range``, its length; ``utility_span``, how far the
        shorter curve moves by itself; ``draws`` and of these ``undefined``, without a margin at equal utility, for the
        common range is under ``LEAST_RANGE`` or the margin missing; ``fractions``, the points of the shorter curve.
    """
    walks: dict[tuple[Any, ...], list[_Walk]] = {}
    keys = ["tuned", "method", "seed", "subspace"]
    for (*cell, subspace, _), rows in _onto_or_away(projections).groupby([*keys, "draw"], sort=False):
        energy, utility, *measured = rows[["energy_kept", "utility", *MATCHED]].to_numpy(dtype=float).T
        named = zip(("utility", *MATCHED), (utility, *measured), strict=True)
        curves = {measure: utility_curve(energy, utility, values) for measure, values in named}
        walks.setdefault(tuple(cell), []).append(_Walk(str(subspace), curves, len(rows)))
    out: list[dict[str, Any]] = []
    for (tuned, method, seed), of_seed in walks.items():
        for pair in PAIRS:
            first, second = ([walk for walk in of_seed if walk.subspace == subspace] for subspace in pair)
            gaps = pd.DataFrame([_compare(*sides) for sides in product(first, second)])
            if gaps.empty:
                continue
            names = dict(zip(CONTRAST, (tuned, *pair, method), strict=True)) | {"seed": seed}
            means = {str(name): float(mean) for name, mean in gaps.mean().items()}
            counts = {"draws": len(gaps), "undefined": int(gaps["refusal_margin_difference"].isna().sum())}
            out.append(names | means | counts | {"fractions": int(gaps["fractions"].min())})
    columns = ["seed", *CONTRAST, *_differences(MATCHED), *UTILITIES, "draws", "undefined", "fractions"]
    return pd.DataFrame(out, columns=columns)


def equal_energy_over_seeds(projections: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each of ``CONTRAST``: the mean over seeds of the differences at equal energy.

    Each difference has its ``_reach`` and ``_seeds``. The rows of the method ``both`` are the means over methods
    within each seed, the refusal margin and the harm score signed so that positive is selective.
    """
    described = {"draws": "max", "fractions": "min", "energy_gap": "max"}
    every = _with_both(equal_energy_differences(projections), MEASURED, described)
    return over_seeds(every, CONTRAST, _differences(MEASURED), described)


def matched_utility_over_seeds(projections: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each of ``CONTRAST``: the mean over seeds of the differences at equal utility.

    As :func:`equal_energy_over_seeds`; what is said of utility are means over seeds, ``undefined`` is the sum.
    """
    described = {**dict.fromkeys(UTILITIES, "mean"), "draws": "max", "undefined": "sum", "fractions": "min"}
    every = _with_both(matched_utility_differences(projections), MATCHED, described)
    return over_seeds(every, CONTRAST, _differences(MATCHED), described)


def best_covered(seeds: pd.Series) -> list[str]:
    """Return the methods that are compared in the most seeds; none where no seed compares any."""
    return [str(method) for method in seeds.index if seeds[method] == seeds.max() > 0]


def utility_curve(energy: np.ndarray, utility: np.ndarray, values: np.ndarray) -> Curve:
    """Return distinct utilities, made non-decreasing in energy, and the mean value at each; NaN is left out."""
    known = ~np.isnan([energy, utility, values]).any(axis=0)
    if not known.any():
        return np.empty(0), np.empty(0)
    order = np.argsort(energy[known], kind="stable")
    smooth = optimize.isotonic_regression(utility[known][order], increasing=True).x
    distinct, index = np.unique(smooth, return_inverse=True)
    return distinct, np.bincount(index, weights=values[known][order]) / np.bincount(index)


@dataclass(frozen=True)
class _Walk:
    """The sweep of one kind in one seed, method and draw, each measure as a function of utility."""

    subspace: str
    curves: dict[str, Curve]
    points: int

    @property
    def span(self) -> float:
        utility = self.curves["utility"][0]
        return float(np.ptp(utility)) if len(utility) else np.nan


def _onto_or_away(projections: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows whose ``method`` is one of ``METHODS``."""
    return projections[projections["method"].isin(METHODS)]


def _draws_of(of_seed: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the points of each draw, with those of the kinds that have none in every one."""
    is_drawn = of_seed["subspace"].astype(str).str.startswith("random")
    draws = sorted(of_seed[is_drawn]["draw"].unique())
    return [of_seed[~is_drawn | (of_seed["draw"] == draw)] for draw in draws] or [of_seed]


def energy_order(rows: pd.DataFrame, measure: str, moves: Callable[[pd.Series], float] = np.ptp) -> tuple[float, int]:
    """Return Spearman's rho of kept energy with a measure and its n.

    NaN with fewer than ``LEAST_MODELS`` points, or where the measure ``moves`` less than ``LEAST_RANGE``.
    """
    pair = rows[["energy_kept", measure]].dropna().astype(float).sort_values("energy_kept")
    n = len(pair)
    if n < LEAST_MODELS or np.ptp(pair["energy_kept"]) == 0 or moves(pair[measure]) < LEAST_RANGE[measure]:
        return np.nan, n
    return float(stats.spearmanr(pair["energy_kept"], pair[measure]).statistic), n


def _steady_move(values: pd.Series) -> float:
    """Return how far an isotonic fit moves, rising or falling: noise about a level has a range as well."""
    fits = [optimize.isotonic_regression(values, increasing=rising).x for rising in (True, False)]
    return max(float(np.ptp(fit)) for fit in fits)


def _paired(cell: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Return the differences of two kinds at each seed, fraction and draw that has something to compare."""
    names = ["seed", "fraction", "energy_kept", *MEASURED]
    first, second = (cell[cell["subspace"] == subspace][names] for subspace in pair)
    joined = first.merge(second, on=["seed", "fraction"], suffixes=("", "_other"))
    differences = {m: joined[m].astype(float) - joined[f"{m}_other"].astype(float) for m in MEASURED}
    energies = {"energy_top": joined["energy_kept"], "energy_random": joined["energy_kept_other"]}
    paired = without_trivial(joined[["seed", "fraction"]].assign(**energies, **differences))
    return paired.dropna(subset=list(MEASURED), how="all")


def _mean_over_fractions(by_fraction: pd.DataFrame) -> tuple[pd.Series, int]:
    """Average a measure over the fractions that every seed has, of those that have it; and say how many those are."""
    shared = by_fraction.dropna(how="all").dropna(axis="columns")
    return shared.mean(axis=1), shared.shape[1] if len(shared) else 0


def _compare(first: _Walk, second: _Walk) -> dict[str, float]:
    """Compare two sweeps: each measure's difference at equal utility, and the utilities that they share."""
    low, high = _common(first, second, "utility")
    shared = float(np.maximum(high - low, 0))
    span = min(walk.span for walk in (first, second))
    row = {"fractions": float(min(first.points, second.points)), "utility_range": shared, "utility_span": span}
    row |= {"utility_low": low, "utility_high": high} if shared > 0 else dict.fromkeys(UTILITIES[:2], np.nan)
    for measure in MATCHED:
        start, end = _common(first, second, measure)
        row[f"{measure}_difference"] = np.nan
        if end - start >= LEAST_RANGE["utility"]:
            grid = np.linspace(start, end, GRID_POINTS)
            top, other = (np.interp(grid, *walk.curves[measure]) for walk in (first, second))
            row[f"{measure}_difference"] = float((top - other).mean())
    return row


def _common(first: _Walk, second: _Walk, measure: str) -> tuple[float, float]:
    """Return the least and the largest utility that both have with a measure; NaN where one has none."""
    reached = [walk.curves[measure][0] for walk in (first, second)]
    if not all(map(len, reached)):
        return np.nan, np.nan
    return float(max(ends[0] for ends in reached)), float(min(ends[-1] for ends in reached))


def _with_both(differences: pd.DataFrame, measures: Iterable[str], described: dict[str, str]) -> pd.DataFrame:
    """Add each seed's mean over the methods that most seeds have, signed; a seed that lacks one is NaN there."""
    signs = {"refusal_margin": SELECTIVE_SIGN, "harm_score": {m: -sign for m, sign in SELECTIVE_SIGN.items()}}
    frames = [differences.head(0)]
    for names, cell in differences.groupby(CONTRAST[:3], sort=False):
        means = {}
        for measure in measures:
            name = f"{measure}_difference"
            sign = cell["method"].map(signs[measure]) if measure in signs else 1
            wide = cell.assign(signed=cell[name] * sign).pivot(index="seed", columns="method", values="signed")
            means[name] = wide[best_covered(wide.count())].mean(axis=1, skipna=False)
        # The ranges of utility differ between methods: they have no mean that a reader could use.
        rules = {name: rule for name, rule in described.items() if name not in UTILITIES[:2]}
        both = cell.groupby("seed", sort=False).agg(rules).assign(**means).reset_index()
        identity = {name: str(value) for name, value in zip(CONTRAST, (*names, BOTH), strict=True)}
        frames += [cell, both.assign(**identity)]
    return pd.concat(frames, ignore_index=True)


def _differences(measures: Iterable[str]) -> list[str]:
    return [f"{measure}_difference" for measure in measures]
