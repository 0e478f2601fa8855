"""The tables of overlaps: of one study, and over seeds by part, and by layer and type."""

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import in_blocks, overlap_by
from safety_subspaces.findings.overlaps import AS_NAMED, ONE_REPEATED, distances_over_seeds
from safety_subspaces.report.parts.columns import Cell, compared, counts, numbers, short, table_of, text
from safety_subspaces.report.parts.table import Table, number

REACH_NOTE = (
    "Means over seeds of the mean over a seed's tensors, ± half the 95 % t interval over seeds; none with one seed. "
    "Differences are taken tensor by tensor within a seed. Floor: two of one kind, the mean of both kinds. Half-way: "
    "between floor and matched chance. Tensors: of a seed. Undefined: tensors of all seeds without an overlap."
)
# To the third decimal: an overlap just above chance differs there.
COLUMNS: dict[str, Cell] = {
    "overlap": numbers("overlap", 3, "overlap_reach"),
    "chance": numbers("chance", 3),
    "matched chance": numbers("matched_chance", 3, "matched_chance_reach"),
    "floor": numbers("floor", 3, "floor_reach"),
    "minus matched": numbers("from_matched", 3, "from_matched_reach", "+"),
    "minus floor": numbers("from_floor", 3, "from_floor_reach", "+"),
    "minus half-way": numbers("from_midpoint", 3, "from_midpoint_reach", "+"),
    "tensors": lambda row: number(row["tensors"], 0 if float(row["tensors"]).is_integer() else 1),
    "undefined": counts("undefined"),
    "seeds": counts("overlap_seeds"),
}


def overlap_table(study: Study) -> Table:
    """Weight overlap of each pair in the blocks' matrices, at each energy, beside its chance levels."""
    columns: dict[str, Cell] = {
        "pair": compared,
        "floor": lambda row: "same kind" if row["floor"] else "",
        "energy": short("energy"),
        "overlap": lambda row: number(row["overlap"], 3, row["overlap_error"]).replace("±", " ± "),
        "chance": numbers("chance", 3),
        "matched chance": numbers("matched_chance", 3),
        "share p < .05": numbers("share_significant", 2),
        "n": counts("n"),
        "undefined": counts("n_undefined"),
    }
    note = (
        "Means over the matrices in the blocks ± their standard error over tensors (n). Share p < .05: of tensors "
        "above their matched control. A floor is a pair of one kind of fine-tune: what sharing everything but the "
        "seed gives."
    )
    return table_of(overlap_by(in_blocks(study.overlaps)), columns, 2, note)


def overlaps_across_table(overlaps: pd.DataFrame) -> Table:
    """Each cross-kind pair in blocks, output head and embeddings, as named and with one of the two repeated."""
    frame = distances_over_seeds(overlaps)
    frame = frame[frame["by"] == "part"]
    frame = frame.assign(repeated=frame["pairing"].map({AS_NAMED: "", ONE_REPEATED: "yes"}))
    note = (
        f"{_at(frame)}{REACH_NOTE} One repeated: the mean of the two pairs in which one of the two is replaced by its "
        "repeat of another seed, as the floors have it; the pair itself shares its seed."
    )
    return table_of(frame, {"pair": compared, "one repeated": text("repeated"), "part": _cell, **COLUMNS}, 3, note)


def overlaps_by_cell_table(overlaps: pd.DataFrame) -> Table:
    """Each cross-kind pair by layer of the blocks and by type of tensor."""
    frame = distances_over_seeds(overlaps)
    frame = frame[(frame["by"] != "part") & (frame["pairing"] == AS_NAMED)]
    note = f"{_at(frame)}{REACH_NOTE} Layers: the matrices of a block. Types: every tensor, norms as one column."
    return table_of(frame, {"pair": compared, "place": _cell, **COLUMNS}, 2, note)


def _cell(row: pd.Series) -> str:
    return f"layer {row['cell']}" if row["by"] == "layer" else str(row["cell"])


def _at(frame: pd.DataFrame) -> str:
    return f"Energy {frame['energy'].iloc[0]:g}. " if len(frame) else ""
