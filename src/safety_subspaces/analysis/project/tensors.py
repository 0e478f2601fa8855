"""What a projection sweep does with one tensor: its energies, and its part of the models that are written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safety_subspaces.algebra.blocks import rows_in_block
from safety_subspaces.algebra.choices import Method
from safety_subspaces.algebra.eigen import spectral_ranks
from safety_subspaces.algebra.factors import Factors, no_factors
from safety_subspaces.algebra.projection import EnergyKept, Projection, TensorProjections
from safety_subspaces.algebra.update import Update
from safety_subspaces.analysis.work import Record, file_stem, opened
from safety_subspaces.artefacts.tensors import write_tensors
from safety_subspaces.weights.audited import audit_row, stored_rounding
from safety_subspaces.weights.checkpoint import Checkpoint, FullCheckpoint
from safety_subspaces.weights.delta import STREAM_ABOVE, open_update, open_updates, read_weight
from safety_subspaces.weights.names import layer_of, type_of
from safety_subspaces.weights.subspace_file import Subspace, open_subspace
from safety_subspaces.weights.writing import CheckpointWriter


@dataclass(frozen=True)
class ModelRow:
    """One projected model."""

    tuned: str
    projection: Projection
    method: Method

    @property
    def folder(self) -> str:
        """``<tuned>/<subspace>/<method>/<fraction>/<draw>``: in generations, and as a folder."""
        p = self.projection
        return "/".join(str(part) for part in (self.tuned, p.subspace, self.method, p.fraction, p.draw))

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that name it in tables."""
        p = self.projection
        named = {"tuned": self.tuned, "subspace": p.subspace, "method": self.method}
        return {**named, "fraction": p.fraction, "draw": p.draw}


@dataclass(frozen=True)
class ProjectTensor:
    """The task of one tensor.

    Args:
        base: Path of the base model.
        aligned: Path of the aligned model.
        tuned: Path of each fine-tune by label.
        basis: A subspace file that stands for the alignment subspace; ``None`` factorises the alignment update.
        projections: What is kept of an update.
        seed: The user's seed.
        spilled: Folder for each tensor's factors; ``None`` keeps none.
        written: Models that are written; without *scaled*, whose factor is pooled over tensors.
        models: Folder of the models that are written.
        energy_draws: Energies that are drawn of each random kind.
    """

    base: str
    aligned: str
    tuned: Mapping[str, str]
    basis: str | None
    projections: tuple[Projection, ...]
    seed: int
    spilled: Path | None
    written: tuple[ModelRow, ...]
    models: Path
    energy_draws: int = 0

    def __call__(self, name: str, device: torch.device) -> Record:
        """Return its rows of the tables ``kept``, ``tasks``, ``alignment``, ``audit`` and ``written``."""
        aligned = opened(self.aligned)
        alignment = open_update(aligned, opened(self.base), name).to(device)
        factors = self._factors(name, alignment)
        if self.spilled is not None:
            _spill(spilled_file(self.spilled, name), factors)
        columns = alignment.matrix_shape[1]
        projections = TensorProjections(name, factors, columns, self.seed, remembers=bool(self.written))
        tuned = {label: opened(path) for label, path in self.tuned.items()}
        updates = {label: update.to(device) for label, update in open_updates(tuned, aligned, name).items()}
        totals = {label: update.energy() for label, update in updates.items()}
        energies = projections.energies_kept(updates, totals, self.projections, self.energy_draws)
        tasks: list[dict[str, Any]] = [
            {"tuned": label, "energy_total": totals[label], "inner": update.inner(alignment)}
            for label, update in updates.items()
        ]
        return {
            "kept": [_energy_row(label, projection, energy) for (label, projection), energy in energies.items()],
            "tasks": [{"tensor": name, **row} for row in tasks],
            "alignment": [self._describe(name, alignment, factors)],
            "audit": self._audit(name, projections, tasks, alignment.matrix_shape),
            "written": self._write(name, projections, updates),
        }

    def _factors(self, name: str, alignment: Update) -> Factors:
        if self.basis is None:
            return alignment.factors()
        stored = _opened_subspace(self.basis)
        basis = stored.bases.get(name)
        if basis is None:
            return no_factors(alignment.matrix_shape[0])
        return Factors(basis, stored.spectra[name][: basis.shape[1]])

    def _describe(self, name: str, alignment: Update, factors: Factors) -> dict[str, Any]:
        stable, effective = spectral_ranks(factors.singular_values)
        return {
            "tensor": name,
            "layer": layer_of(name),
            "type": type_of(name),
            "energy": alignment.energy(),
            "stable_rank": stable,
            "effective_rank": effective,
            "numerical_rank": factors.numerical_rank,
            "full_rank": min(alignment.matrix_shape),
        }

    def _audit(
        self, name: str, projections: TensorProjections, tasks: Sequence[Mapping[str, Any]], shape: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Audit the alignment update, and give of each fine-tune's update the share that is rounding."""
        paths = {self.base, self.aligned, *self.tuned.values()}
        rounding = {path: stored_rounding(opened(path), name) for path in paths}
        values, noise = projections.factors.singular_values, rounding[self.base] + rounding[self.aligned]
        ranks = sorted({projections.rank(p.fraction) for p in self.projections})
        rows = [{"update": "alignment", **audit_row(name, values, noise, shape, ranks=ranks)}]
        for task in tasks:
            noise = rounding[self.aligned] + rounding[self.tuned[task["tuned"]]]
            share = noise / task["energy_total"] if task["energy_total"] > 0 else float("nan")
            rows.append({"update": task["tuned"], "tensor": name, "rounding_share": share})
        return rows

    def _write(self, name: str, projections: TensorProjections, updates: Mapping[str, Update]) -> list[dict[str, Any]]:
        """Write this tensor of every model, some rows at a time; return what its numbers lost by their type."""
        rows: list[dict[str, Any]] = []
        for label in dict.fromkeys(row.tuned for row in self.written):
            models = [row for row in self.written if row.tuned == label]
            wanted = [(row.projection, row.method) for row in models]
            step = rows_in_block(projections.columns)
            blocks = projections.updated_blocks(updates[label], wanted, step)
            rows += write_rows(self.models, self.aligned, name, models, blocks, step * projections.columns)
        return rows


def write_rows(
    folder: Path, aligned: str, name: str, models: Sequence[ModelRow], updates: Iterable[list[Tensor]], numbers: int
) -> list[dict[str, Any]]:
    """Add updates to the aligned weight and write them to the models.

    Args:
        folder: Folder of the models; each is there with room for its tensors.
        aligned: Path of the aligned model.
        name: The tensor.
        models: The models.
        updates: Yields, for one run of the tensor's numbers after another, the update of each model.
        numbers: Numbers of a run.

    Returns:
        For each model the energy of the update as it was meant, as it was stored, and of their difference.
    """
    source = opened(aligned)
    writers = [_writer(folder / model.folder, aligned) for model in models]
    sums = torch.zeros(len(models), 3, dtype=torch.float64)
    read = _runs_of(source, name)
    if source.full.slot(name).transposed:  # its rows are not contiguous in the file
        updates = [[torch.cat(parts) for parts in zip(*updates, strict=True)]]
    for number, block in enumerate(updates):
        first = number * numbers
        for index, (writer, update) in enumerate(zip(writers, block, strict=True)):
            before = read(first, update.numel()).reshape(update.shape)
            meant = update.to(before)
            stored = writer.write(name, before + meant, first).to(before).sub_(before)
            norms = [torch.linalg.vector_norm(part) for part in (meant, stored, stored - meant)]
            sums[index] += torch.stack(norms).double().square()
    kinds = ("energy_meant", "energy_stored", "energy_rounding")
    return [
        {"tensor": name, **model.identity, **dict(zip(kinds, row, strict=True))}
        for model, row in zip(models, sums.tolist(), strict=True)
    ]


def _runs_of(source: Checkpoint, name: str) -> Callable[[int, int], Tensor]:
    """Return what reads a run of a weight's numbers in float32 or better; of a large one no more than that is read."""
    shape = source.shape(name)
    if isinstance(source, FullCheckpoint) and len(shape) == 2 and shape[0] * shape[1] > STREAM_ABOVE:

        def read_rows(first: int, count: int) -> Tensor:
            start, stop = first // shape[1], (first + count) // shape[1]
            rows = source.open_slice(name)[start:stop]
            return rows.to(torch.promote_types(rows.dtype, torch.float32))

        return read_rows
    whole = read_weight(source, name).reshape(-1)
    return lambda first, count: whole[first : first + count]


@lru_cache(maxsize=256)
def _writer(folder: Path, aligned: str) -> CheckpointWriter:
    """Plan the files of a model; the plan is cached, one for each process."""
    return CheckpointWriter(folder, opened(aligned))


@lru_cache(maxsize=4)
def _opened_subspace(path: str) -> Subspace:
    """Open a subspace file and check its bases; it is cached, so that each process checks it only at first use."""
    return open_subspace(path)


def _energy_row(label: str, projection: Projection, energy: EnergyKept) -> dict[str, Any]:
    named = {"tuned": label, "subspace": projection.subspace, "fraction": projection.fraction, "draw": projection.draw}
    found = {"rank": energy.rank, "energy": energy.energy, "chance": energy.chance, "variance": energy.variance}
    return {**named, **found, "drawn": energy.drawn}


def spilled_file(folder: Path, tensor: str) -> Path:
    """Return the file of one tensor's factors."""
    return folder / f"{file_stem(tensor)}.safetensors"


def _spill(path: Path, factors: Factors) -> None:
    write_tensors(path, {"matrix": factors.basis.cpu(), "singular_values": factors.singular_values.cpu()})
