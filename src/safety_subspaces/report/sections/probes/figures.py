"""The charts of ``probe``: accuracy and AUC by layer for each erasure, and what is left in every model."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY
from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.probes import (
    AUC_CHANCE,
    ERASURES,
    PROBES,
    TELLING,
    Probes,
    ProbeView,
    in_order,
    of_view,
)
from safety_subspaces.report.parts.chart import (
    bounds_of,
    curve_style,
    draw_curve,
    draw_key,
    draw_silent,
    finished_by_layer,
    finished_panels,
    panels_of,
)

TITLES: Final = {"none": "without erasure", "leace": "after LEACE", "quadratic": "after quadratic erasure"}
# Share of the room between two models that their probes are spread over.
SPREAD: Final = 0.5


def layer_figure(probes: Probes, view: ProbeView, model: str) -> go.Figure:
    """Draw accuracy and AUC of each probe by layer, a panel an erasure; dots: the control task; dashes: chance."""
    rows = of_view(probes.table, view)
    rows = rows[rows["model"] == model]
    kinds = in_order(labels_of(rows, "probe"), PROBES)
    panels = [
        (erasure, measure)
        for measure in ("accuracy", "auc")
        for erasure in in_order(labels_of(rows, "erasure"), ERASURES)
        if rows[rows["erasure"] == erasure][measure].notna().any()
    ]
    figure = panels_of([f"{_upper(measure)}, {TITLES.get(erasure, erasure)}" for erasure, measure in panels])
    for panel, (erasure, measure) in enumerate(panels, start=1):
        cells = rows[rows["erasure"] == erasure].sort_values("layer")
        for number, kind in enumerate(kinds):
            line = cells[cells["probe"] == kind]
            control = "control_accuracy" if measure == "accuracy" else "control_auc" if erasure in TELLING else None
            _draw_probe(figure, line, measure, kind, number, panel, control)
        chance = (
            cells.groupby("layer")["chance"].first() if measure == "accuracy" else cells.groupby("layer").size() * 0
        )
        level = chance.astype(float) if measure == "accuracy" else chance + AUC_CHANCE
        if measure == "auc" and erasure in TELLING:
            level = level * float("nan")  # a coin's level says nothing there: the control labels' lines do
        draw_silent(figure, panel, list(level.index), level, _grey("dash"))
    for name, dash in (("control task", "dot"), ("chance", "dash")):
        draw_key(figure, name, line=_grey(dash))
    figure.update_yaxes(range=[0.25, 1.03])
    return finished_by_layer(figure, len(panels), rows["layer"])


def left_figure(frame: pd.DataFrame, reach: str = "left_stderr") -> go.Figure:
    """Draw what each probe is above chance in each model, as a mean over layers, a panel an erasure.

    Args:
        frame: Rows of :func:`over_layers`, of one view and seed, or their means over seeds.
        reach: The column of the bars.
    """
    models, kinds = labels_of(frame, "model"), in_order(labels_of(frame, "probe"), PROBES)
    erasures = in_order(labels_of(frame, "erasure"), ERASURES)
    figure = panels_of([TITLES.get(erasure, erasure) for erasure in erasures])
    for panel, erasure in enumerate(erasures, start=1):
        for number, kind in enumerate(kinds):
            cells = frame[(frame["erasure"] == erasure) & (frame["probe"] == kind)]
            line = cells.drop_duplicates("model").set_index("model").reindex(models)
            shift = SPREAD * ((number + 0.5) / len(kinds) - 0.5)
            ticks = [tick + shift for tick in range(len(models))]
            hover = "%{text}: %{y:+.3f} ± %{customdata[0]:.3f}"
            style = {"mode": "markers", "text": models}
            draw_curve(figure, panel, number, kind, ticks, line["left"], line[reach], line[[reach]], hover, **style)
        figure.add_hline(y=0, line=_grey("dash"), row=panel, col=1)
    figure.update_xaxes(tickvals=list(range(len(models))), ticktext=models, range=[-0.6, len(models) - 0.4])
    low, high = frame["left"] - frame[reach].fillna(0), frame["left"] + frame[reach].fillna(0)
    # One range for every panel: what is left is seen beside what there was.
    ends = [value for value in (0.0, *low, *high) if not pd.isna(value)]
    figure.update_yaxes(title="above chance", range=bounds_of(ends))
    return finished_panels(figure, len(erasures))


def _draw_probe(
    figure: go.Figure, line: pd.DataFrame, measure: str, kind: str, number: int, panel: int, control: str | None
) -> None:
    hover = (
        "layer %{x}: %{y:.3f} ± %{customdata[0]:.3f}<br>control task %{customdata[1]:.3f}, groups %{customdata[2]:.0f}"
    )
    errors, seen = line[f"{measure}_stderr"], line[[f"{measure}_stderr", "control_accuracy", "n_groups"]]
    draw_curve(figure, panel, number, kind, line["layer"], line[measure], errors, seen, hover)
    if control is not None and line[control].notna().any():
        dotted = {"color": curve_style(number)["marker"]["color"], "dash": "dot", "width": 1.2}
        draw_silent(figure, panel, line["layer"], line[control], dotted, kind)


def _grey(dash: str) -> dict[str, Any]:
    return {"color": GREY, "dash": dash, "width": 1.2}


def _upper(measure: str) -> str:
    return "AUC" if measure == "auc" else measure.capitalize()
