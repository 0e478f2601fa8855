"""The chart of training under a constraint: harm and refusal margin against utility, one point a kind of run.

Colour is the kind of subspace, or without one the model; the symbol is the side of it that the update is kept on, the
size the fraction of directions; the runs of one kind are joined in the order of their fractions.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import INK
from safety_subspaces.report.parts.chart import (
    FIXED_RANGES,
    METHOD_DASHES,
    METHOD_SYMBOLS,
    PANELS,
    bounds_of,
    draw_key,
    draw_level,
    error_bar,
    finished,
)
from safety_subspaces.report.parts.colours import Colours, subspace_colour

NAMES: Final = {"top": "alignment subspace", "random": "random, equal rank", "random-energy": "random, equal energy"}
SIDES: Final = {"away": "held away", "onto": "held inside"}
# The margin tells apart what the judged score does not.
HEIGHTS: Final = {"harm_score": 0.38, "refusal_margin": 0.62}
SYMBOLS: Final = {**METHOD_SYMBOLS, "none": "star"}
# Diameters in pixels from the smallest fraction to the largest: told apart, and smaller than the chart's grid.
SIZES: Final = (8, 16)


def runs_figure(
    kinds: pd.DataFrame,
    runs: pd.DataFrame,
    levels: Mapping[str, float],
    reach: str,
    colours: Colours,
    aligned: str = "aligned",
) -> go.Figure:
    """Draw each kind of run, its mean where there are several, with every run behind the means.

    Args:
        kinds: As :func:`~safety_subspaces.findings.models.runs_over_seeds`.
        runs: The runs behind them, with their ``seed``.
        levels: Where the aligned model stands, by measure: dashed lines.
        reach: What the error bars are, for the reader who points at one.
        colours: Those of the models: of the runs without a constraint, and of the aligned one.
        aligned: The label of the aligned model.
    """
    kinds, runs = _drawn_once(kinds), _drawn_once(runs, "seed")
    sizes = _sizes(kinds["fraction"])
    options = {"shared_xaxes": True, "vertical_spacing": 0.05, "row_heights": list(HEIGHTS.values())}
    figure = make_subplots(rows=len(HEIGHTS), cols=1, **options)
    _draw_keys(figure, kinds, sizes, colours)
    for panel, measure in enumerate(HEIGHTS, start=1):
        if len(runs) > len(kinds):
            _draw_single(figure, runs, measure, panel, colours)
        for _, line in kinds.groupby(["fine_tune", "constraint", "subspace", "details"], sort=False):
            _draw_line(figure, line, sizes, measure, panel, reach, colours)
        bounds = FIXED_RANGES.get(measure) or _bounds(kinds, measure)
        figure.update_yaxes(title=PANELS[measure], range=bounds, row=panel, col=1)
        if not np.isnan(levels.get(measure, np.nan)):
            _draw_level(figure, levels[measure], bounds, panel, aligned, colours.of(aligned))
    figure.update_xaxes(range=FIXED_RANGES["utility"])
    figure.update_xaxes(title="Utility", row=len(HEIGHTS), col=1)
    return finished(figure, height=640)


def _draw_level(
    figure: go.Figure, level: float, bounds: tuple[float, float], panel: int, name: str, colour: str
) -> None:
    """Draw where the aligned model stands, or say so where a line would press the runs flat."""
    if bounds[0] <= level <= bounds[1]:
        draw_level(figure, panel, level, name, colour)
        return
    where, end, anchor = ("above", bounds[1], "top") if level > bounds[1] else ("below", bounds[0], "bottom")
    said = {"text": f"{name} at {level:.2f}, {where}", "font": {"size": 11, "color": colour}, "showarrow": False}
    place = {"x": 0.01, "xref": "x domain" if panel == 1 else f"x{panel} domain", "y": end}
    figure.add_annotation(**said, **place, xanchor="left", yanchor=anchor, row=panel, col=1)


def _draw_line(
    figure: go.Figure,
    line: pd.DataFrame,
    sizes: dict[float, float],
    measure: str,
    panel: int,
    reach: str,
    colours: Colours,
) -> None:
    """Draw the runs of one kind in the order of their fractions."""
    constraint, subspace, details = (str(line[name].iloc[0]) for name in ("constraint", "subspace", "details"))
    is_free, colour = constraint == "none", _colour(line.iloc[0], colours)
    said = (
        f"{line['fine_tune'].iloc[0]}, no constraint" if is_free else f"{constraint}, {NAMES.get(subspace, subspace)}"
    )
    line = line[line[measure].notna() & line["utility"].notna()].sort_values("fraction")
    at = ["" if is_free else f"fraction {rank}, " for rank in line["rank"]]
    shown = zip(line["utility_reach"], line[f"{measure}_reach"], at, strict=True)
    diameters = [14 if is_free else sizes.get(fraction, SIZES[1]) for fraction in line["fraction"]]
    edge = {"width": 2 if constraint == "away" else 0, "color": colour}
    figure.add_scatter(
        x=line["utility"],
        y=line[measure],
        error_x=error_bar(line["utility_reach"], colour),
        error_y=error_bar(line[f"{measure}_reach"], colour),
        mode="lines+markers",
        name=said,
        legendgroup=_group(constraint, subspace),
        showlegend=False,
        line={"color": colour, "width": 1.2, "dash": METHOD_DASHES.get(constraint, "solid")},
        marker={"color": colour, "symbol": _symbol(constraint), "size": diameters, "opacity": 1, "line": edge},
        customdata=[[_reached(across), _reached(up), where] for across, up, where in shown],
        hovertemplate=f"{PANELS[measure].lower()} %{{y:.3f}}%{{customdata[1]}}<br>%{{customdata[2]}}utility %{{x:.3f}}"
        f"%{{customdata[0]}}<br>{reach}<extra>{', '.join(part for part in (said, details) if part)}</extra>",
        row=panel,
        col=1,
    )


def _reached(reach: float) -> str:
    return "" if np.isnan(reach) else f" ± {reach:.3f}"


def _draw_single(figure: go.Figure, runs: pd.DataFrame, measure: str, panel: int, colours: Colours) -> None:
    """Draw the runs behind the means, so that the reader sees how few they are and how they lie."""
    for (constraint, subspace, _), rows in runs.groupby(["constraint", "subspace", "fine_tune"], sort=False):
        marker = {"color": _colour(rows.iloc[0], colours), "symbol": _symbol(constraint), "size": 5, "opacity": 0.45}
        figure.add_scatter(
            x=rows["utility"],
            y=rows[measure],
            mode="markers",
            legendgroup=_group(constraint, subspace),
            showlegend=False,
            marker=marker,
            hovertemplate=f"seed %{{customdata}}: %{{y:.3f}}, utility %{{x:.3f}}<extra>{constraint}</extra>",
            customdata=rows["seed"],
            row=panel,
            col=1,
        )


def _draw_keys(figure: go.Figure, runs: pd.DataFrame, sizes: dict[float, float], colours: Colours) -> None:
    """Add the legend: the kind of subspace, the side of it that the update is kept on, and the sizes of fractions."""
    held = runs[runs["constraint"] != "none"]
    free = dict.fromkeys(runs[runs["constraint"] == "none"]["fine_tune"].astype(str))
    keys = [(f"{name}, no constraint", "star", colours.of(name), 12.0, "none") for name in free]
    for kind in dict.fromkeys(held["subspace"].astype(str)):
        keys.append((NAMES.get(kind, kind), "square", subspace_colour(kind), 10.0, kind))
    for mode in dict.fromkeys(held["constraint"].astype(str)):
        name = SIDES.get(mode, mode)
        keys.append((name, _symbol(mode), INK, 10.0, name))
    for fraction, size in sizes.items() if len(sizes) > 1 else ():
        keys.append((f"fraction {fraction:g}", "circle", INK, size, f"fraction {fraction:g}"))
    for name, symbol, colour, size, group in keys:
        edge = {"width": 2 if symbol.endswith("-open") else 0, "color": colour}
        marker = {"symbol": symbol, "color": colour, "size": size, "line": edge}
        draw_key(figure, name, "markers", legendgroup=group, marker=marker)


def _drawn_once(runs: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Keep one point of the run without a constraint, which the tables have once a rank."""
    is_free = runs["constraint"] == "none"
    return pd.concat([runs[is_free].drop_duplicates(["fine_tune", *more]), runs[~is_free]], ignore_index=True)


def _sizes(fractions: pd.Series) -> dict[float, float]:
    known = sorted(float(fraction) for fraction in fractions.dropna().unique())
    return {fraction: float(size) for fraction, size in zip(known, np.linspace(*SIZES, len(known)), strict=True)}


def _bounds(runs: pd.DataFrame, measure: str) -> tuple[float, float]:
    reach = runs[f"{measure}_reach"].fillna(0)
    ends = pd.concat([runs[measure] - reach, runs[measure] + reach]).dropna()
    return bounds_of(ends) if len(ends) else (-1.0, 1.0)


def _symbol(constraint: Any) -> str:
    return SYMBOLS.get(str(constraint), "square")


def _colour(run: Any, colours: Colours) -> str:
    return colours.of(str(run["fine_tune"])) if run["constraint"] == "none" else subspace_colour(str(run["subspace"]))


def _group(constraint: Any, subspace: Any) -> str:
    return "none" if constraint == "none" else str(subspace)
