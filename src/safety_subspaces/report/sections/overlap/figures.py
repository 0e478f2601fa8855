"""The charts of overlaps."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY, PALETTE
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import PAIR, in_blocks, nearest_energy, overlap_by
from safety_subspaces.report.parts.chart import draw_key, error_bar, finished


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
    figure.update_xaxes(title="layer", dtick=_whole_ticks(by_layer["layer"]))
    figure.update_yaxes(title="overlap of weights", range=[0, None], rangemode="tozero")
    return finished(figure, height=430)


def overlap_type_figure(study: Study) -> go.Figure:
    """Draw overlap by type of tensor, embeddings and output head with them, beside both chance levels."""
    by_type = overlap_by(study.overlaps, "type")
    order = ("embeddings", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other")
    found = set(by_type["type"])
    types = [kind for kind in order if kind in found] + sorted(found - set(order))
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
    return {pair: PALETTE[place % len(PALETTE)] for place, pair in enumerate(pairs)}


def _pair_name(pair: Iterable[Any], rows: pd.DataFrame) -> str:
    analysis, first, second = pair
    return f"{first} - {second}" + (f" ({analysis})" if rows["analysis"].nunique() > 1 else "")


def _whole_ticks(layers: pd.Series) -> int:
    """Return a step that puts at most about ten ticks on the layers, each at a whole one."""
    return max(1, round(float(layers.max() - layers.min() + 1) / 10)) if len(layers) else 1
