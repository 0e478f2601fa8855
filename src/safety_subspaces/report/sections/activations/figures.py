"""The charts of ``activations``: overlap by layer and model, its distance from the margin, and curves over layers."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import BLUE, GREY, PALETTE, VERMILION
from safety_subspaces.findings.activations import (
    LEVEL,
    MOST_PAIRS,
    VERDICTS,
    Activations,
    View,
    at_position,
    margin_cells,
    of_pair,
    overlap_cells,
)
from safety_subspaces.findings.contracts import labels_of, reference_model
from safety_subspaces.report.parts.chart import (
    MARGINS,
    curve_style,
    draw_curve,
    draw_key,
    finished_by_layer,
    panels_of,
)

# Filled where the test has decided, open where it has not.
VERDICT_SYMBOLS: Final = {"overlapping": "circle", "distinct": "diamond", "undecided": "circle-open"}
# Pixels of a heatmap's row, of its axis, and of the scale of colours below it.
ROW, AXIS, BAR = 26, 52, 48
# Cells with a number in them: more columns than this are too narrow for one.
MOST_NUMBERED: Final = 6


def heatmap_figure(activations: Activations, view: View) -> go.Figure | None:
    """Draw overlap minus matched chance, a row a model and a column a layer; a panel a pair, then its floor.

    All panels have one scale of colours, with 0 in the middle.
    """
    cells = overlap_cells(activations, view)
    pairs = view.pairs[:MOST_PAIRS]
    panels = [(f"{first} and {second}", of_pair(cells, (first, second)), "above") for first, second in pairs]
    panels.append(("floor: halves of one set", panels[0][1], "floor_above"))
    panels = [panel for panel in panels if panel[1][panel[2]].notna().any()]
    if not panels:
        return None
    height = ROW * len(view.models)
    figure = panels_of([title for title, _, _ in panels], height, shared_xaxes=True)
    layers = sorted({int(layer) for layer in cells["layer"]})
    for number, (_, rows, measure) in enumerate(panels, start=1):
        figure.add_trace(_heatmap(rows, measure, view.models, layers), row=number, col=1)
    figure.update_yaxes(type="category", autorange="reversed")
    finished_by_layer(figure, len(panels), layers, height=height, shared_xaxes=True)
    reach = max(float(np.nanmax(np.abs(rows[measure].to_numpy(dtype=float)))) for _, rows, measure in panels)
    # Below the axis: beside the panels a phone has no room for it.
    below = -AXIS / (figure.layout.height - MARGINS)
    bar = {"orientation": "h", "thickness": 12, "outlinewidth": 0, "tickformat": "+.1f", "y": below, "yanchor": "top"}
    scale = [[0, BLUE], [0.5, "#F7F7F7"], [1, VERMILION]]
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": -reach, "cmax": reach, "colorbar": bar})
    return figure.update_layout(margin_b=AXIS + BAR, height=figure.layout.height + BAR)


def margin_figure(activations: Activations, view: View) -> go.Figure | None:
    """Draw by layer how far the overlap of halves lies from the margin of the equivalence test, with its error."""
    cells = margin_cells(activations, view)
    pairs = [pair for pair in view.pairs[:MOST_PAIRS] if of_pair(cells, pair)["from_margin"].notna().any()]
    if not pairs:
        return None
    figure = panels_of([f"{first} and {second}" for first, second in pairs])
    for panel, pair in enumerate(pairs, start=1):
        for number, model, line in lines_of(view, of_pair(cells, pair)):
            colour = PALETTE[number % len(PALETTE)]
            symbols = [VERDICT_SYMBOLS.get(str(verdict), "circle-open") for verdict in line["verdict"]]
            draw_curve(
                figure,
                panel,
                number,
                model,
                line["layer"],
                line["from_margin"],
                errors=line["stderr"],
                seen=line[["stderr", "power", "p_overlapping", "margin", "floor_overlap", "matched_chance"]],
                hover="layer %{x}: %{y:+.3f} ± %{customdata[0]:.3f}, %{text}<br>p %{customdata[2]:.3f}, power "
                "%{customdata[1]:.2f}<br>margin %{customdata[3]:.3f}, floor %{customdata[4]:.3f}, matched "
                "%{customdata[5]:.3f}",
                text=line["verdict"].astype(str),
                showlegend=False,
                line={"color": colour, "width": 1.2},
                marker={"color": colour, "size": 9, "symbol": symbols, "line": {"width": 2, "color": colour}},
            )
        figure.add_hline(y=0, line={"dash": "dot", "width": 1.2, "color": GREY}, row=panel, col=1)
    for number, model in enumerate(view.models):
        draw_key(figure, model, legendgroup=model, line={"color": PALETTE[number % len(PALETTE)], "width": 3})
    for verdict in VERDICTS[:-1]:
        marker = {"color": GREY, "symbol": VERDICT_SYMBOLS[verdict], "size": 9, "line": {"width": 2, "color": GREY}}
        draw_key(figure, verdict, "markers", marker=marker)
    return finished_by_layer(figure, len(pairs), cells["layer"], "minus margin")


def difference_figure(activations: Activations, view: View) -> go.Figure | None:
    """Draw by layer how the two sets of the first pair differ in distribution, and the dimension of each set."""
    pair = view.pairs[0]
    tests = of_pair(at_position(activations.two_sample, view), pair)
    tests = tests[~tests["matched"]]
    sizes = at_position(activations.dimension, view)
    panels = [
        ("MMD", "squared MMD, unbiased", tests, "mmd", "", "mmd_p"),
        ("distance of means", "standardised distance of means", tests, "mean_distance_standardised", "", "mean_p"),
    ]
    for name in pair:
        title = f"intrinsic dimension of {name} (TwoNN)"
        panels.append(("dimension", title, sizes[sizes["set"] == name], "two_nn", "_stderr", ""))
    panels = [panel for panel in panels if panel[2][panel[3]].notna().any()]
    if not panels:
        return None
    figure = panels_of([title for _, title, *_ in panels])
    for panel, (title, _, rows, measure, error, p_value) in enumerate(panels, start=1):
        for number, model, line in lines_of(view, rows):
            p_values = line[p_value].astype(float) if p_value else pd.Series(0.0, index=line.index)
            marker = curve_style(number)["marker"]
            symbols = [marker["symbol"] if p < LEVEL else f"{marker['symbol']}-open" for p in p_values]
            draw_curve(
                figure,
                panel,
                number,
                model,
                line["layer"],
                line[measure],
                errors=line[f"{measure}{error}"] if error else None,
                seen=p_values.to_frame(),
                hover=f"layer %{{x}}: %{{y:.3f}}{'<br>p %{customdata[0]:.3f}' if p_value else ''}",
                marker=marker | {"symbol": symbols},
            )
        figure.update_yaxes(title=title, rangemode="tozero", row=panel, col=1)
    return finished_by_layer(figure, len(panels), pd.concat([tests["layer"], sizes["layer"]]))


def cka_figure(activations: Activations, view: View) -> go.Figure | None:
    """Draw by layer how alike the reference model and each other one lay out the prompts of a set."""
    rows = at_position(activations.cka, view)
    rows = rows[rows["linear"].notna()]
    if rows.empty:
        return None
    reference = reference_model(view.models)
    beside = rows[(rows["first_model"] == reference) | (rows["second_model"] == reference)]
    other = beside["second_model"].where(beside["first_model"] == reference, beside["first_model"])
    beside = beside.assign(other=other.astype(str))
    sets = [name for name in labels_of(beside, "set") if name in sum(view.pairs[:MOST_PAIRS], ())][:MOST_PAIRS]
    if not sets:
        return None
    figure = panels_of([f"{name} prompts, beside {reference}" for name in sets])
    for panel, name in enumerate(sets, start=1):
        rows = beside[beside["set"] == name].assign(model=beside["other"])
        for number, model, line in lines_of(view, rows):
            if line.empty:
                continue
            hover = "layer %{x}: linear %{y:.3f} ± %{customdata[0]:.3f}<br>kernel %{customdata[1]:.3f}"
            hover += ", n %{customdata[2]:.0f}"
            seen, errors = line[["linear_stderr", "rbf", "n"]], line["linear_stderr"]
            draw_curve(figure, panel, number, model, line["layer"], line["linear"], errors, seen, hover)
    figure.update_yaxes(range=[-0.05, 1.05])
    return finished_by_layer(figure, len(sets), beside["layer"], "CKA")


def lines_of(view: View, rows: pd.DataFrame) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Yield the number and the label of each model of a view, and its rows layer by layer."""
    for number, model in enumerate(view.models):
        yield number, model, rows[rows["model"] == model].sort_values("layer")


def _heatmap(rows: pd.DataFrame, measure: str, models: Sequence[str], layers: Sequence[int]) -> go.Heatmap:
    hovered = ["overlap", "chance", "matched_chance", "floor_overlap", "p_matched", "rank_first", "rank_second"]
    table = rows.drop_duplicates(["model", "layer"]).set_index(["model", "layer"])[[measure, *hovered]].astype(float)
    grid = table.reindex([(model, layer) for model in models for layer in layers])
    shape = (len(models), len(layers))
    values = grid[measure].to_numpy().reshape(shape)
    return go.Heatmap(
        x=list(layers),
        y=list(models),
        z=values,
        customdata=grid[hovered].to_numpy().reshape(*shape, len(hovered)),
        coloraxis="coloraxis",
        hoverongaps=False,
        text=[["" if np.isnan(value) else f"{value:+z.2f}" for value in line] for line in values],
        texttemplate="%{text}" if len(layers) <= MOST_NUMBERED else None,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
        hovertemplate="%{y}, layer %{x}: %{z:+.3f}<br>overlap %{customdata[0]:.3f}, chance %{customdata[1]:.3f}<br>"
        "matched chance %{customdata[2]:.3f} (p %{customdata[4]:.3f})<br>floor %{customdata[3]:.3f}, ranks "
        "%{customdata[5]:.0f} and %{customdata[6]:.0f}<extra></extra>",
    )
