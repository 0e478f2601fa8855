"""The analysis ``steer`` as the report reads it: behaviour against the strength of an intervention, beside random ones.

Tables in, tables out; missing stays NaN. A random direction has several draws: what they span is the band that a
direction must leave before it does more than any direction does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.contracts import Contract, Named, labels_of, reference_model, roles_of, stacked
from safety_subspaces.findings.intervals import LEAST_DRAWS, interval_of, over_seeds
from safety_subspaces.findings.thresholds import LEAST_DIFFERENCE

RANDOM: Final = "random"
# The direction of the row without an intervention, which every curve starts from.
NO_DIRECTION: Final = "none"
INTERVENTIONS: Final = ("addition", "ablation", "rotation")
# Each measure with its title and the column of its sample size. Sentences speak of the first one that was measured.
MEASURES: Final = {
    "harm_score": ("Harm score, 1 to 5", "n_harmful"),
    "refusal_margin": ("Refusal margin (nats)", "n_harmful"),
    "utility": ("Utility", "n_utility"),
    "over_refusal_rate": ("Over-refusal", "n_benign"),
    "perplexity": ("Perplexity", "n_utility"),
}
# It lies at one end of its scale or the other: seeds are counted, and no interval by a deviation holds.
JUMPING: Final = "harm_score"
# What stands in the column of layers where an intervention has none of its own.
ALL_LAYERS: Final = "all"

_MEASURED: Final = tuple(name for measure in MEASURES for name in (measure, f"{measure}_stderr"))
TABLE: Final = Contract(
    "steer",
    "table",
    ("model", "direction", "intervention", "strength"),
    ("layer", "draw", *_MEASURED, "n_utility", "n_harmful", "n_benign", "n_unscored"),
)
SELECTIVITY: Final = Contract(
    "steer",
    "selectivity",
    ("model", "direction", "intervention", "measure", "selectivity"),
    ("layer", "sign", "matched_on", "low", "high", "p", "p_rank", "n", "n_harmful", "cost", "n_draws", "reason"),
)
# What names a selectivity, but for its layer.
COMPARISON: Final = ["analysis", "model", "direction", "intervention", "sign", "matched_on", "measure"]
_COMPARED: Final = (
    *COMPARISON,
    *("layer", "selectivity", "low", "high", "p", "seeds", "above", "below", "n", "n_draws", "reserved", "reason"),
)


@dataclass(frozen=True)
class SteerView:
    """What one chart shows: an analysis of one model, an intervention and the layer that it acts on."""

    analysis: str
    model: str
    intervention: str
    layer: str

    @property
    def words(self) -> str:
        """Return what was done where."""
        where = "directions of all layers" if self.layer == ALL_LAYERS else f"directions of layer {self.layer}"
        return f"{self.intervention} in {self.model}, {where}"


@dataclass(frozen=True)
class Steering:
    """The tables of ``steer``, with ``seed`` and ``analysis``; layers are text. ``roles`` by the label of a model."""

    table: pd.DataFrame
    selectivity: pd.DataFrame
    roles: dict[str, str]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was steered."""
        return self.table.empty and self.selectivity.empty

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, in the order of the tables."""
        return tuple(dict.fromkeys([*labels_of(self.table, "model"), *labels_of(self.selectivity, "model")]))

    @property
    def reference(self) -> str:
        """The model that is shown first and spoken of: the aligned one."""
        return reference_model(self.models, self.roles)

    def views(self, model: str) -> tuple[SteerView, ...]:
        """Return one view of a model for each analysis and intervention: of its layers the one with most rows.

        Among equals the middle one: nothing is chosen by what came out.
        """
        rows = self.table[(self.table["model"] == model) & (self.table["direction"] != NO_DIRECTION)]
        views = []
        for (analysis, intervention), cells in rows.groupby(["analysis", "intervention"], sort=False):
            sizes = cells.groupby("layer").size()
            most = sorted(sizes.index[sizes == sizes.max()], key=layer_order)
            views.append(SteerView(str(analysis), model, str(intervention), most[len(most) // 2]))
        known = list(INTERVENTIONS)
        ranks = [known.index(v.intervention) if v.intervention in known else len(known) for v in views]
        return tuple(views[n] for n in sorted(range(len(views)), key=lambda n: ranks[n]))


def read_steering(studies: Sequence[Named]) -> Steering:
    """Read the analyses of some studies.

    Raises:
        InputError: A table lacks a column that is required.
    """
    table, selectivity = (_with_layers(stacked(studies, contract)) for contract in (TABLE, SELECTIVITY))
    named = {name: selectivity[name].astype(object).fillna("").astype(str) for name in ("sign", "matched_on")}
    return Steering(
        # An ablation has one dose, the whole of it.
        table.assign(strength=table["strength"].astype(float).fillna(1.0)),
        selectivity.assign(n=selectivity["n"].astype(float).fillna(selectivity["n_harmful"].astype(float)), **named),
        roles_of(studies),
    )


def of_view(steering: Steering, view: SteerView) -> pd.DataFrame:
    """Keep the rows of a view, with the columns of ``Steering.table``.

    Every draw of every direction gets a row at strength 0, of the model without an intervention, where it has none.
    """
    rows = steering.table
    rows = rows[(rows["analysis"] == view.analysis) & (rows["model"] == view.model)]
    start = rows[rows["direction"] == NO_DIRECTION].assign(strength=0.0)
    kept_rows = rows[(rows["intervention"] == view.intervention) & (rows["layer"] == view.layer)]
    kept_rows = kept_rows[kept_rows["direction"] != NO_DIRECTION]
    begun = set(kept_rows[kept_rows["strength"] == 0]["direction"])
    names = kept_rows[["direction", "draw"]].drop_duplicates().itertuples(index=False)
    starts = [start.assign(direction=name, draw=draw) for name, draw in names if name not in begun and len(start)]
    return pd.concat([kept_rows, *starts], ignore_index=True)


def responses(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return a measure of each direction at each strength, its draws pooled.

    Returns:
        A row each, with the columns ``direction`` and ``strength``: ``value`` (mean over the scored draws), ``error``
        (the standard error over prompts, mean over draws), ``low`` and ``high`` (the lowest and the highest draw) and
        the number of ``draws``.
    """
    pooled = []
    for (direction, strength), cells in rows.groupby(["direction", "strength"], sort=False):
        values = cells[measure].astype(float).dropna()
        error = cells.loc[values.index, f"{measure}_stderr"].astype(float).mean()
        numbers = {"value": values.mean(), "error": error, "low": values.min(), "high": values.max()}
        pooled.append({"direction": str(direction), "strength": strength, **numbers, "draws": len(values)})
    columns = ["direction", "strength", "value", "error", "low", "high", "draws"]
    return pd.DataFrame(pooled, columns=columns).sort_values("strength", kind="stable", ignore_index=True)


def is_random(direction: object) -> bool:
    """Tell whether a direction is a control."""
    return str(direction).startswith(RANDOM)


def selectivity_verdict(low: float, high: float) -> str:
    """Judge a measure by the side of 0 that the whole interval of its difference from random directions is on."""
    if np.isnan(low) or np.isnan(high):
        return "unknown"
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "undecided"


def judged(selectivity: pd.DataFrame) -> pd.Series:
    """Return the verdict of every row with ``low`` and ``high``."""
    ends = zip(selectivity["low"].astype(float), selectivity["high"].astype(float), strict=True)
    return pd.Series([selectivity_verdict(low, high) for low, high in ends], index=selectivity.index, dtype=object)


def compared(steering: Steering) -> pd.DataFrame:
    """Return the selectivity of each model, direction, intervention, sense, measure and layer.

    With several seeds the layers of a seed are averaged, then the seeds; ``layer`` is then ``ALL_LAYERS``.

    Returns:
        ``COMPARISON`` and ``layer``; ``selectivity``, ``low`` and ``high`` (over random directions and prompts in one
        study, over seeds of several; none of the harm score, which jumps), ``p`` (NaN in one study below 19 random
        directions, and of the harm score over seeds), ``seeds``, and in how many of them it is ``above`` and ``below``
        0 by ``LEAST_DIFFERENCE`` or more, ``n`` prompts, ``n_draws`` random directions, ``reserved``, the values with a
        reason, and ``reason``.
    """
    every = steering.selectivity.assign(reserved=[is_reserved(row) for _, row in steering.selectivity.iterrows()])
    every = every.astype(dict.fromkeys(("selectivity", "low", "high", "p", "p_rank", "n", "n_draws"), float))
    if every["seed"].nunique() <= 1:
        both = every[["p", "p_rank"]].max(axis=1, skipna=False).where(every["n_draws"] >= LEAST_DRAWS)
        single = every.assign(p=both, seeds=1, above=0, below=0, reserved=every["reserved"].astype(int))
        return single[[*_COMPARED]]
    counted = {"reserved": "sum", "n": "max", "n_draws": "max"}
    within = every.groupby(["seed", *COMPARISON], sort=False).agg({"selectivity": "mean", **counted}).reset_index()
    least = within["measure"].map(LEAST_DIFFERENCE).astype(float).fillna(0.0)
    within = within.assign(above=within["selectivity"] >= least, below=within["selectivity"] <= -least)
    frame = over_seeds(within, COMPARISON, ["selectivity"], {**counted, "above": "sum", "below": "sum"})
    over = [interval_of(row, "selectivity") for _, row in frame.iterrows()]
    numbers = pd.DataFrame([{"low": one.low, "high": one.high, "p": one.p_value, "seeds": one.n} for one in over])
    numbers.loc[(frame["measure"] == JUMPING).to_numpy(), ["low", "high", "p"]] = np.nan
    return pd.concat([frame, numbers], axis=1).assign(layer=ALL_LAYERS, reason=None)[[*_COMPARED]]


def is_reserved(row: pd.Series) -> bool:
    """Tell whether a selectivity has a value with a reservation, such as a cost that was not reached."""
    return bool(pd.notna(row["selectivity"]) and pd.notna(row["reason"]) and row["reason"])


def measured_in(rows: pd.DataFrame) -> list[str]:
    """Return the measures that any row has."""
    return [measure for measure in MEASURES if rows[measure].notna().any()]


def layer_order(layer: str) -> tuple[float, str]:
    """Order layers by number, others after them."""
    try:
        return float(layer), ""
    except ValueError:
        return np.inf, layer


def _with_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """Write the column ``layer`` as text, ``ALL_LAYERS`` where it is missing."""
    return frame.assign(layer=[_layer_of(value) for value in frame["layer"]])


def _layer_of(value: Any) -> str:
    if value is None or pd.isna(value):
        return ALL_LAYERS
    return f"{value:g}" if isinstance(value, int | float) else str(value)
