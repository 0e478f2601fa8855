"""Sweeps of projected fine-tunes, of one study or of several seeds: what was swept, each point, and what energy orders.

Tables in, tables out; missing stays NaN. Draws are averaged within a seed before anything is said over seeds. A draw
whose energy alone was measured has no point.
"""

from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import optimize, stats

from safety_subspaces.findings.comparisons import COMPARED, SAMPLE_SIZES
from safety_subspaces.findings.intervals import fisher_interval, over_seeds
from safety_subspaces.findings.models import MEASURED, Seeds
from safety_subspaces.findings.thresholds import LEAST_MODELS, LEAST_RANGE

CONFIGURATION: Final = ["tuned", "subspace", "method", "fraction"]
METHODS: Final = ("onto", "away")
# What a point of a sweep has.
POINT_MEASURES: Final = ("utility", "harmful_rate", "harm_score", "over_refusal_rate", "refusal_margin")
# A model that was evaluated has one of these, even where none of its answers could be scored.
ASKED: Final = (*MEASURED, "n_utility", "n_harmful", "n_benign")
NUMBERS: Final = (
    "draw", "energy_kept", "chance_energy", *POINT_MEASURES, *(f"{name}_stderr" for name in POINT_MEASURES),
    *SAMPLE_SIZES, "n_unscored",
)  # fmt: skip
# Two evaluations of one projected model on the same prompts differ by the rounding of a batch: 1e-6 of a unit.
SAME: Final = 1e-6


def swept(studies: Seeds) -> pd.DataFrame:
    """Return the projections of one study, or of several seeds, in one form.

    Several: the finest sweep of each fine-tune and seed. One: every sweep, but for those of which a larger one has each
    row with the same numbers; a fine-tune of which several are left is called ``tuned (analysis)`` in each.

    Columns: those of ``Study.projections`` with ``seed``; those of ``NUMBERS`` as floats.
    """
    if len(studies.studies) > 1:
        frame = studies.projections
    else:
        frame = _named_apart(_without_repeats(studies.studies[0].projections)).assign(seed=studies.seeds[0])
    return frame.astype(dict.fromkeys(NUMBERS, float))


def evaluated(projections: pd.DataFrame) -> pd.DataFrame:
    """Keep the projected models that were evaluated; of the others the energy alone is known."""
    return projections[projections[list(ASKED)].notna().any(axis=1)]


def onto_or_away(projections: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows whose ``method`` is one of ``METHODS``: the energy that opposite keeps points the other way."""
    return projections[projections["method"].isin(METHODS)]


def is_drawn(projections: pd.DataFrame) -> pd.Series:
    """Tell which rows are of a kind of subspace that is drawn."""
    return projections["subspace"].astype(str).str.startswith("random")


def sweep_ends(projections: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Return the two models that each fine-tune's projections lie between, as means over seeds.

    Args:
        projections: As :func:`swept`.
        models: ``Seeds.models``.

    Returns:
        A row for each end: ``tuned``, ``model`` (its label), ``is_whole`` (the fine-tune itself, not the model that it
        started from) and each of ``COMPARED``; NaN where it was not evaluated.
    """
    means = models[["model", *COMPARED]].astype(dict.fromkeys(COMPARED, float)).groupby("model").mean()
    labels = projections[["tuned", "aligned_model", "tuned_model"]].drop_duplicates("tuned")
    rows = [
        {"tuned": str(tuned), "model": label, "is_whole": is_whole, **means.reindex([label]).iloc[0]}
        for tuned, aligned, whole in labels.itertuples(index=False)
        for label, is_whole in ((str(aligned), False), (str(whole), True))
    ]
    return pd.DataFrame(rows, columns=["tuned", "model", "is_whole", *COMPARED])


def sweep_points(projections: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each fine-tune, subspace, method and fraction.

    Columns: ``CONFIGURATION``; ``energy_kept``, ``chance_energy`` and each of ``POINT_MEASURES``, with ``_error`` and
    ``_n``: of one study means over draws with their standard error, never below that over prompts, and the number
    of scored draws; of several seeds means over seeds, draws averaged within each, with half the 95 %
    interval, never narrower than that over prompts, and the number of seeds. ``draws`` is the most evaluated of a
    seed, ``energies`` the most whose energy is known, ``n_unscored`` the sum, and the numbers of prompts and of their
    groups the largest of any model. The energy is that of the evaluated draws where there are any.
    """
    of_draws = [*CONFIGURATION, "seed"]
    energies = projections.groupby(of_draws, sort=False)["draw"].nunique()
    is_asked = projections[list(ASKED)].notna().any(axis=1)
    has_asked = is_asked.groupby([projections[key] for key in of_draws]).transform("any")
    by_seed = projections.assign(is_asked=is_asked)[is_asked | ~has_asked].groupby(of_draws, sort=False)
    measures = ["energy_kept", "chance_energy", *POINT_MEASURES]
    frame = by_seed[[*measures, *(f"{name}_stderr" for name in POINT_MEASURES)]].mean()
    frame = frame.join(by_seed[list(SAMPLE_SIZES)].max()).join(by_seed["n_unscored"].sum(min_count=1))
    frame = frame.assign(draws=by_seed["draw"].nunique() * by_seed["is_asked"].any(), energies=energies)
    described = {**dict.fromkeys(("draws", "energies", *SAMPLE_SIZES), "max"), "n_unscored": "sum"}
    if projections["seed"].nunique() > 1:
        errors = {name: f"{name}_stderr" for name in POINT_MEASURES}
        over = over_seeds(frame.reset_index(), CONFIGURATION, measures, described, errors)
        return over.rename(columns=lambda name: name.replace("_reach", "_error").replace("_seeds", "_n"))
    for name in measures:
        n = by_seed[name].count()
        spread = by_seed[name].sem().where(n > 1)
        of_prompts = frame[f"{name}_stderr"] if name in POINT_MEASURES else spread
        frame[f"{name}_error"], frame[f"{name}_n"] = np.fmax(spread, of_prompts), n
    columns = [*measures, *(f"{name}_{kind}" for name in measures for kind in ("error", "n")), *described]
    return frame.reset_index()[[*CONFIGURATION, *columns]]


def energy_correlations(projections: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho of kept energy with each of ``COMPARED``, over all subspaces, methods and fractions.

    A seed's rho is the mean over draws of the rho of one draw: the points of draw d of every random kind, and those of
    the kinds that have no draws. It is NaN with fewer than ``LEAST_MODELS`` points, or where the measure moves less
    than ``LEAST_RANGE``.

    Returns:
        A row for each fine-tune (``tuned``) and ``measure``: ``rho`` and its 95 % t interval ``low`` to ``high`` over
        ``seeds``, both on Fisher's z scale and back, so that they stay within -1 and 1 (NaN with one seed);
        ``draw_spread``, the mean over seeds of the standard deviation over draws; ``draws``, the most of a seed;
        ``points`` and ``models``, the fewest behind one rho and behind one seed.
    """
    rows: list[dict[str, Any]] = []
    for tuned, of_tuned in onto_or_away(evaluated(projections)).groupby("tuned", sort=False):
        seeds = [_draws_of(of_seed) for _, of_seed in of_tuned.groupby("seed", sort=False)]
        for measure in COMPARED:
            correlations = [[_energy_order(draw, measure) for draw in draws] for draws in seeds]
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


def _without_repeats(projections: pd.DataFrame) -> pd.DataFrame:
    """Leave out the sweeps of a fine-tune that a larger one repeats and adds to."""
    kept: list[pd.DataFrame] = [projections.head(0)]
    for _, of_tuned in projections.groupby("tuned", sort=False):
        larger: list[pd.DataFrame] = []
        for _, rows in sorted(of_tuned.groupby("analysis", sort=False), key=lambda each: -len(each[1])):
            if not any(_stands_in(rows, other) for other in larger):
                larger.append(rows)
        kept += larger
    return pd.concat(kept).sort_index()


def _stands_in(rows: pd.DataFrame, larger: pd.DataFrame) -> bool:
    """Tell whether a sweep has every row of another, with the same numbers where the other has any."""
    keys, numbers = [*CONFIGURATION, "draw"], ["energy_kept", *MEASURED]
    both = rows.merge(larger, on=keys, suffixes=("", "_larger"))
    own, its = (both[[f"{name}{end}" for name in numbers]].to_numpy(float) for end in ("", "_larger"))
    return len(both) == len(rows) and bool((np.isnan(own) | np.isclose(own, its, rtol=0, atol=SAME)).all())


def _named_apart(projections: pd.DataFrame) -> pd.DataFrame:
    """Name the fine-tunes that several analyses projected by their analysis as well."""
    analyses = projections.groupby("tuned")["analysis"].nunique()
    pairs = zip(projections["tuned"].astype(str), projections["analysis"].astype(str), strict=True)
    return projections.assign(tuned=[f"{tuned} ({name})" if analyses[tuned] > 1 else tuned for tuned, name in pairs])


def _energy_order(points: pd.DataFrame, measure: str) -> tuple[float, int]:
    """Return Spearman's rho of kept energy with a measure and its n; NaN as :func:`energy_correlations` says."""
    energy, values = points[["energy_kept", measure]].dropna().to_numpy(float).T
    n = len(energy)
    if n < LEAST_MODELS or np.ptp(energy) == 0 or _steady_move(values[np.argsort(energy)]) < LEAST_RANGE[measure]:
        return np.nan, n
    return float(np.corrcoef(stats.rankdata(energy), stats.rankdata(values))[0, 1]), n


def _draws_of(of_seed: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the points of each draw, with those of the kinds that have none in every one."""
    of_seed = of_seed[["subspace", "draw", "energy_kept", *COMPARED]]
    drawn = is_drawn(of_seed)
    draws = sorted(of_seed[drawn]["draw"].unique())
    return [of_seed[~drawn | (of_seed["draw"] == draw)] for draw in draws] or [of_seed]


def _steady_move(values: np.ndarray) -> float:
    """Return how far an isotonic fit moves, rising or falling: noise about a level has a range as well."""
    fits = [optimize.isotonic_regression(values, increasing=rising).x for rising in (True, False)]
    return max(float(np.ptp(fit)) for fit in fits)
