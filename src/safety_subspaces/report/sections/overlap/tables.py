"""The table of overlaps."""

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import (
    in_blocks,
    overlap_by,
)
from safety_subspaces.report.parts.table import Table, count, number


def overlap_table(study: Study) -> Table:
    """Weight overlap of each pair in the blocks' matrices, at each energy, beside its chance levels."""
    rows = [
        (
            f"{row['first']} - {row['second']}",
            "same kind" if row["floor"] else "",
            f"{row['energy']:g}",
            number(row["overlap"], 3) + ("" if pd.isna(row["overlap_error"]) else f" ± {row['overlap_error']:.3f}"),
            number(row["chance"], 3),
            number(row["matched_chance"], 3),
            number(row["share_significant"], 2),
            count(row["n"]),
            count(row["n_undefined"]),
        )
        for _, row in overlap_by(in_blocks(study.overlaps)).iterrows()
    ]
    columns = (
        "pair",
        "floor",
        "energy",
        "overlap",
        "chance",
        "matched chance",
        "share p < .05",
        "n",
        "undefined",
    )
    note = (
        "Means over the matrices in the blocks ± their standard error over tensors (n). Share p < .05: of "
        "tensors above "
        "their matched control. A floor is a pair of one kind of fine-tune: what sharing everything but "
        "the seed gives."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)
