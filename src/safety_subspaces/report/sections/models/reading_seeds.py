"""What several seeds show together: training under a constraint, judged by intervals over seeds."""

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import Finding, Interval, t_interval
from safety_subspaces.findings.models import ALL_RANKS, Seeds
from safety_subspaces.report.parts.sentence import interval_words, many
from safety_subspaces.report.sections.constraint.reading import (
    CONTROLS,
    HELD,
    JUDGED,
    MORE_DIRECTIONS,
    SAFETY,
    control_headline,
    control_verdict,
    cost_words,
    gain_share,
    has_more_directions,
    rank_words,
    safety_verdict,
)
from safety_subspaces.report.sections.models.reading import read_alignment

SPOKEN = {"refusal_margin": "refusal margin", "utility": "utility", "harm_score": "harm score"}


def read_across(seeds: Seeds) -> list[Finding]:
    """Return every finding over seeds, in the order of the page."""
    findings = [_read_learnt(seeds)]
    for mode in HELD:
        held = seeds.runs[(seeds.runs["constraint"] == mode) & (seeds.runs["subspace"] == "top")]
        findings += [_read_safety(seeds, mode, rows) for _, rows in held.groupby(["fine_tune", "details"], sort=False)]
    away = seeds.differences[(seeds.differences["constraint"] == "away") & seeds.differences["other"].isin(CONTROLS)]
    for (_, _, other), rows in away.groupby(["fine_tune", "details", "other"], sort=False):
        findings.append(_read_control(seeds, str(other), rows))
    return [*findings, _read_limits(seeds)]


def _read_learnt(seeds: Seeds) -> Finding:
    told = [read_alignment(study.models)[0].verdict for study in seeds.studies]
    text = f"Alignment was learnt in {told.count('learnt')} of {len(told)} seeds."
    unknown = told.count("unknown")
    text += f" Of {unknown} it cannot be told." if unknown else ""
    return Finding("models", "learnt" if set(told) == {"learnt"} else "mixed", text, text)


def _read_safety(seeds: Seeds, mode: str, held: pd.DataFrame) -> Finding:
    """Count the runs that kept safety; compare with the unconstrained run of the same seed, mean over ranks."""
    verdicts, shares = [], []
    for _, run in held.iterrows():
        verdicts.append(safety_verdict(float(run["harm_score"]), *_ends(seeds, run, "harm_score")))
        shares.append(gain_share(float(run["utility"]), *_ends(seeds, run, "utility")))
    counts = ", ".join(f"{SAFETY[v]} in {verdicts.count(v)} of {len(verdicts)} runs" for v in dict.fromkeys(verdicts))
    cost = cost_words(shares)
    paired = seeds.differences[(seeds.differences["constraint"] == mode) & (seeds.differences["other"] == "none")]
    for name in ("fine_tune", "details"):
        paired = paired[paired[name] == held[name].iloc[0]]
    paired = _main(paired)
    values = ", ".join(f"{SPOKEN[m]} {interval_words(_over(paired, m))}" for m in SPOKEN)
    beside = f" Beside the unconstrained run of the same seed: {values}." if len(paired) else ""
    headline = f"{HELD[mode]}, fine-tuning {counts}{cost}."
    text = f"{HELD[mode]} ({rank_words(held)}; seeds {', '.join(seeds.seeds)}), fine-tuning {counts}{cost}.{beside}"
    return Finding("constraint", verdicts[0] if len(set(verdicts)) == 1 else "mixed", headline, text)


def _read_control(seeds: Seeds, other: str, rows: pd.DataFrame) -> Finding:
    """Judge alignment's subspace against one control by the difference over seeds, its mean over ranks."""
    main = _main(rows)
    over = {measure: _over(main, measure) for measure in SPOKEN}
    n = over["refusal_margin"].n
    verdict = control_verdict(over["refusal_margin"], over["utility"])
    told = {"more selective": 1, "less selective": -1}
    by = ", by refusal margin, judged harm being the same" if verdict in told and over["harm_score"].sign == 0 else ""
    each = [control_verdict(_over(r, "refusal_margin"), _over(r, "utility")) for _, r in _by_rank(rows)]
    values = "; ".join(f"{SPOKEN[m]} {interval_words(interval)}" for m, interval in over.items())
    ranks = rows[rows["rank"] != ALL_RANKS]
    averaged = ", mean over ranks" if len(each) > 1 else ""
    text = (
        f"Held away from alignment's subspace, minus held away from {CONTROLS[other]} of the same seed "
        f"({rank_words(ranks)}{averaged}): {JUDGED[verdict]}, over {many(n, 'seed')}. {values[0].upper()}{values[1:]}."
    )
    if len(each) > 1:
        counts = ", ".join(f"{JUDGED[v]} at {each.count(v)}" for v in dict.fromkeys(each))
        text += f" Rank by rank: {counts} of {len(each)}."
    text += f" {MORE_DIRECTIONS}" if other == "random-energy" and has_more_directions(seeds.runs) else ""
    headline = f"{control_headline(other, [verdict])} ({many(n, 'seed')}{by})."
    return Finding("constraint controls", verdict, headline, text)


def _read_limits(seeds: Seeds) -> Finding:
    n = len(seeds.studies)
    text = (
        f"{many(n, 'seed')}: each seed trains every stage anew and draws its own random subspaces, so an interval over "
        f"seeds covers both; it has {max(n - 1, 0)} degrees of freedom, and a difference that it takes in is not shown "
        "to be absent. All seeds answer the same prompts."
    )
    return Finding("limits", "seeds", "", text)


def _ends(seeds: Seeds, run: pd.Series, measure: str) -> tuple[float, float]:
    """Return the measure of the aligned model and of the unconstrained run of a run's seed."""
    aligned = seeds.models[(seeds.models["seed"] == run["seed"]) & (seeds.models["model"] == "aligned")]
    beside = seeds.runs[(seeds.runs["seed"] == run["seed"]) & (seeds.runs["fine_tune"] == run["fine_tune"])]
    free = beside[beside["constraint"] == "none"]
    first, second = (float(rows[measure].iloc[0]) if len(rows) else np.nan for rows in (aligned, free))
    return first, second


def _main(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to judge by: the means over ranks, or the one rank that there is."""
    return rows[rows["rank"] == ALL_RANKS] if (rows["rank"] == ALL_RANKS).any() else rows


def _by_rank(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(rank), cell) for rank, cell in rows.groupby("rank", sort=False) if rank != ALL_RANKS]


def _over(rows: pd.DataFrame, measure: str) -> Interval:
    return t_interval(rows[f"{measure}_difference"])
