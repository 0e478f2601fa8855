"""The charts of ``steer``: dose and response beside a band of random directions, and selectivity with its intervals."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY
from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.steering import (
    MEASURES,
    RANDOM,
    Steering,
    SteerView,
    is_random,
    measured_in,
    of_view,
    responses,
)
from safety_subspaces.report.parts.chart import curve_style, draw_curve, error_bar, finished_panels, panels_of

BAND: Final = "rgba(138, 143, 152, 0.28)"
# A perplexity that grows by more than this is drawn on a logarithmic axis.
MOST_GROWTH: Final = 20
# What the axis of an intervention says.
DOSES: Final = {
    "addition": "strength (distances between the means of the two sets)",
    "ablation": "0: as it is, 1: ablated",
    "rotation": "angle (radians)",
}
# Pixels of a row of the chart of selectivity.
ROW: Final = 30


def dose_figure(steering: Steering, view: SteerView) -> go.Figure | None:
    """Draw each measure against strength, a panel a measure: directions with their errors, random ones as a band."""
    rows = of_view(steering, view)
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
        for number, direction in enumerate(directions):
            line = pooled[pooled["direction"] == direction]
            hover = "strength %{x:g}: %{y:.3f} ± %{customdata[0]:.3f}"
            seen = line[["error", "draws"]]
            draw_curve(figure, panel, number, direction, line["strength"], line["value"], line["error"], seen, hover)
        values = pooled["value"].dropna()
        if measure == "perplexity" and values.min() > 0 and values.max() > MOST_GROWTH * values.min():
            figure.update_yaxes(type="log", row=panel, col=1)
    figure.update_xaxes(title=DOSES.get(view.intervention, "strength"), row=len(measures), col=1)
    return finished_panels(figure, len(measures), shared_xaxes=True)


def selectivity_figure(frame: pd.DataFrame) -> go.Figure:
    """Draw selectivity with its interval: a panel a measure, a row a direction and intervention, a colour a model.

    Args:
        frame: Columns ``model``, ``measure``, ``row``, ``selectivity``, ``low`` and ``high``.
    """
    measures, models, names = (labels_of(frame, column) for column in ("measure", "model", "row"))
    height = max(ROW * len(names), 90)
    figure = panels_of([MEASURES[m][0] if m in MEASURES else m for m in measures], height)
    for panel, measure in enumerate(measures, start=1):
        for number, model in enumerate(models):
            cells = frame[(frame["measure"] == measure) & (frame["model"] == model)]
            shift = 0.6 * ((number + 0.5) / len(models) - 0.5)
            values = cells[["selectivity", "low", "high"]].astype(float)
            bars = error_bar(values["high"] - values["selectivity"], curve_style(number)["marker"]["color"])
            bars["arrayminus"] = (values["selectivity"] - values["low"]).to_numpy()
            draw_curve(
                figure,
                panel,
                number,
                model,
                values["selectivity"],
                [names.index(name) + shift for name in cells["row"]],
                seen=values[["low", "high"]],
                hover="%{text}: %{x:+.3f} (%{customdata[0]:+.3f} to %{customdata[1]:+.3f})",
                error_x=bars,
                mode="markers",
                text=list(cells["row"]),
            )
        figure.add_vline(x=0, line={"dash": "dot", "width": 1.2, "color": GREY}, row=panel, col=1)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6])
    figure.update_xaxes(title="selectivity", row=len(measures), col=1)
    return finished_panels(figure, len(measures), height)


def _draw_band(figure: go.Figure, line: pd.DataFrame, name: str, panel: int) -> None:
    """Draw what the draws of a random direction span, and their mean with the error over prompts."""
    known = line.dropna(subset="value")
    if known.empty:
        return
    at = {"row": panel, "col": 1}
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "legendgroup": name}
    figure.add_scatter(x=known["strength"], y=known["low"], **edge, **at)
    figure.add_scatter(x=known["strength"], y=known["high"], fill="tonexty", fillcolor=BAND, **edge, **at)
    draw_curve(
        figure,
        panel,
        0,
        name,
        known["strength"],
        known["value"],
        seen=known[["low", "high", "draws"]],
        hover="strength %{x:g}: %{y:.3f}<br>%{customdata[0]:.3f} to %{customdata[1]:.3f} over "
        "%{customdata[2]:.0f} draws",
        error_y=error_bar(known["error"], GREY),
        line={"color": GREY, "width": 1.2, "dash": "dash"},
        marker={"color": GREY, "size": 6},
    )
