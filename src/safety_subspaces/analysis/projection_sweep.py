"""One pass over the tensors of a set of models: every energy of a projection sweep, and the tables made of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from tqdm import tqdm

from safety_subspaces.analysis.projections import Kept, Projection, TensorProjections
from safety_subspaces.analysis.results import ResultFolder
from safety_subspaces.checkpoint import Checkpoint
from safety_subspaces.delta import iterate_deltas
from safety_subspaces.linalg import LeftFactors, as_matrix, inner_product, left_factors, squared_norm
from safety_subspaces.names import layer_of, type_of
from safety_subspaces.projector import Method
from safety_subspaces.subspace import RankRule, SubspaceKind
from safety_subspaces.update_measures import spectral_ranks


@dataclass(frozen=True)
class Sweep:
    """What one pass over the tensors found.

    Args:
        kept: By tensor, then by label and projection; without *scaled*.
        tops: By tensor, then label and fraction: the energy that *top* keeps, which *scaled* is matched to.
        totals: Squared norm of each label's update, by tensor.
        alignment: What the alignment update is like in each tensor, a row a tensor: its ``energy`` (squared norm),
            ``stable_rank``, ``effective_rank`` and ``numerical_rank``.
        inner: Inner product of each label's update with the alignment update.
        capped: Tensors whose numerical rank is below the largest rank asked for.
    """

    kept: dict[str, dict[tuple[str, Projection], Kept]]
    tops: dict[str, dict[tuple[str, float], float]]
    totals: dict[str, dict[str, float]]
    alignment: list[dict[str, Any]]
    inner: dict[str, float]
    capped: dict[str, dict[str, int]]

    @property
    def alignment_energy(self) -> float:
        """Squared norm of the alignment update."""
        return sum(row["energy"] for row in self.alignment)

    @property
    def labels(self) -> list[str]:
        """Labels of the fine-tunes."""
        return list(self.inner)

    def total(self, label: str) -> float:
        """Squared norm of a whole update."""
        return sum(totals[label] for totals in self.totals.values())

    def top_share(self, label: str, fraction: float) -> float:
        """Pooled share of energy that *top* keeps; NaN for an update that is zero everywhere."""
        total = self.total(label)
        return sum(tops[label, fraction] for tops in self.tops.values()) / total if total > 0 else float("nan")

    def cosine_with_alignment(self, label: str) -> float:
        """``<d, delta_A> / (||d|| ||delta_A||)`` over all tensors; NaN where one is zero."""
        norms = (self.total(label) * self.alignment_energy) ** 0.5
        return self.inner[label] / norms if norms > 0 else float("nan")


def sweep_tensors(
    base: Checkpoint,
    aligned: Checkpoint,
    tuned: Mapping[str, Checkpoint],
    projections: Sequence[Projection],
    seed: int,
    scratch: Path | None,
    results: ResultFolder,
) -> Sweep:
    """Factorise each alignment delta once and read every energy off it; spill the factors if models are made."""
    sweep = Sweep({}, {}, {}, [], dict.fromkeys(tuned, 0.0), {})
    fractions = dict.fromkeys(projection.fraction for projection in projections)
    tops = [Projection("top", fraction, 0) for fraction in fractions]
    progress = tqdm(iterate_deltas(base, aligned, tuned), total=len(aligned.names), desc="projecting", unit="tensor")
    for place, deltas in enumerate(progress):
        name, alignment = deltas.name, as_matrix(deltas.alignment)
        factors = left_factors(alignment)
        if scratch:
            save_file(
                {"basis": factors.basis.contiguous(), "singular_values": factors.singular_values},
                scratch / f"{place}.safetensors",
            )
        if factors.numerical_rank == 0:
            results.leave_out(name, "the alignment update is zero: its subspace is empty, onto keeps nothing of it")
        choice = RankRule(fraction=max(fractions)).choose(factors, alignment.shape[1])
        if choice.capped and choice.rank:
            sweep.capped[name] = {"wanted": choice.wanted, "rank": choice.rank}
        found = TensorProjections(name, factors, alignment.shape[1], seed).kept(
            deltas.tasks, list(dict.fromkeys([*projections, *tops]))
        )
        sweep.kept[name] = found
        sweep.tops[name] = {(label, top.fraction): found[label, top].energy for label in tuned for top in tops}
        sweep.totals[name] = {label: squared_norm(update) for label, update in deltas.tasks.items()}
        sweep.alignment.append(_describe(name, squared_norm(alignment), factors))
        for label, update in deltas.tasks.items():
            sweep.inner[label] += inner_product(update, deltas.alignment)
    for label in tuned:
        for name, totals in sweep.totals.items():
            if totals[label] == 0:
                results.leave_out(f"{label}: {name}", "the fine-tune did not change it")
    return sweep


def tensor_table(sweep: Sweep, projections: Sequence[Projection], methods: Sequence[Method]) -> pd.DataFrame:
    """One row for each fine-tune, projection, method and tensor; energies are squared norms."""
    rows = []
    for label, projection, method in _choices(sweep.labels, projections, methods):
        share = energy_share(sweep.top_share(label, projection.fraction), method)
        for name, totals in sweep.totals.items():
            total = totals[label]
            if projection.subspace == "scaled":
                kept = Kept(None, share * total if total > 0 else 0.0, float("nan"))
            else:
                part = sweep.kept[name][label, projection]
                complement = method == "away"
                kept = Kept(
                    part.rank,
                    max(0.0, total - part.energy) if complement else part.energy,
                    total - part.chance if complement else part.chance,
                )
            rows.append(
                {
                    **_identify(label, projection, method),
                    **{"tensor": name, "layer": layer_of(name), "type": type_of(name), "rank": kept.rank},
                    **{"energy_kept": kept.energy, "energy_total": total, "chance_energy": kept.chance},
                }
            )
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def pooled_table(
    tensors: pd.DataFrame, sweep: Sweep, projections: Sequence[Projection], methods: Sequence[Method]
) -> pd.DataFrame:
    """One row for each fine-tune, projection and method: energies summed over tensors, then divided."""
    keys = list(_identify("", projections[0], methods[0]))
    energies = ["energy_kept", "energy_total", "chance_energy"]
    sums = tensors.groupby(keys, sort=False)[energies].sum(min_count=1).to_dict("index")
    rows = []
    for label, projection, method in _choices(sweep.labels, projections, methods):
        identity = _identify(label, projection, method)
        pooled = sums[tuple(identity.values())]
        total = pooled["energy_total"]
        share = pooled["energy_kept"] / total if total > 0 else float("nan")
        rows.append(
            {
                **identity,
                "energy_kept": share,
                "cos_task_projected": _cosine_with_task(share, projection.subspace, method),
                "cos_task_alignment": sweep.cosine_with_alignment(label),
                "chance_energy": pooled["chance_energy"] / total if total > 0 else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _describe(name: str, energy: float, factors: LeftFactors) -> dict[str, Any]:
    stable, effective = spectral_ranks(factors.singular_values)
    return {
        **{"tensor": name, "layer": layer_of(name), "type": type_of(name), "energy": energy},
        **{"stable_rank": stable, "effective_rank": effective, "numerical_rank": factors.numerical_rank},
    }


def _cosine_with_task(share: float, subspace: SubspaceKind, method: Method) -> float:
    """The square root of the energy kept, by ``<d, P d> = ||P d||^2``; a multiple of d has cosine 1, or -1."""
    size = share**0.5 if subspace != "scaled" else (1.0 if share > 0 else float("nan"))
    return -size if method == "opposite" else size


def energy_share(top_share: float, method: Method) -> float:
    """Share of energy that a method leaves of an update of which *top* keeps a share."""
    return max(0.0, 1 - top_share) if method == "away" else top_share


def _choices(
    labels: Sequence[str], projections: Sequence[Projection], methods: Sequence[Method]
) -> Iterator[tuple[str, Projection, Method]]:
    for label in labels:
        for method in dict.fromkeys(methods):
            for projection in projections:
                yield label, projection, method


def _identify(label: str, projection: Projection, method: Method) -> dict[str, Any]:
    return {
        **{"tuned": label, "subspace": projection.subspace, "method": method},
        **{"fraction": projection.fraction, "draw": projection.draw},
    }
