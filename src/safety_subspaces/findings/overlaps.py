"""Overlaps of useful and harmful updates over seeds: where a pair lies between matched chance and its own floors.

Tables in, tables out; missing stays NaN. A seed is the unit: tensors are averaged within it, every tensor once, before
anything is said over seeds. ``overlaps`` is the table of :class:`Study` for one organism, with a column ``seed``.

The pair that is judged is the one without a repeat, useful and harmful: the runs that every other table of a study
shows. A repeat is the second of a floor. The four pairs across the kinds share updates, so averaging them would add no
unit. But the two runs of a pair share the seed of their data, and of their adapter, which no floor does. So the pairs
in which one of the two is replaced by its repeat are judged beside it, as ``ONE_REPEATED``: like the floors, they
differ in their seed.
"""

from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.findings.comparisons import PAIR, in_blocks, nearest_energy
from safety_subspaces.findings.intervals import Interval, t_interval, t_quantile

By = Literal["part", "layer", "type"]
PARTS: Final = ("blocks", "head", "embeddings")
TYPES: Final = ("embeddings", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other")
AS_NAMED: Final = "as named"
ONE_REPEATED: Final = "one repeated"
# Differences are taken tensor by tensor within a seed. The scale is how far the floor lies above matched chance; the
# midpoint, half the way between them, is the margin that was set before any seed was looked at.
LEVELS: Final = ("overlap", "chance", "matched_chance", "covariance_chance", "floor")
DISTANCES: Final = ("from_matched", "from_covariance", "from_floor", "from_midpoint", "scale")
# How far the overlap of one tensor moves under a null, by the distance from its mean.
SPREADS: Final = {"from_matched": "matched_sd", "from_covariance": "covariance_sd"}
READ: Final = ("overlap", "chance", "matched_chance", "covariance_chance", *SPREADS.values())


def distances_over_seeds(overlaps: pd.DataFrame, energy: float | None = None) -> pd.DataFrame:
    """Place each cross-kind pair between matched chance and floor at an energy share, paired within a seed.

    The floor of a pair is the mean of the same-kind pairs that share a label with it, or of all where none does; it is
    NaN in a tensor where any of them is missing or undefined, since kinds differ in their floors.

    Args:
        overlaps: The table, with a column ``seed``.
        energy: A share that it has; by default the one nearest to 0.9.

    Returns:
        A row for each analysis, pair, ``by`` (part, layer or type) and ``cell``; ``pairing`` is ``AS_NAMED``, and by
        part ``ONE_REPEATED`` as well, and ``pairs`` names the pairs behind it. ``tensors`` is the mean number of a
        seed, ``undefined`` the number of tensors without an overlap, all seeds together. Each of ``LEVELS`` and
        ``DISTANCES`` is a mean over seeds with its ``_reach`` (half the 95 % t interval) and ``_seeds``. ``power`` is
        the probability that as many seeds, spread as these, would show an overlap that lies at the floor to lie above
        the midpoint. ``<distance>_sd`` is how far the mean over tensors would move under the null of that distance if
        the tensors' draws are independent, in one seed: ``sqrt(sum sd^2) / tensors``, mean over seeds.
    """
    rows: list[dict[str, Any]] = []
    for analysis, first, second in cross_pairs(overlaps):
        rows_of_run = overlaps[overlaps["analysis"] == analysis]
        one_repeated = _pairs_with_a_repeat(rows_of_run, first, second)
        share = nearest_energy(rows_of_run) if energy is None else energy
        rows_of_run = rows_of_run[rows_of_run["energy"] == share]
        names = {"analysis": analysis, "first": first, "second": second, "energy": share}
        said = {AS_NAMED: _in_words([(first, second)]), ONE_REPEATED: _in_words(one_repeated)}
        tensors = _distances(rows_of_run, (first, second), [(first, second)])
        for by in ("part", "layer", "type"):
            rows += [
                names | {"pairing": AS_NAMED, "pairs": said[AS_NAMED], "by": by} | row
                for row in _summaries(tensors, by)
            ]
        mixed = _distances(rows_of_run, (first, second), one_repeated)
        if mixed["overlap"].notna().any():
            identity = names | {"pairing": ONE_REPEATED, "pairs": said[ONE_REPEATED], "by": "part"}
            rows += [identity | row for row in _summaries(mixed, "part")]
    columns = [*PAIR, "pairing", "pairs", "energy", "by", "cell"]
    measured = [name for m in (*LEVELS, *DISTANCES) for name in (m, f"{m}_reach", f"{m}_seeds")]
    spreads = [f"{distance}_sd" for distance in SPREADS]
    return pd.DataFrame(rows, columns=[*columns, "tensors", "undefined", *measured, *spreads, "power"])


def cross_pairs(overlaps: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return analysis, first and second of every pair of two kinds without a repeat, as the analyses ask for them."""
    seen = overlaps[~overlaps["floor"].astype(bool)][PAIR].drop_duplicates().astype(str)
    repeats = {analysis: repeats_in(rows) for analysis, rows in overlaps.groupby("analysis", sort=False)}
    return [
        (analysis, first, second)
        for analysis, first, second in seen.itertuples(index=False, name=None)
        if first not in repeats[analysis] and second not in repeats[analysis]
    ]


def repeats_in(overlaps: pd.DataFrame) -> dict[str, str]:
    """Map each label that stands second in a floor of an analysis to the run that it repeats."""
    floors = overlaps[overlaps["floor"].astype(bool)][["first", "second"]].drop_duplicates().astype(str)
    repeats: dict[str, str] = {}
    for first, second in floors.itertuples(index=False, name=None):
        repeats.setdefault(second, repeats.get(first, first))
    return repeats


def _pairs_with_a_repeat(overlaps: pd.DataFrame, first: str, second: str) -> list[tuple[str, str]]:
    """Return the pairs in which one of two runs, and not the other, is replaced by a repeat of its own."""
    repeats = repeats_in(overlaps)
    seconds = [(first, label) for label, of in repeats.items() if of == second]
    return [*seconds, *((label, second) for label, of in repeats.items() if of == first)]


def _in_words(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{first} and {second}" for first, second in pairs)


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

    Columns: ``seed``, ``tensor``, ``layer``, ``type``, ``LEVELS``, ``DISTANCES`` and the spreads of ``SPREADS``.
    """
    floors = overlaps[overlaps["floor"].astype(bool)]
    shared = floors[floors["first"].isin(pair) | floors["second"].isin(pair)]
    same_kind = (floors if shared.empty else shared)[["first", "second"]].drop_duplicates()
    names = [_unordered(first, second) for first, second in zip(overlaps["first"], overlaps["second"], strict=True)]
    by_pair = overlaps.assign(pair=names).set_index(["seed", "tensor", "layer", "type", "pair"])
    wide = pd.DataFrame(by_pair.reindex(columns=list(READ)).astype(float).unstack("pair"))
    frame = pd.DataFrame({name: _mean_of(wide, pairs, name) for name in READ})
    frame = frame.where(frame["overlap"].notna())
    floor = _mean_of(wide, list(same_kind.itertuples(index=False, name=None)), "overlap")
    return frame.assign(
        floor=floor,
        from_matched=frame["overlap"] - frame["matched_chance"],
        from_covariance=frame["overlap"] - frame["covariance_chance"],
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
    for distance, spread in SPREADS.items():
        known = cells[cells[distance].notna()].groupby([by, "seed"], sort=False)[spread]
        means[f"{distance}_sd"] = known.agg(lambda sd: np.sqrt(np.sum(sd**2)) / len(sd))
    rows = []
    for name in sorted(cells[by].unique(), key=lambda cell: _order_of(by, cell)):
        within = means.loc[name]
        row: dict[str, Any] = {"cell": str(name), "tensors": float(within["n"].mean())}
        row["undefined"] = int((within["rows"] - within["n"]).sum())
        for measure in measures:
            interval = t_interval(within[measure])
            row |= {measure: interval.mean, f"{measure}_reach": interval.reach, f"{measure}_seeds": interval.n}
        row |= {f"{distance}_sd": float(within[f"{distance}_sd"].mean()) for distance in SPREADS}
        rows.append(row | {"power": _power(t_interval(within["from_midpoint"]), row["scale"] / 2)})
    return rows


def _power(from_midpoint: Interval, margin: float) -> float:
    """Return P(t > t_(0.975, n-1)) of a noncentral t whose mean is the margin and whose spread is that of the seeds."""
    reach = from_midpoint.reach
    if np.isnan(reach) or not margin > 0:
        return np.nan
    least = t_quantile(from_midpoint.n - 1)
    return float(stats.nct.sf(least, from_midpoint.n - 1, margin * least / reach)) if reach > 0 else np.nan
