"""A trajectory as one picture: norms, turning, energy and overlaps over optimizer steps, each beside its chance."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from safety_subspaces.artefacts.palette import BLUE, GREEN, GREY, PALETTE, VERMILION
from safety_subspaces.artefacts.text import one_line

DOTS_PER_INCH = 120
MARKERS = "osD^vPX"
NOTHING = "not measured"
MOST_IN_LEGEND = 60  # characters


def draw_trajectory(path: Path, table: pd.DataFrame, overlaps: pd.DataFrame, changes: pd.DataFrame) -> None:
    """Draw the part ``all`` of a trajectory; thin vertical lines are where series move most at a change of level.

    Args:
        path: The ``.png`` file.
        table: The pooled table of a trajectory: a row for each ``step``, ``level`` and ``part``.
        overlaps: Its overlaps: the same with ``other``, ``overlap`` and ``chance``.
        changes: Its change points: ``series``, ``step``, ``move``.
    """
    # This import takes half a second, which other subcommands need not pay.
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a label that holds $ is no formula
        _draw_panels(path, table, overlaps, changes)


def _draw_panels(path: Path, table: pd.DataFrame, overlaps: pd.DataFrame, changes: pd.DataFrame) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole, compared = table[table["level"] == "all"], overlaps[overlaps["level"] == "all"]
    figure = Figure(figsize=(11, 7.2), dpi=DOTS_PER_INCH, layout="constrained")
    panels: dict[str, Callable[[Any], None]] = {
        "Norm of the update": lambda axes: _draw_norms(axes, whole),
        "Turning of the followed subspace (radians per step)": lambda axes: _draw_speed(axes, whole),
        "Share of energy in the alignment subspace": lambda axes: _draw_energy(axes, whole),
        "Overlap with other updates": lambda axes: _draw_overlaps(axes, compared),
    }
    # How the names of the series begin whose change points belong to each panel.
    series = ("step_norm", "speed", "energy", "overlap")
    colours = {f"overlap_{label}": _colour(index) for index, label in enumerate(compared["other"].unique())}
    largest = changes.loc[changes["move"].abs().groupby(changes["series"]).idxmax()]
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (title, draw), prefix in zip(grid.flat, panels.items(), series, strict=True):
        draw(axes)
        for change in largest[largest["series"].str.startswith(prefix)].itertuples():
            axes.axvline(change.step, color=colours.get(str(change.series), GREY), linewidth=0.8, zorder=0)
        _finish(axes, title)
    for axes in grid[1]:
        axes.set_xlabel("optimizer step", fontsize=9)
    FigureCanvasAgg(figure).print_png(path)


def _draw_norms(axes: Any, whole: pd.DataFrame) -> None:
    _draw(axes, whole["step"], whole["path_length"], "path length", VERMILION, "s")
    _draw(axes, whole["step"], whole["frobenius_norm"], "Frobenius norm", BLUE, "o")
    axes.set_ylim(bottom=0)


def _draw_speed(axes: Any, whole: pd.DataFrame) -> None:
    chance = whole["rms_angle_chance_radians"] / whole["step"].diff()
    _draw(axes, whole["step"], whole["speed_radians_per_step"], "between snapshots", GREEN, "D")
    _draw_chance(axes, whole["step"], chance, GREEN, "random subspaces")
    axes.set_ylim(bottom=0)


def _draw_energy(axes: Any, whole: pd.DataFrame) -> None:
    _draw(axes, whole["step"], whole["energy_fraction"], "inside", BLUE, "o")
    _draw_chance(axes, whole["step"], whole["energy_fraction_chance"], BLUE, "random subspace")
    axes.set_ylim(bottom=0)


def _draw_overlaps(axes: Any, compared: pd.DataFrame) -> None:
    for index, (label, rows) in enumerate(compared.groupby("other", sort=False)):
        colour = _colour(index)
        _draw(axes, rows["step"], rows["overlap"], str(label), colour, MARKERS[index % len(MARKERS)])
        _draw_chance(axes, rows["step"], rows["chance"], colour, f"{label}, chance")
    axes.set_ylim(0, 1.03)


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _draw(axes: Any, steps: pd.Series, values: pd.Series, label: str, colour: str, marker: str) -> None:
    if values.notna().any():
        axes.plot(
            steps,
            values,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            color=colour,
            label=one_line(label, MOST_IN_LEGEND),
        )


def _draw_chance(axes: Any, steps: pd.Series, values: pd.Series, colour: str, label: str) -> None:
    if values.notna().any():
        axes.plot(steps, values, linestyle="--", linewidth=1, color=colour, label=one_line(label, MOST_IN_LEGEND))


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawn: Sequence[Any] = axes.get_legend_handles_labels()[0]
    if drawn:
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", va="center", color=GREY)
