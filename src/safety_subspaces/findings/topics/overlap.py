"""Do the updates of two kinds of fine-tune overlap: beside chance by two nulls, and beside two of one kind.

With several seeds the unit is a seed. In one study the tensors of a model are no replicates of each other, so nothing
varies over them: what a null says of one tensor (random signs of its rows, independent ones for each tensor) is summed
over the tensors instead, and whether a pair lies nearer to chance or to two of one kind is shown and not tested.
"""

from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.finding import UNKNOWN, Finding, Words
from safety_subspaces.findings.intervals import interval_of, normal_p_value
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.overlaps import AS_NAMED, LEVELS, distances_over_seeds

TOPIC: Final = "overlap"
ABOVE: Final = Words("above chance", "below chance", "not shown to differ from chance")
NEARER: Final = Words("as the same kind", "apart", "undecided")
MIDPOINT: Final = "nearer to chance or to two of one kind"
# What is asked of each distance: the question, and what its null keeps of the two updates.
CHANCES: Final = {
    "from_matched": (
        "overlap above matched chance",
        "the two updates share the sizes of their rows, and nothing else (random signs of rows)",
    ),
    "from_covariance": (
        "overlap above the chance of a shared covariance",
        "the two updates share the covariance of their rows, as a reference update has it, and nothing else",
    ),
}


def overlap(studies: Seeds) -> list[Finding]:
    """Return for each pair of two kinds where it lies, in blocks, output head and embeddings, then place by place."""
    return overlap_findings(studies.overlaps)


def overlap_findings(overlaps: pd.DataFrame) -> list[Finding]:
    """Return the findings on a table of overlaps, with a column ``seed``."""
    findings = []
    for _, row in distances_over_seeds(overlaps).iterrows():
        is_part = row["by"] == "part"
        findings += [_above(row, name, "" if is_part else ", place by place") for name in CHANCES if _has(row, name)]
        findings.append(_nearer(row, "" if is_part else ", place by place"))
    return findings


def _above(row: pd.Series, distance: str, places: str) -> Finding:
    """Say whether an overlap differs from its level under a null."""
    question, null = CHANCES[distance]
    over, spread = interval_of(row, distance), float(row[f"{distance}_sd"])
    several = over.n > 1
    p = over.p_value if several else normal_p_value(over.mean, spread)
    why = "no control was run" if over.n == 0 else "the control has no spread"
    return Finding(
        topic=TOPIC,
        question=f"{question}{places}",
        subject=_subject(row),
        measure=f"overlap at energy {row['energy']:g}",
        estimate=over.mean,
        low=over.low,
        high=over.high,
        unit="seeds" if several else "draws of the null, summed over tensors",
        n=over.n if several else int(row["tensors"]),
        null=null,
        p=p,
        words=ABOVE,
        verdict=UNKNOWN if not np.isnan(p) else f"unknown: {why}",
        rule="t over seeds" if several else "overlap minus its mean under the null, over its deviation there: normal",
        details=_details(row),
    )


def _nearer(row: pd.Series, places: str) -> Finding:
    """Say on which side of the mark half-way between matched chance and the floor a pair lies."""
    over, why = interval_of(row, "from_midpoint"), _why_unknown(row)
    return Finding(
        topic=TOPIC,
        question=f"{MIDPOINT}{places}",
        subject=_subject(row),
        measure=f"overlap at energy {row['energy']:g}",
        estimate=over.mean,
        low=over.low,
        high=over.high,
        unit="seeds",
        n=over.n,
        null="the overlap lies half-way between matched chance and two of one kind",
        p=np.nan if why else over.p_value,
        words=NEARER,
        verdict=f"unknown: {why}" if why else UNKNOWN,
        rule="t over seeds; only where two of one kind lie above matched chance",
        details=_details(row) | {"power": None if np.isnan(row["power"]) else float(row["power"])},
    )


def _has(row: pd.Series, distance: str) -> bool:
    """Tell whether a null was run; the matched one is always asked for."""
    return distance == "from_matched" or not np.isnan(row[distance])


def _subject(row: pd.Series) -> str:
    place = f"layer {row['cell']}" if row["by"] == "layer" else str(row["cell"])
    return f"{row['pairs']}, {place} ({row['analysis']})"


def _details(row: pd.Series) -> dict[str, Any]:
    levels = {name: float(row[name]) for name in LEVELS}
    reaches = {f"{name}_reach": float(row[f"{name}_reach"]) for name in LEVELS}
    names = {name: str(row[name]) for name in ("analysis", "first", "second", "pairs", "by", "cell")}
    counted = {"tensors": float(row["tensors"]), "undefined": int(row["undefined"]), "energy": float(row["energy"])}
    return names | levels | reaches | counted | {"repeated": row["pairing"] != AS_NAMED}


def _why_unknown(row: pd.Series) -> str:
    """Return why a pair cannot be judged between matched chance and floor; nothing where it can."""
    if row["overlap_seeds"] == 0:
        return "no overlap is defined"
    if np.isnan(row["floor"]):
        return "no two of one kind were measured"
    if np.isnan(row["from_matched"]):
        return "no matched control was run"
    if row["from_midpoint_seeds"] < 2:
        return "one seed has no interval" if row["overlap_seeds"] < 2 else "fewer than two seeds have all three"
    # Where two of one kind overlap no more than chance does, there is no way to be half-way along.
    return "" if interval_of(row, "scale").sign > 0 else "two of one kind are not shown to lie above matched chance"
