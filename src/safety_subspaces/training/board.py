"""What a run shows on TensorBoard beside its scalars: heatmaps of layer against step, settings, the chart layout."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.text import as_code, shown
from safety_subspaces.training.recipe import recipe

# Measures that a run may end in: columns of the HParams tab.
RESULTS = (
    "train/loss",
    "val/loss",
    "utility/accuracy",
    "safety/harmful_rate",
    "safety/harm_score",
    "safety/over_refusal_rate",
    "safety/refusal_margin",
    "delta/frobenius_norm",
    "delta/energy_fraction",
    "activation/overlap",
    "projection/leakage",
)
# TensorBoard shows a picture some 350 pixels wide until it is clicked: at this size, in inches, a letter is then still
# thirteen pixels high, and no more names are written than fit.
SIZE, DOTS_PER_INCH = (4.8, 3.6), 100
FONT_SIZE, MOST_STEPS, MOST_ROWS, LONGEST_NAME = 13, 4, 8, 12
# Characters of a configuration on the text tab; the longest of ours has 5,000.
MOST_OF_CONFIG = 100_000


def heatmap(rows: Sequence[str], columns: Sequence[int], values: np.ndarray, title: str) -> np.ndarray:
    """Draw a heatmap of layers against steps.

    Args:
        rows: Names of the layers, the first one on top.
        columns: Optimizer steps.
        values: ``(rows, columns)``; NaN is left blank.
        title: What the colour is.

    Returns:
        The picture, ``(height, width, 3)`` of bytes.
    """
    # Half a second's import that a run without figures need not pay.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DOTS_PER_INCH)
    # Laid out by hand, which takes half the time of matplotlib's own layout.
    axes = figure.subplots()
    figure.subplots_adjust(left=0.3, bottom=0.19, right=0.97, top=0.88)
    drawn = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    bar = figure.colorbar(drawn, ax=axes)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    bar.ax.locator_params(nbins=4)
    axes.set_title(title, fontsize=FONT_SIZE, loc="left", x=-0.4)
    axes.set_xlabel("step", fontsize=FONT_SIZE)
    shown = np.unique(np.linspace(0, len(columns) - 1, min(len(columns), MOST_STEPS)).round().astype(int))
    axes.set_xticks(shown, [str(columns[index]) for index in shown], fontsize=FONT_SIZE)
    every = -(-len(rows) // MOST_ROWS)
    names = [row.removeprefix("layers.")[:LONGEST_NAME] for row in rows]
    axes.set_yticks(range(0, len(rows), every), names[::every], fontsize=FONT_SIZE)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def chart_layout(callbacks: Iterable[object]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the "Custom scalars" tab, as ``SummaryWriter.add_custom_scalars`` takes it.

    A callback that logs curves says by ``charts()`` which of them one chart holds: tags by the chart's title, by its
    group. The charts of a group come and go together, for TensorBoard joins the layouts of several runs by group, and
    loses charts that a later run adds to one. A chart shows the tags themselves, and those of callbacks with a name.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for callback in callbacks:
        for group, charts in getattr(callback, "charts", dict)().items():
            layout[group] = {title: ["Multiline", list(map(_pattern, tags))] for title, tags in charts.items()}
    return layout


def _pattern(tag: str) -> str:
    """Return the regular expression of a tag, which TensorBoard would else take for that of all tags beginning so."""
    group, _, rest = tag.partition("/")
    return rf"^{re.escape(group)}(\.[A-Za-z0-9_-]+)?/{re.escape(rest)}$"


def hyperparameters(manifest: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return what tells runs apart: dotted names and plain values of the configuration, and of what holds the run.

    Paths are left out: they say where a study lies, and make a table too wide to read. A model of the Hub has its name.
    """
    values: dict[str, str | int | float | bool] = {}
    _flatten(recipe(manifest["config"]), "", values)
    for constraint in facts_about("constraint", manifest):
        _flatten(constraint.get("settings", {}), "constraint.", values)
    return values


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as the text tab shows it: YAML, set as code by Markdown."""
    return as_code(yaml.safe_dump(dict(config), sort_keys=False), most=MOST_OF_CONFIG)


def _flatten(value: Any, name: str, into: dict[str, str | int | float | bool]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(inner, f"{name}{key}." if isinstance(inner, Mapping) else f"{name}{key}", into)
    elif isinstance(value, str) and _is_path(value):
        return
    elif isinstance(value, bool | int | float | str):
        into[name.replace("init_args.", "")] = shown(value) if isinstance(value, str) else value
    elif value is not None:
        into[name.replace("init_args.", "")] = shown(str(value))


def _is_path(value: str) -> bool:
    return "/" in value and (value.count("/") > 1 or Path(value).exists())
