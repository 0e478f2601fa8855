"""Activation space over seeds: overlap above matched chance with t intervals. A seed is the unit, a layer is not."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.findings.activations import (
    MOST_PAIRS,
    Activations,
    View,
    has_control,
    margin_cells,
    of_pair,
    overlap_cells,
)
from safety_subspaces.findings.intervals import Finding, Interval, interval_of, over_seeds
from safety_subspaces.report.parts.chart import curve_style, error_bar, finished_panels, layer_axis, panels_of
from safety_subspaces.report.parts.columns import Cell, compared, numbers, table_of, text
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import Table, count, seeds_of

MEASURES: Final = ("above", "floor_above", "from_margin")
VERDICTS: Final = {1: "overlapping", -1: "distinct", 0: "undecided"}


def space_over_seeds(activations: Activations, view: View, by_layer: bool = False) -> pd.DataFrame:
    """Return each model and pair (and layer) of a view as a mean over seeds.

    Without layers, those of a seed are averaged first. ``above`` and ``floor_above`` are those of
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
    rows = [
        row.to_dict() | {"view": view}
        for view in activations.views
        for _, row in _in_order(space_over_seeds(activations, view), view).iterrows()
    ]
    columns: dict[str, Cell] = {
        "pair": compared,
        "model": text("model"),
        "analysis": lambda row: row["view"].analysis,
        "position": lambda row: row["view"].position,
        "energy": lambda row: f"{row['view'].energy:g}",
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
    for place, pair in enumerate(pairs, start=1):
        for number, model in enumerate(view.models):
            rows = of_pair(frame, pair)
            line = rows[rows["model"] == model].sort_values("layer")
            style = curve_style(number)
            colour = style["marker"]["color"]
            at = {"row": place, "col": 1}
            figure.add_scatter(
                x=line["layer"],
                y=line["above"],
                error_y=error_bar(line["above_reach"], colour),
                name=model,
                legendgroup=model,
                showlegend=place == 1,
                **style,
                customdata=line[["above_reach", "floor_above", "above_seeds"]].astype(float).to_numpy(),
                hovertemplate="layer %{x}: %{y:+.3f} ± %{customdata[0]:.3f}<br>floor %{customdata[1]:+.3f}, seeds "
                f"%{{customdata[2]:.0f}}<extra>{model}</extra>",
                **at,
            )
            dashed = {"color": colour, "dash": "dash", "width": 1.1}
            figure.add_scatter(
                x=line["layer"],
                y=line["floor_above"],
                mode="lines",
                line=dashed,
                legendgroup=model,
                showlegend=False,
                hoverinfo="skip",
                **at,
            )
    figure.update_yaxes(title="above chance", rangemode="tozero")
    figure.update_xaxes(**layer_axis(frame["layer"]))
    figure.update_xaxes(title="layer", row=len(pairs), col=1)
    return finished_panels(figure, len(pairs))


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
    told = {str(row["model"]): seeds_verdict(row) for _, row in frame.iterrows()}
    words = "; ".join(
        f"{verdict} in {', '.join(models)}"
        for verdict in dict.fromkeys(told.values())
        if (models := [model for model, own in told.items() if own == verdict])
    )
    seeds = int(frame["above_seeds"].max()) if len(frame) else 0
    headline = (
        f"{organism}, activations ({view.words}): {pair[0]} and {pair[1]} prompts are {words} (mean over layers, "
        f"{seeds} seed{'' if seeds == 1 else 's'})."
    )
    values = "; ".join(
        f"{row['model']}: {words_of(interval_of(row, 'above'))}, minus the margin "
        f"{words_of(interval_of(row, 'from_margin'))}"
        for _, row in frame.iterrows()
    )
    signs = [interval_of(row, "above") for _, row in layers.iterrows()]
    known = [interval for interval in signs if interval.n > 1]
    level = "matched chance" if has_control(activations, view) else "chance (no matched control was run)"
    text = (
        f"{headline} Overlap minus {level}: {values}. Layer by layer and model by model, by its own 95 % interval "
        f"over seeds: above in {sum(i.sign > 0 for i in known)}, below in {sum(i.sign < 0 for i in known)}, not shown "
        f"to differ in {sum(i.sign == 0 for i in known)} of {len(known)}."
    )
    verdict = next(iter(told.values())) if len(set(told.values())) == 1 else "mixed" if told else "unknown"
    return [Finding("activations", verdict, headline, text)]


def words_of(interval: Interval, digits: int = 3) -> str:
    """Return a mean with its interval over seeds; missing is said to be missing."""
    if interval.n == 0:
        return "not known"
    mean, low, high = (f"{value:+z.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return (
        f"{mean} (one seed, no interval)" if interval.n == 1 else f"{mean} (95 % {low} to {high}, {interval.n} seeds)"
    )


def _in_order(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    """Order rows by pair, as the view has them, then by model."""
    pairs = [view.pairs.index(pair) for pair in zip(frame["first"], frame["second"], strict=True)]
    return frame.assign(place=pairs).sort_values("place", kind="stable").drop(columns="place")


def _caption(activations: Activations, view: View) -> str:
    cells = overlap_cells(activations, view)
    seeds = ", ".join(dict.fromkeys(cells["seed"].astype(str)))
    half = (
        "± half the 95 % t interval over seeds" if cells["seed"].nunique() > 1 else "one seed, so without an interval"
    )
    level = "matched chance" if has_control(activations, view) else "chance (no matched control was run)"
    return (
        f"Overlap of two prompt sets minus {level}: the mean over seeds ({seeds}), {half}. Dashed, of the same "
        f"colour: two halves of one set, the floor. n: at most {count(cells['n_first'].max())} and "
        f"{count(cells['n_second'].max())} prompts in each seed."
    )
