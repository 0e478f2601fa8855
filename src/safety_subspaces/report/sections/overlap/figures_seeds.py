"""The chart of overlaps over seeds: by layer and by type, each pair between its chance levels and its floors."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, PALETTE
from safety_subspaces.findings.overlaps import AS_NAMED, distances_over_seeds
from safety_subspaces.report.parts.chart import draw_key, draw_silent, error_bar, finished

PANELS: Final = {"layer": "layer", "type": "type of tensor"}
# Level, dash and how its line is told in the legend; lines are drawn across the place that they belong to.
LINES: Final = (("chance", "dot", "chance"), ("matched_chance", "dashdot", "matched chance"))
# Share of the room between two places that one place fills.
FILLED: Final = 0.8


def overlap_across_figure(overlaps: pd.DataFrame, analysis: str) -> go.Figure:
    """Draw the cross-kind pairs of one analysis by layer and by type, with half their t intervals over seeds.

    Circles are pairs; open diamonds on dashes, of the same colour, their floors; lines in grey the chance levels.
    """
    frame = _shown(overlaps, analysis)
    pairs = list(dict.fromkeys(zip(frame["first"], frame["second"], strict=True)))
    figure = make_subplots(rows=len(PANELS), cols=1, vertical_spacing=0.16)
    for panel, (by, title) in enumerate(PANELS.items(), start=1):
        cells = list(dict.fromkeys(frame[frame["by"] == by]["cell"]))
        for place, (first, second) in enumerate(pairs):
            of_pair = (frame["by"] == by) & (frame["first"] == first) & (frame["second"] == second)
            rows = frame[of_pair].set_index("cell").reindex(cells)
            width = FILLED / len(pairs)
            centres = [number - FILLED / 2 + width * (place + 0.5) for number in range(len(cells))]
            colour = PALETTE[place % len(PALETTE)]
            _draw(figure, panel, rows, centres, width, f"{first} - {second}", colour)
        ticks = {"tickvals": list(range(len(cells))), "ticktext": cells, "range": [-0.6, len(cells) - 0.4]}
        figure.update_xaxes(title=title, **ticks, row=panel, col=1)
    for _, dash, title in LINES:
        draw_key(figure, title, line={"color": GREY, "dash": dash, "width": 1.6})
    figure.update_yaxes(title="overlap of weights", rangemode="tozero")
    return finished(figure, height=620)


def caption(overlaps: pd.DataFrame, analysis: str) -> str:
    """Return what a reader of the chart must know: which spaces, seeds and tensors, and what each mark is."""
    frame = _shown(overlaps, analysis)
    if frame.empty:
        return f"No overlap of two kinds of fine-tune was measured ({analysis})."
    own = overlaps[overlaps["analysis"] == analysis]
    pairs = ", ".join(dict.fromkeys(f"{row['first']} and {row['second']}" for _, row in frame.iterrows()))
    kinds = own[own["floor"].astype(bool)][["first", "second"]].drop_duplicates().itertuples(index=False, name=None)
    floors = ", ".join(f"{first} and {second}" for first, second in kinds)
    seeds = ", ".join(sorted(own["seed"].astype(str).unique()))
    half = "± half the 95 % t interval over seeds" if own["seed"].nunique() > 1 else "one seed, so without an interval"
    undefined = int(frame[frame["by"] == "type"]["undefined"].sum())
    return (
        f"Overlap of the left singular spaces that hold {frame['energy'].iloc[0]:g} of each update's energy "
        f"({analysis}). Circles: {pairs}, the mean over seeds ({seeds}) of the mean over a seed's tensors, {half}. "
        f"Open diamonds on dashes: two of one kind, the floor ({floors or 'not measured'}). Dotted: chance. Dash-dot: "
        "matched chance, the same pair with a random sign for each row of the second. By layer: the matrices of a "
        f"block ({_tensors(frame, 'layer')} a layer and seed). By type: every tensor ({_tensors(frame, 'type')} a type "
        f"and seed). {undefined} overlaps are undefined."
    )


def _shown(overlaps: pd.DataFrame, analysis: str) -> pd.DataFrame:
    frame = distances_over_seeds(overlaps[overlaps["analysis"] == analysis])
    return frame[(frame["pairing"] == AS_NAMED) & frame["by"].isin(list(PANELS))]


def _tensors(frame: pd.DataFrame, by: str) -> str:
    found = frame[frame["by"] == by]["tensors"]
    if found.empty:
        return "none"
    low, high = f"{found.min():.3g}", f"{found.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _draw(
    figure: go.Figure, panel: int, rows: pd.DataFrame, centres: list[float], width: float, name: str, colour: str
) -> None:
    """Draw one pair in one panel: lines across each place at its levels, then floor and pair with their intervals."""
    # One line across each place, with a gap between places.
    ends = [end for centre in centres for end in (centre - width / 2, centre + width / 2, None)]
    for level, dash, _ in LINES:
        draw_silent(figure, panel, ends, _twice(rows[level]), {"color": GREY, "dash": dash, "width": 1.6})
    if rows["floor"].notna().any():
        line = {"color": colour, "dash": "dash", "width": 1.4}
        draw_silent(figure, panel, ends, _twice(rows["floor"]), line, "floor")
        shift, symbol = width * 0.12, "diamond-open"
        figure.add_scatter(**_points(rows, "floor", centres, shift, f"{name}: two of one kind", colour, symbol, panel))
    figure.add_scatter(**_points(rows, "overlap", centres, -width * 0.12, name, colour, "circle", panel))


def _points(
    rows: pd.DataFrame,
    measure: str,
    centres: list[float],
    shift: float,
    name: str,
    colour: str,
    symbol: str,
    panel: int,
) -> dict[str, Any]:
    seen = [f"{measure}_reach", "chance", "matched_chance", f"{measure}_seeds", "tensors"]
    return {
        "x": [centre + shift for centre in centres],
        "y": rows[measure],
        "error_y": error_bar(rows[f"{measure}_reach"], colour),
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "showlegend": panel == 1,
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2, "color": colour}},
        "text": list(rows.index),
        "customdata": rows[seen].astype(float).to_numpy(),
        "hovertemplate": "%{text}: %{y:.3f} ± %{customdata[0]:.3f}<br>chance %{customdata[1]:.3f}, "
        "matched %{customdata[2]:.3f}<br>seeds %{customdata[3]:.0f}, tensors %{customdata[4]:.3g}"
        f"<extra>{name}</extra>",
        "row": panel,
        "col": 1,
    }


def _twice(levels: pd.Series) -> list[float | None]:
    """Return each level at both ends of its line."""
    return [value for level in levels for value in (level, level, None)]
