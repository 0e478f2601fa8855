"""The runs under a constraint beside the run without one: the constraint of each, its evaluation, and the differences.

Tables in, tables out; missing stays NaN.
"""

from typing import Any

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.run_constraint import Constraint
from safety_subspaces.artefacts.study import EVALUATION_COLUMNS, Stage, Study
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.intervals import joint_error

# What makes two constrained runs of different seeds the same configuration. ``fine_tune`` is the run without a
# constraint that shares everything else.
CONFIGURATION = ["fine_tune", "constraint", "subspace", "rank", "details"]
COLUMNS = [*CONFIGURATION, "stage", "fraction", "leakage", "energy_inside", *EVALUATION_COLUMNS]
# What a run held away from or inside the alignment subspace is compared with: the model that it starts from, the same
# training without a constraint, and the random controls.
OTHERS = ("aligned", "none", "random", "random-energy")
DIFFERENCES = [f"{measure}_{kind}" for measure in COMPARED for kind in ("difference", "error")]


def constrained_runs(study: Study) -> pd.DataFrame:
    """Return one row for each evaluated run under a constraint, and before them the same training without one.

    Beside the evaluation: ``leakage``, the share of the update that ended where the constraint forbids it, and
    ``energy_inside``, the share of the update inside the alignment subspace of the run's rank (of a run without a
    constraint one row for each rank that a constrained run has).

    Columns: ``COLUMNS``.
    """
    constrained = _one_evaluation_each(study.constrained)
    by_name = {stage.name: stage for stage in study.stages}
    unconstrained = _one_evaluation_each(study.models[study.models["stage"] != ""])
    rows: list[dict[str, Any]] = []
    twins: dict[tuple[str, str], float] = {}  # the unconstrained run at each rank that it stands beside
    for _, row in constrained.iterrows():
        stage = by_name[str(row["stage"])]
        constraint = stage.constraint
        assert constraint is not None
        twin = _twin(stage, [by_name[str(name)] for name in unconstrained["stage"]])
        rows.append(_row(study, row, stage, constraint, twin.name if twin else ""))
        if twin is not None:
            twins[twin.name, constraint.rank] = constraint.fraction
    for (name, rank), fraction in twins.items():
        evaluated = unconstrained[unconstrained["stage"] == name].iloc[0]
        rows.append(_row(study, evaluated, by_name[name], Constraint("none", "", rank, fraction, ""), name))
    order = {"none": 0, "away": 1, "onto": 2, "": 0, "top": 1, "random": 2, "random-energy": 3}
    frame = pd.DataFrame(rows, columns=COLUMNS)
    by = ["fine_tune", "constraint", "subspace", "details", "fraction", "rank"]
    return frame.sort_values(
        by, key=lambda column: column.map(order) if column.name in by[1:3] else column
    ).reset_index(drop=True)


def compare_runs(study: Study) -> pd.DataFrame:
    """Compare each run held by the alignment subspace with what stands beside it.

    Returns:
        One row for each run and each of ``OTHERS`` that was evaluated: for each measure the *difference* (the run
        minus the other) and its standard *error* over prompts, which takes the two models' answers for independent.
        Columns: ``CONFIGURATION``, ``fraction``, ``other`` and ``DIFFERENCES``.
    """
    runs = constrained_runs(study)
    aligned = study.aligned
    rows = []
    for _, run in runs[runs["subspace"] == "top"].iterrows():
        same_rank = runs[(runs["fine_tune"] == run["fine_tune"]) & (runs["rank"] == run["rank"])]
        alike = same_rank[(same_rank["constraint"] == run["constraint"]) & (same_rank["details"] == run["details"])]
        others = {
            "none": same_rank[same_rank["constraint"] == "none"],
            "random": alike[alike["subspace"] == "random"],
            "random-energy": alike[alike["subspace"] == "random-energy"],
        }
        beside = {name: frame.iloc[0] for name, frame in others.items() if len(frame)}
        beside |= {} if aligned is None else {"aligned": aligned}
        for name in OTHERS:
            if name in beside:
                row = {**run[[*CONFIGURATION, "fraction"]].to_dict(), "other": name}
                for measure in COMPARED:
                    row[f"{measure}_difference"] = float(run[measure]) - float(beside[name][measure])
                    row[f"{measure}_error"] = joint_error(run, beside[name], measure)
                rows.append(row)
    return pd.DataFrame(rows, columns=[*CONFIGURATION, "fraction", "other", *DIFFERENCES])


def _one_evaluation_each(models: pd.DataFrame) -> pd.DataFrame:
    """Keep one evaluation of each stage: the one with most harmful prompts."""
    ordered = models.sort_values("n_harmful", ascending=False, kind="stable", na_position="last")
    return ordered.drop_duplicates("stage").sort_index()


def _twin(stage: Stage, candidates: list[Stage]) -> Stage | None:
    """Return the run that differs from a constrained one in its constraint alone."""
    unconstrained = [other for other in candidates if other.constraint is None]
    return next((other for other in unconstrained if other.recipe == stage.recipe is not None), None)


def _row(study: Study, evaluated: pd.Series, stage: Stage, constraint: Constraint, fine_tune: str) -> dict[str, Any]:
    return {
        **evaluated[list(EVALUATION_COLUMNS)],
        **vars(constraint),
        "constraint": constraint.mode,
        "fine_tune": fine_tune,
        "stage": stage.name,
        "leakage": np.nan if constraint.mode == "none" else stage.metric("projection/leakage"),
        "energy_inside": _energy_inside(study, stage.name, constraint.fraction),
    }


def _energy_inside(study: Study, stage: str, fraction: float) -> float:
    rows = study.energies
    same = np.isclose(rows["fraction"].astype(float), fraction)
    inside = rows[(rows["stage"] == stage) & (rows["subspace"] == "top") & (rows["method"] == "onto") & same]
    return float(inside["energy_kept"].iloc[0]) if len(inside) else np.nan
