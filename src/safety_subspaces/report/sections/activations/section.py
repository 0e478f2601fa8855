"""The section on activation space: its charts with what a reader must know of each, and its tables."""

from typing import Final

import plotly.graph_objects as go

from safety_subspaces.findings.activations import Activations, View, at_position, level_words, of_pair, overlap_cells
from safety_subspaces.findings.contracts import reference_model
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import count
from safety_subspaces.report.sections.activations.figures import (
    cka_figure,
    difference_figure,
    heatmap_figure,
    margin_figure,
)
from safety_subspaces.report.sections.activations.tables import (
    activations_table,
    depth_table,
    tests_table,
    verdicts_table,
)

# Runs and positions that are drawn; further ones stand in the tables, where they are compared more easily.
MOST_VIEWS: Final = 2


def activations_section(activations: Activations) -> Section | None:
    """Return the section of the activations of one study; ``None`` where none were compared."""
    views = activations.views
    if not views:
        return None
    charts = [chart for number, view in enumerate(views[:MOST_VIEWS]) for chart in _charts(activations, view, number)]
    tables = {
        "Overlap beside chance and floors": activations_table(activations),
        "Verdicts of the equivalence test": verdicts_table(activations),
        "Two-sample tests": tests_table(activations),
        "The paper's aggregation": depth_table(activations),
    }
    return Section("activations", "Activation space", charts, tables)


def _charts(activations: Activations, view: View, number: int) -> list[tuple[Chart, str]]:
    drawn: list[tuple[str, str, go.Figure | None, str]] = [
        (
            "overlap",
            f"Overlap above chance: {view.words}",
            heatmap_figure(activations, view),
            _overlap_caption(activations, view),
        ),
        ("margin", "Distance from the margin", margin_figure(activations, view), _margin_caption(activations, view)),
        (
            "differences",
            f"Distributions of {view.pairs[0][0]} and {view.pairs[0][1]}",
            difference_figure(activations, view),
            _difference_caption(activations, view),
        ),
        ("cka", "Likeness of models", cka_figure(activations, view), _cka_caption(activations, view)),
    ]
    return [
        (make_chart(f"activations-{number}-{name}", title, f"{title}, by layer and model", figure), caption)
        for name, title, figure, caption in drawn
        if figure is not None
    ]


def _overlap_caption(activations: Activations, view: View) -> str:
    cells = of_pair(overlap_cells(activations, view), view.pairs[0])
    matched = "matched chance (a random sign for each coordinate of the second set, its mean left in place)"
    level = level_words(activations, view, matched)
    return (
        f"Overlap of the spaces that hold {view.energy:g} of each set's energy, minus {level}: 0 is chance, and what "
        "two halves of one set reach, the floor, stands in the last panel on the same scale (halves have half the "
        "prompts). Layer 0 is the embedding, i what block i leaves. n: "
        f"{_sizes(cells['n_first'].max(), cells['n_second'].max())} prompts; no interval here: the chart below has it."
    )


def _margin_caption(activations: Activations, view: View) -> str:
    tests = of_pair(at_position(activations.equivalence, view), view.pairs[0])
    return (
        "Equivalence test on halves of the sets: overlap minus the margin, half-way from matched chance to the "
        "floor. Bars: one jackknife standard error over groups of prompts. A verdict is one-sided at 5 %, not "
        f"corrected for the number of layers and models. n: {_sizes(tests['n_first'].max(), tests['n_second'].max())} "
        "prompts."
    )


def _difference_caption(activations: Activations, view: View) -> str:
    tests = of_pair(at_position(activations.two_sample, view), view.pairs[0])
    sizes = at_position(activations.dimension, view)["n"]
    return (
        "Filled: p below 0.05, by permutations of whole groups of prompts; open: not. These have p-values in place "
        "of intervals. Bars of the dimension: one standard error. n: "
        f"{_sizes(tests['n_first'].max(), tests['n_second'].max())} prompts for the tests, at most "
        f"{count(sizes.max())} for a dimension."
    )


def _cka_caption(activations: Activations, view: View) -> str:
    rows = at_position(activations.cka, view)
    return (
        f"Linear CKA of the same prompts in {reference_model(view.models)} and each other model: 1 is alike up to "
        f"rotation and scale. Bars: one jackknife standard error, where it was reckoned. n: {count(rows['n'].max())} "
        "prompts."
    )


def _sizes(first: object, second: object) -> str:
    return f"{count(first)} and {count(second)}"
