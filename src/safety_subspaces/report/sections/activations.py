"""The section on activation space: where two sets of prompts lie in each model and layer, and how else they differ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY
from safety_subspaces.findings.activations import (
    LEVEL,
    MOST_PAIRS,
    VERDICTS,
    Activations,
    View,
    at_position,
    equivalence_tests,
    level_words,
    of_pair,
    read_activations,
    space_over_seeds,
    verdict_counts,
)
from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.finding import UNKNOWN, asked
from safety_subspaces.findings.topics.activations import BY_LAYER, CHANCE, DISTRIBUTIONS, MARGIN
from safety_subspaces.report.parts.chart import (
    MARGINS,
    SHARE,
    draw_curve,
    draw_silent,
    finished_by_layer,
    panels_of,
)
from safety_subspaces.report.parts.colours import DIVERGING, Colours
from safety_subspaces.report.parts.columns import Cell, compared, counts, numbers, short, table_of, text, texts
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, seeds_of
from safety_subspaces.report.parts.verdict import finding_words

PLACE: Final = 100
# Runs and positions that are drawn; further ones stand in the tables, where they are compared more easily.
MOST_VIEWS: Final = 2
# Pixels of a heatmap's row, of its axis, and of the scale of colours below it.
ROW, AXIS, BAR = 26, 52, 48
# Cells with a number in them: more columns than this are too narrow for one.
MOST_NUMBERED: Final = 6
WORDS: Final = {
    "overlapping": "nearer to parts of one set than to chance",
    "distinct": "nearer to chance than to parts of one set",
    "undecided": "undecided between the two",
    "undefined": "not to be placed",
}


def activations(part: Part) -> Section | None:
    """Return the section; ``None`` where no activations were compared."""
    read = read_activations(part.studies.named)
    if not read.views:
        return None
    headlines, sentences = _said(part, read)
    views = read.views[:MOST_VIEWS]
    charts = [chart for place, view in enumerate(views) for chart in _charts(part, read, view, place)]
    spaces = _spaces_table(part, read)
    return Section(
        "activations",
        "Activation space",
        headlines=headlines,
        sentences=sentences,
        charts=charts,
        tables={
            "Overlap beside chance and floors": spaces,
            "Verdicts of the equivalence test, each by itself": _verdicts_table(read),
            "Two-sample tests, each by itself": _tests_table(read),
            "The paper's aggregation": _depth_table(read),
        },
        terminal={"Overlap of prompt sets in activations": _terminal(spaces, read)},
        place=PLACE,
    )


def _said(part: Part, read: Activations) -> tuple[list[str], list[str]]:
    """Return the headline of the first pair, and what is said of it in every model, place by place and beyond."""
    findings, view = part.of_topic("activations"), read.views[0]
    pair = f"{view.pairs[0][0]} and {view.pairs[0][1]}"
    near = _of_view(asked(findings, MARGIN if not part.is_single else MARGIN + BY_LAYER), view, pair)
    counted = {verdict: int((near["verdict"] == verdict).sum()) for verdict in WORDS}
    places = "layers and models" if part.is_single else "models (mean over layers)"
    words = ", ".join(f"{WORDS[verdict]} in {n}" for verdict, n in counted.items() if n)
    tests = int(near["tests"].max()) if len(near) else 0
    headline = (
        f"In activations ({view.words}), {pair} prompts are {words or 'not placed'} of {len(near)} {places} "
        f"({tests} tests, corrected together)."
    )
    sentences = [headline]
    level = level_words(read, view)
    over_layers = _of_view(asked(findings, CHANCE), view, pair)
    values = "; ".join(
        f"{row['details']['model']} {finding_words(row) if not part.is_single else _plain(row)}"
        for _, row in over_layers.iterrows()
    )
    sentences.append(f"Overlap minus {level}, mean over layers: {values}.")
    above = _of_view(asked(findings, CHANCE + BY_LAYER), view, pair)
    shown = int((above["verdict"] == "above chance").sum())
    sentences.append(
        f"Place by place, the overlap is shown above it in {shown} of {len(above)} layers and models "
        f"({int(above['tests'].max()) if len(above) else 0} tests, corrected together{_untold(above)})."
    )
    said = []
    for _, question in DISTRIBUTIONS.values():
        rows = asked(findings, question)
        if len(rows):
            differ = int((rows["verdict"] == "differ").sum())
            by = question.removeprefix("distributions, by ")
            said.append(f"{differ} of {len(rows)} places by {by}{_untold(rows)}")
    if said:
        sentences.append(f"The distributions of {pair} are shown to differ in {', '.join(said)}.")
    return [headline], [*sentences, *_dimension_words(read, view), *_cka_words(read, view)]


def _untold(rows: pd.DataFrame) -> str:
    """Say in how many places too few draws leave nothing to be told: ``; unknown in 25: 99 draws, 499 needed ...``."""
    reasons = Counter(str(verdict) for verdict in rows["verdict"] if str(verdict).startswith(f"{UNKNOWN}: "))
    return "".join(f"; {UNKNOWN} in {n}: {why.removeprefix(f'{UNKNOWN}: ')}" for why, n in reasons.items())


def _plain(row: pd.Series) -> str:
    return NOTHING if pd.isna(row["estimate"]) else f"{row['estimate']:+z.2f}"


def _of_view(findings: pd.DataFrame, view: View, pair: str) -> pd.DataFrame:
    of_view = [
        f"{row['details']['first']} and {row['details']['second']}" == pair
        and (row["details"]["analysis"], row["details"]["position"]) == (view.analysis, view.position)
        for _, row in findings.iterrows()
    ]
    return findings[of_view]


def _dimension_words(read: Activations, view: View) -> list[str]:
    rows = at_position(read.dimension, view)
    means = [(name, rows[rows["set"] == name]["two_nn"].astype(float)) for name in view.pairs[0]]
    words = [f"{name} {_range(values)}" for name, values in means if values.notna().any()]
    return [f"Intrinsic dimension (TwoNN), mean and range over layers and models: {', '.join(words)}."] if words else []


def _cka_words(read: Activations, view: View) -> list[str]:
    rows, known = _beside_reference(read, view), {}
    for model in view.models:
        values = rows[rows["model"] == model]["linear"].astype(float)
        if values.notna().any():
            known[model] = f"{model} {values.mean():.2f}"
    said = f"Linear CKA with {view.reference}, mean over layers and sets: {', '.join(known.values())}."
    return [said] if known else []


def _range(values: pd.Series) -> str:
    known = values.dropna()
    return f"{known.mean():.2f} ({known.min():.2f} to {known.max():.2f})"


def _charts(part: Part, read: Activations, view: View, place: int) -> list[tuple[Chart, str]]:
    spaces = space_over_seeds(read, view, by_layer=True)
    pairs = view.pairs[:MOST_PAIRS]
    seeds = many(len(part.studies.seeds), "seed")
    half = "" if part.is_single else f" Mean over {seeds}."
    bars = "one jackknife standard error over parts" if part.is_single else "half the 95 % t interval over seeds"
    drawn = [
        (
            "overlap",
            f"Overlap above chance: {view.words}",
            heatmap_figure(spaces, view),
            f"Overlap of the spaces that hold {view.energy:g} of each set's energy, minus {level_words(read, view)}: 0 "
            "is chance, and what two halves of one set reach, the floor, stands in the last panel on the same scale. "
            f"Layer 0 is the embedding, i what block i leaves.{half} n: {_sizes(spaces)} prompts.",
        ),
        (
            "margin",
            "Distance from the margin",
            margin_figure(spaces, view, pairs, part.colours),
            "Parts of the sets: overlap minus the margin, half-way from matched chance to the floor. Bars: "
            f"{bars}. n: {_sizes(spaces)} prompts.",
        ),
        (
            "differences",
            f"Distributions of {pairs[0][0]} and {pairs[0][1]}",
            difference_figure(read, view, part.colours),
            "Filled: p below 0.05 by itself, by permutations of whole groups of prompts; open: not; of several seeds "
            f"the mean.{half} Bars of the dimension: one standard error.",
        ),
        (
            "cka",
            "Likeness of models",
            cka_figure(read, view, part.colours),
            f"Linear CKA of the same prompts in {view.reference} and each other model: 1 is alike up to rotation and "
            f"scale.{half} Bars: one jackknife standard error, where it was reckoned.",
        ),
    ]
    return [
        (make_chart(f"activations-{part.anchor}{place}-{name}", title, f"{title}, by layer and model", figure), caption)
        for name, title, figure, caption in drawn
        if figure is not None
    ]


def heatmap_figure(spaces: pd.DataFrame, view: View) -> go.Figure | None:
    """Draw overlap minus matched chance, a row a model and a column a layer; a panel a pair, then its floor.

    All panels have one scale of colours, with 0 in the middle.
    """
    pairs = view.pairs[:MOST_PAIRS]
    panels = [(f"{first} and {second}", of_pair(spaces, (first, second)), "above") for first, second in pairs]
    panels.append(("floor: halves of one set", panels[0][1], "floor_above"))
    panels = [panel for panel in panels if panel[1][panel[2]].notna().any()]
    if not panels:
        return None
    height = ROW * len(view.models)
    figure = panels_of([title for title, _, _ in panels], height, shared_xaxes=True)
    layers = sorted({int(layer) for layer in spaces["layer"]})
    for place, (_, rows, measure) in enumerate(panels, start=1):
        figure.add_trace(_heatmap(rows, measure, view.models, layers), row=place, col=1)
    figure.update_yaxes(type="category", autorange="reversed")
    finished_by_layer(figure, len(panels), layers, height=height, shared_xaxes=True)
    reach = max(float(np.nanmax(np.abs(rows[measure].to_numpy(dtype=float)))) for _, rows, measure in panels)
    # Below the axis: beside the panels a phone has no room for it.
    below = -AXIS / (figure.layout.height - MARGINS)
    bar = {"orientation": "h", "thickness": 12, "outlinewidth": 0, "tickformat": "+.1f", "y": below, "yanchor": "top"}
    figure.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -reach, "cmax": reach, "colorbar": bar})
    return figure.update_layout(margin_b=AXIS + BAR, height=figure.layout.height + BAR)


def margin_figure(
    spaces: pd.DataFrame, view: View, pairs: Sequence[tuple[str, str]], colours: Colours
) -> go.Figure | None:
    """Draw by layer how far the overlap of parts lies from the margin of the equivalence test, with its error."""
    shown = [pair for pair in pairs if of_pair(spaces, pair)["from_margin"].notna().any()]
    if not shown:
        return None
    figure = panels_of([f"{first} and {second}" for first, second in shown])
    for panel, pair in enumerate(shown, start=1):
        for model, line in _lines(view, of_pair(spaces, pair)):
            bars = line["from_margin_reach"]
            hover = "layer %{x}: %{y:+.3f} ± %{customdata[0]:.3f}, seeds %{customdata[1]:.0f}"
            seen = line[["from_margin_reach", "from_margin_seeds"]]
            draw_curve(
                figure, panel, colours.style(model), model, line["layer"], line["from_margin"], bars, seen, hover
            )
        figure.add_hline(y=0, line={"dash": "dot", "width": 1.2, "color": GREY}, row=panel, col=1)
    figure.update_yaxes(matches="y")
    return finished_by_layer(figure, len(shown), spaces["layer"], "minus margin")


def difference_figure(read: Activations, view: View, colours: Colours) -> go.Figure | None:
    """Draw by layer how the two sets of the first pair differ in distribution, and the dimension of each set."""
    pair = view.pairs[0]
    tests = of_pair(at_position(read.two_sample, view), pair)
    tests = tests[~tests["matched"]]
    sizes = at_position(read.dimension, view)
    panels = [
        ("MMD", "squared MMD, unbiased", tests, "mmd", "", "mmd_p"),
        ("distance of means", "standardised distance of means", tests, "mean_distance_standardised", "", "mean_p"),
    ]
    for name in pair:
        title = f"intrinsic dimension of {name} (TwoNN)"
        panels.append(("dimension", title, sizes[sizes["set"] == name], "two_nn", "two_nn_stderr", ""))
    panels = [panel for panel in panels if panel[2][panel[3]].notna().any()]
    if not panels:
        return None
    figure = panels_of([title for _, title, *_ in panels])
    for panel, (title, _, rows, measure, error, p_value) in enumerate(panels, start=1):
        for model, line in _lines(view, _means(rows, [name for name in (measure, error, p_value) if name])):
            p_values = line[p_value] if p_value else pd.Series(0.0, index=line.index)
            marker = colours.style(model)["marker"]
            symbols = [marker["symbol"] if p < LEVEL else f"{marker['symbol']}-open" for p in p_values]
            hover = f"layer %{{x}}: %{{y:.3f}}{'<br>p %{customdata[0]:.3f}' if p_value else ''}"
            errors = line[error] if error else None
            style = {"marker": marker | {"symbol": symbols}}
            seen = p_values.to_frame()
            draw_curve(
                figure, panel, colours.style(model), model, line["layer"], line[measure], errors, seen, hover, **style
            )
        figure.update_yaxes(title=title, rangemode="tozero", row=panel, col=1)
    return finished_by_layer(figure, len(panels), pd.concat([tests["layer"], sizes["layer"]]))


def cka_figure(read: Activations, view: View, colours: Colours) -> go.Figure | None:
    """Draw by layer how alike the reference model and each other one lay out the prompts of a set."""
    beside = _beside_reference(read, view)
    sets = [name for name in labels_of(beside, "set") if name in sum(view.pairs[:MOST_PAIRS], ())][:MOST_PAIRS]
    if not sets:
        return None
    figure = panels_of([f"{name} prompts, beside {view.reference}" for name in sets])
    for panel, name in enumerate(sets, start=1):
        rows = _means(beside[beside["set"] == name], ["linear", "linear_stderr", "rbf", "n"])
        for model, line in _lines(view, rows):
            if line.empty:
                continue
            hover = "layer %{x}: linear %{y:.3f} ± %{customdata[0]:.3f}<br>kernel %{customdata[1]:.3f}"
            seen, errors = line[["linear_stderr", "rbf", "n"]], line["linear_stderr"]
            hover += ", n %{customdata[2]:.0f}"
            draw_curve(figure, panel, colours.style(model), model, line["layer"], line["linear"], errors, seen, hover)
    for panel in range(1, len(sets) + 1):
        draw_silent(figure, panel, sorted(set(beside["layer"])), [1.0] * beside["layer"].nunique(), {"width": 0})
    figure.update_yaxes(range=SHARE)
    return finished_by_layer(figure, len(sets), beside["layer"], "CKA")


def _beside_reference(read: Activations, view: View) -> pd.DataFrame:
    """Return the likeness of the reference and each other model, which stands in ``model``."""
    rows = at_position(read.cka, view)
    rows = rows[rows["linear"].notna()]
    beside = rows[(rows["first_model"] == view.reference) | (rows["second_model"] == view.reference)]
    other = beside["second_model"].where(beside["first_model"] == view.reference, beside["first_model"])
    return beside.assign(model=other.astype(str))


def _means(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the mean over seeds of some columns, a row a model and layer."""
    return rows.astype(dict.fromkeys(names, float)).groupby(["model", "layer"], sort=False)[names].mean().reset_index()


def _lines(view: View, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the label of each model of a view, and its rows layer by layer."""
    for model in view.models:
        yield model, rows[rows["model"] == model].sort_values("layer")


def _heatmap(rows: pd.DataFrame, measure: str, models: Sequence[str], layers: Sequence[int]) -> go.Heatmap:
    hovered = ["overlap", "chance", "matched_chance", "floor_overlap", "above_seeds"]
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
        "matched chance %{customdata[2]:.3f}, floor %{customdata[3]:.3f}, seeds %{customdata[4]:.0f}<extra></extra>",
    )


def _spaces_table(part: Part, read: Activations) -> Table:
    """Each pair of sets in each model, at each position: overlap beside chance, floor and matched prompts."""
    findings = asked(part.of_topic("activations"), MARGIN)
    verdict_of = {
        (details["analysis"], details["position"], details["model"], details["first"], details["second"]): row[
            "verdict"
        ]
        for _, row in findings.iterrows()
        if (details := row["details"])
    }
    frames = [
        space_over_seeds(read, view).assign(analysis=view.analysis, position=view.position, energy=view.energy)
        for view in read.views
    ]
    frame = pd.concat(frames, ignore_index=True)

    def judged(row: pd.Series) -> str:
        said = verdict_of.get(tuple(row[["analysis", "position", "model", "first", "second"]]), NOTHING)
        return str(said).partition(":")[0]

    measures = ("overlap", "matched_chance", "floor_overlap")
    columns: dict[str, Cell] = {
        "pair": compared,
        **texts("model", "analysis", "position"),
        "energy": short("energy"),
        "overlap": numbers("overlap", 3, "overlap_reach"),
        "chance": numbers("chance", 3),
        "matched": numbers("matched_chance", 3),
        "floor": numbers("floor_overlap", 3),
        "above matched": numbers("above", 3, "above_reach", "+"),
        "floor above": numbers("floor_above", 3, "floor_above_reach", "+"),
        "like prompts above": numbers("alike_above", 3, "alike_above_reach", "+"),
        "minus margin": numbers("from_margin", 3, "from_margin_reach", "+"),
        **({} if part.is_single else {"judged": judged}),
        f"p < {LEVEL:g}": counts("p_small", "p_known"),
        "layers": counts("layers"),
        "seeds": lambda row: seeds_of(row, measures),
        "n": counts("n_first", "n_second"),
    }
    half = "one seed, so without an interval" if part.is_single else "± half the 95 % t interval over seeds"
    note = (
        f"Means over layers, {half}; layers without an overlap by construction are left out. Matched: chance of two "
        "sets that share the scale of each coordinate alone. Floor: the two halves of one set, mean of both sets. "
        "Above: minus its own matched chance. Like prompts: those of nearest length and like template alone. Minus "
        f"margin: of parts, from half-way between chance and floor. p < {LEVEL:g}: places with so small a p by itself, "
        "of those that have one. n: prompts of each set."
    )
    return table_of(frame, columns, 4, note)


def _terminal(table: Table, read: Activations) -> Table:
    """Keep the first pair of the first view: a terminal has room for the question of the study."""
    view = read.views[0]
    pair = f"{view.pairs[0][0]} - {view.pairs[0][1]}"
    named = [table.columns.index(name) for name in ("pair", "analysis", "position")]
    wanted = [pair, view.analysis, view.position]
    rows = tuple(row for row in table.rows if [row[place] for place in named] == wanted)
    kept = Table(table.columns, rows, table.text_columns, f"{pair}, {view.words}; means over layers.")
    return kept.without("pair", "analysis", "position", "energy", "chance", "like prompts above", "layers", "n")


def _verdicts_table(read: Activations) -> Table:
    """The layers of each verdict of the equivalence test, at every energy, with the margin and the power."""
    groups: list[tuple[View, pd.DataFrame]] = []
    for view in read.views:
        for sets in view.pairs:
            tests = of_pair(equivalence_tests(read, view), sets)
            groups += [(view, cells) for _, cells in tests.groupby(["model", "energy"], sort=False)]
    columns: dict[str, Cell] = {
        **_identity(),
        "energy": lambda group: f"{group[1]['energy'].iloc[0]:g}",
        "overlap": _mean("overlap"),
        "floor": _mean("floor_overlap"),
        "matched": _mean("matched_chance"),
        "margin": _mean("margin"),
        "minus margin": _mean("from_margin", "+"),
        **{verdict: _counted(verdict) for verdict in VERDICTS},
        "power": lambda group: number(group[1]["power"].astype(float).median(), 2),
        "n": _pair_sizes("n"),
    }
    note = (
        "All of parts of the sets; means over layers and seeds, power their median, then places of each verdict. "
        "Margin: half-way from matched chance to the floor. Overlapping, distinct: the overlap lies above or below the "
        "margin, one-sided at 5 %, not corrected. Power: the probability of the first if the overlap were the floor. "
        "Undefined: the floor is not above chance, or nothing varies."
    )
    return table_of(groups, columns, 4, note)


def _tests_table(read: Activations) -> Table:
    """Whether two sets have one distribution, in each model: all prompts, and those that are alike in length."""
    groups: list[tuple[View, pd.DataFrame]] = []
    for view in read.views:
        tests = at_position(read.two_sample, view)
        groups += [(view, c) for _, c in tests.groupby(["first", "second", "model", "matched"], sort=False)]
    columns: dict[str, Cell] = {
        **_identity(),
        "like prompts": lambda group: "yes" if group[1]["matched"].iloc[0] else "",
        "MMD": _mean("mmd"),
        "distance of means": _mean("mean_distance"),
        "standardised": _mean("mean_distance_standardised"),
        "MMD p < .05": _share("mmd_p"),
        "means p < .05": _share("mean_p"),
        "places": lambda group: count(len(group[1])),
        "n": _pair_sizes("n"),
        "groups": _pair_sizes("n_groups"),
    }
    note = (
        "Means over layers and seeds; places with a p-value below 0.05, by permutations of whole groups of prompts, of "
        "those with one. MMD: unbiased and squared, so it may be below 0."
    )
    return table_of(groups, columns, 5, note)


def _depth_table(read: Activations) -> Table:
    """The paper's own number: overlap as a mean over 65 to 90 % of depth, of each seed."""
    columns: dict[str, Cell] = {
        "pair": compared,
        **texts("model", "analysis", "position"),
        "floor": lambda row: "halves of one set" if row["floor"] else "",
        "seed": text("seed"),
        "energy": short("energy"),
        "overlap": numbers("overlap", 3),
        "chance": numbers("chance", 3),
        "matched": numbers("matched_chance", 3),
        "layers": text("layers"),
    }
    depth = read.depth.astype({"position": object, "layers": object})
    named = depth.fillna({"position": NOTHING, "layers": NOTHING})
    return table_of(named, columns, 6, "Means over the layers named, as in the paper.")


def _identity() -> dict[str, Cell]:
    """Return the columns of what a group is of."""
    return {
        "pair": lambda group: compared(group[1].iloc[0]),
        "model": lambda group: str(group[1]["model"].iloc[0]),
        "analysis": lambda group: group[0].analysis,
        "position": lambda group: group[0].position,
    }


def _mean(name: str, sign: str = "") -> Cell:
    return lambda group: number(group[1][name].astype(float).mean(), 3, sign=sign)


def _counted(verdict: str) -> Cell:
    return lambda group: str(verdict_counts(group[1])[verdict])


def _share(name: str) -> Cell:
    """Return the cell of how many places have a small p-value, of those that have one."""

    def cell(group: tuple[View, pd.DataFrame]) -> str:
        known = group[1][name].astype(float).dropna()
        return f"{int((known < LEVEL).sum())}/{len(known)}" if len(known) else NOTHING

    return cell


def _pair_sizes(name: str) -> Cell:
    return lambda group: "/".join(count(group[1][f"{name}_{side}"].max()) for side in ("first", "second"))


def _sizes(rows: pd.DataFrame) -> Any:
    return f"{count(rows['n_first'].max())} and {count(rows['n_second'].max())}"
