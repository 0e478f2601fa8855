"""What every chart shares: colours, symbols, panels, error bars and the layout, without a theme.

Colours are Okabe and Ito's, told apart with every common colour blindness; what a colour says, a symbol or a dash says
too. The page gives ink and grid, light or dark, when it draws them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import INK
from safety_subspaces.report.parts.colours import subspace_colour

# Pixels of one of several panels under one another, and between two: room for a title and an axis, or a title alone.
PANEL, BETWEEN, NARROW = 170, 64, 36
# Pixels from the first panel's top to the legend, over the panel's title, and what margins take of a chart's height.
LEGEND_ABOVE, MARGINS = 34, 68
METHOD_SYMBOLS = {"onto": "circle", "away": "diamond-open", "opposite": "x"}
METHOD_DASHES = {"onto": "solid", "away": "dot", "opposite": "dash"}
PANELS = {"utility": "Utility", "harm_score": "Harm score", "refusal_margin": "Refusal margin (nats)"}
PANEL_UNITS = {"utility": "n_utility", "harm_score": "n_harmful", "refusal_margin": "n_harmful"}
# Measures that have ends are drawn from end to end in every chart, with room for the symbols that lie on them.
SHARE = (-0.05, 1.05)
FIXED_RANGES = {"utility": SHARE, "harm_score": (0.6, 5.4), "over_refusal_rate": SHARE, "harmful_rate": SHARE}


def draw_projection_keys(figure: go.Figure, rows: pd.DataFrame) -> None:
    """Add the legend: an entry a subspace, which switches its points, and one a method, for its symbol."""
    for subspace in dict.fromkeys(rows["subspace"].astype(str)):
        colour = subspace_colour(subspace)
        style = {"marker": {"color": colour, "size": 9}, "line": {"color": colour}}
        draw_key(figure, subspace, "lines+markers", legendgroup=subspace, **style)
    for method in dict.fromkeys(rows["method"].astype(str)):
        symbol = {"symbol": METHOD_SYMBOLS.get(method, "square"), "line": {"width": 2, "color": INK}}
        style = {
            "marker": {"color": INK, "size": 9, **symbol},
            "line": {"color": INK, "dash": METHOD_DASHES.get(method, "solid")},
        }
        draw_key(figure, method, "lines+markers", legendgroup=method, **style)


def projection_style(subspace: str, method: str) -> dict[str, Any]:
    """Return how the points of a kind of subspace and a method are drawn, the same in every chart."""
    colour = subspace_colour(subspace)
    return {
        "mode": "lines+markers",
        "name": f"{subspace}, {method}",
        "legendgroup": subspace,
        "showlegend": False,
        "marker": {
            "color": colour,
            "size": 9 if subspace == "top" else 7,
            "symbol": METHOD_SYMBOLS.get(method, "square"),
            "line": {"width": 2, "color": colour} if method == "away" else {"width": 0},
        },
        "line": {"color": colour, "width": 1.6 if subspace == "top" else 1, "dash": METHOD_DASHES.get(method, "solid")},
    }


def error_bar(errors: pd.Series, colour: str) -> dict[str, Any]:
    """Return bars of one standard error, or half an interval, to both sides."""
    return {"type": "data", "array": errors.astype(float).to_numpy(), "thickness": 1.2, "width": 3, "color": colour}


def bounds_of(values: Iterable[float]) -> tuple[float, float]:
    """Return a range with a tenth of room on both sides, and never an empty one."""
    known = np.asarray(list(values), dtype=float)
    low, high = float(known.min()), float(known.max())
    room = 0.12 * (high - low) or 1.0
    return low - room, high + room


def finished(figure: go.Figure, height: int) -> go.Figure:
    """Give a chart the margins, legend and axes that all have."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 62, "r": 14, "t": 16, "b": 52},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left", "font": {"size": 12}},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(zeroline=False, ticks="outside", ticklen=4, automargin=True)
    figure.update_yaxes(zeroline=False, ticks="outside", ticklen=4, automargin=True, title_standoff=8)
    return figure


def panels_of(titles: Sequence[str], height: int = PANEL, shared_xaxes: bool = False) -> go.Figure:
    """Return an empty chart of panels under one another, each with its title and of so many pixels."""
    between = NARROW if shared_xaxes else BETWEEN
    whole = len(titles) * height + (len(titles) - 1) * between
    spacing = between / whole if len(titles) > 1 else 0
    options = {"shared_xaxes": shared_xaxes, "vertical_spacing": spacing, "subplot_titles": list(titles)}
    return make_subplots(rows=len(titles), cols=1, **options)


def finished_panels(figure: go.Figure, panels: int, height: int = PANEL, shared_xaxes: bool = False) -> go.Figure:
    """Give a chart of :func:`panels_of` its height, with the legend over the title of the first panel."""
    between = NARROW if shared_xaxes else BETWEEN
    finished(figure, height=panels * height + (panels - 1) * between + LEGEND_ABOVE + MARGINS + 20)
    figure.update_annotations(font_size=12.5)
    return figure.update_layout(legend_y=1 + LEGEND_ABOVE / (figure.layout.height - MARGINS))


def finished_by_layer(
    figure: go.Figure, panels: int, layers: Iterable[Any], title: str | None = None, **options: Any
) -> go.Figure:
    """Give a chart of :func:`panels_of` over layers its axes and its height; ticks at whole layers, about ten."""
    if title is not None:
        figure.update_yaxes(title=title)
    figure.update_xaxes(dtick=layer_step(layers), tick0=0, tickformat="d")
    figure.update_xaxes(title="layer", row=panels, col=1)
    return finished_panels(figure, panels, **options)


def layer_step(layers: Iterable[Any]) -> int:
    """Return a step that puts at most about ten ticks on the layers, each at a whole one."""
    known = [int(layer) for layer in layers]
    return max(1, round((max(known) - min(known) + 1) / 10)) if known else 1


def draw_curve(
    figure: go.Figure,
    panel: int,
    look: Mapping[str, Any],
    name: str,
    x: Any,
    y: Any,
    errors: pd.Series | None = None,
    seen: pd.DataFrame | None = None,
    hover: str = "",
    **style: Any,
) -> None:
    """Draw a label's curve in a panel; the first panel has it in the legend.

    Args:
        figure: The chart.
        panel: Which panel, from 1.
        look: Its colour, line and symbol, as :mod:`.colours` has them.
        name: The label.
        x: Where the points are.
        y: Their values.
        errors: Half of the bars' length.
        seen: Further numbers that the reader who points at one sees, as ``%{customdata[0]}`` and so on.
        hover: What that reader sees.
        style: What is drawn otherwise than ``look`` says.
    """
    options = {
        "error_y": None if errors is None else error_bar(errors, look["marker"]["color"]),
        "legendgroup": name,
        "showlegend": panel == 1,
        "customdata": None if seen is None else seen.astype(float).to_numpy(),
        "hovertemplate": f"{hover}<extra>{name}</extra>",
    }
    figure.add_scatter(x=x, y=y, name=name, row=panel, col=1, **(options | dict(look) | style))


def draw_silent(
    figure: go.Figure,
    panel: int,
    x: Any,
    y: Any,
    line: dict[str, Any],
    group: str | None = None,
    name: str | None = None,
    **shown: Any,
) -> None:
    """Draw a line that says nothing when it is pointed at and is not in the legend; it goes with its group.

    With a name it is saved with the numbers of the chart.
    """
    options = {"mode": "lines", "showlegend": False, "hoverinfo": "skip", "legendgroup": group, "name": name, **shown}
    figure.add_scatter(x=x, y=y, line=line, row=panel, col=1, **options)


def draw_key(figure: go.Figure, name: str, mode: str = "lines", **style: Any) -> None:
    """Add an entry to the legend that no point belongs to."""
    figure.add_scatter(x=[None], y=[None], mode=mode, name=name, **style)


def draw_level(
    figure: go.Figure,
    panel: int,
    level: float,
    label: str,
    colour: str,
    position: str = "top left",
    width: float = 1.4,
    opacity: float | None = None,
) -> None:
    """Draw a dashed line at what a model does, with the model's name at one of its ends."""
    figure.add_hline(
        y=level,
        name=label,
        opacity=opacity,
        line={"dash": "dash", "width": width, "color": colour},
        annotation={"text": label, "font": {"size": 11, "color": colour}},
        annotation_position=position,
        row=panel,
        col=1,
    )


def draw_levels(
    figure: go.Figure,
    panel: int,
    levels: Sequence[tuple[str, str, float]],
    width: float = 1.4,
    opacity: float | None = None,
) -> list[float]:
    """Draw where the two models that projections lie between stand: label, colour and level; return those known."""
    for (label, colour, level), position in zip(levels, ("top left", "top right"), strict=False):
        if not np.isnan(level):
            draw_level(figure, panel, level, label, colour, position, width, opacity)
    return [level for _, _, level in levels if not np.isnan(level)]
