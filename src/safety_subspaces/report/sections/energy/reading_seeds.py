"""What the sweeps over seeds say: does kept energy alone order the outcome, and is top-k selective beside its controls.

Computed each time; each question can come out either way, and every outcome is said in one form.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import CONFIDENCE, Finding, Interval, interval_of
from safety_subspaces.findings.sweeps import (
    BOTH,
    METHODS,
    best_covered,
    energy_correlations,
    equal_energy_over_seeds,
    matched_utility_over_seeds,
)
from safety_subspaces.findings.thresholds import CHANGED_SHARE, LEAST_RANGE, STRONG, WEAK
from safety_subspaces.report.parts.sentence import interval_words, many, row_of
from safety_subspaces.report.sections.constraint.reading import LEAST_CHANGE
from safety_subspaces.report.sections.energy.reading import WORDS

# The fine-tune that is both useful and harmful, and so the one that a subspace could tell apart.
MAIN: Final = "contaminated"
CONTROLS: Final = {
    "random-energy": "random subspaces of equal energy",
    "scaled": "the whole update scaled to equal energy",
}
NAMES: Final = {"top": "top-k", "random-energy": "random of equal energy", "scaled": "scaled"}
# What energy is to explain; harm follows the margin, and jumps.
EXPLAINED: Final = ("refusal_margin", "utility")
# A smaller difference is not called one, however sure it is; of the harm score, a tenth of the scale's 4 points.
LEAST_SHOWN: Final = {**LEAST_CHANGE, "harm_score": 4 * CHANGED_SHARE}
ORDER: Final = {
    "alone": "orders the outcome, and at equal energy no difference is shown",
    "not alone": "orders the outcome, but not alone: at equal energy kinds differ",
    "partly": "orders the outcome in part, or how far it does is not shown",
    "does not order": "does not order the outcome",
    "unknown": "is not known to order the outcome alone",
}
SENSE: Final = (
    "Differences are top-k minus its control, draws averaged within a seed; intervals are over seeds. Signed, margin "
    "and harm are positive where top-k is selective: alignment spared when its directions are projected away, spent "
    "when the update is projected onto them. A control that is better, or worse, in both methods alike takes itself "
    "out of their signed mean: read each method alone."
)


def read_sweeps(projections: pd.DataFrame, organism: str) -> list[Finding]:
    """Return the findings of one organism: first whether energy alone decides, then whether top-k is selective.

    Args:
        projections: ``Study.projections`` of every seed, with a column ``seed`` and one sweep a seed and fine-tune.
        organism: What the sentences call it.

    Returns:
        Findings of the topic ``energy``, the first with one headline over all fine-tunes, and of ``selectivity``, those
        of the contaminated fine-tune (the first one, where it was not swept) with a headline each.
    """
    equal = equal_energy_over_seeds(projections)
    matched = matched_utility_over_seeds(projections)
    return [*_read_energy(organism, energy_correlations(projections), equal), *_read_all(organism, equal, matched)]


def energy_verdict(orders: Iterable[Interval], compared: int, differing: int) -> str:
    """Return ``alone``, ``not alone``, ``partly``, ``does not order`` or ``unknown``.

    Args:
        orders: Rank correlations of kept energy, of the measures that move, each signed by its own direction.
        compared: How many differences at equal energy have an interval.
        differing: How many of these are sure, with intervals that hold for all of them together.
    """
    known = [order for order in orders if not np.isnan(order.mean)]
    if not known or any(np.isnan(order.low) for order in known):
        return "unknown"
    if min(order.low for order in known) >= STRONG:
        return ("not alone" if differing else "alone") if compared else "unknown"
    return "does not order" if max(order.high for order in known) < WEAK else "partly"


def selectivity_verdict(margin: Interval) -> str:
    """Judge by the interval over seeds of the signed margin; less than ``LEAST_SHOWN`` is no difference."""
    if np.isnan(margin.low):
        return "unknown"
    sign = _shown_sign(margin, "refusal_margin")
    return {1: "more selective", -1: "less selective", 0: "no difference"}[sign]


def _read_energy(organism: str, correlations: pd.DataFrame, equal: pd.DataFrame) -> list[Finding]:
    verdicts: dict[str, str] = {}
    texts = []
    for name, rows in correlations.groupby("tuned", sort=False):
        tuned, by_measure = str(name), rows.set_index("measure")
        orders = {m: _correlation(row_of(by_measure, m)) for m in WORDS}
        at_equal = equal[(equal["tuned"] == name) & (equal["method"] != BOTH)]
        compared = _comparisons(at_equal)
        shown = {key: over for key, over in compared.items() if _shown_sign(over, key[1])}
        # Bonferroni: intervals of 1 - 0.05 / m hold for all m together in 95 % of experiments.
        sure = [key for key, over in shown.items() if over.p_value * len(compared) < 1 - CONFIDENCE]
        signed = [_signed(over, -1 if over.mean < 0 else 1) for over in orders.values()]
        verdict = energy_verdict(signed, len(compared), len(sure))
        seeds, draws = max(over.n for over in orders.values()), int(by_measure["draws"].max())
        rhos = ", ".join(f"{WORDS[m]} {_order_words(over)}" for m, over in orders.items())
        spread = by_measure["draw_spread"].max()
        between = "" if np.isnan(spread) else f"; spread over draws up to {spread:.2f}"
        texts.append(
            f"{organism}, {tuned}: kept energy {ORDER[verdict]}. Spearman's rho over all subspaces, methods and "
            f"fractions: {rhos} ({many(seeds, 'seed')}, {many(draws, 'draw')}, "
            f"{by_measure['points'].min():.0f} points each{between}). {_compared_words(compared, shown, len(sure))}"
            f"{_gap_words(at_equal)}"
        )
        verdicts[tuned] = verdict
    if not verdicts:
        text = f"{organism}: whether kept energy orders the outcome cannot be told: no projection was run."
        return [Finding("energy", "unknown", text, text)]
    said = [
        f"{words} ({', '.join(tuned for tuned, v in verdicts.items() if v == verdict)})"
        for verdict, words in ORDER.items()
        if verdict in verdicts.values()
    ]
    headline = f"{organism}: kept energy {'; '.join(said)}."
    each = zip(verdicts.values(), texts, strict=True)
    return [Finding("energy", v, headline if not index else "", text) for index, (v, text) in enumerate(each)]


def _read_all(organism: str, equal: pd.DataFrame, matched: pd.DataFrame) -> list[Finding]:
    findings: list[Finding] = []
    of_top = equal[equal["subspace"] == "top"]
    tuneds = list(dict.fromkeys(of_top["tuned"].astype(str)))
    main = MAIN if MAIN in tuneds else tuneds[0] if tuneds else ""
    for (tuned, other), rows in of_top.groupby(["tuned", "other"], sort=False):
        random = None
        if other == "scaled":
            random = tuple(_pair_of(frame, tuned, "random-energy", other) for frame in (equal, matched))
        of_pair = _pair_of(matched, tuned, "top", other)
        finding = _read_selectivity(f"{organism}, {tuned}", str(other), rows, of_pair, random)
        headline = finding.headline if tuned == main else ""
        sense = "" if findings else f" {SENSE}"
        findings.append(Finding(finding.topic, finding.verdict, headline, f"{finding.sentence}{sense}"))
    if not findings:
        text = f"{organism}: whether top-k is selective cannot be told: no sweep has top-k and a control."
        return [Finding("selectivity", "unknown", text, text)]
    return findings


def _pair_of(frame: pd.DataFrame, tuned: object, subspace: str, other: object) -> pd.DataFrame:
    """Keep the rows of a contrast, by ``tuned``, ``subspace`` and ``other``."""
    return frame[(frame["tuned"] == tuned) & (frame["subspace"] == subspace) & (frame["other"] == other)]


def _read_selectivity(
    name: str, other: str, equal: pd.DataFrame, matched: pd.DataFrame, random: tuple[pd.DataFrame, ...] | None
) -> Finding:
    """Judge top-k beside one control at equal utility, or at equal energy where utility does not move.

    ``random`` is what random subspaces of equal energy do beside the same control, at equal energy and at equal
    utility: what they share with top-k is no property of alignment's directions, and the verdict is ``as random``.
    """
    pooled = matched[matched["method"] == BOTH]
    moves = bool((pooled["utility_span"] >= LEAST_RANGE["utility"]).any())
    rows = matched if moves else equal
    both = rows[rows["method"] == BOTH].iloc[0]
    margin, harm = interval_of(both, "refusal_margin_difference"), interval_of(both, "harm_score_difference")
    verdict, control, seeds = selectivity_verdict(margin), CONTROLS[other], many(margin.n, "seed")
    still = "was not scored" if pooled["utility_span"].isna().all() else "does not grow over the sweep"
    at = "at equal utility" if moves else f"at equal energy, for utility {still}"
    said = {
        "no difference": f"between top-k of alignment and {control} there is no difference that {seeds} can show",
        "unknown": f"whether top-k of alignment is more selective than {control} cannot be told",
    }.get(verdict, f"top-k of alignment is {verdict} than {control}")
    beside = None if random is None else random[1] if moves else random[0]
    if beside is not None and len(beside):
        alike = interval_of(beside[beside["method"] == BOTH].iloc[0], "refusal_margin_difference")
        as_much = verdict == selectivity_verdict(alike) != "no difference" and margin.low <= alike.mean <= margin.high
        verdict = "as random" if as_much else verdict
        said += f", {'and so are' if as_much else 'beside'} random subspaces of equal energy ({interval_words(alike)})"
    methods = rows[rows["method"] != BOTH].set_index("method")
    of_methods = _methods_in(methods)
    headline = f"{name}, {at}: {said}; refusal margin {interval_words(margin)}, {of_methods}, {seeds}."
    alone = "; ".join(_method_words(row_of(methods, m), m, moves) for m in METHODS if m in methods.index)
    draws = many(int(both["draws"]), "draw") if other.startswith("random") else "without draws"
    sizes = f"{seeds}, {draws}, {many(int(both['fractions']), 'fraction')}"
    text = (
        f"{name}, {at}: {said}{_because(both, margin, moves)}. Signed, mean over {of_methods}: refusal "
        f"margin {interval_words(margin)}, in nats, harm score {interval_words(harm)} ({sizes}"
        f"{_beside_words(both, moves)}). "
        f"Each method alone, not signed: {alone}. By the judged harm score: {_judged(margin, harm)}."
    )
    text += "" if moves else _gap_words(equal)
    return Finding("selectivity", verdict, headline, text)


def _comparisons(rows: pd.DataFrame) -> dict[tuple[str, str], Interval]:
    """Return every difference at equal energy that has an interval, by what is compared and the measure."""
    intervals = {}
    for _, row in rows.iterrows():
        pair = f"{NAMES[str(row['subspace'])]} minus {NAMES[str(row['other'])]}, {row['method']}"
        for measure in EXPLAINED:
            over = interval_of(row, f"{measure}_difference")
            if not np.isnan(over.low):
                intervals[pair, measure] = over
    return intervals


def _compared_words(
    compared: dict[tuple[str, str], Interval], shown: dict[tuple[str, str], Interval], sure: int
) -> str:
    m = len(compared)
    if not m:
        return "At equal energy no difference has an interval."
    by_pair: dict[str, list[str]] = {}
    for (pair, measure), over in shown.items():
        by_pair.setdefault(pair, []).append(f"{WORDS[measure]} {interval_words(over)}")
    listed = "; ".join(f"{pair}, {', '.join(words)}" for pair, words in by_pair.items())
    return (
        f"At equal energy {len(shown)} of {m} differences in refusal margin or utility are shown"
        f"{': ' if shown else ''}{listed}. By chance one in twenty is; with intervals that hold for all {m} together, "
        f"{sure} are."
    )


def _methods_in(methods: pd.DataFrame) -> str:
    """Name the methods with a margin to compare: those that the mean over methods is of."""
    known = best_covered(methods["refusal_margin_difference_seeds"])
    return " and ".join(known) if len(known) > 1 else f"{known[0]} alone" if known else "no method"


def _because(both: pd.Series, margin: Interval, moves: bool) -> str:
    if not np.isnan(margin.low):
        return ""
    if margin.n == 1:
        return ", for one seed has no interval"
    apart = moves and both["refusal_margin_difference_seeds"] == 0 and both["harm_score_difference_seeds"] == 0
    return ", for the two share too little utility" if apart else ", for no refusal margin can be compared"


def _method_words(row: pd.Series, method: str, moves: bool) -> str:
    """Return the differences by one method, with the utilities that the two share where they are compared at equal."""
    where = ""
    if moves:
        low, high = row["utility_low"], row["utility_high"]
        where = " (no utility in common)" if np.isnan(low) else f" (utility in common {low:.2f} to {high:.2f})"
    margin, harm = (
        interval_words(interval_of(row, f"{measure}_difference")) for measure in ("refusal_margin", "harm_score")
    )
    return f"{method}{where} margin {margin}, harm score {harm}"


def _gap_words(rows: pd.DataFrame) -> str:
    # 0.02 of the energy is below what moves any measure by its standard error over a sweep from 0 to 1.
    gap = float(rows["energy_gap"].max())
    return f" Energies are equal only within {gap:.3f}." if gap > 0.02 else ""


def _beside_words(both: pd.Series, moves: bool) -> str:
    if not moves:
        return f"; utility {interval_words(interval_of(both, 'utility_difference'))}, not signed"
    undefined = int(both["undefined"])
    return f"; pairs of curves that share too little utility, in all seeds: {undefined}" if undefined else ""


def _judged(margin: Interval, harm: Interval) -> str:
    if np.isnan(harm.low):
        return "unknown"
    sign = _shown_sign(harm, "harm_score")
    verdict = {1: "more selective", -1: "less selective", 0: "no difference"}[sign]
    return f"{verdict}, the opposite" if _shown_sign(margin, "refusal_margin") * sign < 0 else verdict


def _shown_sign(over: Interval, measure: str) -> int:
    return over.sign if abs(over.mean) >= LEAST_SHOWN[measure] else 0


def _correlation(row: pd.Series) -> Interval:
    return Interval(float(row["rho"]), float(row["low"]), float(row["high"]), int(row["seeds"]))


def _signed(over: Interval, sign: int) -> Interval:
    low, high = sorted([sign * over.low, sign * over.high])
    return Interval(sign * over.mean, low, high, over.n)


def _order_words(over: Interval) -> str:
    return "does not move, or too little was scored" if over.n == 0 else interval_words(over)
