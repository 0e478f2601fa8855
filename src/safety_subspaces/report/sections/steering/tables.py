"""The tables of ``steer``: selectivity with its intervals, and every response behind it."""

import pandas as pd

from safety_subspaces.findings.steering import MEASURES, Steering, is_random, judged, responses
from safety_subspaces.report.parts.columns import HEADINGS, Cell, counts, numbers, table_of, text, texts
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
    columns: dict[str, Cell] = {
        **texts("model", "analysis", "direction", "intervention", "sign", "layer"),
        "matched on": text("matched_on"),
        "measure": text("measure"),
        "judged": _verdict,
        **{name: numbers(name, 3, sign="+") for name in ("selectivity", "low", "high")},
        "draws": counts("n_draws"),
        "n": counts("n"),
    }
    note = f"{SENSE} Draws: random directions. n: prompts, whose groups the interval resamples."
    every = steering.selectivity
    return table_of(every.assign(judged=judged(every)), columns, 9, note)


def responses_table(steering: Steering) -> Table:
    """Every measure at every strength; the draws of a random direction as their range."""
    rows = []
    keys = ["model", "analysis", "intervention", "layer"]
    for values, cells in steering.table.groupby(keys, sort=False):
        pooled = {measure: responses(cells, measure).set_index(["direction", "strength"]) for measure in MEASURES}
        sizes = cells[["n_utility", "n_harmful", "n_benign", "n_unscored"]].astype(float).max()
        for direction, strength in next(iter(pooled.values())).index:
            measured = [_response(pooled[measure].loc[(direction, strength)], direction) for measure in MEASURES]
            draws = max(int(pooled[measure].loc[(direction, strength), "draws"]) for measure in MEASURES)
            n = "/".join(count(value) for value in sizes[:3])
            rows.append(
                (*map(str, values), direction, f"{strength:g}", *measured, count(draws), n, count(sizes.iloc[3]))
            )
    measures = [HEADINGS.get(measure, measure) for measure in MEASURES]
    columns = (*keys, "direction", "strength", *measures, "draws", "n", "unscored")
    note = (
        "± one standard error over prompts; of random directions the lowest and the highest draw. n: utility/harmful/"
        "benign prompts."
    )
    return Table(columns, tuple(rows), text_columns=5, note=note)


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
        cell_of = dict(zip(cells[names].itertuples(index=False, name=None), cells["cell"], strict=False))
        rows.append((*map(str, values), *(str(cell_of.get(column, NOTHING)) for column in columns)))
    heads = [f"{SHORT.get(measure, measure)}{f' at {matched}' if matched else ''}" for measure, matched in columns]
    shown = tuple(rows[:TERMINAL_ROWS])
    left = known - sum(cell != NOTHING for row in shown for cell in row[len(keys) :])
    text = f"{model}: change along a direction minus that along random ones, at equal cost.{note}"
    return Table((*keys, *heads), shown, len(keys), f"{text} {left} more on the page." if left else text)


def _verdict(row: pd.Series) -> str:
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    if not reason:
        return str(row["judged"])
    return f"{row['judged']}: {reason}" if pd.isna(row["selectivity"]) else f"{row['judged']}*"


def _response(row: pd.Series, direction: str) -> str:
    if pd.isna(row["value"]):
        return NOTHING
    if is_random(direction) and row["draws"] > 1:
        return f"{number(row['low'], 2)} to {number(row['high'], 2)}"
    return number(row["value"], 2, row["error"])
