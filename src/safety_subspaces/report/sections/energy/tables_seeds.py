"""The tables of sweeps over seeds: every projection, top-k beside its controls, and what kept energy orders."""

import pandas as pd

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.models import MEASURED
from safety_subspaces.findings.sweeps import (
    MATCHED,
    energy_correlations,
    equal_energy_over_seeds,
    matched_utility_over_seeds,
    sweep_over_seeds,
)
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, once, sample_words, seeds_of, with_error
from safety_subspaces.report.sections.constraint.tables import signed

REACH_NOTE = (
    "± half the 95 % t interval over seeds, draws averaged within each; none with one seed. Where the measures differ "
    "in their seeds, all are told in the order of the columns."
)


def sweep_table(projections: pd.DataFrame) -> Table:
    """Every projected configuration as a mean over seeds."""
    frame = sweep_over_seeds(projections)
    rows = [
        (
            *(str(row[name]) for name in ("tuned", "subspace", "method")),
            f"{row['fraction']:g}",
            number(row["energy_kept"], 3),
            number(row["chance_energy"], 3),
            *(with_error(row, measure, "_reach") for measure in MEASURED),
            count(row["draws"]),
            seeds_of(row, MEASURED),
        )
        for _, row in frame.iterrows()
    ]
    columns = (
        *(
            "tuned",
            "subspace",
            "method",
            "fraction",
            "energy",
            "chance",
            "utility",
            "harm 1-5",
            "over-refusal",
            "margin",
        ),
        *("draws", "seeds"),
    )
    note = (
        f"Means over seeds {REACH_NOTE} Energy: the share of the update's squared norm that is kept. Chance: what a "
        f"random subspace is expected to keep. n: {sample_words(frame)}."
    )
    return Table(columns, tuple(rows), text_columns=3, note=note)


def selectivity_across_table(projections: pd.DataFrame) -> Table:
    """Kinds of subspace minus each other at equal utility and at equal energy, each method alone and both."""
    matched, equal = matched_utility_over_seeds(projections), equal_energy_over_seeds(projections)
    frame = pd.concat([matched.assign(at="utility"), equal.assign(at="energy")], ignore_index=True)
    rows = []
    for (tuned, subspace, other), cell in frame.groupby(["tuned", "subspace", "other"], sort=False):
        for _, row in cell.iterrows():
            of_utility = row["at"] == "utility"
            measures = MATCHED if of_utility else COMPARED
            shared = "" if pd.isna(row["utility_low"]) else f"{row['utility_low']:.2f}-{row['utility_high']:.2f}"
            rows.append(
                (
                    *(str(tuned), f"{subspace} - {other}", str(row["at"]), str(row["method"])),
                    "" if of_utility else _difference(row, "utility"),
                    *(_difference(row, measure) for measure in MATCHED),
                    (shared or NOTHING) if of_utility else "",
                    *(count(row[name]) for name in ("fractions", "draws")),
                    seeds_of(row, [f"{measure}_difference" for measure in measures]),
                )
            )
    columns = (
        *(
            "tuned",
            "pair",
            "equal",
            "method",
            "utility",
            "harm 1-5",
            "margin",
            "shared",
            "fractions",
            "draws",
            "seeds",
        ),
    )
    note = (
        f"Mean differences, seed by seed, {REACH_NOTE} Equal utility: the mean over the shared utilities, each curve's "
        "utility made non-decreasing in energy; equal energy: the mean over fractions that every seed has. Both: the "
        "mean over methods, margin and harm signed: positive is selective (margin spared by away, spent by onto). "
        f"n: {sample_words(projections)}."
    )
    return Table(columns, tuple(rows), text_columns=4, note=note)


def correlations_table(projections: pd.DataFrame) -> Table:
    """Spearman's rho of kept energy with each measure, over all subspaces, methods and fractions."""
    rows = []
    for tuned, cell in energy_correlations(projections).groupby("tuned", sort=False):
        by_measure = cell.set_index("measure").loc[list(COMPARED)]
        seeds = [count(n) for n in by_measure["seeds"]]
        rows.append(
            (
                str(tuned),
                *(_correlation(row) for _, row in by_measure.iterrows()),
                number(by_measure["draw_spread"].max(), 2),
                count(by_measure["points"].min()),
                count(by_measure["draws"].max()),
                once(seeds),
            )
        )
    columns = ("tuned", "utility", "harm 1-5", "margin", "spread", "points", "draws", "seeds")
    note = (
        "Mean over seeds [95 % t interval over seeds, on Fisher's z scale], draws averaged within each seed; no "
        "interval with one seed, - where the measure does not move. Spread: the largest mean standard deviation over "
        "draws. Points: behind each rho, the fewest. Where the measures differ in their seeds, all are told in the "
        f"order of the columns. n: {sample_words(projections)}."
    )
    return Table(columns, tuple(rows), note=note)


def _difference(row: pd.Series, measure: str) -> str:
    return signed(float(row[f"{measure}_difference"]), float(row[f"{measure}_difference_reach"]))


def _correlation(row: pd.Series) -> str:
    if pd.isna(row["rho"]):
        return NOTHING
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:z.2f}, {row['high']:z.2f}]"
    return f"{row['rho']:z.2f}{interval}"
