"""The charts of overlaps: of one study, and over seeds with chance levels and floors."""

from collections.abc import Iterable
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, PALETTE
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import PAIR, in_blocks, nearest_energy, overlap_by
from safety_subspaces.findings.overlaps import AS_NAMED, distances_over_seeds
from safety_subspaces.report.parts.chart import draw_key, draw_silent, error_bar, finished, layer_step

PANELS: Final = {"layer": "layer", "type": "type of tensor"}
# Column of a chance level, dash of its line, and its name in the legend. A line spans its cell (a layer or a type).
LINES: Final = (("chance", "dot", "chance"), ("matched_chance", "dashdot", "matched chance"))
# Share of the room between two cells that the marks of one cell fill.
FILLED: Final = 0.8


def overlap_figure(study: Study) -> go.Figure:
    """Draw overlap by layer for each pair, with its chance levels and the same-kind floors (dashed).

    Every trace carries its energy share in ``meta``; the page shows one share at a time.
    """
    by_layer = overlap_by(in_blocks(study.overlaps), "layer")
    figure = go.Figure()
    colours = pair_colours(study.overlaps)
    wanted = nearest_energy(study.overlaps)
    for keys, rows in by_layer.groupby([*PAIR, "energy"], sort=False):
        pair, energy = keys[:3], float(rows["energy"].iloc[0])
        name, colour = _pair_name(pair, by_layer), colours[pair]
        is_floor = bool(rows["floor"].any())
        shared = {"visible": energy == wanted, "legendgroup": name, "meta": {"energy": energy}}
        figure.add_scatter(
            x=rows["layer"],
            y=rows["overlap"],
            error_y=error_bar(rows["overlap_error"], colour),
            mode="lines+markers",
            name=f"{name} (same kind)" if is_floor else name,
            line={"color": colour, "dash": "dash" if is_floor else "solid", "width": 2},
            marker={"size": 7},
            customdata=rows[["n", "chance", "matched_chance"]].astype(float).to_numpy(),
            hovertemplate="layer %{x}: %{y:.3f}<br>chance %{customdata[1]:.3f}, matched %{customdata[2]:.3f}<br>"
            f"tensors %{{customdata[0]:.0f}}<extra>{name}</extra>",
            **shared,
        )
        if is_floor:
            continue
        for column, dash in (("chance", "dot"), ("matched_chance", "dashdot")):
            if rows[column].notna().any():
                line = {"color": colour, "dash": dash, "width": 1.2}
                figure.add_scatter(
                    x=rows["layer"],
                    y=rows[column],
                    mode="lines",
                    showlegend=False,
                    hoverinfo="skip",
                    line=line,
                    **shared,
                )
    for title, dash in (("chance", "dot"), ("matched chance", "dashdot")):
        draw_key(figure, title, line={"color": GREY, "dash": dash, "width": 1.2})
    figure.update_xaxes(title="layer", dtick=layer_step(by_layer["layer"]))
    figure.update_yaxes(title="overlap of weights", range=[0, None], rangemode="tozero")
    return finished(figure, height=430)


def overlap_type_figure(study: Study) -> go.Figure:
    """Draw overlap by type of tensor, embeddings and output head with them, beside both chance levels."""
    by_type = overlap_by(study.overlaps, "type")
    order = ("embeddings", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other")
    known = set(by_type["type"])
    types = [kind for kind in order if kind in known] + sorted(known - set(order))
    figure = go.Figure()
    colours = pair_colours(study.overlaps)
    wanted = nearest_energy(study.overlaps)
    for keys, rows in by_type.groupby([*PAIR, "energy"], sort=False):
        pair, energy = keys[:3], float(rows["energy"].iloc[0])
        name, colour = _pair_name(pair, by_type), colours[pair]
        is_floor = bool(rows["floor"].any())
        line = rows.set_index("type").reindex(types)
        seen = line[["n", "chance", "matched_chance"]].astype(float).to_numpy()
        figure.add_bar(
            x=types,
            y=line["overlap"],
            name=f"{name} (same kind)" if is_floor else name,
            marker={
                "color": colour,
                "pattern": {"shape": "/" if is_floor else "", "fillmode": "overlay", "fgcolor": "#FFFFFF", "size": 6},
            },
            customdata=seen,
            hovertemplate="%{x}: %{y:.3f}<br>chance %{customdata[1]:.3f}, matched %{customdata[2]:.3f}<br>"
            f"tensors %{{customdata[0]:.0f}}<extra>{name}</extra>",
            visible=energy == wanted,
            meta={"energy": energy},
        )
    levels = by_type.groupby(["energy", "type"])[["chance", "matched_chance"]].mean()
    for energy in levels.index.unique("energy"):
        line = levels.loc[energy].reindex(types)
        for column, symbol in (("chance", "circle"), ("matched_chance", "diamond")):
            if line[column].notna().any():
                title = column.replace("_", " ")
                figure.add_scatter(
                    x=types,
                    y=line[column],
                    mode="markers",
                    name=title,
                    # White in a dark ring: seen on bars of every colour and on both papers.
                    marker={
                        "symbol": symbol,
                        "size": 8,
                        "color": "#FFFFFF",
                        "line": {"color": "#222222", "width": 1.5},
                    },
                    hovertemplate=f"%{{x}}: %{{y:.3f}}<extra>{title}, mean over pairs</extra>",
                    visible=energy == wanted,
                    meta={"energy": energy},
                )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(title="overlap of weights", rangemode="tozero")
    return finished(figure, height=400)


def pair_colours(overlaps: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """Give every pair one colour, in both overlap charts."""
    pairs = list(dict.fromkeys(overlaps[PAIR].itertuples(index=False, name=None)))
    return {pair: PALETTE[index % len(PALETTE)] for index, pair in enumerate(pairs)}


def overlap_across_figure(overlaps: pd.DataFrame, analysis: str) -> go.Figure:
    """Draw the cross-kind pairs of one analysis by layer and by type, with half their t intervals over seeds.

    Circles are pairs; open diamonds on dashes, of the same colour, their floors; lines in grey the chance levels.
    """
    frame = _shown(overlaps, analysis)
    pairs = list(dict.fromkeys(zip(frame["first"], frame["second"], strict=True)))
    figure = make_subplots(rows=len(PANELS), cols=1, vertical_spacing=0.16)
    for panel, (by, title) in enumerate(PANELS.items(), start=1):
        cells = list(dict.fromkeys(frame[frame["by"] == by]["cell"]))
        for index, (first, second) in enumerate(pairs):
            of_pair = (frame["by"] == by) & (frame["first"] == first) & (frame["second"] == second)
            rows = frame[of_pair].set_index("cell").reindex(cells)
            width = FILLED / len(pairs)
            centres = [number - FILLED / 2 + width * (index + 0.5) for number in range(len(cells))]
            colour = PALETTE[index % len(PALETTE)]
            _draw(figure, panel, rows, centres, width, f"{first} - {second}", colour)
        ticks = {"tickvals": list(range(len(cells))), "ticktext": cells, "range": [-0.6, len(cells) - 0.4]}
        figure.update_xaxes(title=title, **ticks, row=panel, col=1)
    for _, dash, title in LINES:
        draw_key(figure, title, line={"color": GREY, "dash": dash, "width": 1.6})
    figure.update_yaxes(title="overlap of weights", rangemode="tozero")
    return finished(figure, height=620)


def overlap_caption(overlaps: pd.DataFrame, analysis: str) -> str:
    """Return what a reader of the chart must know: which spaces, seeds and tensors, and what each mark is."""
    frame = _shown(overlaps, analysis)
    if frame.empty:
        return f"No overlap of two kinds of fine-tune was measured ({analysis})."
    rows = overlaps[overlaps["analysis"] == analysis]
    pairs = ", ".join(dict.fromkeys(f"{row['first']} and {row['second']}" for _, row in frame.iterrows()))
    kinds = rows[rows["floor"].astype(bool)][["first", "second"]].drop_duplicates().itertuples(index=False, name=None)
    floors = ", ".join(f"{first} and {second}" for first, second in kinds)
    seeds = ", ".join(sorted(rows["seed"].astype(str).unique()))
    half = "± half the 95 % t interval over seeds" if rows["seed"].nunique() > 1 else "one seed, so without an interval"
    undefined = int(frame[frame["by"] == "type"]["undefined"].sum())
    return (
        f"Overlap of the left singular spaces that hold {frame['energy'].iloc[0]:g} of each update's energy "
        f"({analysis}). Circles: {pairs}, the mean over seeds ({seeds}) of the mean over a seed's tensors, {half}. "
        f"Open diamonds on dashes: two of one kind, the floor ({floors or 'not measured'}). Dotted: chance. Dash-dot: "
        "matched chance, the same pair with a random sign for each row of the second. By layer: the matrices of a "
        f"block ({_tensors(frame, 'layer')} a layer and seed). By type: every tensor ({_tensors(frame, 'type')} a type "
        f"and seed). {undefined} overlaps are undefined."
    )


def _pair_name(pair: Iterable[Any], rows: pd.DataFrame) -> str:
    analysis, first, second = pair
    return f"{first} - {second}" + (f" ({analysis})" if rows["analysis"].nunique() > 1 else "")


def _shown(overlaps: pd.DataFrame, analysis: str) -> pd.DataFrame:
    """Return the rows of :func:`distances_over_seeds` that the chart of one analysis draws."""
    frame = distances_over_seeds(overlaps[overlaps["analysis"] == analysis])
    return frame[(frame["pairing"] == AS_NAMED) & frame["by"].isin(list(PANELS))]


def _tensors(frame: pd.DataFrame, by: str) -> str:
    counts = frame[frame["by"] == by]["tensors"]
    if counts.empty:
        return "none"
    low, high = f"{counts.min():.3g}", f"{counts.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _draw(
    figure: go.Figure, panel: int, rows: pd.DataFrame, centres: list[float], width: float, name: str, colour: str
) -> None:
    """Draw one pair in one panel: lines across each cell at its levels, then floor and pair with their intervals."""
    # One line across each cell, with a gap between cells.
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
