"""The tables of ``activations``: overlaps beside chance and floors, verdicts with margin and power, and the rest."""

from typing import Any

import pandas as pd

from safety_subspaces.findings.activations import (
    LEVEL,
    VERDICTS,
    Activations,
    at_place,
    equivalence_tests,
    has_control,
    margin_cells,
    of_pair,
    overlap_cells,
    verdict_counts,
)
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

# Rows that leave a terminal's table at eight lines.
TERMINAL_MODELS = 5


def activations_table(activations: Activations) -> Table:
    """Each pair of sets in each model, at each position: overlap beside chance, floor and matched prompts."""
    rows = []
    for view in activations.views:
        cells = overlap_cells(activations, view)
        for pair in view.pairs:
            for model in view.models:
                found = of_pair(cells, pair)
                found = found[found["model"] == model]
                if len(found):
                    rows.append((f"{pair[0]} - {pair[1]}", model, view.analysis, view.position, *_overlap(found)))
    columns = (
        *("pair", "model", "analysis", "position", "energy", "overlap", "chance", "matched chance", "floor"),
        *("above matched", "floor above", "like prompts above", f"share p < {LEVEL:g}", "layers", "n"),
    )
    note = (
        "Means over layers. Matched chance: the same pair with a random sign for each coordinate of the second, its "
        "mean in place. Floor: the two halves of one set, mean of both sets. Above: minus its own matched chance "
        "(chance, where no control was run). Like prompts: those of nearest length and like template alone. n: "
        "prompts of each set."
    )
    return Table(columns, tuple(rows), text_columns=4, note=note)


def verdicts_table(activations: Activations) -> Table:
    """The layers of each verdict of the equivalence test, at every energy, with the margin and the power."""
    rows = []
    for view in activations.views:
        for pair in view.pairs:
            found = of_pair(equivalence_tests(activations, view), pair)
            for (model, energy), cells in found.groupby(["model", "energy"], sort=False):
                where = (view.analysis, view.position)
                rows.append((f"{pair[0]} - {pair[1]}", str(model), *where, f"{energy:g}", *_verdicts(cells)))
    columns = (
        *("pair", "model", "analysis", "position", "energy", "overlap", "floor", "matched chance", "margin"),
        *("minus margin", *VERDICTS, "power", "n"),
    )
    note = (
        "All of halves of the sets; means over layers, power their median, then layers of each verdict. Margin: "
        "half-way from matched chance to the floor. Overlapping, distinct: the overlap lies above or below the "
        "margin, one-sided at 5 %. Power: the probability of the first if the overlap were the floor. Undefined: the "
        "floor is not above chance."
    )
    return Table(columns, tuple(rows), text_columns=4, note=note)


def tests_table(activations: Activations) -> Table:
    """Whether two sets have one distribution, in each model: all prompts, and those that are alike in length."""
    rows = []
    for view in activations.views:
        found = at_place(activations.two_sample, view)
        for (first, second, model, matched), cells in found.groupby(
            ["first", "second", "model", "matched"], sort=False
        ):
            means = cells[["mmd", "mean_distance", "mean_distance_standardised"]].astype(float).mean()
            rows.append(
                (
                    *(f"{first} - {second}", str(model), view.analysis, view.position, "yes" if matched else ""),
                    *(number(value, 3) for value in means),
                    *(_share(cells[name]) for name in ("mmd_p", "mean_p")),
                    count(len(cells)),
                    _sizes(cells),
                    _sizes(cells, "n_groups"),
                )
            )
    columns = (
        *("pair", "model", "analysis", "position", "like prompts", "MMD", "distance of means", "standardised"),
        *("MMD p < .05", "means p < .05", "layers", "n", "groups"),
    )
    note = (
        "Means over layers; layers with a p-value below 0.05, by permutations of whole groups of prompts, of those "
        "with one. MMD: unbiased and squared, so it may be below 0."
    )
    return Table(columns, tuple(rows), text_columns=5, note=note)


def depth_table(activations: Activations) -> Table:
    """The paper's own number: overlap as a mean over 65 to 90 % of depth."""
    frame = activations.depth
    rows = [
        (
            *(f"{row['first']} - {row['second']}", str(row["model"]), str(row["analysis"]), _text(row["position"])),
            "halves of one set" if row["floor"] else "",
            f"{row['energy']:g}",
            *(number(row[name], 3) for name in ("overlap", "chance", "matched_chance")),
            _text(row["layers"]),
        )
        for _, row in frame.iterrows()
    ]
    columns = (
        "pair",
        "model",
        "analysis",
        "position",
        "floor",
        "energy",
        "overlap",
        "chance",
        "matched chance",
        "layers",
    )
    return Table(columns, tuple(rows), text_columns=5, note="Means over the layers named, as in the paper.")


def activations_terminal_table(activations: Activations) -> Table:
    """The first pair at the first position: a row a model, for a terminal."""
    view = activations.views[0]
    pair = view.pairs[0]
    cells, tests = (of_pair(found(activations, view), pair) for found in (overlap_cells, margin_cells))
    rows = []
    for model in view.models[:TERMINAL_MODELS]:
        own = tests[tests["model"] == model]
        counts = verdict_counts(own)
        means = cells[cells["model"] == model][["overlap", "level", "floor_overlap"]].astype(float).mean()
        rows.append(
            (
                model,
                *(number(value, 3) for value in means),
                number(own["from_margin"].mean(), 3),
                "/".join(map(str, counts.values())) if len(own) else NOTHING,
                number(own["power"].astype(float).median(), 2),
                count(cells[cells["model"] == model]["n_first"].max()),
            )
        )
    more = len(view.models) - len(rows)
    level = "matched chance" if has_control(activations, view) else "chance"
    columns = ("model", "overlap", level, "floor", "minus margin", "verdicts", "power", "n")
    left = f" {more} more models on the page." if more else ""
    return Table(columns, tuple(rows), note=f"Means over layers; verdicts: {'/'.join(VERDICTS)} layers.{left}")


def _overlap(cells: pd.DataFrame) -> tuple[str, ...]:
    means = cells[["overlap", "chance", "matched_chance", "floor_overlap", "above", "floor_above", "alike_above"]]
    values = means.astype(float).mean()
    return (
        f"{cells['energy'].iloc[0]:g}",
        *(number(value, 3) for value in values[:4]),
        *(NOTHING if pd.isna(value) else f"{value:+z.3f}" for value in values[4:]),
        _share(cells["p_matched"]),
        count(len(cells)),
        _sizes(cells),
    )


def _verdicts(cells: pd.DataFrame) -> tuple[str, ...]:
    values = cells[["overlap", "floor_overlap", "matched_chance", "margin"]].astype(float)
    minus = cells["from_margin"].mean()
    return (
        *(number(value, 3) for value in values.mean()),
        NOTHING if pd.isna(minus) else f"{minus:+z.3f}",
        *(str(n) for n in verdict_counts(cells).values()),
        number(cells["power"].astype(float).median(), 2),
        _sizes(cells),
    )


def _share(p_values: pd.Series) -> str:
    """Return how many layers have a small p-value, of those that have one."""
    known = p_values.astype(float).dropna()
    return f"{int((known < LEVEL).sum())}/{len(known)}" if len(known) else NOTHING


def _sizes(cells: pd.DataFrame, name: str = "n") -> str:
    return f"{count(cells[f'{name}_first'].max())}/{count(cells[f'{name}_second'].max())}"


def _text(value: Any) -> str:
    return NOTHING if pd.isna(value) else str(value)
