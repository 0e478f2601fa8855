"""The charts of a watched run: its measures over optimizer steps, and heatmaps of layer against look."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, INK
from safety_subspaces.artefacts.study import Stage
from safety_subspaces.findings.watched import HARM, MARGIN, UTILITY, layer_table, measured, prompt_sets
from safety_subspaces.report.parts.chart import SHARE, bounds_of, error_bar, finished
from safety_subspaces.report.parts.colours import SEQUENTIAL

# Pixels of a panel, and between two: room for a legend that a phone breaks into two lines.
PANEL, BETWEEN = 140, 56
# Looks that crowd at the start, with half of them in the first quarter of the run, are drawn on a logarithmic axis.
CROWDED = 0.25
# Where step 0 stands on a logarithmic axis, which has no 0.
ZERO_STEP = 0.5
# A row of a heatmap that varies by less would be one colour: it is named in place of being drawn.
LEAST_SPREAD = 1e-3
# Pixels of a heatmap's row, and of its height at most.
ROW, MOST_HEIGHT = 24, 640
# Steps that stand beside one another under a heatmap on a phone, and the pixels of their letters: 600 beside 12000.
MOST_LABELS, LABEL = 5, 10


@dataclass(frozen=True)
class Line:
    """One measure in a panel: its values, its name in the legend, and its symbol."""

    tag: str
    name: str
    symbol: str = "circle"
    is_chance: bool = False


@dataclass(frozen=True)
class Panel:
    """Measures on one axis: its title, its range (from 0 up where there is none), and whether they may be negative."""

    title: str
    lines: tuple[Line, ...]
    bounds: tuple[float, float] | None = None
    is_signed: bool = False


def watching_figure(stage: Stage, colour: str = INK) -> go.Figure | None:
    """Draw what was watched, panel under panel over optimizer steps; ``None`` where no panel has a value.

    Args:
        stage: The run.
        colour: That of its model. Of two measures in a panel the second has open symbols; dashes in grey are chance.
    """
    looks = {line.tag: measured(stage, line.tag) for panel in _panels(stage) for line in panel.lines}
    shown = [
        replace(panel, lines=tuple(line for line in panel.lines if len(looks[line.tag]))) for panel in _panels(stage)
    ]
    panels = [panel for panel in shown if panel.lines]
    if not panels:
        return None
    height = len(panels) * PANEL + (len(panels) - 1) * BETWEEN
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=BETWEEN / height)
    steps = sorted({int(step) for table in looks.values() for step in table.index})
    is_crowded = float(np.median(steps)) < CROWDED * steps[-1]
    for number, panel in enumerate(panels, start=1):
        for line in panel.lines:
            _draw_line(figure, line, colour, looks[line.tag], number, is_crowded)
        bounds = panel.bounds
        if panel.is_signed:
            tables = [looks[line.tag] for line in panel.lines]
            ends = [table[name].fillna(table["value"]) for table in tables for name in ("low", "high")]
            bounds = bounds_of([0.0, *(float(end) for each in ends for end in each)])
            figure.add_hline(y=0, line={"dash": "dot", "width": 1.2, "color": GREY}, row=number, col=1)
        figure.update_yaxes(title=panel.title, range=bounds, rangemode="tozero", row=number, col=1)
    figure.update_xaxes(**_axis(steps[-1], is_crowded))
    figure.update_xaxes(title="optimizer step", row=len(panels), col=1)
    finished(figure, height=height + 110)
    return _with_legends(figure, len(panels))


def layer_figure(stage: Stage, tag: str) -> go.Figure:
    """Draw a measure layer by layer: a row a part of the network, the first one on top, and a column a look."""
    table = _varying(layer_table(stage, tag))
    steps = [str(step) for step in table.columns]
    labelled = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_LABELS)).round().astype(int))
    figure = go.Figure(
        go.Heatmap(
            x=steps,
            y=list(table.index),
            z=table.to_numpy(dtype=float),
            colorscale=SEQUENTIAL,
            colorbar={"thickness": 12, "outlinewidth": 0},
            hoverongaps=False,
            hovertemplate="%{y}, step %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_yaxes(type="category", autorange="reversed")
    # A column a look, however far apart: steps that crowd at the start would be slivers.
    figure.update_xaxes(
        type="category",
        title="optimizer step",
        tickangle=0,
        tickfont={"size": LABEL},
        tickvals=[steps[i] for i in labelled],
    )
    return finished(figure, height=min(80 + ROW * len(table), MOST_HEIGHT))


def rows_not_drawn(stage: Stage, tag: str) -> dict[str, float]:
    """Return the parts of the network that :func:`layer_figure` leaves out, each with its one value."""
    table = layer_table(stage, tag)
    return {str(row): float(table.loc[row].mean()) for row in table.index.difference(_varying(table).index)}


def _panels(stage: Stage) -> tuple[Panel, ...]:
    first, second = (name.rpartition(":")[2] for name in prompt_sets(stage))
    return (
        Panel(
            "share",
            (Line(UTILITY, "utility"), Line(HARM, "harmful rate", "diamond-open")),
            bounds=SHARE,
        ),
        Panel("nats", (Line(MARGIN, "refusal margin"),), is_signed=True),
        Panel("share", _beside_chance("delta/energy_fraction", "energy in the alignment subspace"), SHARE),
        Panel("overlap", _beside_chance("delta/overlap", "overlap with the other update"), SHARE),
        Panel("overlap", _beside_chance("activation/overlap", "overlap of activations"), SHARE),
        Panel(
            "drift",
            (
                Line("activation/drift_first", f"{first} activations"),
                Line("activation/drift_second", f"{second} activations", "diamond-open"),
            ),
            SHARE,
        ),
    )


def _beside_chance(tag: str, name: str) -> tuple[Line, Line]:
    return Line(tag, name), Line(f"{tag}_chance", "chance", is_chance=True)


def _draw_line(figure: go.Figure, line: Line, colour: str, looks: pd.DataFrame, panel: int, is_crowded: bool) -> None:
    colour = GREY if line.is_chance else colour
    stroke = {"width": 1.4, "dash": "dash"} if line.is_chance else {"width": 1.8}
    bars = None
    if looks["low"].notna().any():
        below = (looks["value"] - looks["low"]).to_numpy(float)
        bars = error_bar(looks["high"] - looks["value"], colour) | {"symmetric": False, "arrayminus": below}
    ends = [
        "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
        for low, high in zip(looks["low"], looks["high"], strict=True)
    ]
    figure.add_scatter(
        x=[max(step, ZERO_STEP) if is_crowded else step for step in looks.index],
        y=looks["value"].to_numpy(float),
        error_y=bars,
        mode="lines" if line.is_chance else "lines+markers",
        name=line.name,
        legend="legend" if panel == 1 else f"legend{panel}",
        line={"color": colour, **stroke},
        marker={"size": 7, "symbol": line.symbol},
        cliponaxis=False,  # a point at 0 or 1 is seen whole
        customdata=[[int(step), end] for step, end in zip(looks.index, ends, strict=True)],
        hovertemplate=f"step %{{customdata[0]}}: %{{y:.3f}}%{{customdata[1]}}<extra>{line.name}</extra>",
        row=panel,
        col=1,
    )


def _axis(last: int, is_crowded: bool) -> dict[str, object]:
    """Return the settings of the axis of steps: even, or logarithmic with a place for step 0."""
    if not is_crowded:
        return {"range": [-0.02 * max(last, 1), 1.02 * max(last, 1)]}  # a run that has just begun has step 0 alone
    digits = (1, 5) if last < 10_000 else (1,)  # a phone has no room for more
    ticks = [digit * 10**power for power in range(len(str(last))) for digit in digits]
    shown = [0, *(tick for tick in ticks if tick <= last)]
    return {
        "type": "log",
        "range": [float(np.log10(ZERO_STEP)) - 0.06, float(np.log10(last)) + 0.06],
        "tickangle": 0,
        "tickvals": [max(tick, ZERO_STEP) for tick in shown],
        "ticktext": [f"{tick:,}" for tick in shown],
    }


def _with_legends(figure: go.Figure, panels: int) -> go.Figure:
    """Give each panel its own legend, above it."""
    style = figure.layout.legend.to_plotly_json()
    for panel in range(1, panels + 1):
        axis = figure.layout["yaxis" if panel == 1 else f"yaxis{panel}"]
        figure.update_layout({"legend" if panel == 1 else f"legend{panel}": {**style, "y": axis.domain[1]}})
    return figure


def _varying(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that vary, or all of them where none does."""
    varies = table.max(axis=1) - table.min(axis=1) > LEAST_SPREAD
    return table[varies] if varies.any() else table
