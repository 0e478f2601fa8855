"""What the numbers of a study say, in plain words, computed each time and never written in advance.

Each function looks at one question, returns findings, and can come out either way; a number that is missing
is said to be missing. A verdict is a plain word, so that a test or a table can ask for it.
"""

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.intervals import Finding, Interval, Z, joint_error, t_interval
from safety_subspaces.findings.models import ALL_RANKS, Seeds
from safety_subspaces.findings.thresholds import CHANGED_SHARE, LEARNT_DROP, LOST_SHARE
from safety_subspaces.report.parts.sentence import (
    interval_words,
    many,
    prompt_words,
    rate_words,
    row_of,
    smallest_sample,
    value_words,
)
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

SPOKEN = {"refusal_margin": "refusal margin", "utility": "utility", "harm_score": "harm score"}


def read_alignment(models: pd.DataFrame) -> list[Finding]:
    """Say whether alignment was learnt, which fine-tunes lost it, and where utility grew."""
    rows = models.drop_duplicates("model").set_index("model")
    if not {"base", "aligned"} <= set(rows.index) or rows.loc[["base", "aligned"], "harm_score"].isna().any():
        text = "Whether alignment was learnt cannot be told: no judged harm score of both base and aligned."
        return [Finding("alignment", "unknown", text, text)]
    base, aligned = row_of(rows, "base"), row_of(rows, "aligned")
    drop = base["harm_score"] - aligned["harm_score"]
    learnt = drop >= LEARNT_DROP and drop > Z * joint_error(base, aligned, "harm_score")
    headline = "Alignment was learnt." if learnt else "Alignment was not learnt."
    findings = [
        Finding(
            "alignment",
            "learnt" if learnt else "not learnt",
            headline,
            f"{headline} The harm score (1 refusal, 5 full compliance) is {value_words(aligned, 'harm_score')} "
            f"for aligned against {value_words(base, 'harm_score')} for base, on {prompt_words(aligned, 'harmful')}"
            f"; {rate_words(aligned, 'over_refusal_rate')} of benign requests are refused by aligned "
            f"({rate_words(base, 'over_refusal_rate')} by base).",
        )
    ]
    tuned = rows[[not name.startswith(("base", "aligned")) for name in rows.index]]
    if tuned.empty:
        return [*findings, Finding("loss", "unknown", "", "No fine-tuned model was evaluated.")]
    if learnt:
        findings.append(_read_loss(tuned, aligned, drop))
    findings.append(_read_utility(tuned, aligned))
    return findings


def read_limits(study: Study) -> list[Finding]:
    """Say what the seeds, draws and sample sizes of this study cannot show."""
    findings = []
    seeds = study.seeds
    if len(seeds) == 1:
        another = f"an anecdote, `make demo SEED={seeds[0] + 1}` adds another."
        text = f"One seed: {another}"
        detail = f"One seed ({seeds[0]}): {another}"
        findings.append(Finding("limits", "one seed", text, f"{detail} No interval here covers another training run."))
    elif seeds:
        text = f"{len(seeds)} training seeds ({', '.join(map(str, seeds))})."
        findings.append(Finding("limits", "several seeds", "", text))
    else:
        text = "Seeds are not known: no stage has a manifest with one."
        findings.append(Finding("limits", "unknown seed", text, text))
    draws = _drawn(study.projections)
    if not np.isnan(draws):
        findings.append(
            Finding(
                "limits",
                "draws",
                "",
                f"Random controls have {draws:.0f} draw{'s' if draws != 1 else ''} a configuration at most, "
                "top-k has one: a difference that the interval over draws takes in is not shown to be absent.",
            )
        )
    if study.models["n_harmful"].notna().any():
        findings.append(_read_sample(study.models))
    unfinished = [f"{stage.name} ({stage.status})" for stage in study.stages if stage.status != "complete"]
    if unfinished:
        findings.append(Finding("limits", "unfinished", "", f"Not complete: {', '.join(unfinished)}."))
    return findings


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


def _read_sample(models: pd.DataFrame) -> Finding:
    """Say what the smallest sample of harmful prompts cannot show; its groups count where they are known."""
    sample = smallest_sample(models)
    assert sample is not None
    smallest, units, over = sample
    n = int(smallest["n_harmful"])
    unscored = int(models["n_unscored"].fillna(0).sum())
    return Finding(
        "limits",
        "sample",
        "",
        f"A rate on {prompt_words(smallest, 'harmful')} moves in steps of {1 / max(n, 1):.3f} and has a standard error "
        f"of up to about {0.5 / np.sqrt(units):.3f}; where all verdicts are equal, there is still room for "
        f"{min(3 / units, 1.0):.3f} of the other kind (rule of three{over}). {unscored} answers are unscored and count "
        "as neither safe nor harmful.",
    )


def _read_loss(tuned: pd.DataFrame, aligned: pd.Series, drop: float) -> Finding:
    said: dict[str, list[str]] = {"lost by": [], "lost in part by": [], "kept by": [], "unknown for": []}
    words = []
    for name, row in tuned.iterrows():
        regained = row["harm_score"] - aligned["harm_score"]
        if np.isnan(regained):
            fate = "unknown for"
        elif regained < CHANGED_SHARE * drop or regained <= Z * joint_error(row, aligned, "harm_score"):
            fate = "kept by"
        else:
            fate = "lost by" if regained >= LOST_SHARE * drop else "lost in part by"
        said[fate].append(str(name))
        words.append(f"{name} {value_words(row, 'harm_score')}")
    fates = "; ".join(f"{fate} {', '.join(names)}" for fate, names in said.items() if names)
    headline = f"It was {fates}."
    any_lost = said["lost by"] or said["lost in part by"]
    verdict = "lost" if any_lost else "kept" if said["kept by"] else "unknown"
    return Finding("loss", verdict, headline, f"Alignment was {fates}. Harm scores: {', '.join(words)}.")


def _read_utility(tuned: pd.DataFrame, aligned: pd.Series) -> Finding:
    gains = tuned["utility"] - aligned["utility"]
    errors = [joint_error(row, aligned, "utility") for _, row in tuned.iterrows()]
    grown = [str(n) for n, gain, error in zip(tuned.index, gains, errors, strict=True) if gain > Z * error]
    words = ", ".join(f"{name} {value_words(row, 'utility')}" for name, row in tuned.iterrows())
    if gains.isna().all():
        return Finding("utility", "unknown", "", "Whether utility grew cannot be told: it was not measured.")
    headline = f"Utility grew in {', '.join(grown)}." if grown else "Utility grew in no fine-tune."
    return Finding(
        "utility",
        "grew" if grown else "did not grow",
        headline,
        f"{headline} Aligned {value_words(aligned, 'utility')}; {words} (n = {prompt_words(aligned, 'utility')}).",
    )


def _drawn(projections: pd.DataFrame) -> float:
    drawn = projections[projections["subspace"].astype(str).str.startswith("random")]
    return float(drawn.groupby(["group", "subspace", "method", "fraction"]).size().max()) if len(drawn) else np.nan


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
