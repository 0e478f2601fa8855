"""What the sections on sweeps share: the charts of projected models, and the next step where there are none."""

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.thresholds import ENERGY_GAP
from safety_subspaces.report.parts.chart import (
    FIXED_RANGES,
    PANEL_UNITS,
    PANELS,
    SHARE,
    bounds_of,
    draw_levels,
    draw_projection_keys,
    error_bar,
    finished,
    projection_style,
)
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.table import sample_words

KEPT, UTILITY = "energy_kept", "utility"
# What stands on the axes of each panel of the two charts of a fine-tune, from the top. The margin against utility is
# the panel by which top-k is judged.
AGAINST_ENERGY: Final = ((KEPT, "utility"), (KEPT, "harm_score"), (KEPT, "refusal_margin"))
AGAINST_UTILITY: Final = ((UTILITY, "harm_score"), (UTILITY, "refusal_margin"))
JUDGED: Final = AGAINST_UTILITY[-1]
AXIS_TITLES: Final = {KEPT: "share of the update's energy kept", UTILITY: "Utility"}
X_RANGES: Final = {KEPT: (-0.03, 1.03), UTILITY: FIXED_RANGES["utility"]}
# Pixels of a panel, and of the one that is judged by, the fullest.
PANEL, LAST_PANEL, AROUND = 190, 310, 180


def sweep_figure(
    points: pd.DataFrame,
    ends: pd.DataFrame,
    unit: str,
    colours: Colours,
    pairs: Sequence[tuple[str, str]] = AGAINST_ENERGY,
    margins: tuple[float, float] | None = None,
) -> go.Figure:
    """Draw one fine-tune's projections: the outcome against the energy kept, or harm and margin against utility.

    Args:
        points: Its rows of :func:`~safety_subspaces.findings.swept.sweep_points`.
        ends: Its rows of :func:`~safety_subspaces.findings.swept.sweep_ends`.
        unit: What the means are over: ``draws`` or ``seeds``.
        colours: Those of the models that the projections lie between.
        pairs: What stands on the axes of each panel.
        margins: The range of refusal margins, that of all fine-tunes for these to be compared; by default its own.
    """
    axes = [pair for pair in pairs if points[list(pair)].notna().all(axis=1).any()]
    heights = [LAST_PANEL if pair == JUDGED else PANEL for pair in axes]
    figure = make_subplots(rows=len(axes), cols=1, vertical_spacing=0.075, row_heights=heights)
    draw_projection_keys(figure, points)
    for panel, (x, y) in enumerate(axes, start=1):
        for (subspace, method), cell in points.groupby(["subspace", "method"], sort=False):
            line = cell[cell[x].notna() & cell[y].notna()].sort_values(KEPT)
            figure.add_trace(go.Scatter(_line(line, str(subspace), str(method), x, y, unit)), row=panel, col=1)
        levels = [(str(e["model"]), colours.of(str(e["model"])), float(e[y])) for _, e in ends.iterrows()]
        known = draw_levels(figure, panel, levels, width=1.2, opacity=0.6)
        bounds = FIXED_RANGES.get(y) or margins or bounds_of([*points[y].dropna(), *known])
        figure.update_yaxes(title=PANELS[y], range=bounds, row=panel, col=1)
        figure.update_xaxes(range=X_RANGES[x], row=panel, col=1)
        if panel == len(axes) or axes[panel][0] != x:
            figure.update_xaxes(title=AXIS_TITLES[x], row=panel, col=1)
    return finished(figure, height=AROUND + sum(heights))


def margin_range(points: pd.DataFrame, ends: pd.DataFrame) -> tuple[float, float] | None:
    """Return a range around the refusal margins of all fine-tunes, which makes their charts comparable.

    Around the means alone: the interval of few seeds can be many times as wide as all that the means say.
    """
    known = [*points["refusal_margin"].dropna(), *ends["refusal_margin"].dropna()]
    return bounds_of(map(float, known)) if known else None


def kept_energy_figure(points: pd.DataFrame) -> go.Figure:
    """Draw the energy kept against the fraction of directions, beside the level expected of chance."""
    groups = list(dict.fromkeys(points["tuned"].astype(str)))
    figure = make_subplots(rows=len(groups), cols=1, shared_xaxes=True, subplot_titles=groups, vertical_spacing=0.08)
    draw_projection_keys(figure, points)
    for panel, group in enumerate(groups, start=1):
        for (subspace, method), rows in points[points["tuned"] == group].groupby(["subspace", "method"], sort=False):
            line = rows.sort_values("fraction")
            style = projection_style(str(subspace), str(method))
            figure.add_scatter(
                x=line["fraction"],
                y=line[KEPT],
                **_bars(line, KEPT, str(style["line"]["color"])),
                **style,
                customdata=line[["energies", "chance_energy"]].astype(float).to_numpy(),
                hovertemplate="fraction %{x:g}, energy %{y:.3f}<br>chance %{customdata[1]:.3f}, "
                f"draws %{{customdata[0]:.0f}}<extra>{subspace}, {method}</extra>",
                row=panel,
                col=1,
            )
    figure.update_yaxes(range=SHARE, title="energy kept")
    figure.update_xaxes(title="fraction of directions", row=len(groups), col=1)
    return finished(figure, height=90 + 220 * len(groups))


def sweep_caption(points: pd.DataFrame, tuned: str, seeds: tuple[str, ...]) -> str:
    """Return what a reader of a chart must know: seeds, draws, prompts, and what each mark is."""
    drawn = points[points["subspace"].astype(str).str.startswith("random")]
    draws, energies = (sorted(set(drawn[name].astype(int))) for name in ("draws", "energies"))
    lost = int(points["n_unscored"].fillna(0).sum())
    is_single = len(seeds) == 1
    of_draws = f"each random subspace drawn {_or(draws)} times{'' if is_single else ' a seed'}"
    further = f" (the energy alone of {_or(energies)})" if energies != draws else ""
    if is_single:
        mean = f"one subspace, method and fraction of directions, {of_draws}{further}" if draws else "one projection"
        bars = "bars are the standard error over draws, never below that over prompts"
    else:
        over = f"{of_draws}{further}, its draws averaged first" if draws else "without random subspaces"
        mean = (
            f"the mean over {len(seeds)} seeds ({', '.join(seeds)}) of one subspace, method and fraction of "
            f"directions, {over}"
        )
        bars = "bars are ± half the 95 % t interval over seeds, never narrower than that over prompts, cut by the frame"
    return (
        f"{tuned} projected: each point is {mean}; {bars}. Colour says what subspace, a filled circle onto it, an open "
        f"diamond away from it; lines follow the energy kept. Dashed: the model that {tuned} started from and {tuned} "
        f"itself. Each model answers {sample_words(points)}; {lost} answers of all models are unscored. A tap on a "
        "subspace in the legend hides it."
    )


def left_out_words(left_out: int, compared: int) -> str:
    """Return how many draws were not compared at a fraction, for their own energy misses top-k's."""
    of_all = left_out + compared
    return f"Left out: {left_out} of {of_all} draws at a fraction, whose own energy differs by more than {ENERGY_GAP}."


def missing_projections(studies: Seeds) -> list[tuple[str, str]]:
    """Say which studies have no projection, or none that was evaluated, and what the next step is."""
    missing = []
    for name, study in studies.named:
        of_study = "" if len(studies.studies) == 1 else f" of seed {name}"
        if study.projections.empty:
            missing.append((f"No projection{of_study} was run.", study.command_for("project")))
        elif not study.has_evaluated_projections:
            energies = f"The projected models{of_study} were not evaluated, so this shows energy alone."
            missing.append((f"{energies} Run project again with --evaluate true.", ""))
    return missing


def _line(line: pd.DataFrame, subspace: str, method: str, x: str, y: str, unit: str) -> dict[str, Any]:
    asked_of = PANEL_UNITS[y]
    seen = ["fraction", f"{x}_error", f"{y}_error", f"{y}_n", "draws", asked_of, asked_of.replace("n_", "n_groups_")]
    field = {name: f"%{{customdata[{place}]" for place, name in enumerate(seen)}
    groups = f" in {field[seen[-1]]}:.0f}} groups" if line[seen[-1]].notna().all() else ""
    over = f"scored draws {field[f'{y}_n']}:.0f}} of" if unit == "draws" else f"seeds {field[f'{y}_n']}:.0f}}, draws"
    style = projection_style(subspace, method)
    return {
        "x": line[x],
        "y": line[y],
        **_bars(line, y, str(style["line"]["color"])),
        **style,
        "customdata": line[seen].astype(float).to_numpy(),
        "hovertemplate": f"{PANELS[y].lower()} %{{y:.3f}} ± {field[f'{y}_error']}:.3f}}<br>"
        f"{x.replace('_', ' ')} %{{x:.3f}} ± {field[f'{x}_error']}:.3f}}, fraction {field['fraction']}:g}}<br>"
        f"{over} {field['draws']}:.0f}}, prompts n = {field[asked_of]}:.0f}}{groups}"
        f"<extra>{subspace}, {method}</extra>",
    }


def _bars(line: pd.DataFrame, measure: str, colour: str) -> dict[str, Any]:
    """Return the error bars of a line; none where no point has an error."""
    errors = line[f"{measure}_error"]
    return {"error_y": error_bar(errors, colour)} if errors.notna().any() else {}


def _or(counts: list[int]) -> str:
    return " or ".join(map(str, counts))
