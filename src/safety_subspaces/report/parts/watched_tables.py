"""The tables of watched runs: what was measured at each look, and how the update moved through its snapshots."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.artefacts.study_files import AnalysisResult
from safety_subspaces.findings.watched import RATES, look_table, measured, trajectories_of
from safety_subspaces.report.parts.columns import Cell, counts, table_of
from safety_subspaces.report.parts.sentence import range_words
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

# Snapshots of which a reader sees the course; every one stands in the table's file.
MOST_SNAPSHOTS: Final = 24
# Headings of the measures of a look, in the order of the columns.
MEASURED: Final = {
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
# Columns of a trajectory with their headings, and those whose chance level is not called <column>_chance.
MOVED: Final = {
    "frobenius_norm": "norm",
    "path_length": "path length",
    "straightness": "straightness",
    "cos_to_final": "cos to final",
    "energy_fraction": "inside",
    "rms_angle_radians": "turned by",
}
CHANCES: Final = {"rms_angle_radians": "rms_angle_chance_radians"}
SERIES: Final = {
    "step_norm_per_step": "step length (norm per step)",
    "speed_radians_per_step": "turning (radians per step)",
    "energy_fraction": "energy inside the alignment subspace",
}


def watched_tables(study: Study, stage: Stage) -> dict[str, Table]:
    """Return the looks into a run, and its trajectories, each with its title; one without rows has nothing to show."""
    tables = {f"{stage.name}: its looks": _looks_table(stage)}
    for result in trajectories_of(study, stage):
        of = "" if result.label == stage.name else f" ({result.label})"
        tables[f"{stage.name}: its path through the snapshots{of}"] = _course_table(result)
        tables[f"{stage.name}: where a series of it changes its level{of}"] = _change_table(result)
    return tables


def value_at(looks: pd.DataFrame, step: int) -> str:
    """Return a value of :func:`~safety_subspaces.findings.watched.measured` with its interval."""
    value, low, high = (float(looks[name].to_dict()[step]) for name in ("value", "low", "high"))
    return range_words(value, low, high)


def _looks_table(stage: Stage) -> Table:
    """Every look into a run: a row a number of optimizer steps done."""
    looks = look_table(stage)
    shown = {tag: name for tag, name in MEASURED.items() if tag in looks}
    rates = {tag: measured(stage, tag) for tag in shown if tag in RATES}

    def cell(step: int, look: pd.Series, tag: str) -> str:
        is_rate = tag in rates and step in rates[tag].index
        return value_at(rates[tag], step) if is_rate else _cell(look, tag, f"{tag}_chance")

    each = zip(map(int, looks.index), (look for _, look in looks.iterrows()), strict=True)
    rows = [(count(step), *(cell(step, look, tag) for tag in shown)) for step, look in each]
    note = (
        f"Steps done; {NOTHING} where a watcher did not look or a value is not defined. In brackets the 95 % interval "
        "of a rate over groups of prompts, or the chance level; ± one standard error. Ranks and overlaps are means "
        "over matrices, those of activations over blocks."
    )
    return Table(("step", *shown.values()), tuple(rows), text_columns=0, note=note)


def _course_table(result: AnalysisResult) -> Table:
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


def _change_table(result: AnalysisResult) -> Table:
    """Where a series of a trajectory changes its level, with the columns that the analysis wrote; empty without one."""
    changes = result.tables.get("change_points", pd.DataFrame())
    known: dict[str, tuple[str, Cell]] = {
        "series": ("series", lambda row: _series_words(str(row["series"]))),
        "step": ("step", counts("step")),
        "mean_before": ("before", _significant("mean_before")),
        "mean_after": ("after", _significant("mean_after")),
        "move": ("move", _significant("move")),
        "usual_move": ("usual move", _significant("usual_move")),
        "n": ("n", counts("n")),
    }
    names = [str(name) for name in changes.columns]
    columns = dict(known.get(name, (name.replace("_", " "), _significant(name))) for name in names)
    note = (
        "The first step of a new level, the means of the levels on both sides, and n values. A steady trend counts as "
    )
    note += "a change of level too."
    if "move" in names:
        note += " Move: the first value after it less the last before; usual: the median between neighbours, whatever "
        note += "its sign. Described, and not tested."
    return table_of(changes, columns, note=note)


def _significant(name: str) -> Cell:
    """Return the cell of a number of any size in three digits, or of whatever else the analysis wrote."""

    def cell(row: pd.Series) -> str:
        value = row[name]
        if pd.isna(value):
            return NOTHING
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return cell


def _series_words(name: str) -> str:
    return SERIES.get(name, name.replace("overlap_", "overlap with "))


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
    # Answers that all have the same score have no spread, and that is not to say that there is no error.
    said = number(value, 2, error if error is not None and error > 0 else None)
    return said + (f" ({level:.2f})" if level is not None and not pd.isna(level) else "")


def _rank_words(rank: object) -> str:
    rule = {key: value for key, value in rank.items() if value is not None} if isinstance(rank, Mapping) else {}
    return ", ".join(f"{key} {value:g}" for key, value in rule.items()) or "of a rank that is not recorded"
