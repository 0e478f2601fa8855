"""How one study's runs learnt: their losses by step. Several seeds have a page each: their curves lie on each other."""

from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go

from safety_subspaces.artefacts.study import Stage
from safety_subspaces.findings.stages import SMOOTHED_OVER, loss_curve
from safety_subspaces.report.parts.chart import finished
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Part, Section

TRAIN, VALIDATION = "train/loss", "val/loss"
TICKS: Final = [digit * 10.0**power for power in range(-5, 2) for digit in (1, 2, 5)]
CAPTION: Final = (
    f"Lines: training loss, a running mean of {SMOOTHED_OVER} logged steps. Rings: validation loss. A colour means the "
    "same model in every chart; dashes tell apart what shares one."
)


def training(part: Part) -> Section | None:
    """Draw the losses of one study's runs, those under a constraint apart."""
    if not part.is_single:
        return None
    if not part.studies.studies[0].stages:
        return None  # analyses of models that were trained elsewhere
    logged = [s for s in part.studies.studies[0].stages if TRAIN in s.scalars or VALIDATION in s.scalars]
    charts = []
    for name, title, is_held in (("loss", "", False), ("loss-held", "Under a constraint", True)):
        stages = [stage for stage in logged if (stage.constraint is not None) == is_held]
        if stages:
            label, unique = (
                "Loss of each stage against its optimizer steps",
                "-".join(filter(None, (part.anchor, name))),
            )
            charts.append((make_chart(unique, title, label, loss_figure(stages, part.colours)), CAPTION))
    lacking = [] if charts else [("No stage has a loss in its TensorBoard events.", "")]
    return Section("training", "Training", charts=charts, missing=lacking, place=700)


def loss_figure(stages: Sequence[Stage], colours: Colours) -> go.Figure:
    """Draw the loss of every stage against its steps: training as a line, validation as markers."""
    figure = go.Figure()
    for stage in stages:
        look = colours.style(stage.name)
        colour = look["marker"]["color"]
        train, validation = loss_curve(stage, TRAIN, smoothed=True), loss_curve(stage, VALIDATION, smoothed=False)
        hover = "step %{x}: %{y:.4f}"
        if len(train):
            figure.add_scatter(
                x=train["step"],
                y=train["value"],
                mode="lines",
                name=stage.name,
                legendgroup=stage.name,
                line=look["line"],
                hovertemplate=f"{hover}<extra>{stage.name}, training</extra>",
            )
        if len(validation):
            figure.add_scatter(
                x=validation["step"],
                y=validation["value"],
                mode="markers",
                name=f"{stage.name}, validation" if len(train) else stage.name,
                showlegend=not len(train),
                legendgroup=stage.name,
                marker={"color": colour, "size": 7, "symbol": "circle-open", "line": {"width": 2}},
                hovertemplate=f"{hover}<extra>{stage.name}, validation</extra>",
            )
    figure.update_xaxes(title="optimizer step")
    figure.update_yaxes(title="loss (nats a token)", type="log", tickvals=TICKS, ticktext=[f"{t:g}" for t in TICKS])
    return finished(figure, height=420)
