"""The report's charts of projections, overlaps and training; what they share is in :mod:`chart_style`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, ORANGE, PALETTE, PURPLE
from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.findings.comparisons import (
    PAIR,
    in_blocks,
    nearest_energy,
    overlap_by,
    pool_draws,
)
from safety_subspaces.report.parts.chart import (
    FIXED_RANGES,
    PANEL_UNITS,
    PANELS,
    bounds_of,
    draw_projection_keys,
    error_bar,
    finished,
    projection_style,
)

# Points of a loss curve that a chart of 900 pixels can show, with room to spare; more only make the page
# heavy.
MOST_POINTS = 400
# Batches of like length are alike in kind as well, and their losses jump from one to the next.
SMOOTHED_OVER = 9
LOSS_TICKS = [digit * 10.0**power for power in range(-5, 2) for digit in (1, 2, 5)]


def energy_figures(study: Study) -> dict[str, go.Figure]:
    """Draw, for each fine-tune, utility, harm score and refusal margin against the energy kept."""
    pooled = pool_draws(study.projections)
    evaluated = pooled[pooled[list(PANELS)].notna().any(axis=1)]
    return {
        str(group): _energy_figure(study, str(group), rows) for group, rows in evaluated.groupby("group", sort=False)
    }


def kept_energy_figure(study: Study) -> go.Figure:
    """Draw the energy kept against the fraction of directions, beside the level expected of chance."""
    pooled = pool_draws(study.projections)
    groups = list(dict.fromkeys(pooled["group"].astype(str)))
    figure = make_subplots(rows=len(groups), cols=1, shared_xaxes=True, subplot_titles=groups, vertical_spacing=0.08)
    draw_projection_keys(figure, pooled)
    for place, group in enumerate(groups, start=1):
        for (subspace, method), rows in pooled[pooled["group"] == group].groupby(["subspace", "method"], sort=False):
            line = rows.sort_values("fraction")
            style = projection_style(str(subspace), str(method))
            figure.add_scatter(
                x=line["fraction"],
                y=line["energy_kept"],
                **style,
                customdata=line[["n_draws", "chance_energy"]].astype(float).to_numpy(),
                hovertemplate="fraction %{x:g}, energy %{y:.3f}<br>chance %{customdata[1]:.3f}, "
                f"draws %{{customdata[0]:.0f}}<extra>{subspace}, {method}</extra>",
                row=place,
                col=1,
            )
    figure.update_yaxes(range=[-0.05, 1.05], title="energy kept")
    figure.update_xaxes(title="fraction of directions", row=len(groups), col=1)
    return finished(figure, height=90 + 220 * len(groups))


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
                figure.add_scatter(
                    x=rows["layer"],
                    y=rows[column],
                    mode="lines",
                    showlegend=False,
                    hoverinfo="skip",
                    line={"color": colour, "dash": dash, "width": 1.2},
                    **shared,
                )
    for title, dash in (("chance", "dot"), ("matched chance", "dashdot")):
        figure.add_scatter(
            x=[None], y=[None], mode="lines", name=title, line={"color": GREY, "dash": dash, "width": 1.2}
        )
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


def loss_figure(stages: Sequence[Stage]) -> go.Figure:
    """Draw the loss of every stage against its steps: training as a line, validation as markers."""
    figure = go.Figure()
    for place, stage in enumerate(stages):
        colour = PALETTE[place % len(PALETTE)]
        dash = "solid" if place < len(PALETTE) else "dash"
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


def pair_colours(overlaps: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """Give every pair one colour, in both overlap charts."""
    pairs = list(dict.fromkeys(overlaps[PAIR].itertuples(index=False, name=None)))
    return {pair: PALETTE[place % len(PALETTE)] for place, pair in enumerate(pairs)}


def _energy_figure(study: Study, group: str, rows: pd.DataFrame) -> go.Figure:
    panels = [measure for measure in PANELS if rows[measure].notna().any()]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.045)
    draw_projection_keys(figure, rows)
    source = study.projections[study.projections["group"] == group].iloc[0]
    for place, measure in enumerate(panels, start=1):
        for (subspace, method), cell in rows.groupby(["subspace", "method"], sort=False):
            line = cell[cell[measure].notna()].sort_values("energy_kept")
            style = projection_style(str(subspace), str(method))
            unit = PANEL_UNITS[measure]
            of_groups = unit.replace("n_", "n_groups_")
            seen = line[["fraction", "n_draws", f"{measure}_draws", unit, f"{measure}_error", of_groups]]
            groups = " in %{customdata[5]:.0f} groups" if line[of_groups].notna().all() else ""
            figure.add_scatter(
                x=line["energy_kept"],
                y=line[measure],
                error_y=error_bar(line[f"{measure}_error"], str(style["line"]["color"])),
                **style,
                customdata=seen.astype(float).to_numpy(),
                hovertemplate=f"{PANELS[measure].lower()} %{{y:.3f}} ± %{{customdata[4]:.3f}}<br>"
                "energy kept %{x:.3f}, fraction %{customdata[0]:g}<br>"
                "scored draws %{customdata[2]:.0f} of %{customdata[1]:.0f}, prompts n = %{customdata[3]:.0f}"
                f"{groups}"
                f"<extra>{subspace}, {method}</extra>",
                row=place,
                col=1,
            )
        levels = _draw_levels(figure, study, measure, place, str(source["aligned_model"]), str(source["tuned_model"]))
        bounds = FIXED_RANGES.get(measure) or bounds_of([*rows[measure].dropna().astype(float), *levels])
        figure.update_yaxes(title=PANELS[measure], range=bounds, row=place, col=1)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_xaxes(title="share of the update's energy kept", row=len(panels), col=1)
    return finished(figure, height=110 + 210 * len(panels))


def _draw_levels(figure: go.Figure, study: Study, measure: str, place: int, aligned: str, tuned: str) -> list[float]:
    """Draw dashed lines at what the models without a projection do; return their levels."""
    levels = []
    for label, colour, position in ((aligned, ORANGE, "top left"), (tuned, PURPLE, "top right")):
        model = study.model(label)
        if model is None or pd.isna(model[measure]):
            continue
        levels.append(float(model[measure]))
        figure.add_hline(
            y=levels[-1],
            line={"dash": "dash", "width": 1.4, "color": colour},
            annotation={"text": label, "font": {"size": 11, "color": colour}},
            annotation_position=position,
            row=place,
            col=1,
        )
    return levels


def _pair_name(pair: Iterable[Any], rows: pd.DataFrame) -> str:
    analysis, first, second = pair
    return f"{first} - {second}" + (f" ({analysis})" if rows["analysis"].nunique() > 1 else "")


def _whole_ticks(layers: pd.Series) -> int:
    """Return a step that puts at most about ten ticks on the layers, each at a whole one."""
    return max(1, round(float(layers.max() - layers.min() + 1) / 10)) if len(layers) else 1


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    step = max(1, -(-len(curve) // MOST_POINTS))
    last = curve.iloc[[-1]]
    return pd.concat([curve.iloc[:-1:step], last])
