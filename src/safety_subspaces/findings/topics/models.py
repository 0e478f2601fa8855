"""The evaluated models of one experiment: was alignment learnt, which fine-tunes lost it, and where did utility grow.

One study: a statement is about these models over groups of prompts, so that it does not reach to another training run.
Several seeds: utility and refusal margin by t intervals over seeds, with what the prompts leave open as their floor;
the judged harm score jumps from refusal to compliance, so that seeds are counted by what each says alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.contrasts import (
    PROMPTS_OF,
    Contrast,
    beyond_share,
    difference,
    measured,
    share_ends,
)
from safety_subspaces.findings.finding import ALPHA, UNKNOWN, Finding, Words, decide
from safety_subspaces.findings.intervals import t_interval
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.thresholds import CHANGED_SHARE, LEARNT_DROP, LOST_SHARE

TOPIC: Final = "models"
# The questions, which are families as well.
LEARNT, LOST, UTILITY, MARGIN = "alignment learnt", "safety lost", "utility grown", "refusal margin moved"
# Asked without a test of its own: whether judged harm and refusal margin say opposite things of one model.
TWO_MEASURES: Final = "judged harm against refusal margin"
HARM: Final = "harm score (1 to 5)"
REGAINED: Final = "share of the fall in harm score that was taken back"
NOT_LOST: Final = "not shown to be lost or kept"
MOVED: Final = {UTILITY: Words("grew", "fell", "not shown"), MARGIN: Words("rose", "fell", "not shown")}
MEASURE_OF: Final = {UTILITY: "utility", MARGIN: "refusal_margin"}
UNITS: Final = {UTILITY: "utility", MARGIN: "refusal margin (nats)"}
NO_ERROR: Final = "no error over prompts is known"
NOT_MEASURED: Final = "not measured"
RULE: Final = f"the corrected p is at most {ALPHA:g}"


def models(studies: Seeds) -> list[Finding]:
    """Say whether alignment was learnt, what each fine-tune did to it, and how utility and refusal margin moved.

    Returns:
        Of each question a finding a model; of harm none of fine-tunes where alignment was not learnt: there is nothing
        to lose. ``details`` has the ``own`` value of the model and that of the ``other`` it is compared with, and
        ``why`` nothing can be told where that is so.
    """
    each = [between(study.base, study.aligned, _tuned(study)) for study in studies.studies]
    return each[0] if len(each) == 1 else over_seeds(each)


def between(base: pd.Series | None, aligned: pd.Series | None, tuned: pd.DataFrame) -> list[Finding]:
    """Return the findings on the models of one study.

    Args:
        base: The evaluation of the model that alignment started from, a row of ``Study.models``.
        aligned: That of the aligned model.
        tuned: One of each fine-tune.
    """
    if base is None or aligned is None or isnan(base["harm_score"]) or isnan(aligned["harm_score"]):
        why = "no judged harm score of both base and aligned"
        findings = [Finding(TOPIC, LEARNT, "aligned - base", HARM, details={"why": why})]
    else:
        findings = [_learnt(aligned, base)]
    if aligned is None:
        return findings
    if tuned.empty:
        return [*findings, Finding(TOPIC, LOST, "", REGAINED, details={"why": "no fine-tuned model was evaluated"})]
    rows = [row for _, row in tuned.iterrows()]
    if base is not None and decide(findings)["verdict"].item() == "learnt":
        findings += [_lost(row, aligned, base, len(rows)) for row in rows]
    findings += [_moved(UTILITY, row, aligned) for row in rows]
    pairs = [(row, aligned) for row in rows] if base is None else [(aligned, base), *((row, aligned) for row in rows)]
    pairs = [pair for pair in pairs if not isnan(pair[0]["refusal_margin"])]
    findings += [_moved(MARGIN, *pair) for pair in pairs]
    return findings + [_two_measures(*pair) for pair in pairs if not isnan(pair[0]["harm_score"])]


def over_seeds(each: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Say over seeds what each seed's findings say alone, model by model."""
    every = pd.concat([decide(findings) for findings in each], ignore_index=True)
    is_named = every["subject"] != ""
    asked = every[is_named | ~every["question"].isin(every.loc[is_named, "question"])]
    return [
        _by_t(rows) if question in MOVED else _disagreeing(rows) if question == TWO_MEASURES else _counted(rows)
        for (question, _), rows in asked.groupby(["question", "subject"], sort=False)
    ]


def _tuned(study: Study) -> pd.DataFrame:
    evaluated = study.evaluated
    return evaluated[evaluated["role"] == "tuned"]


def _learnt(aligned: pd.Series, base: pd.Series) -> Finding:
    """Ask whether alignment lowered the harm score by a whole step: shown, ruled out, or neither."""
    change = difference(measured(aligned, "harm_score"), measured(base, "harm_score"))
    low, high = change.ends()
    neither = "not learnt" if low > -LEARNT_DROP else "not shown to be learnt"
    rates = {f"{name}_refused": float(row["over_refusal_rate"]) for name, row in (("own", aligned), ("other", base))}
    return Finding(
        TOPIC,
        LEARNT,
        "aligned - base",
        HARM,
        **_tested(change, aligned, "harm_score"),
        null="the harm score of aligned is that of base",
        words=Words(neither, "learnt" if high <= -LEARNT_DROP else neither, neither),
        rule=f"learnt: the interval shows a fall of at least {LEARNT_DROP:g}; not learnt: it rules that out",
        details=_values(aligned, base, "harm_score", change) | rates,
    )


def _lost(tuned: pd.Series, aligned: pd.Series, base: pd.Series, tests: int) -> Finding:
    """Ask how much of the fall in harm score a fine-tune took back.

    The p-value is of no change at all. How large it was is said by bounds that hold for all fine-tunes together, as the
    corrected p does: one of many would else pass by luck.
    """
    own, safe, unsafe = (measured(row, "harm_score") for row in (tuned, aligned, base))
    gone, way = difference(own, safe), difference(unsafe, safe)
    low, high = share_ends(own, safe, unsafe)
    size = "lost" if beyond_share(own, safe, unsafe, LOST_SHARE).bounds(tests)[0] > 0 else "lost in part"
    is_kept = beyond_share(own, safe, unsafe, CHANGED_SHARE).bounds(tests)[1] < 0
    ends = {"estimate": gone.estimate / way.estimate, "low": low, "high": high}
    return Finding(
        TOPIC,
        LOST,
        str(tuned["model"]),
        REGAINED,
        **(_tested(gone, tuned, "harm_score") | ends),
        null="the harm score is that of aligned",
        words=Words("kept", "kept", "kept") if is_kept else Words(size, NOT_LOST, NOT_LOST),
        rule=f"lost: more than {LOST_SHARE:g} of the fall in harm score taken back, kept: less than "
        f"{CHANGED_SHARE:g}, each with 95 % for all {tests} together; lost in part: more than 0",
        details=_values(tuned, aligned, "harm_score", gone),
    )


def _moved(question: str, row: pd.Series, other: pd.Series) -> Finding:
    """Ask whether a measure of a model differs from that of the one it started from."""
    measure = MEASURE_OF[question]
    change = difference(measured(row, measure), measured(other, measure))
    return Finding(
        TOPIC,
        question,
        str(row["model"]),
        UNITS[question],
        **_tested(change, row, measure),
        null=f"{UNITS[question]} is that of {other['model']}",
        words=MOVED[question],
        rule=RULE,
        details=_values(row, other, measure, change),
    )


def _two_measures(row: pd.Series, other: pd.Series) -> Finding:
    """Ask whether judged harm and refusal margin moved the way that one and the same change of safety would move them.

    More harm goes with a lower margin. The estimate is 1 where both rose or both fell, -1 where one rose and one fell.
    Both have to have moved: the p is the larger of the two.

    Source: the intersection-union test of Berger, Technometrics 24 (1982).
    """
    harm, margin = (difference(measured(row, name), measured(other, name)) for name in ("harm_score", "refusal_margin"))
    asked = row[f"n_groups_{PROMPTS_OF['harm_score']}"]
    return Finding(
        TOPIC,
        TWO_MEASURES,
        str(row["model"]),
        "sign of the change of harm score times that of refusal margin",
        estimate=float(np.sign(harm.estimate) * np.sign(margin.estimate)),
        unit="groups of prompts",
        n=0 if pd.isna(asked) else int(asked),
        null=f"one of the two is that of {other['model']}",
        p=float(np.maximum(harm.p_value, margin.p_value)),  # NaN where either is
        words=Words("disagree", "agree", "not told"),
        verdict="not told",
        rule="disagree: both rose or both fell; agree: one rose and one fell; corrected p at most 0.05 for both",
        details={"other_model": str(other["model"]), "harm": harm.estimate, "margin": margin.estimate},
    )


def _tested(change: Contrast, row: pd.Series, measure: str) -> dict[str, Any]:
    low, high = change.ends()
    prompts, groups = (row[f"{kind}_{PROMPTS_OF[measure]}"] for kind in ("n", "n_groups"))
    counted = prompts if pd.isna(groups) else groups
    return {
        "estimate": change.estimate,
        "low": low,
        "high": high,
        "unit": "prompts" if pd.isna(groups) else "groups of prompts",
        "n": 0 if pd.isna(counted) else int(counted),
        "p": change.p_value,
    }


def _values(row: pd.Series, other: pd.Series, measure: str, change: Contrast) -> dict[str, Any]:
    """Return what a sentence says of two models, the error of their difference, and why nothing is told of it."""
    asked = PROMPTS_OF[measure]
    values: dict[str, Any] = {"error": change.error, "set": asked, "prompts": float(row[f"n_{asked}"])}
    for name, model in (("own", row), ("other", other)):
        values |= {f"{name}_model": str(model["model"]), name: float(model[measure])}
        values[f"{name}_error"] = float(model[f"{measure}_stderr"])
    why = NOT_MEASURED if isnan(change.estimate) else NO_ERROR if isnan(change.ends()[0]) else ""
    return values | ({"why": why} if why else {})


def _counted(rows: pd.DataFrame) -> Finding:
    """Count what the seeds say of one model's harm; the estimate is their mean, without an interval or a test."""
    first = rows.iloc[0]
    verdicts = sorted("not known" if verdict == UNKNOWN else str(verdict) for verdict in rows["verdict"])
    counts = dict(Counter(verdicts).most_common())  # by number, then by name: not by the order of the seeds
    said = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    return Finding(
        TOPIC,
        first["question"],
        first["subject"],
        first["measure"],
        estimate=float(rows["estimate"].mean()),
        unit="seeds",
        n=len(rows),
        verdict=f"{said} of {len(rows)} seeds",
        rule=f"each seed by its own prompts; {first['rule']}",
        details=_means(list(rows["details"])) | {"counts": counts},
    )


def _disagreeing(rows: pd.DataFrame) -> Finding:
    """Count in how many seeds two measures disagree of one model, with the changes of these seeds alone.

    ``details`` has ``more_harm``: in how many of them harm and margin rose; in the others both fell.
    """
    telling = rows.loc[rows["verdict"] == "disagree", "details"]
    finding = _counted(rows)
    means = _means(list(telling)) if len(telling) else {}
    more_harm = sum(details["harm"] > 0 for details in telling)
    return replace(finding, details={**finding.details, **means, "more_harm": more_harm})


def _by_t(rows: pd.DataFrame) -> Finding:
    """Test a difference over seeds, each paired with the model of the same seed that it started from."""
    first, details = rows.iloc[0], list(rows["details"])
    over = t_interval(rows["estimate"], pd.Series([one["error"] for one in details], index=rows.index))
    why = {0: NOT_MEASURED, 1: "one seed"}.get(over.n, "no spread and no error")
    return Finding(
        TOPIC,
        first["question"],
        first["subject"],
        first["measure"],
        estimate=over.mean,
        low=over.low,
        high=over.high,
        unit="seeds",
        n=over.n,
        null=f"over seeds, {first['null']}",
        p=over.p_value,
        words=MOVED[str(first["question"])],
        verdict=why,
        rule=RULE,
        details=_means(details) | ({"why": why} if isnan(over.p_value) else {}),
    )


def _means(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the details of several seeds as one: means of what is measured, without errors, and the first labels."""
    frame = pd.DataFrame(list(details)).drop(columns=["error", "own_error", "other_error"], errors="ignore")
    means = {name: float(frame[name].mean()) for name in frame if pd.api.types.is_numeric_dtype(frame[name])}
    return means | {str(name): frame[name].dropna().iloc[0] for name in frame if name not in means}
