"""The charts of projected models over their energy: of one study, and of one fine-tune over seeds."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import ORANGE, PURPLE
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import pool_draws
from safety_subspaces.findings.sweeps import METHODS, sweep_over_seeds
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
    subspace_colour,
)
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import sample_words

ENERGY, UTILITY = "energy_kept", "utility"
# What stands on each panel's axes, from the top.
AXES: Final = ((ENERGY, "utility"), (ENERGY, "harm_score"), (ENERGY, "refusal_margin"), (UTILITY, "refusal_margin"))
TITLES: Final = {ENERGY: "share of the update's energy kept", UTILITY: "Utility"}
X_RANGES: Final = {ENERGY: (-0.03, 1.03), UTILITY: FIXED_RANGES["utility"]}
# The margin against utility is the panel by which top-k is judged, and the fullest.
HEIGHTS: Final = (0.21, 0.21, 0.24, 0.34)


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
    for panel, group in enumerate(groups, start=1):
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
                row=panel,
                col=1,
            )
    figure.update_yaxes(range=[-0.05, 1.05], title="energy kept")
    figure.update_xaxes(title="fraction of directions", row=len(groups), col=1)
    return finished(figure, height=90 + 220 * len(groups))


def sweep_figure(projections: pd.DataFrame, models: pd.DataFrame, tuned: str) -> go.Figure:
    """Draw one fine-tune's projections as means over seeds, with half their t intervals.

    Args:
        projections: ``Study.projections`` of every seed, with a column ``seed`` and one sweep a seed and fine-tune.
        models: The evaluated models of every seed, with columns ``model`` and ``seed``.
        tuned: Which fine-tune.
    """
    swept = projections[(projections["tuned"] == tuned) & projections["method"].isin(METHODS)]
    frame = sweep_over_seeds(swept)
    figure = make_subplots(rows=len(AXES), cols=1, vertical_spacing=0.075, row_heights=list(HEIGHTS))
    draw_projection_keys(figure, frame)
    for panel, (x, y) in enumerate(AXES, start=1):
        for (subspace, method), cell in frame.groupby(["subspace", "method"], sort=False):
            line = cell[cell[x].notna() & cell[y].notna()].sort_values(ENERGY)
            figure.add_trace(go.Scatter(_points(line, str(subspace), str(method), x, y)), row=panel, col=1)
        ends = [
            (label, colour, float(models[models["model"] == label][y].astype(float).mean()))
            for label, colour in _labels(swept, tuned).items()
        ]
        levels = draw_levels(figure, panel, ends, width=1.2, opacity=0.6)
        # Of the means alone: the interval of few seeds can be many times as wide as all that the means say.
        means = [*frame[y].dropna(), *levels]
        bounds = FIXED_RANGES.get(y) or (bounds_of(means) if means else (-1.0, 1.0))
        figure.update_yaxes(title=PANELS[y], range=bounds, row=panel, col=1)
        figure.update_xaxes(range=X_RANGES[x], row=panel, col=1)
        if panel == len(AXES) or AXES[panel][0] != x:
            figure.update_xaxes(title=TITLES[x], row=panel, col=1)
    return finished(figure, height=1060)


def sweep_caption(projections: pd.DataFrame, tuned: str) -> str:
    """Return what a reader of the chart must know: seeds, draws, prompts, and what each mark is."""
    swept = projections[(projections["tuned"] == tuned) & projections["method"].isin(METHODS)]
    if swept.empty:
        return f"No projection of {tuned} was run."
    frame = sweep_over_seeds(swept)
    seeds = sorted(swept["seed"].astype(str).unique())
    drawn = frame[frame["subspace"].astype(str).str.startswith("random")]
    draws = sorted(set(drawn["draws"].astype(int)))
    of_draws = f"each random subspace drawn {' or '.join(map(str, draws))} times a seed, its draws averaged first"
    bars = (
        "bars are ± half the 95 % t interval over seeds, cut by the frame"
        if len(seeds) > 1
        else "one seed, so without bars"
    )
    lost = int(swept["n_unscored"].fillna(0).sum())
    return (
        f"{tuned} projected: each point is the mean over {many(len(seeds), 'seed')} "
        f"({', '.join(seeds)}) of one subspace, method and fraction of directions, "
        f"{of_draws if draws else 'without random subspaces'}; {bars}. Colour says what subspace, a filled circle onto "
        f"it, an open diamond away from it; lines follow the energy kept. Dashed: aligned and {tuned} themselves, "
        f"means over seeds. Each model answers {sample_words(frame)}; {lost} answers of all models are unscored."
    )


def _energy_figure(study: Study, group: str, rows: pd.DataFrame) -> go.Figure:
    panels = [measure for measure in PANELS if rows[measure].notna().any()]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.045)
    draw_projection_keys(figure, rows)
    source = study.projections[study.projections["group"] == group].iloc[0]
    for panel, measure in enumerate(panels, start=1):
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
                row=panel,
                col=1,
            )
        ends = ((str(source["aligned_model"]), ORANGE), (str(source["tuned_model"]), PURPLE))
        levels = draw_levels(figure, panel, [(*end, _level(study, end[0], measure)) for end in ends])
        bounds = FIXED_RANGES.get(measure) or bounds_of([*rows[measure].dropna().astype(float), *levels])
        figure.update_yaxes(title=PANELS[measure], range=bounds, row=panel, col=1)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_xaxes(title="share of the update's energy kept", row=len(panels), col=1)
    return finished(figure, height=110 + 210 * len(panels))


def _level(study: Study, label: str, measure: str) -> float:
    model = study.model(label)
    return float("nan") if model is None else float(model[measure])


def _points(line: pd.DataFrame, subspace: str, method: str, x: str, y: str) -> dict[str, Any]:
    colour = subspace_colour(subspace)
    unit = PANEL_UNITS[y]
    shown = ["fraction", f"{x}_reach", f"{y}_reach", f"{y}_seeds", "draws", unit, unit.replace("n_", "n_groups_")]
    field_of = {name: f"%{{customdata[{number}]" for number, name in enumerate(shown)}
    groups = f" in {field_of[shown[-1]]}:.0f}} groups" if line[shown[-1]].notna().all() else ""
    bars = _bars(line, y, colour)
    return {
        "x": line[x],
        "y": line[y],
        **({} if bars is None else {"error_y": bars}),
        **projection_style(subspace, method),
        "customdata": line[shown].astype(float).to_numpy(),
        "hovertemplate": f"{PANELS[y].lower()} %{{y:.3f}} ± {field_of[f'{y}_reach']}:.3f}}<br>"
        f"{x.replace('_', ' ')} %{{x:.3f}} ± {field_of[f'{x}_reach']}:.3f}}, fraction {field_of['fraction']}:g}}<br>"
        f"seeds {field_of[f'{y}_seeds']}:.0f}}, draws {field_of['draws']}:.0f}}, "
        f"prompts n = {field_of[unit]}:.0f}}{groups}"
        f"<extra>{subspace}, {method}</extra>",
    }


def _bars(line: pd.DataFrame, measure: str, colour: str) -> dict[str, Any] | None:
    """Return bars of half the interval, ``None`` where one seed has none."""
    reach = line[f"{measure}_reach"]
    return error_bar(reach, colour) if reach.notna().any() else None


def _labels(swept: pd.DataFrame, tuned: str) -> dict[str, str]:
    """Return the labels of the models that the sweep lies between, with the colours of their lines."""
    aligned = swept["aligned_model"].iloc[0] if "aligned_model" in swept and len(swept) else "aligned"
    whole = swept["tuned_model"].iloc[0] if "tuned_model" in swept and len(swept) else tuned
    return {str(aligned): ORANGE, str(whole): PURPLE}
