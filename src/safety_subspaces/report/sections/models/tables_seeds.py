"""The tables over seeds: means and differences with half their 95 % t interval."""

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.models import MEASURED, Seeds, differences_over_seeds, models_over_seeds, runs_over_seeds
from safety_subspaces.report.parts.columns import Cell, differences, outcomes, table_of, text
from safety_subspaces.report.parts.table import Table, sample_words, seeds_of
from safety_subspaces.report.sections.constraint.tables import INSIDE_NOTE, compared_columns, held_columns

REACH_NOTE = (
    "± half the 95 % t interval over seeds; a measure without it has one seed. Where the measures differ in their "
    "seeds, all are told in the order of the columns."
)


def models_across_table(seeds: Seeds) -> Table:
    """Every model as a mean over seeds."""
    columns = {"model": text("model"), **_measured()}
    note = f"Means {REACH_NOTE} n: {sample_words(seeds.models)}."
    return table_of(models_over_seeds(seeds), columns, note=note)


def constrained_across_table(seeds: Seeds) -> Table:
    """Every run under a constraint as a mean over seeds."""
    frame = runs_over_seeds(seeds)
    note = f"Means {REACH_NOTE} {INSIDE_NOTE} Leakage is the largest of the seeds'. n: {sample_words(seeds.runs)}."
    return table_of(frame, {**held_columns(frame), **_measured()}, 2, note)


def differences_across_table(seeds: Seeds) -> Table:
    """Each run held by the alignment subspace minus the run of the same seed beside it."""
    frame = differences_over_seeds(seeds)
    frame = frame[frame["other"] != "aligned"]
    columns: dict[str, Cell] = {
        **compared_columns(frame),
        **differences(COMPARED, "_difference_reach"),
        "seeds": lambda row: seeds_of(row, [f"{measure}_difference" for measure in COMPARED]),
    }
    note = (
        f"Mean differences, seed by seed, {REACH_NOTE} All: the mean over ranks within each seed. "
        f"n: {sample_words(seeds.runs)}."
    )
    return table_of(frame, columns, 2, note)


def _measured() -> dict[str, Cell]:
    """Return the columns of measures over seeds, and of how many seeds."""
    return {**outcomes(MEASURED, "_reach"), "seeds": lambda row: seeds_of(row, MEASURED)}
