"""Does steering along a direction do more than along random directions of the same length, at the same cost.

In one study the direction is one among exchangeable random ones: without 19 of them no rank is rare enough for a
verdict. With several seeds the layers of a seed are averaged, and a seed is the unit.
"""

from typing import Final

import numpy as np

from safety_subspaces.findings.finding import UNKNOWN, Finding, Words
from safety_subspaces.findings.intervals import LEAST_DRAWS
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.steering import COMPARISON, JUMPING, compared, read_steering
from safety_subspaces.findings.thresholds import LEAST_DIFFERENCE

TOPIC: Final = "steering"
SELECTIVITY: Final = "steering beside random directions"
WORDS: Final = Words("higher", "lower", "not shown to differ")
RANKED: Final = "rank among the random directions, and over prompts; both at most 0.05"
COUNTED: Final = f"a count of differences of at least {LEAST_DIFFERENCE['harm_score']:g} points"


def counted(seeds: int, above: int, below: int) -> str:
    """Return in how many seeds a measure that jumps is higher, and lower."""
    if seeds in (above, below):
        return f"{'higher' if above == seeds else 'lower'} in every seed"
    return f"higher in {above} of {seeds} seeds, lower in {below}"


def steering(studies: Seeds) -> list[Finding]:
    """Return for each comparison whether the direction moves a measure more, or less, than random ones do."""
    read, several, findings = read_steering(studies.named), len(studies.studies) > 1, []
    for _, row in compared(read).iterrows():
        missing, draws = np.isnan(row["selectivity"]), int(np.nan_to_num(row["n_draws"]))
        why = f"{UNKNOWN}: {row['reason'] or 'no value'}" if missing else UNKNOWN
        if not several and not missing and draws < LEAST_DRAWS:
            why = f"{UNKNOWN}: {draws} random directions, {LEAST_DRAWS} needed"
        is_counted = several and row["measure"] == JUMPING
        if is_counted and not missing:
            why = counted(int(row["seeds"]), int(row["above"]), int(row["below"]))
        sign = f" ({row['sign']})" if row["sign"] else ""
        matched = f", equal {row['matched_on']}" if row["matched_on"] else ""
        layer = "" if several else f", layer {row['layer']}"
        findings.append(
            Finding(
                topic=TOPIC,
                question=SELECTIVITY,
                subject=f"{row['intervention']}{sign} of {row['direction']} in {row['model']}{layer}{matched}",
                measure=str(row["measure"]),
                estimate=float(row["selectivity"]),
                low=float(row["low"]),
                high=float(row["high"]),
                unit="seeds" if several else "random directions",
                n=int(row["seeds"]) if several else draws,
                null="" if is_counted else "the direction is one of the random ones",
                p=float(row["p"]),
                words=WORDS,
                verdict=why,
                rule=COUNTED if is_counted else "t over seeds" if several else RANKED,
                draws=0 if several else draws,
                details={
                    **{name: str(row[name]) for name in (*COMPARISON, "layer")},
                    **{name: float(row[name]) for name in ("n", "n_draws", "reserved")},
                    "reason": row["reason"] or "",
                },
            )
        )
    return findings
