"""What steering says: what directions do at their strongest, and whether they differ from random ones at one cost."""

from collections.abc import Mapping

import pandas as pd

from safety_subspaces.findings.contracts import labels_of, reference_model
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.steering import (
    Steering,
    SteerView,
    is_random,
    is_reserved,
    judged,
    measured_in,
    of_view,
    responses,
)

VERDICTS = ("higher", "lower", "undecided", "unknown")
# More comparisons than this are read in the table, not in a sentence.
MOST_SPOKEN = 8
SPOKEN = {
    "harm_score": "harm score",
    "refusal_margin": "refusal margin",
    "utility": "utility",
    "over_refusal_rate": "over-refusal",
    "perplexity": "perplexity",
}


def read_steering_of(steering: Steering) -> list[Finding]:
    """Return how steering the reference model differs from random directions, then what each intervention does."""
    if steering.is_empty:
        return []
    model = reference_model(steering.models)
    doses = [_read_dose(steering, view) for view in steering.views(model)]
    return [_read_selectivity(steering, model), *doses]


def counted_verdict(verdicts: list[str]) -> str:
    """Return ``differs`` where every known comparison does, ``undecided`` where none does, ``mixed`` or ``unknown``."""
    known = [verdict for verdict in verdicts if verdict != "unknown"]
    differing = sum(verdict != "undecided" for verdict in known)
    if not known:
        return "unknown"
    return "undecided" if differing == 0 else "differs" if differing == len(known) else "mixed"


def by_measure(frame: pd.DataFrame, verdicts: pd.Series) -> str:
    """Return for each measure how many comparisons have each verdict."""
    said = []
    for measure, rows in frame.groupby("measure", sort=False):
        of_measure = list(verdicts[rows.index])
        counts = ", ".join(f"{name} in {of_measure.count(name)}" for name in VERDICTS)
        said.append(f"{spoken(measure)} {counts} of {len(of_measure)}")
    return "; ".join(said)


def spoken(measure: object) -> str:
    """Return what a measure is called in a sentence."""
    return SPOKEN.get(str(measure), str(measure))


def _read_selectivity(steering: Steering, model: str) -> Finding:
    every = steering.selectivity
    if every.empty:
        text = (
            f"How steering {model} compares with random directions at equal cost cannot be told: it was not reckoned."
        )
        return Finding("steering", "unknown", text, text)
    verdicts = judged(every)
    compared = every[every["model"] == model]
    headline = (
        f"Steering {model}, beside random directions at equal cost: {by_measure(compared, verdicts)} comparisons."
    )
    rows = [row for _, row in compared.iterrows()]
    values = "; ".join(_comparison(row, verdict) for row, verdict in zip(rows, verdicts[compared.index], strict=True))
    reserved = sum(is_reserved(row) for row in rows)
    text = f"{headline} {values}." if len(compared) <= MOST_SPOKEN else headline
    text += (
        f" {reserved} of {len(compared)} are compared at the largest dose, as the cost is not reached."
        if reserved
        else ""
    )
    if len(compared) < len(every):
        text += f" In all models: {by_measure(every, verdicts)}."
    text += " Each by its own 95 % interval: of those at 0, one in twenty stands beside it by luck."
    return Finding("steering", counted_verdict(list(verdicts[compared.index])), headline, text)


def _comparison(row: pd.Series, verdict: str) -> str:
    sign = f" {row['sign']}" if row["sign"] else ""
    matched = f", equal {row['matched_on']}" if row["matched_on"] else ""
    named = f"{row['intervention']}{sign} of {row['direction']}{matched}, {spoken(row['measure'])}"
    if pd.isna(row["selectivity"]):
        return f"{named} not known" + ("" if pd.isna(row["reason"]) else f" ({row['reason']})")
    ends = "" if verdict == "unknown" else f" ({row['low']:+z.2f} to {row['high']:+z.2f})"
    return f"{named} {row['selectivity']:+z.2f}{ends} {verdict}"


def _read_dose(steering: Steering, view: SteerView) -> Finding:
    """Say in which measures each direction lies outside of what the random draws span, at the largest dose."""
    rows = of_view(steering, view)
    # Of two that are as strong, one each way, the positive one.
    strongest = max(rows["strength"], key=lambda strength: (abs(strength), strength))
    responses_of = {measure: _at_dose(rows, measure, strongest) for measure in measured_in(rows)}
    directions = [name for name in labels_of(rows, "direction") if not is_random(name)]
    parts = [_beside_random(direction, responses_of) for direction in directions]
    words = "; ".join(part for part in parts if part) or "nothing was scored"
    text = f"{view.words[0].upper()}{view.words[1:]}, at the largest dose, {strongest:.3g}: {words}."
    return Finding("steering", "dose", "", text)


def _at_dose(rows: pd.DataFrame, measure: str, strength: float) -> pd.DataFrame:
    """Return the rows of :func:`responses` at one strength, indexed by ``direction``; unscored ones are left out."""
    pooled = responses(rows, measure)
    return pooled[pooled["strength"] == strength].dropna(subset="value").set_index("direction")


def _beside_random(direction: str, responses_of: Mapping[str, pd.DataFrame]) -> str:
    """Return in which measures a direction is outside of all random draws, with the values, and in which inside."""
    outside, inside, alone, draws = [], [], [], 0
    for measure, values in responses_of.items():
        if direction not in values.index:
            continue
        response, bands = values.loc[direction], values[[is_random(name) for name in values.index]]
        said = f"{SPOKEN[measure]} {response['value']:.2f}" + (
            "" if pd.isna(response["error"]) else f" ± {response['error']:.2f}"
        )
        low, high, draws = bands["low"].min(), bands["high"].max(), max(draws, int(bands["draws"].sum()))
        if bands.empty:
            alone.append(said)
        elif low <= response["value"] <= high:
            inside.append(SPOKEN[measure])
        else:
            outside.append(f"{said} (random {low:.2f} to {high:.2f})")
    parts = []
    if outside or inside:
        # Of n + 1 directions that are alike, each is as likely the highest, or the lowest, as any other.
        luck = f"by luck {min(2 / (draws + 1), 1):.2f} a measure"
        where = ", ".join(outside) or "no measure"
        parts.append(f"{direction} outside of all {draws} random draws ({luck}) in {where}")
        parts += [f"inside in {', '.join(inside)}"] if inside else []
    parts += [f"{direction}, without random directions beside it, {', '.join(alone)}"] if alone else []
    return "; ".join(parts)
