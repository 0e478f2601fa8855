"""The table of overlaps."""

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import in_blocks, overlap_by
from safety_subspaces.report.parts.columns import Cell, compared, counts, numbers, short, table_of
from safety_subspaces.report.parts.table import Table, number


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
