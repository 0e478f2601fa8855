"""The tables of overlaps over seeds: where each cross-kind pair lies, by part, and by layer and type."""

import pandas as pd

from safety_subspaces.findings.overlaps import AS_NAMED, ONE_REPEATED, distances_over_seeds
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

COLUMNS = (
    *("overlap", "chance", "matched chance", "floor", "minus matched", "minus floor", "minus half-way"),
    *("tensors", "undefined", "seeds"),
)
REACH_NOTE = (
    "Means over seeds of the mean over a seed's tensors, ± half the 95 % t interval over seeds; none with one seed. "
    "Differences are taken tensor by tensor within a seed. Floor: two of one kind, the mean of both kinds. Half-way: "
    "between floor and matched chance. Tensors: of a seed. Undefined: tensors of all seeds without an overlap."
)


def overlaps_across_table(overlaps: pd.DataFrame) -> Table:
    """Each cross-kind pair in blocks, output head and embeddings, as named and with one of the two repeated."""
    frame = distances_over_seeds(overlaps)
    frame = frame[frame["by"] == "part"]
    rows = [(_pair(row), "yes" if row["pairing"] == ONE_REPEATED else "", *_cells(row)) for _, row in frame.iterrows()]
    note = (
        f"{_at(frame)}{REACH_NOTE} One repeated: the mean of the two pairs in which one of the two is replaced by its "
        "repeat of another seed, as the floors have it; the pair itself shares its seed."
    )
    return Table(("pair", "one repeated", "part", *COLUMNS), tuple(rows), text_columns=3, note=note)


def overlaps_by_place_table(overlaps: pd.DataFrame) -> Table:
    """Each cross-kind pair by layer of the blocks and by type of tensor."""
    frame = distances_over_seeds(overlaps)
    frame = frame[(frame["by"] != "part") & (frame["pairing"] == AS_NAMED)]
    rows = [(_pair(row), *_cells(row)) for _, row in frame.iterrows()]
    note = f"{_at(frame)}{REACH_NOTE} Layers: the matrices of a block. Types: every tensor, norms as one column."
    return Table(("pair", "place", *COLUMNS), tuple(rows), text_columns=2, note=note)


def _pair(row: pd.Series) -> str:
    return f"{row['first']} - {row['second']}"


def _cells(row: pd.Series) -> tuple[str, ...]:
    return (
        f"layer {row['cell']}" if row["by"] == "layer" else str(row["cell"]),
        _level(row, "overlap"),
        number(row["chance"], 3),
        _level(row, "matched_chance"),
        _level(row, "floor"),
        *(_level(row, name, sign="+") for name in ("from_matched", "from_floor", "from_midpoint")),
        number(row["tensors"], 0 if float(row["tensors"]).is_integer() else 1),
        count(row["undefined"]),
        count(row["overlap_seeds"]),
    )


def _level(row: pd.Series, measure: str, sign: str = "") -> str:
    """Return a mean and its reach to the third decimal: an overlap just above chance differs there."""
    mean, reach = row[measure], row[f"{measure}_reach"]
    if pd.isna(mean):
        return NOTHING
    return format(float(mean), f"{sign}z.3f") + ("" if pd.isna(reach) else f"±{reach:.3f}")


def _at(frame: pd.DataFrame) -> str:
    return f"Energy {frame['energy'].iloc[0]:g}. " if len(frame) else ""
