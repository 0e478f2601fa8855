"""What the sweeps of one study say: whether kept energy orders the outcome, and whether top-k is selective."""

from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import mean_by_draw, selectivity, selectivity_by_draw, without_trivial
from safety_subspaces.findings.intervals import Finding, Interval, t_interval
from safety_subspaces.findings.sweeps import energy_order
from safety_subspaces.findings.thresholds import EXPECTED_SIGN, LEAST_MODELS, SELECTIVE_SIGN, STRONG, WEAK

# What the signs mean, said once on the page.
SELECTIVE_SENSE: Final = (
    "Each is top-k minus its random control of equal energy, over configurations (fine-tune, method, fraction); "
    "margin and harm are signed so that positive is selective: alignment spared when its directions are projected "
    "away, spent when the update is projected onto them. The intervals are over the control's draws; seeds of training "
    "are not covered."
)
CANNOT_BE_TOLD: Final = "Whether top-k is more selective than random subspaces of equal energy cannot be told{why}."
WORDS: Final = {"utility": "utility", "harm_score": "harm score", "refusal_margin": "refusal margin"}


def read_energy(projections: pd.DataFrame) -> list[Finding]:
    """Say for each fine-tune whether kept energy, whatever it is kept in, orders utility and harm.

    Spearman's rank correlation over every subspace, method (onto and away), fraction and draw. Opposite is
    left out: its energy points the other way.
    """
    findings = []
    projected = projections[projections["method"].isin(["onto", "away"])]
    for group, rows in projected.groupby("group", sort=False):
        orders = {m: energy_order(rows, m) for m in WORDS}
        defined = {m: rho for m, (rho, _) in orders.items() if not np.isnan(rho)}
        lost = int(rows["harm_score"].isna().sum())
        if not defined:
            counted = int(rows[list(WORDS)].notna().any(axis=1).sum())
            text = (
                f"{group}: whether kept energy orders the outcome cannot be told: {counted} evaluated models, "
                "and no measure that moves over them."
            )
            findings.append(Finding("energy", "unknown", "", text))
            continue
        agreeing = [rho * EXPECTED_SIGN[m] for m, rho in defined.items()]
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


def _order_words(measure: str, rho: float, n: int) -> str:
    if not np.isnan(rho):
        return f"{WORDS[measure]} {rho:+z.2f} (n = {n})"
    why = "too few" if n < LEAST_MODELS else "does not move"
    return f"{WORDS[measure]} {why} (n = {n})"


def _with_headline(findings: list[Finding]) -> list[Finding]:
    """Put one headline over the findings of all fine-tunes on kept energy."""
    if not findings:
        return []
    known = [finding.verdict for finding in findings if finding.verdict != "unknown"]
    if not known:
        text = "Whether kept energy orders utility and harm cannot be told from the projected models."
    elif all(verdict == "orders" for verdict in known):
        text = "Over all subspaces together, kept energy orders utility and harm."
    elif all(verdict == "does not order" for verdict in known):
        text = "Kept energy does not order utility and harm."
    else:
        text = f"Kept energy orders utility and harm in {known.count('orders')} of {len(known)} fine-tunes."
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
