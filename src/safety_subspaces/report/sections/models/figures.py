"""The chart of training losses."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import PALETTE
from safety_subspaces.artefacts.study import Stage
from safety_subspaces.report.parts.chart import finished

# Points of a loss curve that a chart of 900 pixels can show, with room to spare; more only make the page
# heavy.
MOST_POINTS = 400
# Batches of like length are alike in kind as well, and their losses jump from one to the next.
SMOOTHED_OVER = 9
LOSS_TICKS = [digit * 10.0**power for power in range(-5, 2) for digit in (1, 2, 5)]


def loss_figure(stages: Sequence[Stage]) -> go.Figure:
    """Draw the loss of every stage against its steps: training as a line, validation as markers."""
    figure = go.Figure()
    for number, stage in enumerate(stages):
        colour = PALETTE[number % len(PALETTE)]
        dash = "solid" if number < len(PALETTE) else "dash"
        train, val = stage.scalars.get("train/loss"), stage.scalars.get("val/loss")
        if train is not None and len(train):
            smooth = train.assign(value=train["value"].rolling(SMOOTHED_OVER, center=True, min_periods=1).mean())
            thin = _thinned(smooth)
            figure.add_scatter(
                x=thin["step"],
                y=thin["value"],
                mode="lines",
                name=stage.name,
                legendgroup=stage.name,
                line={"color": colour, "width": 1.6, "dash": dash},
                hovertemplate=f"step %{{x}}: %{{y:.4f}}<extra>{stage.name}, training</extra>",
            )
        if val is not None and len(val):
            thin = _thinned(val)
            figure.add_scatter(
                x=thin["step"],
                y=thin["value"],
                mode="markers",
                name=stage.name if train is None else f"{stage.name}, validation",
                showlegend=train is None,
                legendgroup=stage.name,
                marker={"color": colour, "size": 7, "symbol": "circle-open", "line": {"width": 2}},
                hovertemplate=f"step %{{x}}: %{{y:.4f}}<extra>{stage.name}, validation</extra>",
            )
    figure.update_xaxes(title="optimizer step")
    figure.update_yaxes(
        title="loss (nats a token)", type="log", tickvals=LOSS_TICKS, ticktext=[f"{t:g}" for t in LOSS_TICKS]
    )
    return finished(figure, height=420)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """Keep at most about ``MOST_POINTS`` rows of a curve, evenly spread, and the last one."""
    step = max(1, -(-len(curve) // MOST_POINTS))
    last = curve.iloc[[-1]]
    return pd.concat([curve.iloc[:-1:step], last])
