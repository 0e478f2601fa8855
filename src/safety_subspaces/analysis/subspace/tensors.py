"""What ``analyze.py subspace`` does with one tensor."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule, Selection, Side
from safety_subspaces.algebra.factors import Factors, drawn_factors, haar_basis
from safety_subspaces.algebra.subspace import choose_rank, random_order, seeded_generator
from safety_subspaces.algebra.update import Update
from safety_subspaces.analysis.work import (
    Record,
    file_stem,
    opened,
)
from safety_subspaces.artefacts.tensors import write_tensors
from safety_subspaces.weights.audited import audit_row, stored_rounding
from safety_subspaces.weights.delta import open_update
from safety_subspaces.weights.subspace_file import BASIS, SPECTRUM


@dataclass(frozen=True)
class SubspaceTensor:
    """The task of one tensor: decompose its update, and leave the basis that is asked for in a file.

    Args:
        base: Path of the model that the update starts from.
        aligned: Path of the one that it leads to.
        rank: How many directions.
        side: Of output or input space.
        select: Which directions.
        seed: Seed of those that are drawn.
        folder: Where the file goes.
    """

    base: str
    aligned: str
    rank: RankRule
    side: Side
    select: Selection
    seed: int
    folder: Path

    def __call__(self, name: str, device: torch.device) -> Record:
        """Return its row of ``table`` (``tensor``, ``rank``, ``rank_wanted``, ``energy``) and of ``audit``."""
        pair = opened(self.aligned), opened(self.base)
        update = open_update(*pair, name).to(device).on_side(self.side)
        rows, columns = update.matrix_shape
        factors = update.factors()
        choice = choose_rank(self.rank, factors, columns)
        noise = sum(stored_rounding(checkpoint, name) for checkpoint in pair)
        audit = audit_row(name, factors.singular_values, noise, (rows, columns), ranks=[choice.rank])
        row = {"tensor": name, "rank": choice.rank, "rank_wanted": choice.wanted, "energy": float("nan")}
        if choice.rank:
            basis, energy_inside = self._select(name, factors, choice.rank, update)
            row["energy"] = energy_inside / update.energy()
            tensors = {BASIS: basis.cpu(), SPECTRUM: factors.singular_values.cpu()}
            write_tensors(self.path(name), tensors)
        return {"table": [row], "audit": [audit]}

    def path(self, name: str) -> Path:
        """Return the file of a tensor's basis."""
        return self.folder / f"{file_stem(name)}.safetensors"

    def _select(self, name: str, factors: Factors, count: int, update: Update) -> tuple[Tensor, float]:
        """Return the basis, and the energy of the update inside it."""
        generator = seeded_generator(self.seed, name, self.select)
        if self.select == "random":
            basis = haar_basis(factors.rows, count, generator).to(factors.singular_values.device)
            return basis, float(update.energies_along(drawn_factors(basis)).sum())
        squares = factors.singular_values.square()
        if self.select == "random-k":
            order = random_order(factors, generator)[:count]
            return factors.columns(order), float(squares[order].sum())
        return factors.columns(torch.arange(count)), float(squares[:count].sum())
