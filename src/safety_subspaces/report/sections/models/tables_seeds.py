"""The tables over seeds: means and differences with half their 95 % t interval."""

import pandas as pd

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.models import (
    MEASURED,
    Seeds,
    differences_over_seeds,
    models_over_seeds,
    runs_over_seeds,
)
from safety_subspaces.report.parts.table import Table, number, sample_words, seeds_of, with_error
from safety_subspaces.report.sections.constraint.tables import (
    INSIDE_NOTE,
    OTHER_NAMES,
    SUBSPACE_NAMES,
    leakage,
    named,
    signed,
)

REACH_NOTE = (
    "± half the 95 % t interval over seeds; a measure without it has one seed. Where the measures differ in their "
    "seeds, all are told in the order of the columns."
)


def models_across_table(seeds: Seeds) -> Table:
    """Every model as a mean over seeds."""
    frame = models_over_seeds(seeds)
    rows = [
        (
            str(row["model"]),
            *(with_error(row, measure, "_reach") for measure in MEASURED),
            seeds_of(row, MEASURED),
        )
        for _, row in frame.iterrows()
    ]
    columns = ("model", "utility", "harm 1-5", "over-refusal", "margin", "seeds")
    return Table(columns, tuple(rows), note=f"Means {REACH_NOTE} n: {sample_words(seeds.models)}.")


def constrained_across_table(seeds: Seeds) -> Table:
    """Every run under a constraint as a mean over seeds."""
    frame = runs_over_seeds(seeds)
    rows = [
        (
            named(row, several=frame["fine_tune"].nunique() > 1),
            SUBSPACE_NAMES.get(str(row["subspace"]), str(row["subspace"])),
            str(row["rank"]),
            number(row["energy_inside"], 2),
            leakage(row["leakage"]),
            *(with_error(row, measure, "_reach") for measure in MEASURED),
            seeds_of(row, MEASURED),
        )
        for _, row in frame.iterrows()
    ]
    columns = (
        *("constraint", "subspace", "fraction", "inside", "leakage", "utility", "harm 1-5", "over-refusal", "margin"),
        "seeds",
    )
    note = f"Means {REACH_NOTE} {INSIDE_NOTE} Leakage is the largest of the seeds'. n: {sample_words(seeds.runs)}."
    return Table(columns, tuple(rows), text_columns=2, note=note)


def differences_across_table(seeds: Seeds) -> Table:
    """Each run held by the alignment subspace minus the run of the same seed beside it."""
    frame = differences_over_seeds(seeds)
    frame = frame[frame["other"] != "aligned"]
    rows = [
        (
            named(row, several=frame["fine_tune"].nunique() > 1),
            OTHER_NAMES[str(row["other"])],
            str(row["rank"]),
            *(_signed(row, measure) for measure in COMPARED),
            seeds_of(row, [f"{measure}_difference" for measure in COMPARED]),
        )
        for _, row in frame.iterrows()
    ]
    columns = ("held by alignment", "minus", "fraction", "utility", "harm 1-5", "margin", "seeds")
    note = (
        f"Mean differences, seed by seed, {REACH_NOTE} All: the mean over ranks within each seed. "
        f"n: {sample_words(seeds.runs)}."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)


def _signed(row: pd.Series, measure: str) -> str:
    return signed(float(row[f"{measure}_difference"]), float(row[f"{measure}_difference_reach"]))
