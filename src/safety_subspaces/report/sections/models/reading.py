"""What the numbers of a study say, in plain words, computed each time and never written in advance.

Each function looks at one question, returns findings, and can come out either way; a number that is missing
is said to be missing. A verdict is a plain word, so that a test or a table can ask for it.
"""

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.intervals import Finding, Z, joint_error
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.thresholds import CHANGED_SHARE, LEARNT_DROP, LOST_SHARE
from safety_subspaces.report.parts.sentence import (
    prompt_words,
    rate_words,
    row_of,
    smallest_sample,
    value_words,
)


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


def read_learnt(seeds: Seeds) -> Finding:
    """Say in how many seeds alignment was learnt."""
    verdicts = [read_alignment(study.models)[0].verdict for study in seeds.studies]
    text = f"Alignment was learnt in {verdicts.count('learnt')} of {len(verdicts)} seeds."
    unknown = verdicts.count("unknown")
    text += f" Of {unknown} it cannot be told." if unknown else ""
    return Finding("models", "learnt" if set(verdicts) == {"learnt"} else "mixed", text, text)


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
