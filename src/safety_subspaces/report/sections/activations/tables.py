"""The tables of ``activations``: overlaps beside chance and floors, verdicts with margin and power, and the rest."""

import pandas as pd

from safety_subspaces.findings.activations import (
    LEVEL,
    VERDICTS,
    Activations,
    View,
    at_position,
    equivalence_tests,
    of_pair,
    overlap_cells,
    verdict_counts,
)
from safety_subspaces.report.parts.columns import Cell, compared, numbers, short, table_of, text, texts
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

# A model's layers in one view, which a line of a table sums up.
Group = tuple[View, pd.DataFrame]


def activations_table(activations: Activations) -> Table:
    """Each pair of sets in each model, at each position: overlap beside chance, floor and matched prompts."""
    groups: list[Group] = []
    for view in activations.views:
        cells = overlap_cells(activations, view)
        for sets in view.pairs:
            of_model = dict(iter(of_pair(cells, sets).groupby("model", sort=False)))
            groups += [(view, of_model[model]) for model in view.models if model in of_model]
    columns = {
        **_identity(),
        "energy": _first("energy"),
        "overlap": _mean("overlap"),
        "chance": _mean("chance"),
        "matched chance": _mean("matched_chance"),
        "floor": _mean("floor_overlap"),
        "above matched": _mean("above", "+"),
        "floor above": _mean("floor_above", "+"),
        "like prompts above": _mean("alike_above", "+"),
        f"share p < {LEVEL:g}": _share("p_matched"),
        "layers": _layers,
        "n": _sizes("n"),
    }
    note = (
        "Means over layers. Matched chance: the same pair with a random sign for each coordinate of the second, its "
        "mean in place. Floor: the two halves of one set, mean of both sets. Above: minus its own matched chance "
        "(chance, where no control was run). Like prompts: those of nearest length and like template alone. n: "
        "prompts of each set."
    )
    return table_of(groups, columns, 4, note)


def verdicts_table(activations: Activations) -> Table:
    """The layers of each verdict of the equivalence test, at every energy, with the margin and the power."""
    groups: list[Group] = []
    for view in activations.views:
        for sets in view.pairs:
            tests = of_pair(equivalence_tests(activations, view), sets)
            groups += [(view, cells) for _, cells in tests.groupby(["model", "energy"], sort=False)]
    columns: dict[str, Cell] = {
        **_identity(),
        "energy": _first("energy"),
        "overlap": _mean("overlap"),
        "floor": _mean("floor_overlap"),
        "matched chance": _mean("matched_chance"),
        "margin": _mean("margin"),
        "minus margin": _mean("from_margin", "+"),
        **{verdict: _counted(verdict) for verdict in VERDICTS},
        "power": lambda group: number(group[1]["power"].astype(float).median(), 2),
        "n": _sizes("n"),
    }
    note = (
        "All of halves of the sets; means over layers, power their median, then layers of each verdict. Margin: "
        "half-way from matched chance to the floor. Overlapping, distinct: the overlap lies above or below the "
        "margin, one-sided at 5 %. Power: the probability of the first if the overlap were the floor. Undefined: the "
        "floor is not above chance."
    )
    return table_of(groups, columns, 4, note)


def tests_table(activations: Activations) -> Table:
    """Whether two sets have one distribution, in each model: all prompts, and those that are alike in length."""
    groups: list[Group] = []
    for view in activations.views:
        tests = at_position(activations.two_sample, view)
        groups += [(view, c) for _, c in tests.groupby(["first", "second", "model", "matched"], sort=False)]
    columns: dict[str, Cell] = {
        **_identity(),
        "like prompts": lambda group: "yes" if group[1]["matched"].iloc[0] else "",
        "MMD": _mean("mmd"),
        "distance of means": _mean("mean_distance"),
        "standardised": _mean("mean_distance_standardised"),
        "MMD p < .05": _share("mmd_p"),
        "means p < .05": _share("mean_p"),
        "layers": _layers,
        "n": _sizes("n"),
        "groups": _sizes("n_groups"),
    }
    note = (
        "Means over layers; layers with a p-value below 0.05, by permutations of whole groups of prompts, of those "
        "with one. MMD: unbiased and squared, so it may be below 0."
    )
    return table_of(groups, columns, 5, note)


def depth_table(activations: Activations) -> Table:
    """The paper's own number: overlap as a mean over 65 to 90 % of depth."""
    columns: dict[str, Cell] = {
        "pair": compared,
        **texts("model", "analysis", "position"),
        "floor": lambda row: "halves of one set" if row["floor"] else "",
        "energy": short("energy"),
        "overlap": numbers("overlap", 3),
        "chance": numbers("chance", 3),
        "matched chance": numbers("matched_chance", 3),
        "layers": text("layers"),
    }
    depth = activations.depth.astype({"position": object, "layers": object})
    named = depth.fillna({"position": NOTHING, "layers": NOTHING})
    return table_of(named, columns, 5, "Means over the layers named, as in the paper.")


def _identity() -> dict[str, Cell]:
    """Return the columns of what a group is of."""
    return {
        "pair": lambda group: compared(group[1].iloc[0]),
        "model": lambda group: str(group[1]["model"].iloc[0]),
        "analysis": lambda group: group[0].analysis,
        "position": lambda group: group[0].position,
    }


def _first(name: str) -> Cell:
    return lambda group: f"{group[1][name].iloc[0]:g}"


def _mean(name: str, sign: str = "") -> Cell:
    return lambda group: number(group[1][name].astype(float).mean(), 3, sign=sign)


def _counted(verdict: str) -> Cell:
    return lambda group: str(verdict_counts(group[1])[verdict])


def _share(name: str) -> Cell:
    """Return the cell of how many layers have a small p-value, of those that have one."""

    def cell(group: Group) -> str:
        known = group[1][name].astype(float).dropna()
        return f"{int((known < LEVEL).sum())}/{len(known)}" if len(known) else NOTHING

    return cell


def _layers(group: Group) -> str:
    return count(len(group[1]))


def _sizes(name: str) -> Cell:
    return lambda group: "/".join(count(group[1][f"{name}_{side}"].max()) for side in ("first", "second"))
