"""The runs under a constraint beside the run without one: the constraint of each, its evaluation, and the differences.

Tables in, tables out; missing stays NaN. Runs of one configuration that differ in the seed of their random subspace are
draws of one control; one that repeats a seed is no second draw.
"""

from typing import Any

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.run_constraint import Constraint, subspace_seed
from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.artefacts.study_files import EVALUATION_COLUMNS
from safety_subspaces.findings.comparisons import COMPARED

# What makes two constrained runs of different seeds the same configuration. ``fine_tune`` is the label of the run
# without a constraint that shares everything else.
CONFIGURATION = ["fine_tune", "constraint", "subspace", "rank", "details"]
COLUMNS = [*CONFIGURATION, "stage", "recipe", "draw", "fraction", "leakage", "energy_inside", *EVALUATION_COLUMNS]
# What a run held away from or inside the alignment subspace is compared with: the model that it starts from, the same
# training without a constraint, and the random controls.
OTHERS = ("aligned", "none", "random", "random-energy")
GROUPS = ("groups_harmful", "groups_utility")
DIFFERENCES = [f"{measure}_{kind}" for measure in COMPARED for kind in ("difference", "error")]


def constrained_runs(study: Study) -> pd.DataFrame:
    """Return one row for each evaluated run under a constraint, and before them the same training without one.

    Beside the evaluation: ``leakage``, the share of the update that ended where the constraint forbids it, and
    ``energy_inside``, the share of the update inside the alignment subspace of the run's rank (of a run without a
    constraint one row for each rank that a constrained run has). ``recipe`` is the hash that runs share which differ in
    what they are held to alone, ``draw`` the seed of a random subspace.

    Columns: ``COLUMNS``.
    """
    constrained = _one_evaluation_each(study.constrained)
    by_name = {stage.name: stage for stage in study.stages}
    unconstrained = _one_evaluation_each(study.models[study.models["stage"] != ""])
    rows: list[dict[str, Any]] = []
    label_of = dict(zip(unconstrained["stage"], unconstrained["model"].astype(str), strict=True))
    twins: dict[tuple[str, str], float] = {}  # the unconstrained run at each rank that it stands beside
    for _, row in constrained.iterrows():
        stage = by_name[str(row["stage"])]
        constraint = stage.constraint
        assert constraint is not None
        twin = _twin(stage, [by_name[str(name)] for name in unconstrained["stage"]])
        rows.append(_row(study, row, stage, constraint, label_of[twin.name] if twin else ""))
        if twin is not None:
            twins[twin.name, constraint.rank] = constraint.fraction
    for (name, rank), fraction in twins.items():
        evaluated = unconstrained[unconstrained["stage"] == name].iloc[0]
        rows.append(_row(study, evaluated, by_name[name], Constraint("none", "", rank, fraction, ""), label_of[name]))
    order = {"none": 0, "away": 1, "onto": 2, "": 0, "top": 1, "random": 2, "random-energy": 3}
    frame = pd.DataFrame(rows, columns=COLUMNS)
    by = ["fine_tune", "constraint", "subspace", "details", "fraction", "rank"]
    return frame.sort_values(
        by, key=lambda column: column.map(order) if column.name in by[1:3] else column
    ).reset_index(drop=True)


def compare_runs(study: Study) -> pd.DataFrame:
    """Compare each run held by the alignment subspace with what stands beside it, the draws of a control averaged.

    Returns:
        One row for each configuration and each of ``OTHERS`` that was evaluated: for each measure the *difference* (the
        run minus the mean of the others) and its standard *error* over prompts, which takes two models' answers for
        independent, and those of several draws for one: they answer the same prompts, which no number of them averages
        out. ``runs`` counts the others, ``groups_harmful`` and ``groups_utility`` independent prompts. Columns:
        ``CONFIGURATION``, ``fraction``, ``other``, ``runs``, ``GROUPS`` and ``DIFFERENCES``.
    """
    runs = constrained_runs(study)
    rows = []
    for _, run in runs[runs["subspace"] == "top"].drop_duplicates(CONFIGURATION).iterrows():
        beside = {name: runs_beside(runs, run, name) for name in OTHERS if name != "aligned"}
        if study.aligned is not None:
            beside["aligned"] = study.aligned.to_frame().T
        for name in (other for other in OTHERS if len(beside.get(other, ()))):
            row = {**run[[*CONFIGURATION, "fraction"]].to_dict(), "other": name, "runs": len(beside[name])}
            row |= {f"groups_{kind}": independent_prompts(run, kind) for kind in ("harmful", "utility")}
            for measure in COMPARED:
                row[f"{measure}_difference"] = float(run[measure]) - beside[name][measure].astype(float).mean()
                error = root_mean_square(beside[name][f"{measure}_stderr"])
                row[f"{measure}_error"] = float(np.sqrt(np.nansum([float(run[f"{measure}_stderr"]) ** 2, error**2])))
            rows.append(row)
    return pd.DataFrame(rows, columns=[*CONFIGURATION, "fraction", "other", "runs", *GROUPS, *DIFFERENCES])


def runs_beside(runs: pd.DataFrame, run: pd.Series, other: str) -> pd.DataFrame:
    """Return the runs of one study that a run is compared with: the first one without a constraint, or every draw.

    Args:
        runs: As :func:`constrained_runs`, of one study.
        run: A row of them.
        other: ``none``, or the kind of a random control.
    """
    same = runs[(runs["recipe"] == run["recipe"]) & (runs["rank"] == run["rank"])]  # none has one that is not known
    if other == "none":
        return same[same["constraint"] == "none"].head(1)
    alike = same[(same["constraint"] == run["constraint"]) & (same["details"] == run["details"])]
    drawn = alike[alike["subspace"] == other]
    # A run that does not say its seed is told from a copy by its numbers.
    known = drawn[drawn["draw"].notna()].drop_duplicates("draw")
    unknown = drawn[drawn["draw"].isna()].drop_duplicates(list(COMPARED))
    return drawn.loc[sorted([*known.index, *unknown.index])]


def ranks_of(rows: pd.DataFrame) -> str:
    """Return the ranks of some runs in words, each once: ``fraction 0.1, 0.25``."""
    return f"{'rank' if rows['fraction'].isna().any() else 'fraction'} {', '.join(dict.fromkeys(rows['rank']))}"


def independent_prompts(model: pd.Series, kind: str) -> float:
    """Return how many groups of prompts of a kind a model answered, or prompts where groups are not known."""
    groups = model[f"n_groups_{kind}"]
    return float(model[f"n_{kind}"] if pd.isna(groups) else groups)


def root_mean_square(errors: pd.Series) -> float:
    """Return the root mean square of errors, of those that are known; NaN of none."""
    return float(np.sqrt(np.square(errors.astype(float)).mean()))


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
        "recipe": stage.recipe,
        "draw": np.nan if constraint.mode == "none" else subspace_seed(stage.manifest),
        "leakage": np.nan if constraint.mode == "none" else stage.metric("projection/leakage"),
        "energy_inside": _energy_inside(study, stage.name, constraint.fraction),
    }


def _energy_inside(study: Study, stage: str, fraction: float) -> float:
    rows = study.energies
    same = np.isclose(rows["fraction"].astype(float), fraction)
    inside = rows[(rows["stage"] == stage) & (rows["subspace"] == "top") & (rows["method"] == "onto") & same]
    return float(inside["energy_kept"].iloc[0]) if len(inside) else np.nan
