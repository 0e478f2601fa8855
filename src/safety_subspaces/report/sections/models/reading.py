"""What the numbers of a study say, in plain words, computed each time and never written in advance.

Each function looks at one question, returns findings, and can come out either way; a number that is missing
is said to be missing. A verdict is a plain word, so that a test or a table can ask for it.
"""

from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import mean_by_draw, selectivity, selectivity_by_draw, without_trivial
from safety_subspaces.findings.intervals import Finding, Interval, Z, joint_error, t_interval
from safety_subspaces.findings.thresholds import (
    CHANGED_SHARE,
    EXPECTED_SIGN,
    LEARNT_DROP,
    LEAST_MODELS,
    LEAST_RANGE,
    LOST_SHARE,
    SELECTIVE_SIGN,
    STRONG,
    WEAK,
)
from safety_subspaces.report.pages.hidden_states import read_hidden_states, state_findings
from safety_subspaces.report.parts.sentence import prompt_words, rate_words, row_of, value_words
from safety_subspaces.report.sections.constraint.reading import read_constrained
from safety_subspaces.report.sections.overlap.reading_one import read_overlap
from safety_subspaces.report.sections.watching.reading import read_watched

# What the signs mean, said once on the page.
SELECTIVE_SENSE: Final = (
    "Each is top-k minus its random control of equal energy, over configurations (fine-tune, method, fraction); "
    "margin and harm are signed so that positive is selective: alignment spared when its directions are projected "
    "away, spent when the update is projected onto them. The intervals are over the control's draws; seeds of training "
    "are not covered."
)
CANNOT_BE_TOLD: Final = "Whether top-k is more selective than random subspaces of equal energy cannot be told{why}."

WORDS: Final = {"utility": "utility", "harm_score": "harm score", "refusal_margin": "refusal margin"}


def read(study: Study) -> list[Finding]:
    """Return every finding of a study, in the order of the page."""
    return [
        *read_alignment(study.models),
        *read_constrained(study),
        *read_watched(study),
        *read_energy(study.projections),
        *read_selectivity(study.projections),
        *read_overlap(study.overlaps),
        *state_findings(read_hidden_states([("", study)])),
        *read_limits(study),
    ]


def answer(findings: list[Finding]) -> str:
    """Return the one-paragraph answer: the headlines of the findings, in their order, each once."""
    return " ".join(dict.fromkeys(finding.headline for finding in findings if finding.headline))


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


def read_energy(projections: pd.DataFrame) -> list[Finding]:
    """Say for each fine-tune whether kept energy, whatever it is kept in, orders utility and harm.

    Spearman's rank correlation over every subspace, method (onto and away), fraction and draw. Opposite is
    left out: its energy points the other way.
    """
    findings = []
    kept = projections[projections["method"].isin(["onto", "away"])]
    for group, rows in kept.groupby("group", sort=False):
        orders = {m: _order(rows, m) for m in WORDS}
        told = {m: rho for m, (rho, _) in orders.items() if not np.isnan(rho)}
        lost = int(rows["harm_score"].isna().sum())
        if not told:
            counted = int(rows[list(WORDS)].notna().any(axis=1).sum())
            text = (
                f"{group}: whether kept energy orders the outcome cannot be told: {counted} evaluated models, "
                "and no measure that moves over them."
            )
            findings.append(Finding("energy", "unknown", "", text))
            continue
        agreeing = [rho * EXPECTED_SIGN[m] for m, rho in told.items()]
        verdict = "orders" if min(agreeing) >= STRONG else "does not order" if max(agreeing) < WEAK else "partly orders"
        detail = ", ".join(_order_words(m, *orders[m]) for m in WORDS)
        text = (
            f"{group}: over all subspaces, kept energy {verdict} the outcome (Spearman: {detail}; "
            f"{len(rows)} projected models, {lost} of them without a harm score)."
        )
        findings.append(Finding("energy", verdict, "", text))
    return _with_headline(findings)


def read_selectivity(projections: pd.DataFrame) -> list[Finding]:
    """Say whether top-k is more selective than random subspaces of equal energy.

    In each configuration (fine-tune, method, fraction) the refusal margin of top-k minus that of its random-energy
    control, signed so that positive is selective: *away* from alignment's directions should spare the margin, *onto*
    them should spend it. One draw of the control serves every method and fraction, so configurations are not
    independent: the difference is averaged over them draw by draw, and "more" and "less selective" need a 95 % t
    interval over the draws that leaves out 0. With fewer than two draws there is no interval, and no verdict. The
    interval covers the randomness of the control, not that of training.
    """
    every = selectivity(projections)
    if every.empty:
        text = (
            "Whether top-k is selective cannot be told: no configuration has both top and random-energy."
            if len(projections)
            else "No projection was run: nothing can be said about the alignment subspace."
        )
        return [Finding("selectivity", "unknown", text, text)]
    differences = without_trivial(every)
    by_draw = selectivity_by_draw(projections)
    findings = [_selectivity_of(str(name), rows, by_draw) for name, rows in differences.groupby("group", sort=False)]
    overall = _selectivity_of("All fine-tunes", differences, by_draw, apart=len(every) - len(differences))
    explained = replace(overall, sentence=f"{overall.sentence} {SELECTIVE_SENSE}")
    return [explained, *findings] if len(findings) > 1 else [explained]


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
    counts = models[["n_harmful", "n_groups_harmful"]].astype(float).dropna(subset="n_harmful")
    independent = counts["n_groups_harmful"].fillna(counts["n_harmful"])
    smallest = counts.loc[[independent.idxmin()]].iloc[0]
    n, units = int(smallest["n_harmful"]), max(float(independent.min()), 1.0)
    over = "" if pd.isna(smallest["n_groups_harmful"]) else " over groups"
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


def _order(rows: pd.DataFrame, measure: str) -> tuple[float, int]:
    """Return Spearman's rho of kept energy with a measure and its n; NaN with too little to order."""
    pair = rows[["energy_kept", measure]].dropna().astype(float)
    n = len(pair)
    if n < LEAST_MODELS or np.ptp(pair[measure]) < LEAST_RANGE[measure] or np.ptp(pair["energy_kept"]) == 0:
        return np.nan, n
    return float(stats.spearmanr(pair["energy_kept"], pair[measure]).statistic), n


def _order_words(measure: str, rho: float, n: int) -> str:
    if not np.isnan(rho):
        return f"{WORDS[measure]} {rho:+z.2f} (n = {n})"
    why = "too few" if n < LEAST_MODELS else "does not move"
    return f"{WORDS[measure]} {why} (n = {n})"


def _with_headline(findings: list[Finding]) -> list[Finding]:
    """Put one headline over the findings of all fine-tunes on kept energy."""
    if not findings:
        return []
    told = [finding.verdict for finding in findings if finding.verdict != "unknown"]
    if not told:
        text = "Whether kept energy orders utility and harm cannot be told from the projected models."
    elif all(verdict == "orders" for verdict in told):
        text = "Over all subspaces together, kept energy orders utility and harm."
    elif all(verdict == "does not order" for verdict in told):
        text = "Kept energy does not order utility and harm."
    else:
        text = f"Kept energy orders utility and harm in {told.count('orders')} of {len(told)} fine-tunes."
    first = findings[0]
    return [Finding("energy", first.verdict, text, first.sentence), *findings[1:]]


def _selectivity_of(name: str, differences: pd.DataFrame, by_draw: pd.DataFrame, apart: int = 0) -> Finding:
    margin = differences["refusal_margin_difference"].astype(float) * differences["method"].map(SELECTIVE_SIGN)
    if margin.isna().all():
        headline = CANNOT_BE_TOLD.format(why="")
        text = f"{name}: {headline} None of {len(differences)} configurations has a refusal margin on both sides."
        return Finding("selectivity", "unknown", headline, text)
    paired = by_draw.merge(differences[["group", "method", "fraction"]])
    signs = paired["method"].map(SELECTIVE_SIGN).astype(float)
    means, configurations = mean_by_draw(paired, "refusal_margin", signs)
    over = t_interval(means)
    # Harm goes down where the margin goes up: the sign turns, so that positive is selective for both.
    harm = t_interval(mean_by_draw(paired, "harm_score", -signs)[0])
    utility = t_interval(mean_by_draw(paired, "utility", signs.abs())[0])
    verdict = "unknown" if over.n < 2 else {1: "more selective", -1: "less selective", 0: "no difference"}[over.sign]
    why = {0: "no configuration has every draw of the control", 1: "one draw of the control has no spread"}
    headline = {
        "more selective": "Top-k of alignment is more selective than random subspaces of equal energy.",
        "less selective": "Top-k of alignment is less selective than random subspaces of equal energy.",
        "no difference": "Between top-k of alignment and random subspaces of equal energy there is no "
        f"difference that {over.n} draws can show.",
        "unknown": CANNOT_BE_TOLD.format(why=f": {why.get(over.n, '')}"),
    }[verdict]
    said = {
        "no difference": f"no difference that {over.n} draws can show",
        "unknown": f"cannot be told, {why.get(over.n, '')}",
    }.get(verdict, verdict)
    shown = f"{_over_draws(over)}, mean of {configurations} configurations" if over.n else "not known"
    text = (
        f"{name}: {said}. Refusal margin {shown} ({int((margin > 0).sum())} positive, {int((margin < 0).sum())} "
        f"negative), in nats; harm score {_over_draws(harm)}; utility {_over_draws(utility)}."
    )
    left_out = len(differences) - configurations
    if left_out:
        lacking = "1 configuration lacks" if left_out == 1 else f"{left_out} configurations lack"
        text += f" Left out: {lacking} the margin of a draw."
    text += f" {apart} left out because both sides keep all or nothing." if apart else ""
    if harm.sign * over.sign < 0:
        text += " The judged harm score says the opposite of the margin."
    gap = float((differences["energy_top"] - differences["energy_random"]).abs().max())
    # 0.02 of the energy is below what moves any measure by its standard error over a sweep from 0 to 1.
    if gap > 0.02:
        text += f" Energies are equal only within {gap:.3f}."
    return Finding("selectivity", verdict, headline, text)


def _over_draws(over: Interval) -> str:
    if over.n == 0:
        return "not known"
    if over.n == 1:
        return f"{over.mean:+z.2f} (one draw, no interval)"
    return f"{over.mean:+z.2f} (95 % interval over {over.n} draws {over.low:+z.2f} to {over.high:+z.2f})"


def _drawn(projections: pd.DataFrame) -> float:
    drawn = projections[projections["subspace"].astype(str).str.startswith("random")]
    return float(drawn.groupby(["group", "subspace", "method", "fraction"]).size().max()) if len(drawn) else np.nan
