"""What a run shows on TensorBoard beside its scalars: heatmaps of layer against step, settings, the chart layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.text import as_code, shown
from safety_subspaces.training.recipe import recipe

# Charts that hold several curves, by their group on the "Custom scalars" tab. A tag that a run lacks is left out.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "behaviour": {
        "utility and harm": ("utility/accuracy", "safety/harmful_rate", "safety/over_refusal_rate"),
        "refusal margin (nats)": ("safety/refusal_margin",),
    },
    "weights": {
        "energy inside the alignment subspace": ("delta/energy_fraction", "delta/energy_fraction_chance"),
        "overlap with the other update": ("delta/overlap", "delta/overlap_chance"),
        "what the constraint forbids": ("projection/leakage", "projection/removed_energy"),
    },
    "activations": {
        "overlap of the prompt sets": ("activation/overlap", "activation/overlap_chance"),
        "drift from the start": ("activation/drift_first", "activation/drift_second"),
    },
}
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
DOTS_PER_INCH = 100
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

    size = (max(4.0, min(12.0, 2.5 + 0.35 * len(columns))), max(2.2, min(16.0, 1.2 + 0.22 * len(rows))))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
    # Room in inches for names on the left, the colour bar on the right, title and steps: laid out by hand, which takes
    # half the time of matplotlib's own layout.
    left, right, top, bottom = 1.1, 0.1, 0.3, 0.45
    axes = figure.subplots()
    figure.subplots_adjust(left / size[0], bottom / size[1], 1 - right / size[0], 1 - top / size[1])
    drawn = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    figure.colorbar(drawn, ax=axes)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("optimizer step", fontsize=8)
    shown = np.unique(np.linspace(0, len(columns) - 1, min(len(columns), 10)).round().astype(int))
    axes.set_xticks(shown, [str(columns[index]) for index in shown], fontsize=7)
    every = -(-len(rows) // 40)  # more names than that would lie upon each other
    axes.set_yticks(range(0, len(rows), every), rows[::every], fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def chart_layout() -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the "Custom scalars" tab, as ``SummaryWriter.add_custom_scalars`` takes it."""
    return {
        group: {title: ["Multiline", list(tags)] for title, tags in charts.items()} for group, charts in CHARTS.items()
    }


def hyperparameters(manifest: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return what tells runs apart: dotted names and plain values of the configuration, and of what holds the run."""
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
    elif isinstance(value, bool | int | float | str):
        into[name.replace("init_args.", "")] = shown(value) if isinstance(value, str) else value
    elif value is not None:
        into[name.replace("init_args.", "")] = shown(str(value))
