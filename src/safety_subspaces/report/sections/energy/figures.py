"""The charts of projected models over their energy."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import ORANGE, PURPLE
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import pool_draws
from safety_subspaces.report.parts.chart import (
    FIXED_RANGES,
    PANEL_UNITS,
    PANELS,
    bounds_of,
    draw_levels,
    draw_projection_keys,
    error_bar,
    finished,
    projection_style,
)


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
        ends = ((str(source["aligned_model"]), ORANGE), (str(source["tuned_model"]), PURPLE))
        levels = draw_levels(figure, place, [(*end, _level(study, end[0], measure)) for end in ends])
        bounds = FIXED_RANGES.get(measure) or bounds_of([*rows[measure].dropna().astype(float), *levels])
        figure.update_yaxes(title=PANELS[measure], range=bounds, row=place, col=1)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_xaxes(title="share of the update's energy kept", row=len(panels), col=1)
    return finished(figure, height=110 + 210 * len(panels))


def _level(study: Study, label: str, measure: str) -> float:
    model = study.model(label)
    return float("nan") if model is None else float(model[measure])
