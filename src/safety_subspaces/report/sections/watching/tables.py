"""The tables of watched runs: what was measured at each look, and how the update moved through its snapshots."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import AnalysisResult, Stage
from safety_subspaces.findings.watched import look_table
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

# Headings of the measures of a look, in the order of the columns.
MEASURED = {
    "utility/accuracy": "utility",
    "safety/harmful_rate": "harmful",
    "safety/harm_score": "harm 1-5",
    "safety/over_refusal_rate": "over-refusal",
    "safety/refusal_margin": "margin",
    "safety/unscored_rate": "unscored",
    "delta/frobenius_norm": "norm",
    "delta/energy_fraction": "inside",
    "delta/stable_rank": "stable rank",
    "delta/effective_rank": "effective rank",
    "delta/overlap": "overlap of updates",
    "activation/overlap": "overlap of activations",
    "activation/drift_first": "drift, first",
    "activation/drift_second": "drift, second",
    "activation/rank_first": "rank, first",
    "activation/rank_second": "rank, second",
}
MOVED = {
    "frobenius_norm": "norm",
    "path_length": "path length",
    "straightness": "straightness",
    "cos_to_final": "cos to final",
    "energy_fraction": "inside",
    "rms_angle_radians": "turned by",
}
# Columns of a trajectory whose chance level has another name than its own with _chance behind it.
CHANCES = {"rms_angle_radians": "rms_angle_chance_radians"}
SERIES = {
    "step_norm_per_step": "step length (norm per step)",
    "speed_radians_per_step": "turning (radians per step)",
    "energy_fraction": "energy inside the alignment subspace",
}
# Snapshots of which a reader sees the course; every one stands in the table's file.
MOST_SNAPSHOTS = 24


def looks_table(stage: Stage) -> Table:
    """Every look into a run: a row a number of optimizer steps done."""
    looks = look_table(stage)
    shown = {tag: name for tag, name in MEASURED.items() if tag in looks}
    rows = [(count(step), *(_cell(look, tag, f"{tag}_chance") for tag in shown)) for step, look in looks.iterrows()]
    note = (
        f"Steps done; {NOTHING} where a watcher did not look or a value is not defined. ± one standard error, "
        "in brackets the chance level. Ranks and overlaps are means over matrices, those of activations over blocks."
    )
    return Table(("step", *shown.values()), tuple(rows), text_columns=0, note=note)


def trajectory_table(result: AnalysisResult) -> Table:
    """How the whole update of a run moved from snapshot to snapshot."""
    whole, others = _whole(result.tables["table"]), _whole(result.tables.get("overlaps", pd.DataFrame()))
    compared = {str(label): rows.set_index("step") for label, rows in others.groupby("other", sort=False)}
    indices = np.unique(np.linspace(0, len(whole) - 1, min(len(whole), MOST_SNAPSHOTS)).round().astype(int))
    rows = []
    for _, row in whole.iloc[indices].iterrows():
        cells = [_cell(row, name, CHANCES.get(name, f"{name}_chance")) for name in MOVED]
        cells += [_cell(rows_of.loc[row["step"]], "overlap", "chance") for rows_of in compared.values()]
        rows.append((count(row["step"]), *cells))
    note = (
        "All weights together; in brackets the chance level of random subspaces of the same ranks. Path length sums "
        "the moves between snapshots; straightness is the displacement over it, 1 on a straight line. Turned by: rms "
        f"principal angle, in radians, between the leading directions ({_rank_words(result.arguments.get('rank'))}) of "
        "this snapshot and the one before. With: overlap with the update of another model."
    )
    left = len(whole) - len(indices)
    note += f" {left} more snapshots stand in the table's file." if left else ""
    return Table(("step", *MOVED.values(), *(f"with {name}" for name in compared)), tuple(rows), 0, note)


def change_table(result: AnalysisResult) -> Table | None:
    """Where a series of a trajectory changes its level; ``None`` where none does."""
    changes = result.tables.get("change_points", pd.DataFrame())
    columns: dict[str, Cell] = {
        "series": lambda row: SERIES.get(str(row["series"]), str(row["series"]).replace("overlap_", "overlap with ")),
        "step": counts("step"),
        "before": lambda row: f"{row['mean_before']:.3g}",
        "after": lambda row: f"{row['mean_after']:.3g}",
        "p": numbers("p_value", 3),
        "n": counts("n"),
    }
    note = (
        "The first step of a new level, the means of the levels on both sides, and n values. p, by permutation, is of "
        f"the strongest change of a series ({NOTHING}: of a weaker one, not tested). A steady trend counts as a change "
        "of level too, and neighbouring snapshots are alike, so p is rather too small."
    )
    return table_of(changes, columns, note=note) if len(changes) else None


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all weights together, with every column that a trajectory may have."""
    names = ["step", "level", *MOVED, *(CHANCES.get(name, f"{name}_chance") for name in MOVED)]
    filled = table.reindex(columns=list(dict.fromkeys([*names, "other", "overlap", "chance"])))
    return filled[filled["level"] == "all"].sort_values("step")


def _cell(row: pd.Series, name: str, chance: str) -> str:
    """Return a value with its error and, in brackets, its chance level, as far as there are any."""
    value, error, level = (row.get(key) for key in (name, f"{name}_stderr", chance))
    if value is None or pd.isna(value):
        return NOTHING
    return number(value, 2, error) + (f" ({level:.2f})" if level is not None and not pd.isna(level) else "")


def _rank_words(rank: object) -> str:
    rule = {key: value for key, value in rank.items() if value is not None} if isinstance(rank, Mapping) else {}
    return ", ".join(f"{key} {value:g}" for key, value in rule.items()) or "of a rank that is not recorded"
