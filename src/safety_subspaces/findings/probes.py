"""The analysis ``probe`` as the report reads it: what probes tell of two prompt sets, before and after erasure.

Tables in, tables out; missing stays NaN. A *cell* is one model, layer, probe and erasure; layers of one model share
their prompts, so a mean over layers has the standard error of one layer, on average, and not a smaller one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from safety_subspaces.findings.contracts import Contract, Named, labels_of, reference_model, roles_of, stacked
from safety_subspaces.findings.intervals import Z, over_seeds

# From no erasure to the one that removes most.
ERASURES: Final = ("none", "leace", "quadratic")
PROBES: Final = ("linear", "rbf_svm", "mlp")
MEASURES: Final = ("accuracy", "auc")
# What names a cell, but for its layer.
CELL: Final = ["analysis", "positive", "negative", "position", "model", "erasure", "probe"]
_WITH_ERRORS: Final = tuple(f"{name}{kind}" for name in (*MEASURES, "selectivity") for kind in ("", "_stderr"))
_AVERAGED: Final = (*_WITH_ERRORS, "control_accuracy", "control_auc", "chance")
_LEFT: Final = ("left", "left_stderr")
# What is averaged over seeds.
POOLED: Final = ("left", "auc", "accuracy", "selectivity")
_COUNTED: Final = ("n_positive", "n_negative", "n_groups")
# What a coin reaches, whatever the shares of the two sets.
AUC_CHANCE: Final = 0.5
# Erasures that are given each prompt's label write it into the states. After them even probes of meaningless labels do
# far better than chance, so probes are judged against such control labels, of at least FEWEST_CONTROLS draws.
TELLING: Final = ("quadratic",)
FEWEST_CONTROLS: Final = 3

_SETS_AND_POSITION: Final = ("positive", "negative", "position")
TABLE: Final = Contract(
    "probe",
    "table",
    ("model", "layer", "probe", "erasure", "accuracy"),
    (
        *_SETS_AND_POSITION,
        *(name for name in _AVERAGED if name != "accuracy"),
        *_COUNTED,
        "control_auc_sd",
        "n_controls",
    ),
)
LEARNING: Final = Contract(
    "probe",
    "learning",
    ("model", "layer", "probe", "n_train", "accuracy"),
    (*_SETS_AND_POSITION, "erasure", "auc"),
)
TRANSFER: Final = Contract(
    "probe",
    "transfer",
    ("model", "layer", "probe", "train_source", "test_source", "accuracy"),
    (*_SETS_AND_POSITION, "erasure", "auc", "n_test"),
)


@dataclass(frozen=True)
class ProbeView:
    """What one chart shows: an analysis at a position, one set of prompts against another."""

    analysis: str
    positive: str
    negative: str
    position: str

    @property
    def words(self) -> str:
        """Return what was told apart where."""
        position = f", position {self.position}" if self.position else ""
        return f"{self.positive} against {self.negative or 'other'} prompts, {self.analysis}{position}"


@dataclass(frozen=True)
class Probes:
    """The tables of ``probe``, with the columns ``seed`` and ``analysis``; ``roles`` by the label of a model."""

    table: pd.DataFrame
    learning: pd.DataFrame
    transfer: pd.DataFrame
    roles: dict[str, str]

    @property
    def views(self) -> tuple[ProbeView, ...]:
        """Every analysis, other set and position, in the order of the table."""
        names = ["analysis", "positive", "negative", "position"]
        return tuple(ProbeView(*map(str, row)) for row in self.table[names].drop_duplicates().itertuples(index=False))


def read_probes(studies: Sequence[Named]) -> Probes:
    """Read the analyses of some studies.

    Raises:
        InputError: A table lacks a column that is required.
    """
    table, learning, transfer = (_named(stacked(studies, contract)) for contract in (TABLE, LEARNING, TRANSFER))
    return Probes(table, learning, transfer, roles_of(studies))


def of_view(frame: pd.DataFrame, view: ProbeView) -> pd.DataFrame:
    """Keep the rows of a view, by ``analysis``, ``position``, ``positive`` and ``negative``."""
    of_run = (frame["analysis"] == view.analysis) & (frame["position"] == view.position)
    return frame[of_run & (frame["positive"] == view.positive) & (frame["negative"] == view.negative)]


def reference_of(probes: Probes, view: ProbeView) -> str:
    """Return the model of a view that is shown layer by layer and spoken of."""
    return reference_model(labels_of(of_view(probes.table, view), "model"), probes.roles)


def over_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the cells of each seed, analysis, pair of sets, position, model, probe and erasure over layers.

    Returns:
        A row each, with the columns ``seed`` and ``CELL``; the measures, errors and chance as means over ``layers``,
        the number of those that have any; ``left`` with ``left_stderr``, as :func:`left_of`; the largest sample sizes;
        ``best_auc`` and ``best_layer``, the largest AUC and its layer.
    """
    numbers = frame.assign(**{name: frame[name].astype(float) for name in (*_AVERAGED, *_COUNTED)})
    numbers = numbers.assign(left=left_of(numbers), left_stderr=_left_error(numbers))
    keys = ["seed", *CELL]
    grouped = numbers.groupby(keys, sort=False)
    best = numbers.sort_values("auc", ascending=False, kind="stable").drop_duplicates(keys).set_index(keys)
    means = (
        grouped[[*_AVERAGED, *_LEFT]]
        .mean()
        .join(grouped[list(_COUNTED)].max())
        .assign(layers=grouped["accuracy"].count())
    )
    means = means.join(best[["auc", "layer"]].rename(columns={"auc": "best_auc", "layer": "best_layer"}))
    return _ordered(means.reset_index())


def probes_over_seeds(probes: Probes) -> pd.DataFrame:
    """Return each probe of each erasure, model and view: what :func:`over_layers` has of it, as means over seeds.

    Columns: ``CELL``; each of ``POOLED`` with ``_reach``, ``_stderr`` (the mean of the seeds', over prompts) and
    ``_seeds``; ``layers``, the sample sizes, ``control_accuracy``, ``chance``, ``best_auc`` and ``best_layer``, the
    largest of the seeds. The reach is half the 95 % t interval over seeds, and not below that over prompts; of one seed
    it is that over prompts.
    """
    within = over_layers(probes.table)
    errors = {name: f"{name}_stderr" for name in POOLED}
    described = dict.fromkeys(("layers", *_COUNTED, "best_auc", "best_layer"), "max")
    described |= dict.fromkeys((*errors.values(), "control_accuracy", "chance"), "mean")
    frame = over_seeds(within, CELL, POOLED, described, errors)
    alone = {f"{name}_reach": frame[f"{name}_reach"].fillna(Z * frame[f"{name}_stderr"]) for name in POOLED}
    return frame.assign(**alone)


def layers_over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the probes of one view and model by layer: means over seeds, their errors over prompts too."""
    keys = ["erasure", "probe", "layer"]
    measured = [name for name in (*_AVERAGED, *_COUNTED) if name in rows]
    return rows.astype(dict.fromkeys(measured, float)).groupby(keys, sort=False)[measured].mean().reset_index()


def left_of(cells: pd.DataFrame) -> pd.Series:
    """Return how far a probe is above chance: by AUC, or by accuracy where there is no AUC.

    After an erasure that is given the labels, the level is what a probe reaches on control labels that went through the
    same erasure; NaN with fewer than three draws of them. Columns that are read: ``erasure``, ``auc``, ``accuracy``,
    ``chance``, ``control_auc`` and ``n_controls``.
    """
    by_accuracy = cells["accuracy"].astype(float) - cells["chance"].astype(float)
    plain = (cells["auc"].astype(float) - AUC_CHANCE).fillna(by_accuracy)
    drawn = cells["n_controls"].astype(float) >= FEWEST_CONTROLS
    beside_controls = (cells["auc"].astype(float) - cells["control_auc"].astype(float)).where(drawn)
    return plain.mask(cells["erasure"].isin(TELLING), beside_controls)


def in_order(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return names in the customary order, further ones after them."""
    return sorted(names, key=lambda name: _rank(known, name))


def _left_error(cells: pd.DataFrame) -> pd.Series:
    has_auc = cells["auc"].notna()
    plain = cells["auc_stderr"].astype(float).where(has_auc, cells["accuracy_stderr"].astype(float))
    # One draw of labels varies by the controls' deviation, and the true ones are one draw if they mean nothing.
    with_controls = (plain**2 + cells["control_auc_sd"].astype(float) ** 2) ** 0.5
    return plain.mask(cells["erasure"].isin(TELLING), with_controls)


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Order rows by view and model as they come, then by erasure and probe."""
    customary = {"erasure": ERASURES, "probe": PROBES}
    ranks = {}
    for name in CELL:
        known = customary.get(name, tuple(frame[name].unique()))
        ranks[name] = [_rank(known, value) for value in frame[name]]
    order = pd.DataFrame(ranks, index=frame.index).sort_values(CELL, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _rank(known: Sequence[str], name: object) -> int:
    return known.index(str(name)) if name in known else len(known)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Give every row a name where an optional one is missing."""
    known = {"positive": "harmful", "negative": "", "position": "", "erasure": ERASURES[0]}
    return frame.assign(**{name: frame[name].astype(object).fillna(word).astype(str) for name, word in known.items()})
