"""The tables of training under a constraint, of one study and over several seeds."""

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.constrained import compare_runs, constrained_runs
from safety_subspaces.findings.models import MEASURED, Seeds, differences_over_seeds, runs_over_seeds
from safety_subspaces.report.parts.columns import (
    Cell,
    counts,
    differences,
    means_over_seeds,
    numbers,
    outcomes,
    table_of,
    text,
)
from safety_subspaces.report.parts.table import NOTHING, Table, sample_words, seeds_of

# Names of the subspaces that constrain a run, and of the runs that it is compared with.
NAMES = {
    "": NOTHING,
    "top": "alignment",
    "none": "no constraint",
    "random": "random (rank)",
    "random-energy": "random (energy)",
}
INSIDE_NOTE = (
    "Inside: share of the run's update in the alignment subspace of that rank. Leakage: share of it that ended where "
    "the constraint forbids it. Random subspaces have equal rank, or in each tensor the rank that would have kept "
    "equal energy of the unconstrained run's update."
)
REACH_NOTE = (
    "± half the 95 % t interval over seeds; a measure without it has one seed. Where the measures differ in their "
    "seeds, all are told in the order of the columns."
)


def constrained_table(study: Study) -> Table:
    """Every run under a constraint, and the same training without one."""
    runs = constrained_runs(study)
    columns = {**_constraint_columns(runs), **outcomes(MEASURED), "n": counts("n_utility", "n_harmful", "n_benign")}
    note = f"± one standard error over prompts. {INSIDE_NOTE} n: utility/harmful/benign prompts."
    return table_of(runs, columns, 2, note)


def comparison_table(study: Study) -> Table:
    """Each run held by the alignment subspace, minus the runs beside it."""
    compared = compare_runs(study)
    compared = compared[compared["other"] != "aligned"]
    note = (
        "± one standard error over prompts, which takes the answers of two models for independent; one run each, so no "
        "error bar covers another training run or another random subspace."
    )
    return table_of(compared, {**_compared_columns(compared), **differences(COMPARED, "_error")}, 2, note)


def constrained_across_table(seeds: Seeds) -> Table:
    """Every run under a constraint as a mean over seeds."""
    frame = runs_over_seeds(seeds)
    note = f"Means {REACH_NOTE} {INSIDE_NOTE} Leakage is the largest of the seeds'. n: {sample_words(seeds.runs)}."
    return table_of(frame, {**_constraint_columns(frame), **means_over_seeds(MEASURED)}, 2, note)


def differences_across_table(seeds: Seeds) -> Table:
    """Each run held by the alignment subspace minus the run of the same seed beside it."""
    frame = differences_over_seeds(seeds)
    frame = frame[frame["other"] != "aligned"]
    columns: dict[str, Cell] = {
        **_compared_columns(frame),
        **differences(COMPARED, "_difference_reach"),
        "seeds": lambda row: seeds_of(row, [f"{measure}_difference" for measure in COMPARED]),
    }
    note = (
        f"Mean differences, seed by seed, {REACH_NOTE} All: the mean over ranks within each seed. "
        f"n: {sample_words(seeds.runs)}."
    )
    return table_of(frame, columns, 2, note)


def _constraint_columns(runs: pd.DataFrame) -> dict[str, Cell]:
    """Return the columns of each run's constraint, and of where its update lies."""
    return {
        "constraint": _constraint_in(runs),
        "subspace": lambda row: NAMES.get(str(row["subspace"]), str(row["subspace"])),
        "fraction": text("rank"),
        "inside": numbers("energy_inside", 2),
        # Near zero: in powers of ten.
        "leakage": lambda row: NOTHING if pd.isna(row["leakage"]) else f"{row['leakage']:.0e}",
    }


def _compared_columns(compared: pd.DataFrame) -> dict[str, Cell]:
    """Return the columns of what is compared."""
    return {
        "held by alignment": _constraint_in(compared),
        "minus": lambda row: NAMES[str(row["other"])],
        "fraction": text("rank"),
    }


def _constraint_in(runs: pd.DataFrame) -> Cell:
    """Return the cell of a run's constraint, with the fine-tune where there are several."""
    several = runs["fine_tune"].nunique() > 1

    def cell(row: pd.Series) -> str:
        fine_tune = str(row["fine_tune"]) if several else ""
        return ", ".join(part for part in (fine_tune, str(row["constraint"]), str(row["details"])) if part)

    return cell
