"""The tables of ``steer``: selectivity with its intervals, and every response behind it."""

from typing import Any

import pandas as pd

from safety_subspaces.findings.contracts import reference_model
from safety_subspaces.findings.steering import MEASURES, Steering, is_random, is_reserved, judged, responses
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

SHORT = {"harm_score": "harm", "refusal_margin": "margin"}
# Rows that leave a terminal's table at eight lines.
TERMINAL_ROWS = 5
SENSE = (
    "Selectivity: change of the measure along a direction minus that along random ones, where both cost the same in "
    "what they are matched on. Judged by the side of 0 that its whole 95 % interval is on: higher, lower, or "
    "undecided. *: the cost is not reached, so they are compared at the largest dose."
)


def selectivity_table(steering: Steering) -> Table:
    """The selectivity of every direction, intervention, layer, sense and measure with its interval."""
    every = steering.selectivity
    rows = [
        (
            *(str(row[name]) for name in ("model", "analysis", "direction", "intervention", "sign", "layer")),
            *(str(row["matched_on"]), str(row["measure"]), _verdict(row, told)),
            *(_signed(row[name]) for name in ("selectivity", "low", "high")),
            count(row["n_draws"]),
            count(row["n"]),
        )
        for (_, row), told in zip(every.iterrows(), judged(every), strict=True)
    ]
    columns = (
        *("model", "analysis", "direction", "intervention", "sign", "layer", "matched on", "measure", "judged"),
        *("selectivity", "low", "high", "draws", "n"),
    )
    note = f"{SENSE} Draws: random directions. n: prompts, whose groups the interval resamples."
    return Table(columns, tuple(rows), text_columns=9, note=note)


def responses_table(steering: Steering) -> Table:
    """Every measure at every strength; the draws of a random direction as their range."""
    rows = []
    keys = ["model", "analysis", "intervention", "layer"]
    for values, cells in steering.table.groupby(keys, sort=False):
        found = {measure: responses(cells, measure).set_index(["direction", "strength"]) for measure in MEASURES}
        sizes = cells[["n_utility", "n_harmful", "n_benign", "n_unscored"]].astype(float).max()
        for direction, strength in next(iter(found.values())).index:
            told = [_response(found[measure].loc[(direction, strength)], direction) for measure in MEASURES]
            draws = max(int(found[measure].loc[(direction, strength), "draws"]) for measure in MEASURES)
            n = "/".join(count(value) for value in sizes[:3])
            rows.append((*map(str, values), direction, f"{strength:g}", *told, count(draws), n, count(sizes.iloc[3])))
    columns = (
        *("model", "analysis", "intervention", "layer", "direction", "strength"),
        *("harm 1-5", "margin", "utility", "over-refusal", "perplexity", "draws", "n", "unscored"),
    )
    note = (
        "± one standard error over prompts; of random directions the lowest and the highest draw. n: utility/harmful/"
        "benign prompts."
    )
    return Table(columns, tuple(rows), text_columns=5, note=note)


def steering_terminal_table(steering: Steering) -> Table:
    """The selectivity in the reference model, of the layers that are drawn: a row an intervention, for a terminal."""
    model, every = reference_model(steering.models), steering.selectivity
    drawn = {(view.intervention, view.layer) for view in steering.views(model)}
    found = every[(every["model"] == model) & (every["analysis"] == every["analysis"].iloc[0])]
    is_drawn = [place in drawn for place in zip(found["intervention"].astype(str), found["layer"], strict=True)]
    found = found[is_drawn] if any(is_drawn) else found
    cells = [
        NOTHING
        if pd.isna(row["selectivity"])
        else f"{row['selectivity']:+z.2f} {told}{'*' if is_reserved(row) else ''}"
        for (_, row), told in zip(found.iterrows(), judged(found), strict=True)
    ]
    note = " *: compared at the largest dose."
    return selectivity_by_intervention(found.assign(cell=cells), len(every), model, note)


def selectivity_by_intervention(frame: pd.DataFrame, known: int, model: str, note: str = "") -> Table:
    """Return a row a direction and intervention, and a column a measure and what it is matched on.

    Args:
        frame: Columns of a selectivity, with the text of each in ``cell``.
        known: How many there are in all.
        model: What the note calls the model.
        note: What else it says.
    """
    keys, names = ["direction", "intervention", "sign"], ["measure", "matched_on"]
    columns = list(dict.fromkeys(frame[names].itertuples(index=False, name=None)))
    rows = []
    for values, cells in frame.groupby(keys, sort=False):
        found = dict(zip(cells[names].itertuples(index=False, name=None), cells["cell"], strict=False))
        rows.append((*map(str, values), *(str(found.get(column, NOTHING)) for column in columns)))
    heads = [f"{SHORT.get(measure, measure)}{f' at {matched}' if matched else ''}" for measure, matched in columns]
    shown = tuple(rows[:TERMINAL_ROWS])
    left = known - sum(cell != NOTHING for row in shown for cell in row[len(keys) :])
    text = f"{model}: change along a direction minus that along random ones, at equal cost.{note}"
    return Table((*keys, *heads), shown, len(keys), f"{text} {left} more on the page." if left else text)


def _verdict(row: pd.Series, told: str) -> str:
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    if pd.isna(row["selectivity"]):
        return f"{told}: {reason}" if reason else told
    return f"{told}*" if reason else told


def _response(row: pd.Series, direction: str) -> str:
    if pd.isna(row["value"]):
        return NOTHING
    if is_random(direction) and row["draws"] > 1:
        return f"{number(row['low'], 2)} to {number(row['high'], 2)}"
    return number(row["value"], 2) + ("" if pd.isna(row["error"]) else f"±{row['error']:.2f}")


def _signed(value: Any) -> str:
    return NOTHING if pd.isna(value) else f"{float(value):+z.3f}"
