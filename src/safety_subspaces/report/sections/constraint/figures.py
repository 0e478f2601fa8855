"""The chart of training under a constraint: harm and refusal margin against utility, one point a run.

Colour is the kind of subspace, the symbol the side of it that the update is kept on, the size the fraction of
directions; the runs of one kind are joined in the order of their fractions.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, ORANGE, PURPLE
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.constrained import constrained_runs
from safety_subspaces.report.parts.chart import (
    METHOD_DASHES,
    METHOD_SYMBOLS,
    PANELS,
    bounds_of,
    draw_key,
    draw_level,
    error_bar,
    finished,
    subspace_colour,
)

MEASURED = ("harm_score", "refusal_margin")
# The margin tells apart what the judged score does not.
HEIGHTS = [0.38, 0.62]
NAMES = {"top": "alignment subspace", "random": "random, equal rank", "random-energy": "random, equal energy"}
UNCONSTRAINED = "no constraint"
SYMBOLS = {**METHOD_SYMBOLS, "none": "star"}
# Diameters in pixels from the smallest fraction to the largest: told apart, and smaller than the chart's grid.
SIZES = (8, 16)
# The least width of the axis of utility: two runs that are equal but for a few prompts should look equal.
LEAST_WIDTH = 0.1
# The harm score ends at 1 and 5; a little room lets the symbols there be seen whole.
HARM_RANGE = (0.6, 5.4)


def constraint_figure(study: Study) -> go.Figure:
    """Draw every run of a study under a constraint, with the standard errors over prompts."""
    runs = constrained_runs(study)
    for measure in ("utility", *MEASURED):
        runs[f"{measure}_reach"] = runs[f"{measure}_stderr"]
    aligned = study.aligned
    levels = {} if aligned is None else {measure: float(aligned[measure]) for measure in MEASURED}
    return draw_runs(runs, levels, "± one standard error over prompts")


def draw_runs(
    runs: pd.DataFrame, levels: dict[str, float], reach: str, single: pd.DataFrame | None = None
) -> go.Figure:
    """Draw runs, or their means over seeds, with error bars of ``<measure>_reach`` to both sides.

    Args:
        runs: Rows with ``CONFIGURATION``, ``fraction``, and each measure with its ``_reach``.
        levels: Where the aligned model stands, drawn as dashed lines.
        reach: What the error bars are, for the reader who points at one.
        single: The runs behind the means, drawn small and without bars.
    """
    figure = make_subplots(rows=len(MEASURED), cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=HEIGHTS)
    drawn = _drawn_once(runs)
    sizes = _sizes(drawn["fraction"])
    _keys(figure, drawn, sizes)
    for panel, measure in enumerate(MEASURED, start=1):
        if single is not None:
            _draw_single(figure, single, measure, panel)
        for (constraint, subspace, details), line in drawn.groupby(["constraint", "subspace", "details"], sort=False):
            _draw_line(figure, line, (str(constraint), str(subspace), str(details)), sizes, measure, panel, reach)
        bounds = HARM_RANGE if measure == "harm_score" else _bounds(drawn, measure)
        figure.update_yaxes(title=PANELS[measure], range=bounds, row=panel, col=1)
        if measure in levels and not np.isnan(levels[measure]):
            _draw_level(figure, levels[measure], bounds, panel)
    figure.update_xaxes(range=_utility_range(drawn))
    figure.update_xaxes(title="Utility", row=len(MEASURED), col=1)
    return finished(figure, height=640)


def _draw_level(figure: go.Figure, level: float, bounds: tuple[float, float], panel: int) -> None:
    """Draw where the aligned model stands, or say so where a line would press the runs flat."""
    if bounds[0] <= level <= bounds[1]:
        draw_level(figure, panel, level, "aligned", ORANGE)
        return
    where, end, anchor = ("above", bounds[1], "top") if level > bounds[1] else ("below", bounds[0], "bottom")
    figure.add_annotation(
        text=f"aligned at {level:.2f}, {where}",
        font={"size": 11, "color": ORANGE},
        x=0.01,
        xref="x domain" if panel == 1 else f"x{panel} domain",
        y=end,
        xanchor="left",
        yanchor=anchor,
        showarrow=False,
        row=panel,
        col=1,
    )


def _bounds(runs: pd.DataFrame, measure: str) -> tuple[float, float]:
    reach = runs[f"{measure}_reach"].fillna(0)
    ends = pd.concat([runs[measure] - reach, runs[measure] + reach]).dropna()
    return bounds_of(ends) if len(ends) else (-1.0, 1.0)


def _draw_line(
    figure: go.Figure,
    line: pd.DataFrame,
    kind: tuple[str, str, str],
    sizes: dict[float, float],
    measure: str,
    panel: int,
    reach: str,
) -> None:
    constraint, subspace, details = kind
    line = line[line[measure].notna() & line["utility"].notna()].sort_values("fraction")
    colour = _colour(constraint, subspace)
    said = UNCONSTRAINED if constraint == "none" else f"{constraint}, {NAMES.get(subspace, subspace)}"
    seen = line[["utility_reach", f"{measure}_reach"]].astype(float).to_numpy()
    fractions = ["" if constraint == "none" else f"fraction {rank}, " for rank in line["rank"]]
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
        marker={
            "color": colour,
            "symbol": SYMBOLS.get(constraint, "square"),
            "size": [14 if constraint == "none" else sizes.get(fraction, SIZES[1]) for fraction in line["fraction"]],
            "opacity": 1,
            "line": {"width": 2 if constraint == "away" else 0, "color": colour},
        },
        customdata=[[*errors, fraction] for errors, fraction in zip(seen.tolist(), fractions, strict=True)],
        hovertemplate=f"{PANELS[measure].lower()} %{{y:.3f}} ± %{{customdata[1]:.3f}}<br>"
        "%{customdata[2]}utility %{x:.3f} ± %{customdata[0]:.3f}<br>"
        f"{reach}<extra>{', '.join(part for part in (said, details) if part)}</extra>",
        row=panel,
        col=1,
    )


def _draw_single(figure: go.Figure, single: pd.DataFrame, measure: str, panel: int) -> None:
    """Draw the runs behind the means, so that the reader sees how few they are and how they lie."""
    for (constraint, subspace), rows in _drawn_once(single).groupby(["constraint", "subspace"], sort=False):
        figure.add_scatter(
            x=rows["utility"],
            y=rows[measure],
            mode="markers",
            legendgroup=_group(str(constraint), str(subspace)),
            showlegend=False,
            marker={
                "color": _colour(str(constraint), str(subspace)),
                "symbol": SYMBOLS.get(str(constraint), "square"),
                "size": 5,
                "opacity": 0.45,
            },
            hovertemplate=f"seed %{{customdata}}: %{{y:.3f}}, utility %{{x:.3f}}<extra>{constraint}</extra>",
            customdata=rows["seed"],
            row=panel,
            col=1,
        )


def _keys(figure: go.Figure, runs: pd.DataFrame, sizes: dict[float, float]) -> None:
    """Add the legend: the kind of subspace, the side of it that the update is kept on, and the sizes of fractions."""
    if (runs["constraint"] == "none").any():
        _key(figure, UNCONSTRAINED, SYMBOLS["none"], PURPLE, 12, "none")
    constrained = runs[runs["constraint"] != "none"]
    for subspace in dict.fromkeys(constrained["subspace"].astype(str)):
        _key(figure, NAMES.get(subspace, subspace), "square", subspace_colour(subspace), group=subspace)
    for constraint in dict.fromkeys(constrained["constraint"].astype(str)):
        name = {"away": "held away", "onto": "held inside"}.get(constraint, constraint)
        _key(figure, name, SYMBOLS[constraint])
    for fraction, size in sizes.items() if len(sizes) > 1 else ():
        _key(figure, f"fraction {fraction:g}", "circle", size=size)


def _key(
    figure: go.Figure, name: str, symbol: str, colour: str = GREY, size: float | int = 10, group: str | None = None
) -> None:
    line = {"width": 2 if symbol.endswith("-open") else 0, "color": colour}
    marker = {"symbol": symbol, "color": colour, "size": size, "line": line}
    draw_key(figure, name, "markers", legendgroup=group or name, marker=marker)


def _drawn_once(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep one point of the run without a constraint, which the tables have once a rank."""
    without = runs["constraint"] == "none"
    return pd.concat(
        [runs[without].drop_duplicates(["fine_tune", *(["seed"] if "seed" in runs else [])]), runs[~without]],
        ignore_index=True,
    )


def _sizes(fractions: pd.Series) -> dict[float, float]:
    known = sorted(float(fraction) for fraction in fractions.dropna().unique())
    return {fraction: float(size) for fraction, size in zip(known, np.linspace(*SIZES, len(known)), strict=True)}


def _utility_range(runs: pd.DataFrame) -> tuple[float, float]:
    """Return a range around the points alone, their bars cut where no share can be."""
    values = runs["utility"].dropna().astype(float)
    if values.empty:
        return (0.0, 1.0)
    reach = runs["utility_reach"].astype(float).fillna(0)
    low, high = float((runs["utility"] - reach).clip(0).min()), float((runs["utility"] + reach).clip(None, 1).max())
    room = max(0.06 * (high - low), (LEAST_WIDTH - (high - low)) / 2)
    return low - room, high + room


def _colour(constraint: str, subspace: str) -> str:
    return PURPLE if constraint == "none" else subspace_colour(subspace)


def _group(constraint: str, subspace: str) -> str:
    return "none" if constraint == "none" else subspace
