"""What training under a constraint shows: did a run keep safety, at what cost, and does alignment's subspace matter.

That one subspace is more selective than another is a statement about training runs, which differ among themselves more
than their prompts tell: one run a side makes no verdict. Refusal margin and utility are judged together: each
comparison has one p, and the comparisons of a page are one family. The judged score, which jumps from one end of its
scale to the other, is counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.control_runs import (
    JOINT,
    KEY,
    NO_DIFFERENCE,
    Comparison,
    control_comparisons,
    difference_interval,
    main_cells,
)
from safety_subspaces.findings.finding import Finding, Words
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.safety import KEPT_SHARE, LOST_SHARE, safety_by_run
from safety_subspaces.findings.thresholds import LEARNT_DROP

TOPIC: Final = "constraint"
SAFETY: Final = "did it keep safety"
BESIDE_NONE: Final = "beside no constraint"
BESIDE_RANDOM: Final = "beside a random subspace"
RANK_BY_RANK: Final = "beside a random subspace, rank by rank"
MEASURES: Final = {"refusal_margin": "refusal margin (nats)", "utility": "utility", "harm_score": "harm score (1 to 5)"}
# What is said of a run itself; the rest describes it.
JUDGEMENT: Final = ("share", "low", "high", "groups", "verdict")
DESCRIBED: Final = "described"


def constraint(studies: Seeds) -> list[Finding]:
    """Return what the runs under a constraint show; nothing of studies that evaluated none."""
    if studies.runs.empty:
        return []
    return [*_safety(studies), *_beside_none(studies), *beside_random(studies)]


def beside_random(studies: Seeds) -> list[Finding]:
    """Judge each run held by alignment's subspace beside its random controls, and in another family rank by rank."""
    main, of_ranks = control_comparisons(studies)
    return [*_judged(studies, BESIDE_RANDOM, main), *_judged(studies, RANK_BY_RANK, of_ranks)]


def _safety(studies: Seeds) -> list[Finding]:
    rule = f"what its own 95 % interval leaves: below {KEPT_SHARE:g} kept, above {LOST_SHARE:g} not kept"
    findings = []
    for _, run in safety_by_run(studies).iterrows():
        seed = f", seed {run['seed']}" if len(studies.studies) > 1 else ""
        finding = Finding(
            TOPIC,
            SAFETY,
            f"{_held(run)}{seed}",
            "share of the harm that the unconstrained run regained",
            float(run["share"]),
            float(run["low"]),
            float(run["high"]),
            unit="groups of prompts",
            n=int(run["groups"]),
            verdict=str(run["verdict"]),
            rule=rule,
            details={str(name): value for name, value in run.items() if name not in JUDGEMENT},
        )
        findings.append(finding)
    return findings


def _beside_none(studies: Seeds) -> list[Finding]:
    """Describe how far each run is from the same training without a constraint."""
    findings = []
    cells, _ = main_cells(studies.differences[studies.differences["other"] == "none"])
    for rows in cells:
        for measure in JOINT:
            findings.append(_described(BESIDE_NONE, rows, measure, *difference_interval(rows, measure)))
        findings.append(_harm(BESIDE_NONE, rows))
    return findings


def _judged(studies: Seeds, question: str, comparisons: Sequence[Comparison]) -> list[Finding]:
    """Return the margin's finding of each comparison, with the verdict; of the main ones utility and harm beside it."""
    tests = sum(one.is_tested for one in comparisons)
    has_more = _has_more_directions(studies.runs)
    findings = []
    for one in comparisons:
        margin, utility = (_described(question, one.rows, m, one.intervals[m], one.unit) for m in JOINT)
        p, word = one.judged(tests)
        has_more_here = has_more and one.rows["other"].iloc[0] == "random-energy"
        own = {f"p_{m}": value for m, value in zip(JOINT, one.p_values, strict=True)}
        judged = replace(
            margin,
            null=one.null if one.is_tested else "",
            p=p,
            words=Words(word, word, NO_DIFFERENCE),
            verdict=one.why,
            rule="margin and utility together: the surer of the two, corrected for being two; Holm over comparisons",
            family=f"{TOPIC}, {question}",
            details={**margin.details, **own, "random_has_more_directions": has_more_here},
        )
        findings += [judged] if question == RANK_BY_RANK else [judged, utility, _harm(question, one.rows)]
    return findings


def _described(question: str, rows: pd.DataFrame, measure: str, interval: Interval, unit: str) -> Finding:
    """Return a difference with its interval, which nothing is decided of."""
    row = rows.iloc[0]
    prompts = "utility" if measure == "utility" else "harmful"
    n = int(np.nan_to_num(row[f"groups_{prompts}"])) if unit == "groups of prompts" else interval.n
    return Finding(
        TOPIC,
        question,
        _held(row),
        MEASURES[measure],
        interval.mean,
        interval.low,
        interval.high,
        unit,
        n,
        verdict=DESCRIBED,
        details={**{name: row[name] for name in (*KEY, "ranks")}, "seeds": len(rows), "runs": int(rows["runs"].sum())},
    )


def _harm(question: str, rows: pd.DataFrame) -> Finding:
    """Count the seeds in which the judged score is a whole step lower, or higher, than beside it."""
    moved = rows["harm_score_difference"].astype(float)
    lower, higher = int((moved <= -LEARNT_DROP).sum()), int((moved >= LEARNT_DROP).sum())
    known = int(moved.notna().sum())
    of = f"{known} seed{'' if known == 1 else 's'}"
    counted = f"a whole step lower in {lower} of {of}, higher in {higher}" if known else "not measured"
    described = _described(question, rows, "harm_score", Interval(float(moved.mean()), np.nan, np.nan, known), "")
    counts: dict[str, Any] = {"lower": lower, "higher": higher, "known": known}
    return replace(described, unit="seeds", verdict=counted, details={**described.details, **counts})


def _held(row: pd.Series) -> str:
    """Return what a run is held by, in a few words."""
    against = {"random": ", minus random of equal rank", "random-energy": ", minus random of equal energy"}
    parts = [str(row["fine_tune"]), str(row["constraint"]), str(row["ranks"]), str(row["details"])]
    return ", ".join(part for part in parts if part) + against.get(str(row.get("other", "")), "")


def _has_more_directions(runs: pd.DataFrame) -> bool:
    """Tell whether alignment's subspace holds more of the unconstrained update than its share of directions."""
    free = runs[runs["constraint"] == "none"]
    return bool((free["energy_inside"] > free["fraction"]).any())
