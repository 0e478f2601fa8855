"""The comparisons that figures, tables and the reading share: tables in, tables out; missing stays NaN."""

import numpy as np
import pandas as pd

from safety_subspaces.findings.thresholds import ENERGY_GAP

# The three measures that a projection is judged by: utility, the judged harm score, and the refusal margin, which moves
# before the judged score does.
COMPARED = ("utility", "harm_score", "refusal_margin")
# Prompts and independent groups of prompts of each set.
SAMPLE_SIZES = tuple(f"{kind}_{name}" for kind in ("n", "n_groups") for name in ("utility", "harmful", "benign"))
PAIR = ["analysis", "first", "second"]
# At these energies both subspaces keep everything or nothing, whatever their directions: nothing to compare.
TRIVIAL_ENERGY = 1e-3


def selectivity_by_draw(projections: pd.DataFrame) -> pd.DataFrame:
    """Compare top-k with each draw of random-energy alone.

    A draw is left out that was not evaluated (its energy alone is known), or whose own energy is not top-k's: it misses
    that by more than ``ENERGY_GAP``.

    Returns:
        One row for each group, method, fraction and draw: for each measure top minus that draw, under the measure's
        own name, NaN where either is unscored. Columns: ``group``, ``method``, ``fraction``, ``draw``, ``COMPARED``.
    """
    cell, compared = ["group", "method", "fraction"], [*COMPARED, "energy_kept"]
    numbers = projections.astype(dict.fromkeys(compared, float))
    top = numbers[numbers["subspace"] == "top"].groupby(cell, sort=False)[compared].mean()
    drawn = numbers[numbers["subspace"] == "random-energy"].set_index([*cell, "draw"])[compared]
    paired = drawn.reset_index("draw").join(top, how="inner", lsuffix="_drawn").reset_index()
    is_evaluated = paired[[f"{measure}_drawn" for measure in COMPARED]].notna().any(axis=1)
    is_equal = ~((paired["energy_kept"] - paired["energy_kept_drawn"]).abs() > ENERGY_GAP)
    paired = paired[is_evaluated & is_equal]
    return paired[[*cell, "draw"]].assign(**{m: paired[m] - paired[f"{m}_drawn"] for m in COMPARED})


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
