"""What one pass over the tensors of a projection sweep found, and the tables that are made of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from safety_subspaces.algebra.choices import Method, SubspaceKind
from safety_subspaces.algebra.projection import Projection
from safety_subspaces.analysis.work import Record
from safety_subspaces.weights.names import layer_of, type_of

KEYS = ["tuned", "subspace", "method", "fraction", "draw"]


@dataclass(frozen=True)
class Sweep:
    """The rows of all tensors.

    Args:
        energies_kept: What each projection keeps of each fine-tune's update in each tensor. Columns: ``tensor``,
            ``tuned``, ``subspace``, ``fraction``, ``draw``, ``rank``, ``energy``, ``chance``, ``variance``; without
            *scaled*, and with *top* at every fraction, which *scaled* is matched to.
        drawn: Energies of single draws of the random kinds in each tensor, by fine-tune, kind and fraction.
        tasks: The update of each fine-tune in each tensor. Columns: ``tensor``, ``tuned``, ``energy_total`` (squared
            norm) and ``inner`` (inner product with the alignment update).
        alignment: The alignment update, a row a tensor. Columns: ``tensor``, ``layer``, ``type``, ``energy`` (squared
            norm), ``stable_rank``, ``effective_rank``, ``numerical_rank`` and ``full_rank``.
    """

    energies_kept: pd.DataFrame
    tasks: pd.DataFrame
    alignment: pd.DataFrame
    drawn: Mapping[tuple[str, SubspaceKind, float], Float64[np.ndarray, "tensor draw"]]

    @property
    def alignment_energy(self) -> float:
        """Squared norm of the alignment update."""
        return float(self.alignment["energy"].sum())

    @property
    def labels(self) -> list[str]:
        """Labels of the fine-tunes."""
        return list(dict.fromkeys(self.tasks["tuned"]))

    def total(self, label: str) -> float:
        """Squared norm of a whole update."""
        return float(self.tasks.loc[self.tasks["tuned"] == label, "energy_total"].sum())

    def top_share(self, label: str, fraction: float) -> float:
        """Pooled share of energy that *top* keeps; NaN for an update that is zero everywhere."""
        table, total = self.energies_kept, self.total(label)
        rows = (table["tuned"] == label) & (table["subspace"] == "top") & (table["fraction"] == fraction)
        return float(table.loc[rows, "energy"].sum()) / total if total > 0 else float("nan")

    def cosine_with_alignment(self, label: str) -> float:
        """``<d, delta_A> / (||d|| ||delta_A||)`` over all tensors; NaN where one is zero."""
        norms = (self.total(label) * self.alignment_energy) ** 0.5
        inner = float(self.tasks.loc[self.tasks["tuned"] == label, "inner"].sum())
        return inner / norms if norms > 0 else float("nan")


def read_sweep(records: Mapping[str, Record]) -> Sweep:
    """Put the rows of all tensors together."""

    def together(table: str) -> pd.DataFrame:
        rows = [{"tensor": name, **row} for name, record in records.items() for row in record[table]]
        return pd.DataFrame(rows)

    kept = together("kept")
    drawn: dict[Any, np.ndarray] = {
        key: np.array(rows["drawn"].tolist())
        for key, rows in kept[kept["draw"].isna()].groupby(["tuned", "subspace", "fraction"], sort=False)
    }
    energies_kept = kept.drop(columns="drawn").astype({"draw": "Int64", "rank": "Int64"})
    return Sweep(energies_kept, together("tasks"), together("alignment"), drawn)


def tensor_table(sweep: Sweep, projections: Sequence[Projection], methods: Sequence[Method]) -> pd.DataFrame:
    """Return one row for each fine-tune, method, projection and tensor.

    Columns: those of ``KEYS``, which name the projected model, then ``tensor``, ``layer``, ``type``, ``rank``, and as
    squared norms ``energy_kept``, ``energy_total`` (of the whole update), ``chance_energy`` (that a random subspace of
    the rank would keep) and ``energy_kept_sd`` (over draws; NaN where it was not asked for).
    """
    choices = pd.DataFrame(
        identify(label, projection, method)
        for label in sweep.labels
        for method in dict.fromkeys(methods)
        for projection in projections
    ).astype({"draw": "Int64"})
    choices["row"] = range(len(choices))
    of_scaled = choices["subspace"] == "scaled"
    projected = choices[~of_scaled].merge(sweep.energies_kept, on=["tuned", "subspace", "fraction", "draw"], how="left")
    table = pd.concat([projected, _scaled_rows(sweep, choices[of_scaled])], ignore_index=True)
    table = table.merge(sweep.tasks[["tensor", "tuned", "energy_total"]], on=["tensor", "tuned"], how="left")
    is_away = table["method"] == "away"
    complement = {name: table["energy_total"] - table[name] for name in ("energy", "chance")}
    table["energy_kept"] = table["energy"].mask(is_away, complement["energy"].clip(lower=0))
    table["chance_energy"] = table["chance"].mask(is_away, complement["chance"])
    table["energy_kept_sd"] = np.sqrt(table["variance"].astype(float))
    order_of = {name: number for number, name in enumerate(sweep.alignment["tensor"])}
    table = table.assign(
        layer=table["tensor"].map(layer_of), type=table["tensor"].map(type_of), order=table["tensor"].map(order_of)
    ).sort_values(["row", "order"])
    columns = ["tensor", "layer", "type", "rank", "energy_kept", "energy_total", "chance_energy", "energy_kept_sd"]
    return table[[*KEYS, *columns]].reset_index(drop=True)


def pooled_table(tensors: pd.DataFrame, sweep: Sweep, model_draws: int = 0) -> pd.DataFrame:
    """Return one row for each fine-tune, method and projection: energies summed over tensors, then divided.

    Columns: those of ``KEYS``, then ``energy_kept``, ``chance_energy`` and ``energy_kept_sd`` as shares of the update's
    energy, ``cos_task_projected`` (cosine of the update with what is left of it), ``cos_task_alignment`` (with the
    alignment update), ``control``, ``energy_gap`` (``energy_kept`` minus that of *top*), ``n_energy_draws`` and
    ``n_model_draws``.

    Args:
        tensors: Of :func:`tensor_table`.
        sweep: What it was made from.
        model_draws: Draws of each random kind that are written or evaluated.
    """
    table = shares_by(tensors)
    cosines = {label: sweep.cosine_with_alignment(label) for label in sweep.labels}
    table["cos_task_alignment"] = table["tuned"].map(cosines)
    table["cos_task_projected"] = [
        _cosine_with_task(share, subspace, method)
        for share, subspace, method in zip(table["energy_kept"], table["subspace"], table["method"], strict=True)
    ]
    table["control"] = [
        Projection(kind, 0.5, None if pd.isna(draw) else int(draw)).control
        for kind, draw in zip(table["subspace"], table["draw"], strict=True)
    ]
    table["energy_gap"] = table["energy_kept"] - _shares_of_top(table, sweep)
    is_random = table["control"] != "exact"
    energy_draws = {key: values.shape[1] for key, values in sweep.drawn.items()}
    cells = zip(table["tuned"], table["subspace"], table["fraction"], strict=True)
    table["n_energy_draws"] = [energy_draws.get(cell, 0) for cell in cells]
    table["n_model_draws"] = is_random * model_draws
    columns = ["energy_kept", "cos_task_projected", "cos_task_alignment", "chance_energy", "energy_kept_sd", "control"]
    return table[[*KEYS, *columns, "energy_gap", "n_energy_draws", "n_model_draws"]]


def drawn_table(sweep: Sweep, methods: Sequence[Method]) -> pd.DataFrame:
    """Return one row for each fine-tune, random kind, method, fraction and draw whose energy alone was drawn.

    Columns: those of ``KEYS``; ``energy_kept`` as a share of the update's energy and ``energy_gap``, that minus what
    *top* keeps. Their draws are not those of the models, which stand in the table of models.
    """
    parts = []
    for (label, subspace, fraction), energies in sweep.drawn.items():
        inside = energies.sum(axis=0) / sweep.total(label)
        for method in dict.fromkeys(methods):
            named = {"tuned": label, "subspace": subspace, "method": method, "fraction": fraction}
            shares = np.clip(1 - inside, 0, None) if method == "away" else inside
            parts.append(pd.DataFrame({**named, "draw": range(len(shares)), "energy_kept": shares}))
    table = pd.concat(parts) if parts else pd.DataFrame(columns=[*KEYS, "energy_kept"])
    return table.assign(energy_gap=table["energy_kept"] - _shares_of_top(table, sweep)).reset_index(drop=True)


def shares_by(tensors: pd.DataFrame, *cells: str) -> pd.DataFrame:
    """Pool a tensor table within cells (``layer``, ``type``): energies summed, then divided by the update's.

    Columns: those of ``KEYS`` and the cells, then ``energy_kept``, ``chance_energy`` and ``energy_kept_sd`` as shares,
    ``energy_total`` (a squared norm) and ``n_tensors``.
    """
    keys = [*KEYS, *cells]
    frame = tensors.assign(variance=tensors["energy_kept_sd"] ** 2, n_tensors=1)
    summed = ["energy_kept", "energy_total", "chance_energy", "variance", "n_tensors"]
    table = frame.groupby(keys, sort=False, dropna=False)[summed].sum(min_count=1).reset_index()
    total = table["energy_total"].where(table["energy_total"] > 0)
    table["energy_kept"] = table["energy_kept"] / total
    table["chance_energy"] = table["chance_energy"] / total
    table["energy_kept_sd"] = np.sqrt(table["variance"]) / total
    return table[[*keys, "energy_kept", "chance_energy", "energy_kept_sd", "energy_total", "n_tensors"]]


def energy_share(top_share: float, method: Method) -> float:
    """Share of energy that a method leaves of an update of which *top* keeps a share."""
    return max(0.0, 1 - top_share) if method == "away" else top_share


def identify(label: str, projection: Projection, method: Method) -> dict[str, Any]:
    """Return the columns that name a row."""
    named = {"tuned": label, "subspace": projection.subspace, "method": method}
    return {**named, "fraction": projection.fraction, "draw": projection.draw}


def _scaled_rows(sweep: Sweep, choices: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of *scaled*, the whole update times one factor, with the columns of the other projections.

    In each tensor it has the share of energy that *top* keeps over all of them.
    """
    if choices.empty:
        return choices
    # The shares of *onto*; the caller takes the complement for *away*.
    shares = [sweep.top_share(label, f) for label, f in zip(choices["tuned"], choices["fraction"], strict=True)]
    table = choices.assign(share=shares).merge(sweep.tasks[["tensor", "tuned", "energy_total"]], on="tuned")
    energies = (table["share"] * table["energy_total"]).where(table["energy_total"] > 0, 0.0)
    ranks = pd.array([pd.NA] * len(table), dtype="Int64")
    table = table.assign(energy=energies, rank=ranks, chance=np.nan, variance=np.nan)
    return table.drop(columns=["share", "energy_total"])


def _shares_of_top(table: pd.DataFrame, sweep: Sweep) -> list[float]:
    """What *top* keeps in the place of each row, at its fraction and by its method."""
    rows = list(zip(table["tuned"], table["fraction"], table["method"], strict=True))
    shares = {row: energy_share(sweep.top_share(*row[:2]), row[2]) for row in dict.fromkeys(rows)}
    return [shares[row] for row in rows]


def _cosine_with_task(share: float, subspace: SubspaceKind, method: Method) -> float:
    """The square root of the energy kept, by ``<d, P d> = ||P d||^2``; a multiple of d has cosine 1, or -1."""
    size = share**0.5 if subspace != "scaled" else (1.0 if share > 0 else float("nan"))
    return -size if method == "opposite" else size


def without_direction(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Yield the tensors that the alignment or a fine-tune left as they were, with the reason."""
    zero = sweep.alignment["numerical_rank"] == 0
    for name in sweep.alignment.loc[zero, "tensor"]:
        yield name, "the alignment update is zero: its subspace is empty, onto keeps nothing of it"
    unchanged = sweep.tasks[sweep.tasks["energy_total"] == 0]
    for label, name in zip(unchanged["tuned"], unchanged["tensor"], strict=True):
        yield f"{label}: {name}", "the fine-tune did not change it"


def summarise(sweep: Sweep, largest: float, left_out: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return what ``result.json`` says of a sweep: norms, cosines, and ranks that were capped."""
    wanted = (largest * sweep.alignment["full_rank"]).round().clip(lower=1).astype(int)
    ranks = sweep.alignment.assign(wanted=wanted)
    capped = ranks[(ranks["numerical_rank"] < ranks["wanted"]) & (ranks["numerical_rank"] > 0)]
    return {
        "tensors": len(sweep.alignment),
        "alignment_frobenius_norm": sweep.alignment_energy**0.5,
        "task_frobenius_norm": {label: sweep.total(label) ** 0.5 for label in sweep.labels},
        "cos_task_alignment": {label: sweep.cosine_with_alignment(label) for label in sweep.labels},
        "capped_ranks": {
            "count": len(capped),
            "at_largest_fraction": {
                str(row["tensor"]): {"wanted": int(row["wanted"]), "rank": int(row["numerical_rank"])}
                for _, row in capped.iterrows()
            },
        },
        "left_out_counts": Counter(entry["reason"] for entry in left_out),
    }
