"""Overlaps of useful and harmful updates over seeds: where a pair lies between matched chance and its own floors.

Tables in, tables out; missing stays NaN. A seed is the unit: tensors are averaged within it, every tensor once, before
anything is said over seeds. ``overlaps`` is the table of :class:`Study` for one organism, with a column ``seed``.

The pair that is judged is the one without a repeat, useful and harmful: the runs that every other table of a study
shows. The four pairs across the kinds share updates, so averaging them would add no unit. But the two runs of a pair
share the seed of their data, and of their adapter, which no floor does. So the pairs in which one of the two is
replaced by its repeat are judged beside it, as ``ONE_REPEATED``: like the floors, they differ in their seed.
"""

from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.artefacts.study import REPEAT_SUFFIX
from safety_subspaces.findings.comparisons import PAIR, in_blocks, nearest_energy
from safety_subspaces.findings.intervals import Interval, t_interval, t_quantile

By = Literal["part", "layer", "type"]
PARTS: Final = ("blocks", "head", "embeddings")
TYPES: Final = ("embeddings", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other")
AS_NAMED: Final = "as named"
ONE_REPEATED: Final = "one repeated"
# Differences are taken tensor by tensor within a seed. The scale is how far the floor lies above matched chance; the
# midpoint, half the way between them, is the margin that was set before any seed was looked at.
LEVELS: Final = ("overlap", "chance", "matched_chance", "floor")
DISTANCES: Final = ("from_matched", "from_floor", "from_midpoint", "scale")


def distances_over_seeds(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Place each cross-kind pair between matched chance and floor, at the energy nearest to 0.9, paired within a seed.

    The floor of a pair is the mean of the same-kind pairs that share a label with it, or of all where none does; it is
    NaN in a tensor where any of them is missing or undefined, since kinds differ in their floors.

    Returns:
        A row for each analysis, pair, ``by`` (part, layer or type) and ``cell``; ``pairing`` is ``AS_NAMED``, and by
        part ``ONE_REPEATED`` as well. ``tensors`` is the mean number of a seed, ``undefined`` the number of tensors
        without an overlap, all seeds together. Each of ``LEVELS`` and ``DISTANCES`` is a mean over seeds with its
        ``_reach`` (half the 95 % t interval) and ``_seeds``. ``power`` is the probability that as many seeds, spread as
        these, would show an overlap that lies at the floor to lie above the midpoint.
    """
    rows: list[dict[str, Any]] = []
    for analysis, first, second in cross_pairs(overlaps):
        rows_of_run = overlaps[overlaps["analysis"] == analysis]
        energy = nearest_energy(rows_of_run)
        rows_of_run = rows_of_run[rows_of_run["energy"] == energy]
        names = {"analysis": analysis, "first": first, "second": second, "energy": energy}
        tensors = _distances(rows_of_run, (first, second), [(first, second)])
        for by in ("part", "layer", "type"):
            rows += [names | {"pairing": AS_NAMED, "by": by} | row for row in _summaries(tensors, by)]
        mixed = _distances(
            rows_of_run, (first, second), [(first, second + REPEAT_SUFFIX), (first + REPEAT_SUFFIX, second)]
        )
        if mixed["overlap"].notna().any():
            rows += [names | {"pairing": ONE_REPEATED, "by": "part"} | row for row in _summaries(mixed, "part")]
    identity = [*PAIR, "pairing", "energy", "by", "cell"]
    measured = [name for m in (*LEVELS, *DISTANCES) for name in (m, f"{m}_reach", f"{m}_seeds")]
    return pd.DataFrame(rows, columns=[*identity, "tensors", "undefined", *measured, "power"])


def cross_pairs(overlaps: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return analysis, first and second of every pair of two kinds without a repeat, useful and harmful first."""
    seen = overlaps[~overlaps["floor"].astype(bool)][PAIR].drop_duplicates().astype(str)
    named = [
        (analysis, first, second)
        for analysis, first, second in seen.itertuples(index=False, name=None)
        if not first.endswith(REPEAT_SUFFIX) and not second.endswith(REPEAT_SUFFIX)
    ]
    return sorted(named, key=lambda pair: set(pair[1:]) != {"useful", "harmful"})


def _order_of(by: str, cell: Any) -> float:
    """Return where a cell stands: parts and types in their customary order, layers by number."""
    if by == "layer":
        return float(cell)
    names: tuple[str, ...] = PARTS if by == "part" else TYPES
    return float(names.index(cell) if cell in names else len(names))


def _cells(overlaps: pd.DataFrame, by: By) -> pd.DataFrame:
    """Keep the tensors that a cut shows: matrices of the blocks by layer, with head and embeddings by part."""
    if by == "type":
        return overlaps
    blocks = in_blocks(overlaps)
    if by == "layer":
        return blocks
    ends = [overlaps[overlaps["type"] == part].assign(part=part) for part in PARTS[1:]]
    return pd.concat([blocks.assign(part=PARTS[0]), *ends], ignore_index=True)


def _distances(overlaps: pd.DataFrame, pair: tuple[str, str], pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Return a row for each seed and tensor: overlap, chance levels and floor of some pairs, and the distances.

    Columns: ``seed``, ``tensor``, ``layer``, ``type``, ``LEVELS`` and ``DISTANCES``.
    """
    floors = overlaps[overlaps["floor"].astype(bool)]
    shared = floors[floors["first"].isin(pair) | floors["second"].isin(pair)]
    same_kind = (floors if shared.empty else shared)[["first", "second"]].drop_duplicates()
    names = [_unordered(first, second) for first, second in zip(overlaps["first"], overlaps["second"], strict=True)]
    by_pair = overlaps.assign(pair=names).set_index(["seed", "tensor", "layer", "type", "pair"])
    wide = pd.DataFrame(by_pair[["overlap", "chance", "matched_chance"]].astype(float).unstack("pair"))
    frame = pd.DataFrame({name: _mean_of(wide, pairs, name) for name in ("overlap", "chance", "matched_chance")})
    frame = frame.where(frame["overlap"].notna())
    floor = _mean_of(wide, list(same_kind.itertuples(index=False, name=None)), "overlap")
    return frame.assign(
        floor=floor,
        from_matched=frame["overlap"] - frame["matched_chance"],
        from_floor=frame["overlap"] - floor,
        from_midpoint=frame["overlap"] - (floor + frame["matched_chance"]) / 2,
        scale=floor - frame["matched_chance"],
    ).reset_index()


def _mean_of(wide: pd.DataFrame, pairs: list[tuple[str, str]], measure: str) -> pd.Series:
    """Average a measure over pairs, NaN in a tensor where one of them lacks it, or where there are none."""
    columns = pd.MultiIndex.from_tuples([(measure, _unordered(*pair)) for pair in pairs], names=wide.columns.names)
    return wide.reindex(columns=columns).mean(axis=1, skipna=False) if pairs else pd.Series(np.nan, index=wide.index)


def _unordered(first: str, second: str) -> str:
    return "|".join(sorted((first, second)))


def _summaries(tensors: pd.DataFrame, by: By) -> list[dict[str, Any]]:
    """Average each cell's tensors within a seed, then over seeds."""
    measures = [*LEVELS, *DISTANCES]
    cells = _cells(tensors, by)
    grouped = cells.groupby([by, "seed"], sort=False)
    means = grouped[measures].mean().assign(n=grouped["overlap"].count(), rows=grouped.size())
    rows = []
    for name in sorted(cells[by].unique(), key=lambda cell: _order_of(by, cell)):
        within = means.loc[name]
        row: dict[str, Any] = {"cell": str(name), "tensors": float(within["n"].mean())}
        row["undefined"] = int((within["rows"] - within["n"]).sum())
        for measure in measures:
            interval = t_interval(within[measure])
            row |= {measure: interval.mean, f"{measure}_reach": interval.reach, f"{measure}_seeds": interval.n}
        rows.append(row | {"power": _power(t_interval(within["from_midpoint"]), row["scale"] / 2)})
    return rows


def _power(from_midpoint: Interval, margin: float) -> float:
    """Return P(t > t_(0.975, n-1)) of a noncentral t whose mean is the margin and whose spread is that of the seeds."""
    reach = from_midpoint.reach
    if np.isnan(reach) or not margin > 0:
        return np.nan
    least = t_quantile(from_midpoint.n - 1)
    return float(stats.nct.sf(least, from_midpoint.n - 1, margin * least / reach)) if reach > 0 else 1.0
