"""Overlaps of single tensors made into those of layers, of kinds of tensors, and of whole pairs of updates."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from safety_subspaces.algebra.nulls import pooled_p_value
from safety_subspaces.analysis.work import Record

# The level at which p_matched counts as small; the share of such tensors is 0.05 where two updates share nothing more
# than the scale of their rows.
SIGNIFICANT = 0.05
PAIR = ["first", "second", "energy"]
MEANS = ["overlap", "chance", "matched_chance"]
# What a pair of updates is: of two kinds, of one kind (a floor), or one of them by training on unrelated data.
CROSS, SAME_KIND, UNRELATED = "cross", "same kind", "unrelated"
# Nulls that a mean over tensors is held against; each has its level, deviation and p in every row of a tensor.
NULLS = ("matched", "covariance")


def kinds_of(pairs: Iterable[tuple[str, str]], floors: Sequence[Sequence[str]], unrelated: Sequence[str]) -> list[str]:
    """Return what each pair of labels is: ``same kind`` where it is a floor, else ``unrelated`` or ``cross``."""
    same = {frozenset(pair) for pair in floors}
    other = frozenset(unrelated)
    return [SAME_KIND if frozenset(pair) in same else UNRELATED if other & {*pair} else CROSS for pair in pairs]


def pool_overlaps(table: pd.DataFrame, *cells: str) -> pd.DataFrame:
    """Pool the rows of tensors within cells, each tensor once.

    Args:
        table: A row for each pair, tensor and energy: the table of ``analyze.py overlap``.
        cells: Columns that make a cell beside the pair and the energy.

    Returns:
        A row for each pair, energy and cell. Columns: ``first``, ``second``, ``energy`` and the cells; the means
        ``overlap``, ``chance`` and ``matched_chance`` over the ``n`` tensors where the overlap is defined
        (``n_undefined`` are not); ``significant_share``, the share of tensors whose
        ``p_matched`` is below 0.05, NaN where it was not tested; ``floor``, whether the pair is one of a kind;
        ``floor_overlap`` and ``unrelated_overlap``, the mean overlap of all pairs of one kind, and of all with
        unrelated data, in that cell; and ``kind``. Of each null (``matched``, ``covariance``), over the ``n_<null>``
        tensors that have its p: the mean level ``<null>_chance`` (of matched: over all), ``above_<null>`` (mean overlap
        minus level), ``<null>_sd``, the standard deviation of that mean under the null, and its one-sided ``p_<null>``.
    """
    frame = table.assign(
        n=table["overlap"].notna(),
        n_undefined=table["overlap"].isna(),
        significant_share=(table["p_matched"] < SIGNIFICANT).astype(float).where(table["p_matched"].notna()),
    )
    means = [*MEANS, "significant_share"]
    aggregations = dict.fromkeys(means, "mean") | {"n": "sum", "n_undefined": "sum", "floor": "first", "kind": "first"}
    by_cell = frame.groupby([*PAIR, *cells], sort=False)
    pooled = by_cell.agg(aggregations).reset_index()
    levels = {"floor_overlap": SAME_KIND, "unrelated_overlap": UNRELATED}
    for name, kind in levels.items():
        level = frame[frame["kind"] == kind].groupby(["energy", *cells], sort=False)["overlap"].mean().rename(name)
        pooled = pooled.merge(level.reset_index(), on=["energy", *cells], how="left")
    tested = pd.DataFrame([_held_against(rows) for _, rows in by_cell], index=pooled.index)
    columns = [*PAIR, *cells, *means, "n", "n_undefined", "floor", "floor_overlap"]
    pooled = pooled[[*columns, "kind", "unrelated_overlap"]].join(tested)
    return pooled.astype({"n": "int64", "n_undefined": "int64", "floor": "bool"})


def _held_against(rows: pd.DataFrame) -> dict[str, float]:
    """Test the mean overlap of one cell against each null, over the tensors that have its p."""
    found: dict[str, float] = {}
    for null in NULLS:
        known = rows[rows[f"p_{null}"].notna()]
        overlaps, levels, deviations = known["overlap"], known[f"{null}_chance"], known[f"{null}_sd"]
        if null != "matched":
            found[f"{null}_chance"] = levels.mean()
        found[f"above_{null}"] = (overlaps - levels).mean()
        found[f"{null}_sd"] = (deviations**2).sum() ** 0.5 / len(known) if len(known) else float("nan")
        found[f"p_{null}"] = pooled_p_value(overlaps, levels, deviations)
        found[f"n_{null}"] = len(known)
    return found


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


COLUMNS = (
    "first second tensor layer type energy rank_first rank_second overlap chance p_haar matched_chance p_matched "
    "floor kind matched_sd covariance_chance covariance_sd p_covariance reference_overlap_first "
    "reference_overlap_second projection_distance grassmann_distance smallest_angle_radians largest_angle_radians "
    "mean_angle_radians "
    "stable_rank_first stable_rank_second effective_rank_first effective_rank_second k_margin_first "
    "k_margin_second"
).split()


def overlap_table(
    records: Mapping[str, Record], floors: Sequence[Sequence[str]], unrelated: Sequence[str]
) -> pd.DataFrame:
    """Return one row for each pair of updates, tensor and energy, with the columns ``COLUMNS``."""
    table = pd.DataFrame(list(rows_of(records, "table")))
    table["kind"] = kinds_of(zip(table["first"], table["second"], strict=True), floors, unrelated)
    table["floor"] = table["kind"] == SAME_KIND
    return table[COLUMNS]


def rows_of(records: Mapping[str, Record], table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one table, tensor by tensor."""
    for record in records.values():
        yield from record[table]
