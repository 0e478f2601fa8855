"""What the sensitivity atlas measures of one tensor: all ranks, fine-tunes and pairs from one factorisation a side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from safety_subspaces.algebra.blocks import rows_in_block
from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.algebra.factors import Factors, squared_row_norms
from safety_subspaces.algebra.overlap import overlap_sums
from safety_subspaces.algebra.subspace import choose_rank
from safety_subspaces.algebra.update import Update
from safety_subspaces.analysis.work import Record, opened
from safety_subspaces.weights.audited import audit_row, stored_rounding
from safety_subspaces.weights.delta import open_update, open_updates

Rule = Literal["fraction", "energy", "count"]
ALIGNMENT = "alignment"
ZERO = "the update is zero and has no direction: what is measured of it is NaN"
ONE_SIDED = "it is no matrix and has the left side alone, which was not asked for"


@dataclass(frozen=True)
class Choice:
    """One rank rule with its value: a choice that the atlas goes through.

    Args:
        rule: Which of the three.
        value: The fraction, the share or the number of directions.
    """

    rule: Rule
    value: float | int

    def rank_of(self, factors: Factors, columns: int) -> int:
        """Apply the rule to a factorised matrix of so many columns, capped at its numerical rank."""
        rule = {
            "count": lambda: RankRule(count=int(self.value)),
            "fraction": lambda: RankRule(fraction=self.value),
            "energy": lambda: RankRule(energy=self.value),
        }[self.rule]()
        return choose_rank(rule, factors, columns).rank


@dataclass(frozen=True)
class SeedModels:
    """The models of one seed, by path.

    Args:
        seed: What the tables call the seed.
        base: The base model.
        aligned: The aligned one.
        tuned: Each fine-tune by label.
    """

    seed: str
    base: str
    aligned: str
    tuned: Mapping[str, str]

    @property
    def paths(self) -> list[str]:
        """Every path."""
        return [self.base, self.aligned, *self.tuned.values()]


@dataclass(frozen=True)
class SidedUpdate:
    """An update on one side with its factors.

    Args:
        update: The update as a matrix, transposed for the right side.
        factors: Its factors.
        energies: ``sigma_i^2``, on the CPU.
        ranks: The rank of every choice.
        leverages: ``p_i``, the squared norm of row i of the basis, at the rank of every choice.
    """

    update: Update
    factors: Factors
    energies: Float64[Tensor, " rank"]
    ranks: list[int]
    leverages: Float64[Tensor, "out choices"]

    @property
    def total(self) -> float:
        """The energy of the update."""
        return float(self.energies.sum())


@dataclass(frozen=True)
class AtlasTensor:
    """The task of one tensor.

    Args:
        models: The models of each seed.
        sides: Sides to measure on; of a tensor that is not 2-D the left alone.
        choices: Rank rules with their values.
    """

    models: tuple[SeedModels, ...]
    sides: tuple[Side, ...]
    choices: tuple[Choice, ...]

    def __call__(self, name: str, device: torch.device) -> Record:
        """Return rows of ``energies``, ``overlaps``, ``audit`` and ``left_out``; lists within a row go by choice."""
        record: Record = {"energies": [], "overlaps": [], "audit": [], "left_out": []}
        for models in self.models:
            aligned = opened(models.aligned)
            updates = {ALIGNMENT: open_update(aligned, opened(models.base), name)}
            updates |= open_updates({label: opened(path) for label, path in models.tuned.items()}, aligned, name)
            sided: dict[str, SidedUpdate] = {}
            for side in self._sides_of(aligned.shape(name)):
                # Drops the factors of the side before, which may be as large as the weights.
                sided = {}
                for label, update in updates.items():
                    sided[label] = self._factorise(update.to(device).on_side(side))
                identity = {"seed": models.seed, "tensor": name, "side": side}
                record["energies"] += [identity | row for row in self._energies(sided)]
                record["overlaps"] += [identity | row for row in self._overlaps(sided)]
            if not sided:
                record["left_out"].append({"name": name, "reason": ONE_SIDED})
            record["audit"] += self._audit(models, name, sided)
            for label, factorised in sided.items():
                if factorised.total == 0:
                    record["left_out"].append({"name": _named(models.seed, label, name), "reason": ZERO})
        return record

    def _sides_of(self, shape: Sequence[int]) -> tuple[Side, ...]:
        return self.sides if len(shape) == 2 else tuple(side for side in self.sides if side == "left")

    def _factorise(self, update: Update) -> SidedUpdate:
        factors = update.factors()
        ranks = [choice.rank_of(factors, update.matrix_shape[1]) for choice in self.choices]
        energies = factors.singular_values.square().cpu()
        return SidedUpdate(update, factors, energies, ranks, leverages_at(factors, ranks))

    def _energies(self, sided: Mapping[str, SidedUpdate]) -> list[dict[str, Any]]:
        """Return how much of each fine-tune's energy alignment's leading directions keep, as shares of the whole.

        ``matched`` is what they would keep of it on average if its rows had random signs, ``sum_i p_i ||u_i||^2`` with
        alignment's leverages; ``ceiling`` what the fine-tune's own leading directions keep at that rank, the most that
        any subspace could; ``concentration`` is ``tr M^2 / tr^2 M`` with ``M = U U^T``.
        """
        alignment = sided[ALIGNMENT]
        rows = []
        for label, task in sided.items():
            if label == ALIGNMENT:
                continue
            along = task.update.energies_along(alignment.factors).cpu()
            total = task.total
            squares = float(task.energies.square().sum())
            expected = (row_energies(task.update) @ alignment.leverages).tolist()
            rows.append(
                {
                    "tuned": label,
                    "dim": alignment.factors.rows,
                    "energy": total,
                    "rank": alignment.ranks,
                    "share": _shares(along, alignment.ranks, total),
                    "matched": [energy / total if total > 0 else nan for energy in expected],
                    "ceiling": _shares(task.energies, alignment.ranks, total),
                    "concentration": squares / total**2 if total > 0 else nan,
                }
            )
        return rows

    def _overlaps(self, sided: Mapping[str, SidedUpdate]) -> list[dict[str, Any]]:
        """Return the overlap of each pair of fine-tunes with its matched chance level, for every choice."""
        rows = []
        for (first, one), (second, other) in combinations(((k, v) for k, v in sided.items() if k != ALIGNMENT), 2):
            smaller = [min(pair) for pair in zip(one.ranks, other.ranks, strict=True)]
            shared = shared_energy(one, other)
            expected = (one.leverages * other.leverages).sum(dim=0).tolist()
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "dim": one.factors.rows,
                    "energy_first": one.total,
                    "energy_second": other.total,
                    "rank_first": one.ranks,
                    "rank_second": other.ranks,
                    "overlap": [min(1.0, s / k) if k else nan for s, k in zip(shared, smaller, strict=True)],
                    "matched": [s / k if k else nan for s, k in zip(expected, smaller, strict=True)],
                }
            )
        return rows

    def _audit(self, models: SeedModels, name: str, sided: Mapping[str, SidedUpdate]) -> list[dict[str, Any]]:
        """Return the audit of each update, whose singular values are those of either side."""
        aligned = opened(models.aligned)
        origin = stored_rounding(aligned, name)
        shares = [choice.value for choice in self.choices if choice.rule == "energy"]
        rows = []
        for label, factorised in sided.items():
            other = opened(models.base if label == ALIGNMENT else models.tuned[label])
            noise = origin + stored_rounding(other, name)
            values = factorised.factors.singular_values
            row = audit_row(name, values, noise, aligned.shape(name), shares, factorised.ranks)
            rows.append({"tensor": row.pop("tensor"), "seed": models.seed, "update": label, **row})
        return rows


def leverages_at(factors: Factors, ranks: Sequence[int]) -> Float64[Tensor, "out choices"]:
    """Return ``sum_(j<=k) L_ij^2`` of each row i at each rank k; of a tall matrix L is made some rows at a time."""
    indices = torch.tensor(ranks, dtype=torch.int64, device=factors.singular_values.device)
    widest = max(ranks, default=0)
    blocks = []
    for block in factors.blocks(rows_in_block(factors.numerical_rank)):
        sums = block[:, :widest].double().square().cumsum(dim=1)
        # A column of zeros goes first, so that the sum at rank k has the index k.
        blocks.append(torch.nn.functional.pad(sums, (1, 0))[:, indices].cpu())
    return torch.cat(blocks) if blocks else torch.zeros(factors.rows, len(ranks), dtype=torch.float64)


def row_energies(update: Update) -> Float64[Tensor, " out"]:
    """Return the squared norm of each row."""
    step = rows_in_block(update.matrix_shape[1])
    return torch.cat([squared_row_norms(block) for block in update.rows(step)]).cpu()


def shared_energy(first: SidedUpdate, second: SidedUpdate) -> list[float]:
    """Return ``||Qu^T Qh||_F^2`` at the ranks of every choice; 0 where a subspace is empty."""
    ranks = list(zip(first.ranks, second.ranks, strict=True))
    defined = [pair for pair in dict.fromkeys(ranks) if min(pair)]
    if not defined:
        return [0.0] * len(ranks)
    sums = dict(zip(defined, overlap_sums(first.factors, second.factors, defined), strict=True))
    return [sums.get(pair, 0.0) for pair in ranks]


def _shares(energies: Float64[Tensor, " rank"], ranks: Sequence[int], total: float) -> list[float]:
    """Return the share of a total in the first k, for each k; at most 1, which rounding may pass by 1e-7."""
    if not total > 0:
        return [nan] * len(ranks)
    sums = torch.nn.functional.pad(energies.cumsum(0), (1, 0))
    return [min(1.0, float(sums[min(k, energies.numel())]) / total) for k in ranks]


def _named(seed: str, label: str, name: str) -> str:
    return f"seed {seed}, {label}: {name}" if seed else f"{label}: {name}"
