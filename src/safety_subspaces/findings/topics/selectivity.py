"""Whether top-k is selective beside its controls: random subspaces of equal energy, and the whole update scaled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.finding import Finding, Words, draws_needed
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.models import Seeds, main_fine_tune
from safety_subspaces.findings.relabelled import relabelled_p_value
from safety_subspaces.findings.sweep_contrasts import BOTH, COMPARED_AT, DRAWS, PROMPTS, SEEDS, contrasts, difference_of
from safety_subspaces.findings.swept import evaluated, swept
from safety_subspaces.findings.thresholds import LEAST_DIFFERENCE, LEAST_RANGE

TOPIC: Final = "selectivity"
QUESTIONS: Final = {"random-energy": "top against random of equal energy", "scaled": "top against the scaled update"}
MARGIN: Final = "refusal margin (nats), signed"
HARM: Final = "harm score (1 to 5), signed"
# The fine-tune that traded most margin for utility is chosen by the ends of its sweep alone. It is asked first, and
# corrected for its own controls: not for the fine-tunes that have less to tell.
JUDGED: Final = "selectivity of the fine-tune that is asked first"
OTHERS: Final = "selectivity of the other fine-tunes"
WORDS: Final = Words("more selective", "less selective", "no difference")
# Beside scaling, what random subspaces of equal energy gain as well is no property of alignment's directions.
AS_RANDOM: Final = Words("as random", "as random", "no difference")
NULLS: Final = {
    SEEDS: "the mean over seeds is 0",
    DRAWS: "top-k is one of the draws: any of them could have been called top-k",
}
RULES: Final = {
    SEEDS: "t over seeds, never surer than the prompts",
    DRAWS: "rank of top-k among the draws, each compared with all others",
    PROMPTS: "not tested",
}


@dataclass(frozen=True)
class Contrast:
    """Top-k of one fine-tune against one control, at equal utility where utility moves, else at equal energy.

    Args:
        tuned: The fine-tune.
        other: The control.
        at: What the two have in common: ``utility`` or ``energy``.
        rows: Its rows of :func:`~safety_subspaces.findings.sweep_contrasts.contrasts` by method; ``both`` is their
            mean.
        is_scored: Whether any utility was scored.
        random: What random subspaces of equal energy do beside the scaled update; ``None`` beside another control.
    """

    tuned: str
    other: str
    at: str
    rows: Mapping[str, pd.Series]
    is_scored: bool
    random: Interval | None

    @property
    def both(self) -> pd.Series:
        """The row of the mean over methods."""
        return self.rows[BOTH]


def selectivity(studies: Seeds) -> list[Finding]:
    """Compare top-k of alignment with each control in refusal margin, at equal utility or else at equal energy.

    Differences are means over methods, signed so that positive is selective: the margin is spared when alignment's
    directions are projected away, and spent when the update is projected onto them.

    Several seeds: a t-test over seeds of the mean over draws. One study: top-k against random subspaces is a rank among
    the draws, without a p-value where there are fewer draws than its family needs; top-k against scaling is one model
    against one, and is not tested. The harm score jumps, and is counted. One method alone is described and not tested.

    Returns:
        Two findings, on margin and on harm, for each fine-tune and control; none where nothing was evaluated.
    """
    projections = evaluated(swept(studies))
    if projections.empty:
        return []
    compared = contrasts_of_top(projections)
    if not compared:
        why = "not known: no sweep has top-k and a control to compare it with"
        return [Finding(TOPIC, QUESTIONS["random-energy"], "", MARGIN, verdict=why)]
    judged = _first_asked(compared, projections, main_fine_tune(studies))
    drawn = {contrast.tuned for contrast in compared if contrast.both["unit"] == DRAWS}
    findings: list[Finding] = []
    for contrast in compared:
        is_judged = contrast.tuned == judged
        needed = draws_needed(len(drawn & {judged} if is_judged else drawn - {judged}))
        findings += [_on_margin(contrast, projections, is_judged, needed), _on_harm(contrast)]
    return findings


def contrasts_of_top(projections: pd.DataFrame) -> list[Contrast]:
    """Return top-k against each control of each fine-tune."""
    rows: dict[tuple[str, str, str], dict[str, dict[str, pd.Series]]] = {}
    for at in COMPARED_AT:
        for _, row in contrasts(projections, at).iterrows():
            pair = (str(row["tuned"]), str(row["subspace"]), str(row["other"]))
            rows.setdefault(pair, {}).setdefault(at, {})[str(row["method"])] = row
    found = []
    for (tuned, subspace, other), of_pair in rows.items():
        if subspace != "top" or "energy" not in of_pair:
            continue
        span = of_pair["utility"][BOTH]["utility_span"]
        at = "utility" if span >= LEAST_RANGE["utility"] else "energy"
        beside = rows.get((tuned, "random-energy", other), {}).get(at)
        random = None if beside is None else difference_of(beside[BOTH], "refusal_margin")
        found.append(Contrast(tuned, other, at, of_pair[at], not isnan(span), random))
    return found


def is_as_random(margin: Interval, random: Interval) -> bool:
    """Tell whether random subspaces of equal energy do the same beside scaling as top-k does.

    They do where their difference has the same sign, is shown by its own interval, and lies in that of top-k.
    """
    is_shown = random.sign != 0 and abs(random.mean) >= LEAST_DIFFERENCE["refusal_margin"]
    return bool(is_shown and random.sign == np.sign(margin.mean) and margin.low <= random.mean <= margin.high)


def _first_asked(compared: Sequence[Contrast], projections: pd.DataFrame, main: str) -> str:
    """Return the name of the fine-tune that is asked first; the first one where it was swept without a control."""
    names = [contrast.tuned for contrast in compared]
    of_main = projections[projections["tuned_model"].astype(str) == main]["tuned"]
    return next((str(name) for name in of_main.unique() if name in names), names[0])


def _on_margin(contrast: Contrast, projections: pd.DataFrame, is_judged: bool, needed: int) -> Finding:
    both, margin, random = contrast.both, difference_of(contrast.both, "refusal_margin"), contrast.random
    unit, p = str(both["unit"]), nan
    if unit == SEEDS:
        p = float(both["refusal_margin_difference_p"])
    elif unit == DRAWS and margin.n >= needed:
        of_tuned = projections[projections["tuned"] == contrast.tuned]
        p = relabelled_p_value(of_tuned, contrast.at, str(both["methods"]).split(", "))
    alike = random is not None and is_as_random(margin, random)
    return Finding(
        TOPIC,
        QUESTIONS[contrast.other],
        contrast.tuned,
        MARGIN,
        estimate=margin.mean,
        low=margin.low,
        high=margin.high,
        unit=unit,
        n=0 if unit == PROMPTS else margin.n,
        null="" if isnan(p) else NULLS[unit],
        p=p,
        words=AS_RANDOM if alike else WORDS,
        least=LEAST_DIFFERENCE["refusal_margin"],
        verdict=_why_not(contrast, margin, needed),
        rule=f"{RULES[unit]}; at least {LEAST_DIFFERENCE['refusal_margin']} nats",
        family=JUDGED if is_judged else OTHERS,
        details=_details(contrast) | {"is_judged": is_judged, "draws_needed": needed, "is_as_random": alike},
    )


def _on_harm(contrast: Contrast) -> Finding:
    """Count the seeds, or draws, whose judged harm differs: a score that jumps from 1 to 5 has no t-test."""
    both = contrast.both
    harm, above, below = difference_of(both, "harm_score"), int(both["harm_above"]), int(both["harm_below"])
    return Finding(
        TOPIC,
        QUESTIONS[contrast.other],
        contrast.tuned,
        HARM,
        estimate=harm.mean,
        unit=str(both["unit"]),
        n=0 if both["unit"] == PROMPTS else harm.n,
        verdict=_counted(harm, above, below, str(both["unit"])),
        rule=f"a count of differences of at least {LEAST_DIFFERENCE['harm_score']:g} points",
        details={"above": above, "below": below},
    )


def _counted(harm: Interval, above: int, below: int, unit: str) -> str:
    if not harm.n:
        return "not scored"
    return "described: one model each" if unit == PROMPTS else f"{above} of {harm.n} more selective, {below} less"


def _why_not(contrast: Contrast, margin: Interval, needed: int) -> str:
    """Return why there is no verdict where there is no p-value."""
    both = contrast.both
    if isnan(margin.mean):
        if contrast.at == "energy":
            missed = both["left_out"] > 0 and both["compared"] == 0
            return "not known: no draw has the energy" if missed else "not known: no refusal margin can be compared"
        shared = both["utility_range"] >= LEAST_RANGE["utility"]
        return f"not known: {'no refusal margin' if shared else 'the two share too little utility'}"
    if both["unit"] == DRAWS:
        return f"not tested: {margin.n} draws, {needed} needed"
    return "not tested: one seed" if both["unit"] == PROMPTS or margin.n < 2 else "not tested: no spread"


def _details(contrast: Contrast) -> dict[str, Any]:
    """Return what a sentence says beside the difference."""
    both, random = contrast.both, contrast.random
    details = {
        "at": contrast.at,
        "methods": str(both["methods"]).split(", ") if both["methods"] else [],
        "each": {method: _of_method(row) for method, row in contrast.rows.items() if method != BOTH},
        "draws": int(both["draws"]),
        "fractions": int(both["fractions"]),
        "random": None if random is None else _plain(random),
        "utility_scored": contrast.is_scored,
    }
    if contrast.at == "utility":
        return details | {"undefined": int(both["undefined"])}
    counts = {name: int(both[name]) for name in ("left_out", "compared")}
    return details | counts | {"utility": _plain(difference_of(both, "utility"))}


def _of_method(row: pd.Series) -> dict[str, Any]:
    """Return the differences by one method, not signed, with the utilities that the two share."""
    shared = {name: float(row[name]) for name in ("utility_low", "utility_high") if name in row}
    measured = {name: _plain(difference_of(row, name)) for name in ("refusal_margin", "harm_score")}
    return {**measured, **shared}


def _plain(over: Interval) -> dict[str, float]:
    return {"mean": over.mean, "low": over.low, "high": over.high, "n": over.n}
