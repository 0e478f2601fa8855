"""The steps of ``analyze.py trajectory``: weights followed one after the other, tables, change points, the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.algebra.path import ChangePoints, find_change_points
from safety_subspaces.algebra.subspace import top_basis
from safety_subspaces.analysis.trajectory.inputs import (
    Alignment,
    OtherUpdates,
)
from safety_subspaces.analysis.trajectory.measures import (
    Settings,
    Track,
    follow_tensor,
    pool_overlaps,
    pool_tracks,
    tensor_rows,
)
from safety_subspaces.artefacts.progress import Bar
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.weights.names import part_of, type_of
from safety_subspaces.weights.snapshots import Snapshot

SERIES = ("step_norm_per_step", "speed_radians_per_step", "energy_fraction")


OVERLAP_COLUMNS = ["step", "level", "part", "other", "overlap", "chance"]


CHANGE_COLUMNS = ["series", "step", "mean_before", "mean_after", "move", "usual_move", "n"]


def follow(
    snapshots: Sequence[Snapshot],
    alignment: Alignment | None,
    updates: OtherUpdates,
    settings: Settings,
    results: ResultFolder,
) -> list[Track]:
    """Follow the weights one after the other, and note what is missing."""
    tracks = []
    for name in Bar(snapshots[0].names, desc="following updates", unit="tensor"):
        inside = None if alignment is None else alignment.of(name)
        if inside is not None and name not in inside.bases:
            results.leave_out(name, "no direction in the alignment subspace: all its energy counts as outside")
        others: dict[str, Float[Tensor, "out rank"]] = {}
        for label in updates.checkpoints if len(snapshots[0].shapes[name]) == 2 else ():
            factors = left_factors(updates.update(label, name))
            others[label] = top_basis(factors, rank_of_energy(factors.singular_values, settings.energy))
            if factors.numerical_rank == 0:
                results.leave_out(f"{label}: {name}", "the update is zero and has no direction: its overlaps are NaN")
        track = follow_tensor(name, snapshots, inside, others, settings)
        for note in track.notes:
            results.leave_out(name, note)
        tracks.append(track)
    return tracks


def tables_of(
    tracks: Sequence[Track], steps: Sequence[int], labels: Sequence[str], from_start: bool
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the pooled table, the overlaps and the table per tensor.

    Columns: of the first ``step``, ``level``, ``part`` and those of :func:`pool_tracks`; of the second
    ``OVERLAP_COLUMNS``; of the third ``step``, ``tensor``, ``place``, ``type`` and those of :func:`tensor_rows`.
    """
    groups: dict[tuple[str, str], list[Track]] = {("all", "all"): list(tracks)}
    for level, group_of in (("place", part_of), ("type", type_of)):
        for track in tracks:
            groups.setdefault((level, group_of(track.name)), []).append(track)
    rows, compared, single = [], [], []
    for (level, part), group in groups.items():
        for index, pooled in enumerate(pool_tracks(group, steps, from_start)):
            identity = {"step": steps[index], "level": level, "part": part}
            rows.append({**identity, **pooled})
            for label in labels:
                overlap, chance = pool_overlaps(group, index, label)
                compared.append({**identity, "other": label, "overlap": overlap, "chance": chance})
    for track in tracks:
        identity = {"tensor": track.name, "place": part_of(track.name), "type": type_of(track.name)}
        rows_of_track = tensor_rows(track, steps, from_start)
        single += [{"step": step, **identity, **row} for step, row in zip(steps, rows_of_track, strict=True)]
    tensors = pd.DataFrame(single).astype({"rank": "Int64"})
    return pd.DataFrame(rows), pd.DataFrame(compared, columns=OVERLAP_COLUMNS), tensors


def find_changes(
    table: pd.DataFrame, overlaps: pd.DataFrame, results: ResultFolder
) -> dict[str, tuple[list[int], ChangePoints]]:
    """Return the steps at which each series of all weights has a value, and where its level changes.

    Args:
        table: The pooled table of :func:`tables_of`: a row for each ``step``, ``level`` and ``part``.
        overlaps: Its overlaps, with the column ``other`` beside.
        results: Takes note of the series without change points, and why.
    """
    whole = table[table["level"] == "all"].set_index("step")
    series = {name: whole[name] for name in SERIES}
    for label, rows in overlaps[overlaps["level"] == "all"].groupby("other", sort=False):
        series[f"overlap_{label}"] = rows.set_index("step")["overlap"]
    change_points = {}
    for name, values in series.items():
        known = values.dropna()
        changes = find_change_points(known.tolist())
        if changes.reason is not None:
            results.leave_out(f"change points of {name}", changes.reason)
        change_points[name] = [int(step) for step in known.index], changes
    return change_points


def change_table(change_points: Mapping[str, tuple[list[int], ChangePoints]]) -> pd.DataFrame:
    """Return one row for each change point of each series, with the columns ``CHANGE_COLUMNS``."""
    rows = [
        {
            "series": name,
            "step": steps[change.position],
            "mean_before": change.mean_before,
            "mean_after": change.mean_after,
            "move": change.move,
            "usual_move": change.usual_move,
            "n": changes.n,
        }
        for name, (steps, changes) in change_points.items()
        for change in changes.changes
    ]
    columns = {**dict.fromkeys(CHANGE_COLUMNS, "float64"), "series": "str", "step": "int64", "n": "int64"}
    return pd.DataFrame(rows, columns=CHANGE_COLUMNS).astype(columns)


def summarise(
    table: pd.DataFrame, snapshots: Sequence[Snapshot], change_points: Mapping[str, tuple[list[int], ChangePoints]]
) -> dict[str, Any]:
    """Return what ``result.json`` says of a trajectory."""
    last = table[table["level"] == "all"].iloc[-1]
    return {
        "steps": [snapshot.step for snapshot in snapshots],
        "reference": snapshots[0].reference,
        "counts_from_start": snapshots[0].counts_from_start,
        "tensors": len(snapshots[0].names),
        "matrices": sum(len(snapshots[0].shapes[name]) == 2 for name in snapshots[0].names),
        "frobenius_norm": _known(last["frobenius_norm"]),
        "path_length": _known(last["path_length"]),
        "straightness": _known(last["straightness"]),
        "energy_fraction": _known(last["energy_fraction"]),
        "turned_fastest": _fastest(table),
        "change_points": {
            name: {
                "n": changes.n,
                "reason": changes.reason,
                "steps": [steps[change.position] for change in changes.changes],
            }
            for name, (steps, changes) in change_points.items()
        },
    }


def _fastest(table: pd.DataFrame) -> dict[str, Any]:
    """When the followed subspace turned fastest, over all matrices, and where it did in the mean over steps."""
    speeds = table.dropna(subset=["speed_radians_per_step"])
    fastest: dict[str, Any] = {}
    for level, key in (("all", "step"), ("place", "part"), ("type", "part")):
        means = speeds[speeds["level"] == level].groupby(key)["speed_radians_per_step"].mean()
        name = key if level == "all" else level
        fastest[name] = None if means.empty else _plain(means.idxmax())
        fastest[f"{name}_radians_per_step"] = None if means.empty else float(means.max())
    return fastest


def _plain(key: Any) -> Any:
    return key if isinstance(key, str) else int(key)


def _known(value: float) -> float | None:
    return float(value) if value == value else None
