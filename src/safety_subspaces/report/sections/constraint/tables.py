"""The tables of training under a constraint, of one study and over several seeds."""

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.constrained import compare_runs, constrained_runs
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, with_error

SUBSPACE_NAMES = {
    "": NOTHING,
    "top": "alignment",
    "random": "random (rank)",
    "random-energy": "random (energy)",
}
OTHER_NAMES = {
    "aligned": "aligned",
    "none": "no constraint",
    "random": "random (rank)",
    "random-energy": "random (energy)",
}
INSIDE_NOTE = (
    "Inside: share of the run's update in the alignment subspace of that rank. Leakage: share of it that ended where "
    "the constraint forbids it. Random subspaces have equal rank, or in each tensor the rank that would have kept "
    "equal energy of the unconstrained run's update."
)


def constrained_table(study: Study) -> Table:
    """Every run under a constraint, and the same training without one."""
    runs = constrained_runs(study)
    rows = [
        (
            named(row, several=runs["fine_tune"].nunique() > 1),
            SUBSPACE_NAMES.get(str(row["subspace"]), str(row["subspace"])),
            str(row["rank"]),
            number(row["energy_inside"], 2),
            leakage(row["leakage"]),
            with_error(row, "utility"),
            with_error(row, "harm_score"),
            with_error(row, "over_refusal_rate"),
            with_error(row, "refusal_margin"),
            "/".join(count(row[column]) for column in ("n_utility", "n_harmful", "n_benign")),
        )
        for _, row in runs.iterrows()
    ]
    columns = (
        *("constraint", "subspace", "fraction", "inside", "leakage", "utility", "harm 1-5", "over-refusal", "margin"),
        "n",
    )
    note = f"± one standard error over prompts. {INSIDE_NOTE} n: utility/harmful/benign prompts."
    return Table(columns, tuple(rows), text_columns=2, note=note)


def comparison_table(study: Study) -> Table:
    """Each run held by the alignment subspace, minus the runs beside it."""
    compared = compare_runs(study)
    compared = compared[compared["other"] != "aligned"]
    rows = [
        (
            named(row, several=compared["fine_tune"].nunique() > 1),
            OTHER_NAMES[str(row["other"])],
            str(row["rank"]),
            *(signed(row[f"{m}_difference"], row[f"{m}_error"]) for m in COMPARED),
        )
        for _, row in compared.iterrows()
    ]
    columns = ("held by alignment", "minus", "fraction", "utility", "harm 1-5", "margin")
    note = (
        "± one standard error over prompts, which takes the answers of two models for independent; one run each, so no "
        "error bar covers another training run or another random subspace."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)


def named(row: pd.Series, several: bool) -> str:
    """Return what a run was held to, with the fine-tune where there are several."""
    parts = [str(row["fine_tune"])] if several and row["fine_tune"] else []
    return ", ".join([*parts, str(row["constraint"]), *([str(row["details"])] if row["details"] else [])])


def leakage(share: float | None) -> str:
    """Return a share near zero in powers of ten."""
    return NOTHING if share is None or pd.isna(share) else f"{share:.0e}"


def signed(difference: float, reach: float) -> str:
    """Return a difference with its sign, and how far its error reaches."""
    return NOTHING if pd.isna(difference) else f"{difference:+z.2f}" + ("" if pd.isna(reach) else f"±{reach:.2f}")
