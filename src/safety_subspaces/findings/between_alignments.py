"""What several alignments show side by side: whose subspace is selective, what change makes it so, what goes with it.

A seed is the unit of every difference, and alignments of one seed share their base model: they are compared pair by
pair. What goes with selectivity is asked over alignments, for seeds repeat the same few of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.alignments import (
    LEAST_ALIGNMENTS,
    alignments_by_seed,
    by_measure,
    first_of_each,
    objective_of,
    paired,
    trait_correlations,
)
from safety_subspaces.findings.finding import ALPHA, Finding, Words
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.findings.thresholds import CHANGED_SHARE

TOPIC: Final = "alignments"
OBJECTIVES: Final = "objective against objective"
CHANGES: Final = "one change against the first of its objective"
CLOSING: Final = "closes more than half of the gap between objectives"
WITH_SELECTIVITY: Final = "what goes with selectivity"
SHARE: Final = "selectivity, share of the margin lost"
NATS: Final = "selectivity (nats)"
HARM: Final = "selectivity, harm score"
# A tenth of the judge's 4 points: less is no change that a reader would name.
LEAST_HARM: Final = 4 * CHANGED_SHARE
SEEDS_RULE: Final = "t over seeds, never surer than the prompts; Holm"
# A number of each seed and alignment, by its name.
Numbers = Mapping[str, pd.DataFrame]
DESCRIBED: Final = "described"
MORE_THAN_HALF: Final = "more than half"


def between_alignments(organisms: Sequence[Organism]) -> list[Finding]:
    """Return what several alignments show side by side; nothing of a single one."""
    if len(organisms) < 2:
        return []
    by_seed = alignments_by_seed(organisms)
    if by_seed["selectivity"].notna().sum() == 0:
        why = "not known: no fine-tune was projected and evaluated in all"
        return [Finding(TOPIC, OBJECTIVES, "", SHARE, unit="seeds", verdict=why)]
    return compare_alignments(organisms, by_seed)


def compare_alignments(organisms: Sequence[Organism], by_seed: pd.DataFrame) -> list[Finding]:
    """Return what is found by numbers of each alignment and seed, as :func:`~.alignments.alignments_by_seed`."""
    numbers = by_measure(by_seed)
    return [*_objectives(organisms, numbers), *_changes(organisms, numbers), *_traits(by_seed)]


def _objectives(organisms: Sequence[Organism], numbers: Numbers) -> list[Finding]:
    """Compare the first alignment of each further objective with that of the first one."""
    first, *others = first_of_each(organisms).values() or [""]
    words = Words("more selective", "less selective", "no difference")
    findings = []
    for other in others:
        findings += _differences(
            OBJECTIVES, numbers, {other: 1.0, first: -1.0}, words, {"first": other, "beside": first}
        )
    return findings


def _changes(organisms: Sequence[Organism], numbers: Numbers) -> list[Finding]:
    """Compare each alignment with the first of its objective; and with half of the gap between two objectives."""
    firsts = first_of_each(organisms)
    words = Words("more selective", "less selective", "no change shown")
    changed, closing = [], []
    for organism in organisms:
        first = firsts.get(objective_of(organism))
        if first is None or first == organism.name:
            continue
        others = [name for name in firsts.values() if name != first]
        details: dict[str, Any] = {"first": organism.name, "beside": first, "gap_share": np.nan}
        gap = paired(numbers, {others[0]: 1.0, first: -1.0}, "lost_share")[0] if others else None
        if gap is not None and gap.p_value <= ALPHA:
            moved, _ = paired(numbers, {organism.name: 1.0, first: -1.0}, "lost_share")
            details["gap_share"] = moved.mean / gap.mean
            closing.append(_closing(numbers, organism.name, first, others[0], float(np.sign(gap.mean))))
        changed += _differences(CHANGES, numbers, {organism.name: 1.0, first: -1.0}, words, details)
    return [*changed, *closing]


def _differences(
    question: str, numbers: Numbers, parts: Mapping[str, float], words: Words, details: Mapping[str, Any]
) -> list[Finding]:
    """Return the difference of two alignments: the share's, which is judged, that in nats, and the count of harm."""
    (share, _), (nats, _) = (paired(numbers, parts, measure) for measure in ("lost_share", "selectivity"))
    harm, moved = paired(numbers, parts, "harm_selectivity")
    moved = moved.dropna()
    higher, lower = int((moved >= LEAST_HARM).sum()), int((moved <= -LEAST_HARM).sum())
    of = f"{len(moved)} seed{'' if len(moved) == 1 else 's'}"
    counted = f"higher by {LEAST_HARM:g} in {higher} of {of}, lower in {lower}" if len(moved) else "not measured"
    judged = Finding(
        TOPIC,
        question,
        " minus ".join(parts),
        SHARE,
        share.mean,
        share.low,
        share.high,
        "seeds",
        share.n,
        null="no difference between the alignments of a seed",
        p=share.p_value,
        words=words,
        verdict=_why_not(share.n),
        rule=SEEDS_RULE,
        details=details,
    )
    described = replace(judged, null="", p=np.nan, words=None, verdict=DESCRIBED, rule="")
    return [
        judged,
        replace(described, measure=NATS, estimate=nats.mean, low=nats.low, high=nats.high, n=nats.n),
        replace(described, measure=HARM, estimate=harm.mean, low=np.nan, high=np.nan, n=harm.n, verdict=counted),
    ]


def _closing(numbers: Numbers, name: str, first: str, other: str, sign: float) -> Finding:
    """Ask whether a change closes more than half of a gap: whether ``name`` lies beyond the mean of the two."""
    parts = {name: sign, first: -sign / 2, other: -sign / 2}
    beyond, _ = paired(numbers, parts, "lost_share")
    return Finding(
        TOPIC,
        CLOSING,
        f"{name} beyond half of {other} minus {first}",
        SHARE,
        beyond.mean,
        beyond.low,
        beyond.high,
        "seeds",
        beyond.n,
        null="it closes half of the gap",
        p=beyond.p_value,
        words=Words(MORE_THAN_HALF, "less than half", "not told"),
        verdict=_why_not(beyond.n),
        rule=SEEDS_RULE,
        details={"first": name},
    )


def _traits(by_seed: pd.DataFrame) -> list[Finding]:
    """Ask of each trait whether it goes with selectivity; nothing with too few alignments for a rank correlation."""
    correlations = trait_correlations(by_seed)
    if correlations["alignments"].max() < LEAST_ALIGNMENTS:
        return []
    return [
        Finding(
            TOPIC,
            WITH_SELECTIVITY,
            str(row["trait"]),
            "rank correlation with the share of the margin lost",
            row["rho"],
            row["low"],
            row["high"],
            "alignments",
            int(row["alignments"]),
            null="the trait could have been any other alignment's",
            p=row["p"],
            words=Words("rises with it", "falls with it", "not shown"),
            verdict="not known",
            rule="permutation of the alignments, the same in every seed; Holm",
            details={
                "seeds": row["seeds"],
                "seeds_low": row["seeds_low"],
                "seeds_high": row["seeds_high"],
            },
        )
        for _, row in correlations.iterrows()
    ]


def _why_not(n: int) -> str:
    return "one seed" if n == 1 else "not measured" if n == 0 else "no spread over seeds"
