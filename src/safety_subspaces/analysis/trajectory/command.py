"""How a run's weight update moved through training: how far, how straight, where it turned, what it came to share."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.algebra.path import ChangePoints, find_change_points
from safety_subspaces.algebra.subspace import top_basis
from safety_subspaces.analysis.trajectory.figure import draw_trajectory
from safety_subspaces.analysis.trajectory.inputs import (
    Alignment,
    OtherUpdates,
    open_alignment,
    open_run,
)
from safety_subspaces.analysis.trajectory.measures import (
    Settings,
    Track,
    follow_tensor,
    pool_overlaps,
    pool_tracks,
    tensor_rows,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, recorded
from safety_subspaces.weights.names import part_of, type_of
from safety_subspaces.weights.snapshots import Snapshot

# A tenth of the rank, one of the fractions of arXiv 2505.14185.
RANK = RankRule(fraction=0.1)
SERIES = ("step_norm_per_step", "speed_radians_per_step", "energy_fraction")
OVERLAP_COLUMNS = ["step", "level", "part", "other", "overlap", "chance"]
CHANGE_COLUMNS = ["series", "step", "mean_before", "mean_after", "move", "usual_move", "n"]


def trajectory(
    run: str,
    out: str,
    base: str | None = None,
    aligned: str | None = None,
    subspace: str | None = None,
    rank: RankRule | None = None,
    others: dict[str, str] | None = None,
    energy: float = 0.9,
    draws: int = 20,
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Follow a run's weight update through the snapshots that callbacks.WeightDeltaSnapshot has written.

    Per step, for all weights, each layer and each type of tensor: path_length sums ||d_t - d_(t-1)|| over snapshots,
    from zero at step 0 where updates count from the start of the run, else from the first snapshot; straightness is
    the norm of the whole displacement over it (1: a straight line); step_norm_per_step and speed_radians_per_step are
    the last move over the optimizer steps between. The followed subspace is spanned by each matrix's leading left
    singular vectors, and rms_angle_radians is between those of this and the previous snapshot, sqrt(mean theta_i^2) of
    the principal angles: 0 where it stayed, at most pi / 2; the columns with chance are of random subspaces of the same
    ranks. Norms and energies are summed over tensors before dividing; ranks, angles and overlaps are means over the
    matrices that have one (n_matrices is the number that moved). Weights that are not 2-D count in norms and energies
    alone. Beside the table: overlaps with other updates, a table per tensor, a figure, and change points: where the
    level of a series changes, with the move from one snapshot to the next there beside the usual one. They describe and
    are not tested: a steady trend is a change of level too, and series that are cumulative, or follow the learning
    rate, have no null that holds.

    Args:
        run: Run folder with deltas/, or the folder that holds the snapshots.
        out: Folder for the results.
        base: Folder of the base model; with aligned, energies inside their alignment subspace are measured.
        aligned: Folder of the aligned model.
        subspace: Or a file of analyze.py subspace.
        rank: Directions of each matrix that are followed, and of the subspace of base and aligned: exactly one of
            count, fraction and energy; by default a fraction of 0.1.
        others: Label and folder of models whose update from the run's reference is compared at each step.
        energy: Share of each update's energy, in (0, 1], at which the overlap cuts its space.
        draws: Pairs of random subspaces that make the chance level of an angle.
        seed: Seed of the draws.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each part and step.

    Raises:
        InputError: Before anything is computed: an argument out of range, fewer than two snapshots or ones that do not
            belong together, models of another shape, a reference that has changed. Later: weights that are NaN or
            infinite.
    """
    rank, others = rank or RANK, others or {}
    arguments = recorded(locals())
    _check_arguments(energy, draws)
    snapshots = open_run(run)
    alignment = open_alignment(snapshots[0], subspace, base, aligned, rank)
    updates = OtherUpdates(snapshots[0], others)
    settings = Settings(rank, energy, draws, seed, snapshots[0].counts_from_start)
    models = [path for path in (subspace, base, aligned) if path is not None]
    inputs = [*(str(snapshot.path) for snapshot in snapshots), *models, *updates.inputs]
    with ResultFolder(out, "trajectory", arguments, inputs, overwrite) as results:
        if alignment is None:
            results.leave_out("energy_fraction", "no subspace, and no base with aligned, was given: it is NaN")
        tracks = _follow(snapshots, alignment, updates, settings, results)
        steps = [snapshot.step for snapshot in snapshots]
        table, overlaps, tensors = _tables(tracks, steps, list(others), settings.from_start)
        change_points = _find_changes(table, overlaps, results)
        changes = _change_table(change_points)
        results.summary = _summarise(table, snapshots, change_points)
        for name, frame in (("table", table), ("overlaps", overlaps), ("tensors", tensors), ("change_points", changes)):
            results.write_table(frame, name)
        draw_trajectory(results.folder / "trajectory.png", table, overlaps, changes)
    return table


def _check_arguments(energy: float, draws: int) -> None:
    if not 0 < energy <= 1:
        raise InputError(f"an energy share must be in (0, 1], got {energy}")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")


def _follow(
    snapshots: Sequence[Snapshot],
    alignment: Alignment | None,
    updates: OtherUpdates,
    settings: Settings,
    results: ResultFolder,
) -> list[Track]:
    """Follow the weights one after the other, and note what is missing."""
    tracks = []
    for name in tqdm(snapshots[0].names, desc="following updates", unit="tensor"):
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


def _tables(
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


def _find_changes(
    table: pd.DataFrame, overlaps: pd.DataFrame, results: ResultFolder
) -> dict[str, tuple[list[int], ChangePoints]]:
    """Return the steps at which each series of all weights has a value, and where its level changes.

    Args:
        table: The pooled table of :func:`_tables`: a row for each ``step``, ``level`` and ``part``.
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


def _change_table(change_points: Mapping[str, tuple[list[int], ChangePoints]]) -> pd.DataFrame:
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


def _summarise(
    table: pd.DataFrame, snapshots: Sequence[Snapshot], change_points: Mapping[str, tuple[list[int], ChangePoints]]
) -> dict[str, Any]:
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
