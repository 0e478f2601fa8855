"""Overlaps of single tensors made into those of layers, of kinds of tensors, and of whole pairs of updates."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

# The level at which p_matched counts as small; the share of such tensors is 0.05 where two updates share nothing more
# than the scale of their rows.
SIGNIFICANT = 0.05
PAIR = ["first", "second", "energy"]
MEANS = ["overlap", "chance", "matched_chance"]


def pool_overlaps(table: pd.DataFrame, *cells: str) -> pd.DataFrame:
    """Pool the rows of tensors within cells, each tensor once.

    Args:
        table: A row for each pair, tensor and energy: the table of ``analyze.py overlap``.
        cells: Columns that make a cell beside the pair and the energy.

    Returns:
        A row for each pair, energy and cell. Columns: ``first``, ``second``, ``energy`` and the cells; the means
        ``overlap``, ``chance`` and ``matched_chance`` over the ``n`` tensors where the overlap is defined
        (``n_undefined`` are not); ``significant_share``, the share of tensors whose
        ``p_matched`` is below 0.05, NaN where it was not tested; ``floor``, whether the pair is one of a kind; and
        ``floor_overlap``, the mean overlap of all pairs of one kind in that cell.
    """
    frame = table.assign(
        n=table["overlap"].notna(),
        n_undefined=table["overlap"].isna(),
        significant_share=(table["p_matched"] < SIGNIFICANT).astype(float).where(table["p_matched"].notna()),
    )
    floors = frame[frame["floor"]].groupby(["energy", *cells], sort=False)["overlap"].mean().rename("floor_overlap")
    means = [*MEANS, "significant_share"]
    aggregations = dict.fromkeys(means, "mean") | {"n": "sum", "n_undefined": "sum", "floor": "first"}
    pooled = frame.groupby([*PAIR, *cells], sort=False).agg(aggregations).reset_index()
    pooled = pooled.merge(floors.reset_index(), on=["energy", *cells], how="left")
    columns = [*PAIR, *cells, *means, "n", "n_undefined", "floor", "floor_overlap"]
    return pooled[columns].astype({"n": "int64", "n_undefined": "int64", "floor": "bool"})


def layer_table(table: pd.DataFrame, matrices: Collection[str]) -> pd.DataFrame:
    """Pool the matrices of each block: the columns of :func:`pool_overlaps`, with ``layer`` as the cell."""
    return pool_overlaps(table[(table["layer"] >= 0) & table["tensor"].isin(matrices)], "layer")


def type_table(table: pd.DataFrame, matrices: Collection[str]) -> pd.DataFrame:
    """Pool the tensors of each type; vectors, such as the biases of a type, apart from its matrices.

    The columns of :func:`pool_overlaps`, with ``type`` and ``is_matrix`` as the cell.
    """
    return pool_overlaps(table.assign(is_matrix=table["tensor"].isin(matrices)), "type", "is_matrix")


def pair_table(table: pd.DataFrame, matrices: Collection[str]) -> pd.DataFrame:
    """Pool the matrices of each part of the model: ``blocks``, ``embeddings`` and ``head``.

    The columns of :func:`pool_overlaps`, with ``part`` as the cell.
    """
    part = table["type"].where(table["layer"] < 0, "blocks")
    frame = table.assign(part=part)[table["tensor"].isin(matrices) & part.isin(["blocks", "embeddings", "head"])]
    return pool_overlaps(frame, "part")


def summarise_pairs(pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the pooled pairs for ``result.json``: by pair, then energy, then part; what is undefined is ``None``."""
    nested: dict[str, Any] = {}
    for row in pairs.to_dict("records"):
        entry: Mapping[str, Any] = {name: None if pd.isna(row[name]) else float(row[name]) for name in MEANS}
        entry = {**entry, "n": int(row["n"]), "n_nan": int(row["n_undefined"]), "floor": bool(row["floor"])}
        of_pair = nested.setdefault(f"{row['first']}|{row['second']}", {})
        of_pair.setdefault(f"{row['energy']:g}", {})[row["part"]] = entry
    return nested
