"""Activation space over seeds: overlap above matched chance with t intervals. A seed is the unit, a layer is not."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.findings.activations import (
    MOST_PAIRS,
    Activations,
    View,
    level_words,
    margin_cells,
    of_pair,
    overlap_cells,
)
from safety_subspaces.findings.intervals import Finding, interval_of, over_seeds
from safety_subspaces.report.parts.chart import curve_style, draw_curve, draw_silent, finished_by_layer, panels_of
from safety_subspaces.report.parts.columns import Cell, compared, numbers, short, table_of, texts
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.sentence import many, seeds_interval_words
from safety_subspaces.report.parts.table import Table, count, seeds_of
from safety_subspaces.report.sections.activations.figures import lines_of

MEASURES: Final = ("above", "floor_above", "from_margin")
VERDICTS: Final = {1: "overlapping", -1: "distinct", 0: "undecided"}


def space_over_seeds(activations: Activations, view: View, by_layer: bool = False) -> pd.DataFrame:
    """Return each model and pair (and layer) of a view as a mean over seeds.

    Columns: ``model``, ``first``, ``second`` and, by layer, ``layer``; then three measures. Without ``by_layer``, the
    layers of a seed are averaged first. ``above`` and ``floor_above`` are those of
    :func:`~safety_subspaces.findings.activations.overlap_cells`, ``from_margin`` that of the equivalence test; each has
    its ``_reach`` (half the 95 % t interval, NaN below two seeds) and its number of ``_seeds``.
    """
    keys = ["model", "first", "second", "layer"]
    cells = overlap_cells(activations, view)[["seed", *keys, "above", "floor_above"]]
    tests = margin_cells(activations, view)[["seed", *keys, "from_margin"]]
    both = cells.merge(tests, on=["seed", *keys], how="left")
    if not by_layer:
        keys = keys[:-1]
        both = both.groupby(["seed", *keys], sort=False)[list(MEASURES)].mean().reset_index()
    return over_seeds(both, keys, MEASURES)


def seeds_verdict(row: pd.Series) -> str:
    """Judge by the side of the margin that the whole interval over seeds is on; unknown below two seeds."""
    over = interval_of(row, "from_margin")
    return VERDICTS[over.sign] if over.n > 1 else "unknown"


def space_across_table(activations: Activations) -> Table:
    """Each pair in each model over seeds, at every position."""
    frames = [
        _in_order(space_over_seeds(activations, view), view).assign(
            analysis=view.analysis, position=view.position, energy=view.energy
        )
        for view in activations.views
    ]
    rows = [row for frame in frames for _, row in frame.iterrows()]
    columns: dict[str, Cell] = {
        "pair": compared,
        **texts("model", "analysis", "position"),
        "energy": short("energy"),
        "above matched": numbers("above", 3, "above_reach", "+"),
        "floor above": numbers("floor_above", 3, "floor_above_reach", "+"),
        "minus margin": numbers("from_margin", 3, "from_margin_reach", "+"),
        "judged": seeds_verdict,
        "seeds": lambda row: seeds_of(row, MEASURES),
    }
    note = (
        "Means over seeds of the mean over a seed's layers, ± half the 95 % t interval over seeds; none with one "
        "seed. Above matched: overlap minus matched chance (chance, where no control was run). Floor above: the same "
        "of two halves of one set. Minus margin: of halves, from half-way between chance and floor; judged by its "
        "interval."
    )
    return table_of(rows, columns, 4, note)


def space_across_figure(activations: Activations, view: View) -> go.Figure | None:
    """Draw overlap above matched chance by layer, a panel a pair, with half the t interval; dashes: the floor."""
    frame = space_over_seeds(activations, view, by_layer=True)
    pairs = [pair for pair in view.pairs[:MOST_PAIRS] if of_pair(frame, pair)["above"].notna().any()]
    if not pairs:
        return None
    figure = panels_of([f"{first} and {second}" for first, second in pairs])
    for panel, pair in enumerate(pairs, start=1):
        for number, model, line in lines_of(view, of_pair(frame, pair)):
            hover = "layer %{x}: %{y:+.3f} ± %{customdata[0]:.3f}<br>floor %{customdata[1]:+.3f}"
            hover += ", seeds %{customdata[2]:.0f}"
            seen = line[["above_reach", "floor_above", "above_seeds"]]
            draw_curve(figure, panel, number, model, line["layer"], line["above"], line["above_reach"], seen, hover)
            dashed = {"color": curve_style(number)["marker"]["color"], "dash": "dash", "width": 1.1}
            draw_silent(figure, panel, line["layer"], line["floor_above"], dashed, model)
    figure.update_yaxes(rangemode="tozero")
    return finished_by_layer(figure, len(pairs), frame["layer"], "above chance")


def space_across_section(activations: Activations, anchor: str) -> Section | None:
    """Return what the page over seeds shows of activation space; ``None`` where none was compared."""
    if not activations.views:
        return None
    view = activations.views[0]
    figure = space_across_figure(activations, view)
    title = f"Overlap above chance: {view.words}"
    charts = []
    if figure is not None:
        chart = make_chart(f"activations-{anchor}", title, f"{title}, by layer, over seeds", figure)
        charts.append((chart, _caption(activations, view)))
    return Section("activations", "Activation space", charts, {"Every pair and model": space_across_table(activations)})


def read_space_across(activations: Activations, organism: str) -> list[Finding]:
    """Return where the first pair lies in each model, by intervals over seeds; nothing without a pair."""
    if not activations.views:
        return []
    view = activations.views[0]
    pair = view.pairs[0]
    frame = _in_order(of_pair(space_over_seeds(activations, view), pair), view)
    layers = of_pair(space_over_seeds(activations, view, by_layer=True), pair)
    verdict_of = {str(row["model"]): seeds_verdict(row) for _, row in frame.iterrows()}
    words = "; ".join(
        f"{verdict} in {', '.join(models)}"
        for verdict in dict.fromkeys(verdict_of.values())
        if (models := [model for model, of_model in verdict_of.items() if of_model == verdict])
    )
    seeds = int(frame["above_seeds"].max()) if len(frame) else 0
    headline = (
        f"{organism}, activations ({view.words}): {pair[0]} and {pair[1]} prompts are {words} (mean over layers, "
        f"{many(seeds, 'seed')})."
    )
    values = "; ".join(
        f"{row['model']}: {seeds_interval_words(interval_of(row, 'above'))}, minus the margin "
        f"{seeds_interval_words(interval_of(row, 'from_margin'))}"
        for _, row in frame.iterrows()
    )
    signs = [interval_of(row, "above") for _, row in layers.iterrows()]
    known = [interval for interval in signs if interval.n > 1]
    level = level_words(activations, view)
    text = (
        f"{headline} Overlap minus {level}: {values}. Layer by layer and model by model, by its own 95 % interval "
        f"over seeds: above in {sum(i.sign > 0 for i in known)}, below in {sum(i.sign < 0 for i in known)}, not shown "
        f"to differ in {sum(i.sign == 0 for i in known)} of {len(known)}."
    )
    verdict = (
        next(iter(verdict_of.values())) if len(set(verdict_of.values())) == 1 else "mixed" if verdict_of else "unknown"
    )
    return [Finding("activations", verdict, headline, text)]


def _in_order(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    """Order rows by pair, as the view has them, then by model."""
    pairs = [view.pairs.index(pair) for pair in zip(frame["first"], frame["second"], strict=True)]
    return frame.assign(pair=pairs).sort_values("pair", kind="stable").drop(columns="pair")


def _caption(activations: Activations, view: View) -> str:
    cells = overlap_cells(activations, view)
    seeds = ", ".join(dict.fromkeys(cells["seed"].astype(str)))
    half = (
        "± half the 95 % t interval over seeds" if cells["seed"].nunique() > 1 else "one seed, so without an interval"
    )
    level = level_words(activations, view)
    return (
        f"Overlap of two prompt sets minus {level}: the mean over seeds ({seeds}), {half}. Dashed, of the same "
        f"colour: two halves of one set, the floor. n: at most {count(cells['n_first'].max())} and "
        f"{count(cells['n_second'].max())} prompts in each seed."
    )
