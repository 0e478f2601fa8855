"""Kinds of subspace against each other: at equal energy and at equal utility, of one study or over seeds.

The unit of an interval is named in each row. Of several seeds it is a seed: draws are averaged within it, and the
interval is never narrower than that over prompts, which all seeds answer. Of one study it is a draw where one side is
drawn: where one more draw would fall; and groups of prompts where none is, as between top-k and the scaled update.

The error over prompts of a mean over configurations is taken as the mean of their standard errors, and that of a
difference as if the two models' answers were independent. Both are upper bounds: the standard error of a mean is at
most the mean of the standard errors, and two models that answer the same prompts err alike. At equal utility it is the
error of the margins alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import TRIVIAL_ENERGY
from safety_subspaces.findings.intervals import (
    Interval,
    normal_p_value,
    prediction_interval,
    prompts_interval,
    rank_p_value,
    t_interval,
)
from safety_subspaces.findings.models import MEASURED
from safety_subspaces.findings.sweep_arrays import Sweep, arrays_of
from safety_subspaces.findings.swept import METHODS, evaluated
from safety_subspaces.findings.thresholds import ENERGY_GAP, LEAST_DIFFERENCE, SELECTIVE_SIGN
from safety_subspaces.findings.utility_curves import MATCHED, compare, walks_of

# What a difference is of: one subspace minus another, by one method.
CONTRAST: Final = ["tuned", "subspace", "other", "method"]
# Kinds that keep equal energy at equal fractions.
PAIRS: Final = (("top", "random-energy"), ("top", "scaled"), ("random-energy", "scaled"))
# Stands in the column of methods where a difference is the mean over them, signed so that positive is selective.
BOTH: Final = "both"
# What the two of a difference have in common, and the measures that they are compared in.
COMPARED_AT: Final = {"energy": MEASURED, "utility": MATCHED}
# Harm is counted, for the judged score jumps from 1 to 5: it has no floor.
WITH_FLOOR: Final = ("utility", "refusal_margin")
SEEDS, DRAWS, PROMPTS = "seeds", "random draws", "groups of prompts"
# What else is said of a difference, and how it is put together over draws, methods and seeds.
DESCRIBED: Final[dict[str, dict[str, Callable[[np.ndarray], float]]]] = {
    "energy": {
        "draws": np.nanmax,
        "fractions": np.nanmin,
        "energy_gap": np.nanmax,
        "left_out": np.nansum,
        "compared": np.nansum,
    },
    "utility": {
        "draws": np.nanmax,
        **dict.fromkeys(("utility_low", "utility_high", "utility_range", "utility_span"), np.nanmean),
        "undefined": np.nansum,
        "fractions": np.nanmin,
    },
}
# The ranges of utility differ between methods: they have no mean that a reader could use.
OF_ONE_METHOD: Final = ("utility_low", "utility_high")


@dataclass(frozen=True)
class Differences:
    """One subspace minus another by one method: arrays of seeds by draws, NaN where missing.

    Args:
        values: The difference in each measure.
        errors: Its standard error over prompts.
        facts: What ``DESCRIBED`` names.
        is_drawn: Whether one of the two is drawn.
    """

    values: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    facts: Mapping[str, np.ndarray]
    is_drawn: bool

    def by_seed(self) -> "Differences":
        """Return the means over the draws of each seed, as if it had one."""
        values, errors = ({m: mean(a)[:, None] for m, a in of.items()} for of in (self.values, self.errors))
        return replace(self, values=values, errors=errors)


def contrasts(projections: pd.DataFrame, at: str) -> pd.DataFrame:
    """Return a row for each of ``CONTRAST``: the mean difference, with the interval that its unit gives.

    *At equal energy* a draw's difference is the mean over the fractions that every seed has, of those that have the
    measure. Fractions at which both keep all or nothing are left out, and so is a draw where its own energy differs
    from the other's by more than ``ENERGY_GAP``. *At equal utility* see :mod:`~.utility_curves`.

    The rows of the method ``both`` are the means over the methods that most seeds can compare, the refusal margin and
    the harm score signed so that positive is selective.

    Args:
        projections: As :func:`~.swept.swept`.
        at: ``energy`` or ``utility``: what the two have in common.

    Returns:
        For each measure of ``COMPARED_AT``: ``<measure>_difference`` with ``_reach``, half its interval, ``_n``, and
        over seeds ``_p``: that of the t-test over seeds, or that of the prompts where it is larger, as the interval is
        the wider of the two.
        ``unit``; ``harm_above`` and ``harm_below``, how many units differ in harm score by ``LEAST_DIFFERENCE`` or
        more; ``methods``, those that the margin's mean is over, with commas; ``draws``, the most of a seed; and of
        equal energy ``fractions`` (behind the refusal margin; behind utility where no margin was taken),
        ``energy_gap``, the largest that is left, and how many draws at one fraction were ``left_out`` for their energy
        and how many ``compared``; of equal utility ``fractions``, the points of the shorter curve, ``undefined``, how
        many pairs of curves share too little, and the utilities of :func:`~.utility_curves.compare`.
    """
    rows = []
    compared = projections["subspace"].isin(sum(PAIRS, ())) & projections["method"].isin(METHODS)
    for tuned, of_tuned in evaluated(projections[compared]).groupby("tuned", sort=False):
        for pair, each in differences_of(of_tuned, at).items():
            named = {method: _row_of(found, at, method) for method, found in each.items()}
            both, chosen = together(each, at)
            named[BOTH] = _row_of(both, at, ", ".join(chosen)) | dict.fromkeys(OF_ONE_METHOD, np.nan)
            names = [dict(zip(CONTRAST, (str(tuned), *pair, method), strict=True)) for method in named]
            rows += [name | row for name, row in zip(names, named.values(), strict=True)]
    measures = [f"{m}_difference{end}" for m in COMPARED_AT[at] for end in ("", "_reach", "_n", "_p")]
    columns = [*CONTRAST, *measures, "unit", "methods", "harm_above", "harm_below", *DESCRIBED[at]]
    return pd.DataFrame(rows, columns=columns)


def contrasts_by_fraction(projections: pd.DataFrame) -> pd.DataFrame:
    """Return top-k minus random subspaces of equal energy at each fraction, not signed.

    Returns:
        A row for each fine-tune (``tuned``), ``method`` and ``fraction`` that both kinds have: the columns of
        :func:`contrasts` at equal energy; ``energy_top`` and ``energy_random``, the mean of the draws; and ``rank_p``:
        of one study the p-value of top-k's refusal margin by its rank among the draws, not corrected; NaN over seeds.
    """
    rows = []
    for tuned, of_tuned in evaluated(projections).groupby("tuned", sort=False):
        sweeps, fractions = arrays_of(of_tuned), of_tuned["fraction"].unique()
        for method in METHODS:
            pair = [sweeps.get((kind, method)) for kind in PAIRS[0]]
            for place, fraction in enumerate(fractions if None not in pair else []):
                top, random = (sweep.at(place) for sweep in pair if sweep is not None)
                found = equal_energy(top, random)
                if found is None:
                    continue
                drawn = -found.values["refusal_margin"].ravel()
                row = {"tuned": str(tuned), "method": method, "fraction": float(fraction)}
                row |= {"energy_top": np.nanmean(top.energy), "energy_random": np.nanmean(random.energy)}
                row |= {"rank_p": rank_p_value(0.0, drawn) if len(top.energy) == 1 else np.nan}
                rows.append(row | _row_of(found, "energy", method))
    columns = [name for name in contrasts(projections.head(0), "energy") if name not in CONTRAST]
    names = ["tuned", "method", "fraction", "energy_top", "energy_random", "rank_p"]
    return pd.DataFrame(rows, columns=[*names, *columns])


def differences_of(of_tuned: pd.DataFrame, at: str) -> dict[tuple[str, str], dict[str, Differences]]:
    """Return the differences of one fine-tune by pair of kinds and by method; those with nothing to compare are not in.

    Args:
        of_tuned: Evaluated rows.
        at: ``energy`` or ``utility``.
    """
    sweeps = arrays_of(of_tuned)
    subtract = equal_energy if at == "energy" else equal_utility
    found: dict[tuple[str, str], dict[str, Differences]] = {}
    for pair, method in product(PAIRS, METHODS):
        first, second = (sweeps.get((kind, method)) for kind in pair)
        differences = None if first is None or second is None else subtract(first, second)
        if differences is not None:
            found.setdefault(pair, {})[method] = differences
    return found


def difference_of(row: pd.Series, measure: str) -> Interval:
    """Return a difference of :func:`contrasts` with its interval."""
    mean, reach = float(row[f"{measure}_difference"]), float(row[f"{measure}_difference_reach"])
    return Interval(mean, mean - reach, mean + reach, int(row[f"{measure}_difference_n"]))


def equal_energy(first: Sweep, second: Sweep) -> Differences | None:
    """Subtract two sweeps at equal fractions, where their energies are equal; ``None`` where there are none."""
    apart = {m: first.values[m] - second.values[m] for m in MEASURED}
    bears, is_equal = comparable(first, second)
    if not bears.any():
        return None
    values, errors, sizes = {}, {}, {}
    for measure, differences in apart.items():
        known = is_equal & ~np.isnan(differences)
        of_seed = known.any(axis=1)
        shared = of_seed[of_seed.any(axis=1)].all(axis=0) & of_seed.any(axis=0)
        sizes[measure] = int(shared.sum())
        values[measure] = mean(np.where(known & shared, differences, np.nan))
        of_prompts = joint_errors(first.errors[measure], second.errors[measure])
        errors[measure] = mean(np.where(known & shared, of_prompts, np.nan))
    facts = {
        "draws": draws_of(values),
        "fractions": np.full(values["utility"].shape, sizes["refusal_margin"] or sizes["utility"], dtype=float),
        "energy_gap": np.max(np.where(is_equal, np.abs(first.energy - second.energy), 0), axis=-1),
        "left_out": (bears & ~is_equal).sum(axis=-1).astype(float),
        "compared": is_equal.sum(axis=-1).astype(float),
    }
    return Differences(values, errors, facts, first.is_drawn or second.is_drawn)


def comparable(first: Sweep, second: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """Return where two sweeps have something to compare, and where they have it at equal energy.

    They have nothing where both keep all or none of the energy, or where no measure was taken of both.
    """
    low, high = np.minimum(first.energy, second.energy), np.maximum(first.energy, second.energy)
    is_measured = np.any([~np.isnan(first.values[m]) & ~np.isnan(second.values[m]) for m in MEASURED], axis=0)
    bears = is_measured & (high > TRIVIAL_ENERGY) & (low < 1 - TRIVIAL_ENERGY)
    return bears, bears & (high - low <= ENERGY_GAP)


def equal_utility(first: Sweep, second: Sweep) -> Differences | None:
    """Subtract two sweeps at equal utility; ``None`` where a seed has not both."""
    own, other = walks_of(first), walks_of(second)
    shape = (len(own), max(len(own[0]), len(other[0])))
    names = (*MATCHED, *DESCRIBED["utility"])
    found = {name: np.full(shape, np.nan) for name in names}
    for seed, draw in np.ndindex(shape):
        walks = [side[seed][min(draw, len(side[seed]) - 1)] for side in (own, other)]
        if not all(walk.points for walk in walks):
            continue
        for name, value in compare(*walks).items():
            found[name][seed, draw] = value
        found["undefined"][seed, draw] = float(np.isnan(found["refusal_margin"][seed, draw]))
    margins = [mean(sweep.errors["refusal_margin"]) for sweep in (first, second)]
    error = np.broadcast_to(joint_errors(*margins), shape)
    values = {measure: found.pop(measure) for measure in MATCHED}
    found["draws"] = draws_of(values)
    errors = {measure: error if measure == "refusal_margin" else np.full(shape, np.nan) for measure in MATCHED}
    is_drawn = first.is_drawn or second.is_drawn
    return None if np.isnan(found["fractions"]).all() else Differences(values, errors, found, is_drawn)


def together(each: Mapping[str, Differences], at: str) -> tuple[Differences, list[str]]:
    """Return the mean over the methods that most seeds can compare, signed, and which these are for the margin.

    Of several seeds draws are averaged first. A seed, or of one study a draw, that lacks one of them is NaN.
    """
    values, errors = {}, {}
    chosen: list[str] = []
    some = next(iter(each.values()))
    if len(some.facts["draws"]) > 1:
        each = {method: found.by_seed() for method, found in each.items()}
    for measure in COMPARED_AT[at]:
        seeds = {m: int((~np.isnan(found.values[measure])).any(axis=1).sum()) for m, found in each.items()}
        methods = [method for method in seeds if seeds[method] == max(seeds.values()) > 0]
        missing = np.full_like(some.values[measure], np.nan)
        signed = [sign_of(measure, method) * each[method].values[measure] for method in methods]
        values[measure] = np.mean(signed, axis=0) if signed else missing
        of_prompts = [each[method].errors[measure] for method in methods]
        errors[measure] = np.mean(of_prompts, axis=0) if signed else missing
        chosen = methods if measure == "refusal_margin" else chosen
    facts = {name: np.concatenate([found.facts[name] for found in each.values()], axis=1) for name in some.facts}
    return Differences(values, errors, facts, some.is_drawn), chosen


def sign_of(measure: str, method: str) -> int:
    """Return the sign that makes a difference positive where it is selective; 1 for a measure that has no such side."""
    return {"refusal_margin": 1, "harm_score": -1}.get(measure, 0) * SELECTIVE_SIGN[method] or 1


def joint_errors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the standard errors of differences of two models; one that is missing counts as none, both as NaN."""
    squares = np.square(np.stack(np.broadcast_arrays(first, second)))
    missing = np.isnan(squares).all(axis=0)
    return np.asarray(np.sqrt(np.where(missing, np.nan, np.nansum(squares, axis=0))))


def _row_of(found: Differences, at: str, methods: str) -> dict[str, Any]:
    """Return the row of a contrast without its names: means, intervals, and what is said beside them."""
    seeds = len(next(iter(found.values.values())))
    unit = SEEDS if seeds > 1 else DRAWS if found.is_drawn else PROMPTS
    row: dict[str, Any] = {"unit": unit, "methods": methods}
    for measure, values in found.values.items():
        errors = found.errors[measure] if measure in WITH_FLOOR else np.full_like(values, np.nan)
        over, name = _interval(values, errors, unit), f"{measure}_difference"
        p = _p_value(mean(values), mean(errors)) if unit == SEEDS else np.nan
        row |= {name: over.mean, f"{name}_reach": over.reach, f"{name}_n": over.n, f"{name}_p": p}
    harm = mean(found.values["harm_score"]) if seeds > 1 else found.values["harm_score"].ravel()
    least = LEAST_DIFFERENCE["harm_score"]
    row |= {"harm_above": int((harm >= least).sum()), "harm_below": int((harm <= -least).sum())}
    for name, rule in DESCRIBED[at].items():
        values = found.facts[name]
        row[name] = np.nan if np.isnan(values).all() else float(rule(values))
    return row


def _interval(values: np.ndarray, errors: np.ndarray, unit: str) -> Interval:
    if unit == SEEDS:
        return t_interval(pd.Series(mean(values)), pd.Series(mean(errors)))
    if unit == DRAWS:
        return prediction_interval(values.ravel())
    over = prompts_interval(float(values.ravel()[0]), float(errors.ravel()[0]))
    return Interval(over.mean, over.low, over.high, 0 if np.isnan(over.mean) else 1)


def _p_value(by_seed: np.ndarray, errors: np.ndarray) -> float:
    """Return the larger p-value of that over seeds and that over prompts; NaN with one seed, or without either."""
    over_seeds = t_interval(pd.Series(by_seed))
    if over_seeds.n < 2:
        return np.nan
    known = errors[~np.isnan(by_seed) & ~np.isnan(errors)]
    over_prompts = normal_p_value(over_seeds.mean, float(np.sqrt(np.mean(known**2)))) if len(known) else np.nan
    return float(pd.Series([over_seeds.p_value, over_prompts]).max())


def draws_of(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return how many draws of each seed are compared in margin, or in the measure that most have; ``[seed, draw]``."""
    counts = {m: (~np.isnan(array)).sum(axis=1, keepdims=True) for m, array in values.items()}
    most = np.max(list(counts.values()), axis=0)
    count = np.where(counts["refusal_margin"].any(), counts["refusal_margin"], most)
    return np.broadcast_to(count, values["refusal_margin"].shape).astype(float)


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the known values over the last axis; NaN where there are none."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-1)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
