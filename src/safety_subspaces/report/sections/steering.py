"""The section on steering: dose and response beside random directions, and selectivity at equal cost."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY
from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.steering import (
    MEASURES,
    NO_DIRECTION,
    RANDOM,
    Steering,
    SteerView,
    compared,
    is_random,
    measured_in,
    of_view,
    read_steering,
    responses,
)
from safety_subspaces.report.parts.chart import FIXED_RANGES, draw_curve, error_bar, finished_panels, panels_of
from safety_subspaces.report.parts.colours import Colours, ink_style
from safety_subspaces.report.parts.columns import HEADINGS, Cell, counts, numbers, table_of, texts
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.table import NOTHING, Table, count, number
from safety_subspaces.report.parts.verdict import finding_words

PLACE: Final = 120
# Interventions that are drawn; every one stands in the table.
MOST_VIEWS: Final = 4
# More comparisons than this are read in the table, not in a sentence.
MOST_SPOKEN: Final = 8
# Rows that leave a terminal's table at eight lines.
TERMINAL_ROWS: Final = 5
BAND: Final = "rgba(138, 143, 152, 0.28)"
# A perplexity that grows by more than this is drawn on a logarithmic axis.
MOST_GROWTH: Final = 20
# Pixels of a row of the chart of selectivity.
ROW: Final = 30
MIXED: Final = "otherwise from seed to seed"
VERDICTS: Final = (
    *("higher", "lower", "higher in every seed", "lower in every seed", "not shown to differ", MIXED, "unknown"),
)
SPOKEN: Final = {
    "harm_score": "harm score",
    "refusal_margin": "refusal margin",
    "utility": "utility",
    "over_refusal_rate": "over-refusal",
    "perplexity": "perplexity",
}
SHORT: Final = {"harm_score": "harm", "refusal_margin": "margin"}
# What the axis of an intervention says.
DOSES: Final = {
    "addition": "strength (distances between the means of the two sets)",
    "ablation": "0: as it is, 1: ablated",
    "rotation": "angle (radians)",
}
SENSE: Final = (
    "Selectivity: change of the measure along a direction minus that along random ones, where both cost the same in "
    "what they are matched on. *: a cost is not reached, so that direction is taken at its largest dose."
)


def steering(part: Part) -> Section | None:
    """Return the section; ``None`` where nothing was steered."""
    read = read_steering(part.studies.named)
    if read.is_empty:
        return None
    headlines, sentences = _said(part, read)
    table = _selectivity_table(part)
    charts = _dose_charts(part, read) if part.is_single else []
    return Section(
        "steering",
        "Steering",
        headlines=headlines,
        sentences=sentences,
        charts=[*charts, *_selectivity_chart(part, read)],
        tables={"Selectivity with its intervals": table, "Every response": _responses_table(read)},
        terminal={"Steering beside random directions": _terminal(part, read.reference)},
        place=PLACE,
    )


def _said(part: Part, read: Steering) -> tuple[list[str], list[str]]:
    """Return how the reference model's comparisons came out, by measure, and the numbers of a few."""
    findings = part.of_topic("steering")
    model = read.reference
    rows = [row for _, row in findings.iterrows() if row["details"]["model"] == model]
    if not rows:
        text = (
            f"How steering {model} compares with random directions at equal cost cannot be told: it was not reckoned."
        )
        return [text], [text]
    said = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        verdicts = [_verdict_of(row) for row in rows if row["measure"] == measure]
        counted = ", ".join(f"{name} in {verdicts.count(name)}" for name in VERDICTS if name in verdicts)
        said.append(f"{SPOKEN.get(measure, measure)} {counted} of {len(verdicts)}")
    reasons = dict.fromkeys(str(row["verdict"]).partition(": ")[2] for row in rows if ":" in str(row["verdict"]))
    why = f" ({'; '.join(reasons)})" if reasons else ""
    tests = int(findings["tests"].max())
    headline = f"Steering {model}, beside random directions at equal cost: {'; '.join(said)} comparisons{why}."
    sentences = [headline if not tests else f"{headline} {tests} tests, corrected together."]
    if len(rows) <= MOST_SPOKEN:
        values = (
            f"{row['subject']}, {SPOKEN.get(row['measure'], row['measure'])} {finding_words(row)}" for row in rows
        )
        sentences.append(f"{'; '.join(values)}.")
    reserved = sum(int(row["details"]["reserved"]) for row in rows)
    if reserved:
        sentences.append(f"{reserved} values behind them are compared at the largest dose, as the cost is not reached.")
    doses = [_dose_words(read, view) for view in read.views(model)] if part.is_single else []
    return [headline], [*sentences, *doses]


def _verdict_of(row: pd.Series) -> str:
    verdict = str(row["verdict"]).partition(":")[0]
    return verdict if verdict in VERDICTS else MIXED


def _dose_words(read: Steering, view: SteerView) -> str:
    """Say what each direction does at its largest dose, beside what the random draws span; nothing is tested."""
    rows = of_view(read, view)
    # Of two that are as strong, one each way, the positive one.
    strongest = max(rows["strength"], key=lambda strength: (abs(strength), strength))
    at = {measure: _at_dose(rows, measure, strongest) for measure in measured_in(rows)}
    directions = [name for name in labels_of(rows, "direction") if not is_random(name)]
    words = "; ".join(said for name in directions if (said := _beside_random(name, at))) or "nothing was scored"
    return f"{view.words[0].upper()}{view.words[1:]}, at the largest dose, {strongest:.3g}: {words}."


def _at_dose(rows: pd.DataFrame, measure: str, strength: float) -> pd.DataFrame:
    pooled = responses(rows, measure)
    return pooled[pooled["strength"] == strength].dropna(subset="value").set_index("direction")


def _beside_random(direction: str, at: dict[str, pd.DataFrame]) -> str:
    """Return each measure of a direction with its error, and the range of the random draws."""
    said = []
    for measure, values in at.items():
        if direction not in values.index:
            continue
        response, bands = values.loc[direction], values[[is_random(name) for name in values.index]]
        error: str = "" if pd.isna(response["error"]) else f" ± {response['error']:.2f}"
        span = ""
        if len(bands):
            draws = int(bands["draws"].sum())
            span = f" (random {bands['low'].min():.2f} to {bands['high'].max():.2f}, {draws} draws)"
        said.append(f"{SPOKEN[measure]} {response['value']:.2f}{error}{span}")
    return f"{direction}: {', '.join(said)}" if said else ""


def _dose_charts(part: Part, read: Steering) -> list[tuple[Chart, str]]:
    charts = []
    for place, view in enumerate(read.views(read.reference)[:MOST_VIEWS]):
        figure = dose_figure(read, view)
        if figure is not None:
            title = f"{view.words[0].upper()}{view.words[1:]}"
            label = f"Harm, refusal margin, utility, over-refusal and perplexity against strength: {view.words}"
            chart = make_chart(f"steering-{part.anchor}{place}", title, label, figure)
            charts.append((chart, _dose_caption(read, view)))
    return charts


def _dose_caption(read: Steering, view: SteerView) -> str:
    rows = of_view(read, view)
    controls = rows[[is_random(name) for name in rows["direction"]]]
    draws = controls.groupby(["direction", "strength"]).size().max() if len(controls) else 0
    sizes = rows[["n_harmful", "n_benign", "n_utility", "n_unscored"]].astype(float).max()
    same = read.table[
        (read.table["analysis"] == view.analysis)
        & (read.table["model"] == view.model)
        & (read.table["intervention"] == view.intervention)
        & (read.table["direction"] != NO_DIRECTION)  # which is at no layer
    ]
    more = same["layer"].nunique() - 1
    others = f" {more} other {'layer stands' if more == 1 else 'layers stand'} in the table." if more > 0 else ""
    return (
        "Points: directions, bars one standard error over prompts. Grey: random directions, their mean, and a band "
        f"from the lowest to the highest of {count(draws)} draws. n: {count(sizes['n_harmful'])} harmful, "
        f"{count(sizes['n_benign'])} benign and {count(sizes['n_utility'])} utility prompts; at most "
        f"{count(sizes['n_unscored'])} answers are unscored.{others}"
    )


def dose_figure(read: Steering, view: SteerView) -> go.Figure | None:
    """Draw each measure against strength, a panel a measure: directions with their errors, random ones as a band."""
    rows = of_view(read, view)
    measures = measured_in(rows)
    if not measures:
        return None
    figure = panels_of([MEASURES[measure][0] for measure in measures], shared_xaxes=True)
    directions = [name for name in labels_of(rows, "direction") if not is_random(name)]
    controls = [name for name in labels_of(rows, "direction") if is_random(name)]
    for panel, measure in enumerate(measures, start=1):
        pooled = responses(rows, measure)
        for control in controls:
            name = control if len(controls) > 1 else RANDOM
            _draw_band(figure, pooled[pooled["direction"] == control], name, panel)
        for place, direction in enumerate(directions):
            line = pooled[pooled["direction"] == direction]
            hover = "strength %{x:g}: %{y:.3f} ± %{customdata[0]:.3f}"
            seen = line[["error", "draws"]]
            draw_curve(
                figure, panel, ink_style(place), direction, line["strength"], line["value"], line["error"], seen, hover
            )
        figure.update_yaxes(range=FIXED_RANGES.get(measure), row=panel, col=1)
        values = pooled["value"].dropna()
        if measure == "perplexity" and values.min() > 0 and values.max() > MOST_GROWTH * values.min():
            figure.update_yaxes(type="log", row=panel, col=1)
    figure.update_xaxes(title=DOSES.get(view.intervention, "strength"), row=len(measures), col=1)
    return finished_panels(figure, len(measures), shared_xaxes=True)


def _draw_band(figure: go.Figure, line: pd.DataFrame, name: str, panel: int) -> None:
    """Draw what the draws of a random direction span, and their mean with the error over prompts."""
    known = line.dropna(subset="value")
    if known.empty:
        return
    at = {"row": panel, "col": 1}
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "legendgroup": name}
    figure.add_scatter(x=known["strength"], y=known["low"], **edge, **at)
    figure.add_scatter(x=known["strength"], y=known["high"], fill="tonexty", fillcolor=BAND, **edge, **at)
    hover = "strength %{x:g}: %{y:.3f}<br>%{customdata[0]:.3f} to %{customdata[1]:.3f} over %{customdata[2]:.0f} draws"
    style: dict[str, Any] = {
        "error_y": error_bar(known["error"], GREY),
        "line": {"color": GREY, "width": 1.2, "dash": "dash"},
        "marker": {"color": GREY, "size": 6},
    }
    seen = known[["low", "high", "draws"]]
    draw_curve(figure, panel, ink_style(0), name, known["strength"], known["value"], seen=seen, hover=hover, **style)


def _selectivity_chart(part: Part, read: Steering) -> list[tuple[Chart, str]]:
    frame = compared(read)
    frame = frame[frame["selectivity"].notna()]
    if frame.empty or part.is_single:
        return []
    names = [_row_name(row) for _, row in frame.iterrows()]
    figure = selectivity_figure(frame.assign(row=names), part.colours)
    caption = (
        "Points: the mean over seeds of the mean over layers; bars: the 95 % t interval over seeds. Dotted: 0, as much "
        f"as along random directions at equal cost. n: at most {count(frame['n'].max())} prompts and "
        f"{count(frame['n_draws'].max())} random directions in each seed."
    )
    chart = make_chart(f"steering-{part.anchor}-selectivity", "Selectivity", "Selectivity of steering", figure)
    return [(chart, caption)]


def selectivity_figure(frame: pd.DataFrame, colours: Colours) -> go.Figure:
    """Draw selectivity with its interval: a panel a measure, a row a direction and intervention, a colour a model.

    Args:
        frame: Columns ``model``, ``measure``, ``row``, ``selectivity``, ``low`` and ``high``.
        colours: Those of the models.
    """
    measures, models, names = (labels_of(frame, column) for column in ("measure", "model", "row"))
    height = max(ROW * len(names), 90)
    figure = panels_of([MEASURES[m][0] if m in MEASURES else m for m in measures], height)
    for panel, measure in enumerate(measures, start=1):
        for place, model in enumerate(models):
            cells = frame[(frame["measure"] == measure) & (frame["model"] == model)]
            shift = 0.6 * ((place + 0.5) / len(models) - 0.5)
            values = cells[["selectivity", "low", "high"]].astype(float)
            bars = error_bar(values["high"] - values["selectivity"], colours.of(model))
            bars["arrayminus"] = (values["selectivity"] - values["low"]).to_numpy()
            at = [names.index(name) + shift for name in cells["row"]]
            hover = "%{text}: %{x:+.3f} (%{customdata[0]:+.3f} to %{customdata[1]:+.3f})"
            style: dict[str, Any] = {"error_x": bars, "mode": "markers", "text": list(cells["row"])}
            seen = values[["low", "high"]]
            draw_curve(
                figure, panel, colours.style(model), model, values["selectivity"], at, seen=seen, hover=hover, **style
            )
        figure.add_vline(x=0, line={"dash": "dot", "width": 1.2, "color": GREY}, row=panel, col=1)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6])
    figure.update_xaxes(title="selectivity", row=len(measures), col=1)
    return finished_panels(figure, len(measures), height)


def _row_name(row: pd.Series) -> str:
    sign = f" ({row['sign']})" if row["sign"] else ""
    matched = f", equal {row['matched_on']}" if row["matched_on"] else ""
    return f"{row['intervention']}{sign} of {row['direction']}{matched}"


def _selectivity_table(part: Part) -> Table:
    """The selectivity of every direction, intervention, layer, sense and measure with its interval and verdict."""
    rows = [row for _, row in part.of_topic("steering").iterrows()]

    def detail(name: str) -> Cell:
        return lambda row: str(row["details"][name])

    columns: dict[str, Cell] = {
        **{name: detail(name) for name in ("model", "analysis", "direction", "intervention", "sign", "layer")},
        "matched on": detail("matched_on"),
        **texts("measure"),
        "judged": _judged,
        **{name: numbers(name, 3, sign="+") for name in ("estimate", "low", "high")},
        "seeds" if not part.is_single else "draws": counts("n"),
        "n": lambda row: count(row["details"]["n"]),
    }
    unit = "seeds" if not part.is_single else "random directions and prompts"
    note = f"{SENSE} The 95 % interval is over {unit}; judged after correction for all of them. n: prompts."
    return table_of(rows, columns, 9, note)


def _judged(row: pd.Series) -> str:
    return f"{row['verdict']}{'*' if row['details']['reserved'] else ''}"


def _responses_table(read: Steering) -> Table:
    """Every measure at every strength; the draws of a random direction, and several seeds, as their range."""
    rows = []
    keys = ["model", "analysis", "intervention", "layer"]
    for values, cells in read.table.groupby(keys, sort=False):
        pooled = {measure: responses(cells, measure).set_index(["direction", "strength"]) for measure in MEASURES}
        sizes = cells[["n_utility", "n_harmful", "n_benign", "n_unscored"]].astype(float).max()
        for direction, strength in next(iter(pooled.values())).index:
            measured = [_response(pooled[measure].loc[(direction, strength)]) for measure in MEASURES]
            draws = max(int(pooled[measure].loc[(direction, strength), "draws"]) for measure in MEASURES)
            n = "/".join(count(value) for value in sizes[:3])
            rows.append(
                (*map(str, values), direction, f"{strength:g}", *measured, count(draws), n, count(sizes.iloc[3]))
            )
    measures = [HEADINGS.get(measure, measure) for measure in MEASURES]
    columns = (*keys, "direction", "strength", *measures, "draws", "n", "unscored")
    note = (
        "± one standard error over prompts; of several draws or seeds the lowest and the highest. n: utility/harmful/"
        "benign prompts."
    )
    return Table(columns, tuple(rows), text_columns=5, note=note)


def _response(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return NOTHING
    if row["draws"] > 1:
        return f"{number(row['low'], 2)} to {number(row['high'], 2)}"
    return number(row["value"], 2, row["error"])


def _terminal(part: Part, model: str) -> Table:
    """The comparisons of the reference model: a row a direction and intervention, a column a measure and its cost."""
    rows = [row for _, row in part.of_topic("steering").iterrows() if row["details"]["model"] == model]
    keys = ("direction", "intervention", "sign")
    columns = list(dict.fromkeys((row["measure"], row["details"]["matched_on"]) for row in rows))
    cells: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for row in rows:
        of_row = cells.setdefault(tuple(row["details"][key] for key in keys), {})
        said = NOTHING if pd.isna(row["estimate"]) else f"{row['estimate']:+z.2f} {_short(row)}"
        of_row.setdefault((row["measure"], row["details"]["matched_on"]), said)
    lines = [(*named, *(of_row.get(column, NOTHING) for column in columns)) for named, of_row in cells.items()]
    heads = [f"{SHORT.get(measure, measure)}{f' at {matched}' if matched else ''}" for measure, matched in columns]
    left = len(lines) - TERMINAL_ROWS
    more = f" {left} more on the page." if left > 0 else ""
    note = f"{model}: change along a direction minus that along random ones, at equal cost; of the first layer.{more}"
    return Table((*keys, *heads), tuple(lines[:TERMINAL_ROWS]), len(keys), note)


def _short(row: pd.Series) -> str:
    verdict = str(row["verdict"]).partition(":")[0]
    return "not shown" if verdict.startswith("not shown") else verdict
