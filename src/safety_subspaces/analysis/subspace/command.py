"""``analyze.py subspace``: the subspace of a pair of checkpoints, for the training callback and the other commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from safety_subspaces.algebra.audit import summarise_audit
from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.algebra.factors import Factors, drawn_factors, haar_basis
from safety_subspaces.algebra.subspace import choose_rank, random_order, seeded_generator
from safety_subspaces.algebra.update import Update
from safety_subspaces.analysis.work import (
    Record,
    Workers,
    factorisation_cost,
    file_stem,
    opened,
    unfinished_work,
    work_through,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import clear_leavings
from safety_subspaces.artefacts.provenance import describe_input, provenance
from safety_subspaces.artefacts.tensors import StoredTensors, TensorFile, write_tensors
from safety_subspaces.weights.audited import audit_row, stored_rounding
from safety_subspaces.weights.compatibility import (
    check_compatible,
    check_distinct,
    compared_names,
    coverage,
    select_tensors,
)
from safety_subspaces.weights.delta import open_update
from safety_subspaces.weights.subspace_file import BASIS, SPECTRUM, SubspaceFile, read_subspace, write_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

Selection = Literal["top", "random-k", "random"]


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


def subspace(
    base: str,
    aligned: str,
    out: str,
    rank: RankRule,
    side: Side = "left",
    select: Selection = "top",
    seed: int = 0,
    tensors: Sequence[str] = (),
    overwrite: bool = False,
    workers: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
) -> pd.DataFrame:
    """Decompose ``W_aligned - W_base`` and keep a subspace of each tensor.

    A tensor that is not 2-D has the one direction of its whole update. A tensor that did not change has none and is
    left out of the file. Interrupted, the same command goes on from the tensors that are done.

    Args:
        base: Folder of the base model.
        aligned: Folder of the aligned model (or LoRA adapter, or delta snapshot); any two checkpoints will do.
        out: The ``.safetensors`` file to write.
        rank: Directions of each tensor: exactly one of count, fraction and energy.
        side: ``left`` for directions of output space, ``right`` for input space.
        select: ``top`` for the leading directions, ``random-k`` for as many of them drawn at random, ``random`` for a
            random subspace of that rank.
        seed: Seed of the draw.
        tensors: Patterns, types or layers of the tensors to take; all by default.
        overwrite: Whether an earlier file may be replaced.
        workers: Processes of one thread each; by default one a core, or none beside this one for small models.
        devices: Ranks on each node that share the tensors (GPUs, where there are any).
        num_nodes: Nodes; they must see one file system.

    Returns:
        One row a tensor: rank, the rank that was asked for, the share of the update's energy in the subspace; empty on
        every rank but the first.

    Raises:
        InputError: Before anything is computed: models of different shapes, a file in the way, a rank out of range.
            Later: weights that are NaN or infinite, or the same in both models.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out is {out}; expected a file that ends in .safetensors")
    clear_leavings(target)
    if target.exists() and not overwrite:
        raise InputError(f"{out} exists and is not written over; choose another name, or say --overwrite true")
    pool = Workers(workers, devices, num_nodes)
    models = {"base": open_checkpoint(base), "aligned": open_checkpoint(aligned)}
    check_compatible(models["aligned"], models["base"], tensors=tensors)
    check_distinct(models["base"], models["aligned"], {})
    names = select_tensors(compared_names(models["aligned"], models["base"]), tensors)
    chosen: dict[str, Any] = {
        "rank": vars(rank),
        "side": side,
        "select": select,
        "seed": seed,
        "tensors": list(tensors),
    }
    costs = {name: factorisation_cost(models["aligned"].shape(name)) for name in names}
    arguments = {"base": base, "aligned": aligned, **chosen}
    with unfinished_work(out, "subspace", arguments, [base, aligned], pool) as unfinished:
        task = SubspaceTensor(base, aligned, rank, side, select, seed, unfinished.folder / "bases")
        task.folder.mkdir(exist_ok=True)
        records = work_through(task, costs, unfinished, pool, "decomposing")
        if records is None:
            return pd.DataFrame()
        table = pd.DataFrame([row for record in records.values() for row in record["table"]])
        if not table["rank"].any():
            raise InputError(f"{base} and {aligned} have the same weights: there is no update to decompose")
        audit = summarise_audit([row for record in records.values() for row in record["audit"]])
        zero = [{"name": str(name), "reason": "the update is zero"} for name in table.loc[table["rank"] == 0, "tensor"]]
        origin = {
            **provenance(),
            "inputs": [describe_input(base), describe_input(aligned)],
            **chosen,
            "audit": audit,
            "left_out": [*coverage(models, names), *zero],
        }
        files = {str(name): TensorFile(task.path(str(name))) for name in table.loc[table["rank"] > 0, "tensor"]}
        bases = StoredTensors({name: (file, BASIS) for name, file in files.items()})
        spectra = {name: file.read(SPECTRUM) for name, file in files.items()}
        write_subspace(target, SubspaceFile(bases, spectra, side, origin))
    return table


def cached_subspace(path: Path, base: str, aligned: str, rank: RankRule, side: Side = "left") -> None:
    """Make the subspace file of a pair of models, unless it was made before of exactly these models and this rank.

    Raises:
        InputError: As :func:`subspace`.
    """
    if path.is_file():
        stored = read_subspace(str(path))
        origin = (stored.side, stored.provenance.get("rank"), stored.provenance.get("inputs"))
        if origin == (side, vars(rank), [describe_input(model) for model in (base, aligned)]):
            return
    subspace(base, aligned, str(path), rank, side, overwrite=True)
