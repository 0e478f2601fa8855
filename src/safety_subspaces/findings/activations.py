"""The analysis ``activations`` as the report reads it: overlaps of prompt sets beside chance and floors, by layer.

Tables in, tables out; missing stays NaN. A *cell* is one model and layer. Cells share prompts, and layers a model:
their number is no sample size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from safety_subspaces.findings.comparisons import nearest_energy
from safety_subspaces.findings.contracts import Contract, Named, labels_of, reference_model, roles_of, stacked
from safety_subspaces.findings.intervals import over_seeds

VERDICTS: Final = ("overlapping", "distinct", "undecided", "undefined")
# More panels than this on a chart are not looked at.
MOST_PAIRS: Final = 3
# The level of every test that is counted.
LEVEL: Final = 0.05

# What is averaged over layers and seeds, of the cells and of the test between chance and floor.
SPACES: Final = (
    *("overlap", "chance", "matched_chance", "floor_overlap", "above", "floor_above", "alike_above", "from_margin"),
)
_PAIR: Final = ("model", "first", "second", "position", "layer")
_COUNTS: Final = ("n_first", "n_second")
_DISTANCES: Final = ("mmd", "mmd_p", "mean_distance", "mean_distance_standardised", "mean_p")
OVERLAPS: Final = Contract(
    "activations",
    "table",
    (*_PAIR, "energy", "overlap"),
    ("rank_first", "rank_second", "chance", "matched_chance", "p_matched", "controls", *_COUNTS),
    ("floor", "matched"),
)
EQUIVALENCE: Final = Contract(
    "activations",
    "equivalence",
    (*_PAIR, "energy", "overlap", "verdict"),
    ("floor_overlap", "matched_chance", "margin", "stderr", "p_overlapping", "power", *_COUNTS),
)
TWO_SAMPLE: Final = Contract(
    "activations",
    "two_sample",
    _PAIR,
    (*_DISTANCES, *_COUNTS, "n_groups_first", "n_groups_second", "permutations"),
    ("matched",),
)
DIMENSION: Final = Contract(
    "activations", "dimension", ("model", "set", "position", "layer"), ("two_nn", "two_nn_stderr", "n")
)
CKA: Final = Contract(
    "activations",
    "cka",
    ("first_model", "second_model", "set", "position", "layer", "linear"),
    ("linear_stderr", "rbf", "n"),
)
DEPTH: Final = Contract(
    "activations",
    "depth",
    ("model", "first", "second", "energy", "overlap"),
    ("position", "chance", "matched_chance", "layers"),
    ("floor",),
)


@dataclass(frozen=True)
class View:
    """What one chart shows: an analysis at a position of the prompt, cut at one share of energy.

    Args:
        analysis: Label of the run.
        position: Token position.
        energy: The share nearest to 0.9.
        center: Whether the mean of each set was taken out; ``None`` where that is not said.
        pairs: Pairs of prompt sets, in the order of the table: the one that is asked about first.
        models: Labels of models, in the order of the table.
        reference: The model that is shown first and spoken of: the aligned one.
    """

    analysis: str
    position: str
    energy: float
    center: bool | None
    pairs: tuple[tuple[str, str], ...]
    models: tuple[str, ...]
    reference: str

    @property
    def words(self) -> str:
        """Return what was compared where."""
        centred = {True: ", centred", False: ", uncentred", None: ""}[self.center]
        return f"{self.analysis}, position {self.position}, energy {self.energy:g}{centred}"


@dataclass(frozen=True)
class Activations:
    """Every table of ``activations``, with ``seed`` and ``analysis``; ``centers`` by analysis, ``roles`` by label."""

    overlaps: pd.DataFrame
    equivalence: pd.DataFrame
    two_sample: pd.DataFrame
    dimension: pd.DataFrame
    cka: pd.DataFrame
    depth: pd.DataFrame
    centers: dict[str, bool | None]
    roles: dict[str, str]

    @property
    def views(self) -> tuple[View, ...]:
        """Every analysis and position, the first ones first."""
        views = []
        for (analysis, position), rows in self.overlaps.groupby(["analysis", "position"], sort=False):
            across = rows[~rows["floor"]]
            pairs = list(dict.fromkeys(zip(across["first"].astype(str), across["second"].astype(str), strict=True)))
            if pairs:
                models = labels_of(rows, "model")
                view = View(
                    analysis=str(analysis),
                    position=str(position),
                    energy=nearest_energy(across),
                    center=self.centers.get(str(analysis)),
                    pairs=tuple(pairs),
                    models=tuple(models),
                    reference=reference_model(models, self.roles),
                )
                views.append(view)
        return tuple(views)


def read_activations(studies: Sequence[Named]) -> Activations:
    """Read the analyses of some studies.

    Raises:
        InputError: A table lacks a column that is required.
    """
    centers: dict[str, bool | None] = {}
    for _, study in studies:
        for result in study.of("activations"):
            center = result.arguments.get("center")
            centers.setdefault(result.label, center if isinstance(center, bool) else None)
    return Activations(
        overlaps=stacked(studies, OVERLAPS),
        equivalence=stacked(studies, EQUIVALENCE),
        two_sample=stacked(studies, TWO_SAMPLE),
        dimension=stacked(studies, DIMENSION),
        cka=stacked(studies, CKA),
        depth=stacked(studies, DEPTH),
        centers=centers,
        roles=roles_of(studies),
    )


def overlap_cells(activations: Activations, view: View) -> pd.DataFrame:
    """Return a row for each seed, model, pair and layer of a view.

    Returns:
        The rows of whole sets with ``seed``, ``analysis``, the columns of ``OVERLAPS``, ``level`` (matched chance,
        chance where no control was run), ``above`` (overlap minus it), ``floor_overlap`` and ``floor_above`` (the same
        of the two halves of one set, mean of both sets) and ``alike_above`` (the same of prompts of like length and
        template alone).
    """
    rows = _at(activations.overlaps, view)
    measured = rows.assign(overlap=rows["overlap"].astype(float), level=_level(rows))
    measured = measured.assign(above=measured["overlap"] - measured["level"])
    whole = measured[~measured["floor"] & ~measured["matched"]]
    alike = measured[~measured["floor"] & measured["matched"]]
    keys = ["seed", "model", "first", "second", "layer"]
    floors = measured[measured["floor"]].groupby(["seed", "model", "first", "layer"])[["overlap", "above"]].mean()
    names = {"overlap": "floor_overlap", "above": "floor_above"}
    whole = whole.merge(alike[[*keys, "above"]].rename(columns={"above": "alike_above"}), on=keys, how="left")
    for side in ("first", "second"):
        floor = floors.rename(columns={name: f"{new}_{side}" for name, new in names.items()})
        floor.index = floor.index.set_names(["seed", "model", side, "layer"])
        whole = whole.merge(floor.reset_index(), on=["seed", "model", side, "layer"], how="left")
    for new in names.values():
        whole[new] = whole[[f"{new}_first", f"{new}_second"]].astype(float).mean(axis=1, skipna=False)
    return whole


def equivalence_tests(activations: Activations, view: View) -> pd.DataFrame:
    """Return the equivalence tests of an analysis and position, at every share of energy.

    Returns:
        The columns ``seed``, ``analysis``, those of ``EQUIVALENCE``, and ``from_margin``, overlap minus margin; NaN
        where the test is undefined: no margin lies between a floor and a chance that are one.
    """
    rows = at_position(activations.equivalence, view)
    distance = rows["overlap"].astype(float) - rows["margin"].astype(float)
    return rows.assign(from_margin=distance.where(rows["verdict"].isin(VERDICTS[:-1])))


def margin_cells(activations: Activations, view: View) -> pd.DataFrame:
    """Return the rows of :func:`equivalence_tests` at the view's own share of energy."""
    rows = equivalence_tests(activations, view)
    return rows[rows["energy"] == view.energy]


def space_over_seeds(activations: Activations, view: View, by_layer: bool = False) -> pd.DataFrame:
    """Return each model and pair (and layer) of a view as a mean over seeds.

    Without ``by_layer``, the layers of a seed are averaged first; a layer that has no overlap by construction is NaN
    and in no mean.

    Returns:
        ``model``, ``first``, ``second`` and, by layer, ``layer``; each of ``SPACES`` with its ``_reach`` (half the 95 %
        t interval, NaN below two seeds) and its number of ``_seeds``; ``p_small`` of ``p_known``: places of all seeds
        with a ``p_matched`` below 0.05, of those that have one; ``layers``, ``n_first`` and ``n_second``, the largest.
    """
    keys = ["model", "first", "second", "layer"]
    cells = overlap_cells(activations, view)
    tests = margin_cells(activations, view)[["seed", *keys, "from_margin", "stderr"]]
    both = cells.merge(tests, on=["seed", *keys], how="left").astype(dict.fromkeys((*SPACES, *_COUNTS), float))
    p_values = both["p_matched"].astype(float)
    both = both.assign(p_small=p_values < LEVEL, p_known=p_values.notna(), layers=both["overlap"].notna())
    counted = {"p_small": "sum", "p_known": "sum"}
    sizes = dict.fromkeys(_COUNTS, "max")
    if not by_layer:
        keys = keys[:-1]
        grouped = both.groupby(["seed", *keys], sort=False)
        means = grouped[list(SPACES)].mean()
        both = means.join(grouped.agg({**counted, **sizes, "layers": "sum"})).reset_index()
    frame = over_seeds(both, keys, SPACES, {**counted, **sizes, "layers": "max"})
    if by_layer and both["seed"].nunique() == 1:  # one seed has the error of its own test
        frame = frame.assign(from_margin_reach=both["stderr"].to_numpy(dtype=float))
    return frame


def of_pair(rows: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Keep the rows of one pair of sets, by the columns ``first`` and ``second``."""
    return rows[(rows["first"] == pair[0]) & (rows["second"] == pair[1])]


def at_position(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    """Keep the rows of a view's ``analysis`` and ``position``, whatever the energy."""
    return frame[(frame["analysis"] == view.analysis) & (frame["position"] == view.position)]


def verdict_counts(cells: pd.DataFrame) -> dict[str, int]:
    """Count the cells of each verdict in the column ``verdict``; an unknown verdict counts as undefined."""
    verdicts = cells["verdict"].astype(str)
    counts = {name: int((verdicts == name).sum()) for name in VERDICTS[:-1]}
    return counts | {VERDICTS[-1]: len(verdicts) - sum(counts.values())}


def level_words(activations: Activations, view: View, matched: str = "matched chance") -> str:
    """Return what overlaps are read against: ``matched``, or plain chance where the matched control was not run."""
    has_control = _at(activations.overlaps, view)["matched_chance"].notna().any()
    return matched if has_control else "chance (no matched control was run)"


def _at(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    """Keep the rows of a view, by ``analysis``, ``position`` and ``energy``."""
    rows = at_position(frame, view)
    return rows[rows["energy"] == view.energy]


def _level(rows: pd.DataFrame) -> pd.Series:
    """Return what an overlap is read against: ``matched_chance``, or ``chance`` where no control was run."""
    return rows["matched_chance" if rows["matched_chance"].notna().any() else "chance"].astype(float)
