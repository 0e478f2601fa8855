"""The comparisons that figures, tables and the reading share: tables in, tables out; missing stays NaN."""

import numpy as np
import pandas as pd

CONFIGURATION = ["group", "subspace", "method", "fraction"]
# The three measures that a projection is judged by: utility, the judged harm score, and the refusal margin, which moves
# before the judged score does.
COMPARED = ("utility", "harm_score", "refusal_margin")
# Prompts and independent groups of prompts of each set.
SAMPLE_SIZES = tuple(f"{kind}_{name}" for kind in ("n", "n_groups") for name in ("utility", "harmful", "benign"))
PAIR = ["analysis", "first", "second"]
# At these energies both subspaces keep everything or nothing, whatever their directions: nothing to compare.
TRIVIAL_ENERGY = 1e-3


def selectivity(projections: pd.DataFrame) -> pd.DataFrame:
    """Compare top-k with random subspaces of equal energy, configuration by configuration.

    Returns:
        One row for each group, method and fraction that has both: for each measure the *difference* (top
        minus the mean over the scored draws of random-energy), the *error* of the difference that the draws leave
        (their standard deviation, NaN below two, over ``sqrt(draws)``) and the number of *draws*; and the energy that
        each side keeps. Columns: ``group``, ``method``, ``fraction``, ``energy_top``, ``energy_random``, and
        ``<measure>_difference``, ``<measure>_error`` and ``<measure>_draws`` for each of ``COMPARED``.
    """
    rows = []
    for keys, cell in projections.groupby(["group", "method", "fraction"], sort=False):
        top = cell[cell["subspace"] == "top"]
        control = cell[cell["subspace"] == "random-energy"]
        if top.empty or control.empty:
            continue
        row = dict(zip(("group", "method", "fraction"), keys, strict=True))
        row |= {"energy_top": top["energy_kept"].mean(), "energy_random": control["energy_kept"].mean()}
        for measure in COMPARED:
            drawn = control[measure].dropna().astype(float)
            row[f"{measure}_difference"] = top[measure].astype(float).mean() - drawn.mean()
            row[f"{measure}_error"] = drawn.std(ddof=1) / max(len(drawn), 1) ** 0.5
            row[f"{measure}_draws"] = len(drawn)
        rows.append(row)
    names = [f"{m}_{kind}" for m in COMPARED for kind in ("difference", "error", "draws")]
    return pd.DataFrame(rows, columns=["group", "method", "fraction", "energy_top", "energy_random", *names])


def selectivity_by_draw(projections: pd.DataFrame) -> pd.DataFrame:
    """Compare top-k with each draw of random-energy alone, for intervals over draws.

    Returns:
        One row for each group, method, fraction and draw: for each measure top minus that draw, under the measure's
        own name, NaN where either is unscored. Columns: ``group``, ``method``, ``fraction``, ``draw``, ``COMPARED``.
    """
    cell = ["group", "method", "fraction"]
    top = projections[projections["subspace"] == "top"].groupby(cell, sort=False)[list(COMPARED)].mean()
    drawn = projections[projections["subspace"] == "random-energy"].set_index([*cell, "draw"])[list(COMPARED)]
    paired = drawn.reset_index("draw").join(top, how="inner", lsuffix="_drawn").reset_index()
    differences = {m: paired[m].astype(float) - paired[f"{m}_drawn"].astype(float) for m in COMPARED}
    return paired[[*cell, "draw"]].assign(**differences)


def without_trivial(differences: pd.DataFrame) -> pd.DataFrame:
    """Leave out the rows where both sides keep all or none of the energy (``energy_top`` and ``energy_random``)."""
    low = differences[["energy_top", "energy_random"]].min(axis=1)
    high = differences[["energy_top", "energy_random"]].max(axis=1)
    return differences[(high > TRIVIAL_ENERGY) & (low < 1 - TRIVIAL_ENERGY)]


def in_blocks(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Keep the matrices in the blocks: norms are one direction, embeddings and head have other chance levels."""
    return overlaps[(overlaps["layer"] >= 0) & (overlaps["type"] != "norm")]


def overlap_by(overlaps: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Average overlaps over tensors, per pair, energy and the named columns (``layer`` or ``type``).

    Every tensor counts once. ``n`` is the number of tensors with an overlap and ``n_undefined`` of those
    without (an update of zero has no direction).

    Columns: ``PAIR``, ``energy``, the named ones, ``floor``, ``overlap`` with ``overlap_error``, ``chance``,
    ``matched_chance``, ``share_significant`` (of tensors with a ``p_matched`` below 0.05), ``n`` and ``n_undefined``.
    """
    rows = []
    names = [*PAIR, "energy", *keys]
    for values, cell in overlaps.groupby(names, sort=True):
        defined = cell[cell["overlap"].notna()]
        p_matched = defined["p_matched"].dropna().astype(float)
        rows.append(
            dict(zip(names, values, strict=True))
            | {
                "floor": bool(cell["floor"].any()),
                "overlap": defined["overlap"].mean(),
                "overlap_error": defined["overlap"].sem() if len(defined) > 1 else np.nan,
                "chance": defined["chance"].mean(),
                "matched_chance": defined["matched_chance"].mean(),
                # 5 %: that many tensors are expected below it where there is nothing to find.
                "share_significant": (p_matched < 0.05).mean() if len(p_matched) else np.nan,
                "n": len(defined),
                "n_undefined": len(cell) - len(defined),
            }
        )
    added = ("floor", "overlap", "overlap_error", "chance", "matched_chance", "share_significant", "n", "n_undefined")
    return pd.DataFrame(rows, columns=[*names, *added])


def nearest_energy(overlaps: pd.DataFrame, wanted: float = 0.9) -> float:
    """Return the energy share in the table that is nearest to ``wanted`` (0.9, the design's own)."""
    energies = sorted(float(energy) for energy in overlaps["energy"].dropna().unique())
    return min(energies, key=lambda energy: abs(energy - wanted))
