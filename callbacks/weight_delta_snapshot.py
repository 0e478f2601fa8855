"""Keeps what training has moved in the weights, and logs how far, how broad and where to."""

import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.algebra.update import LEFT, DenseUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import describe_input, provenance
from safety_subspaces.constraint.collectives import gather_objects, keep_step
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.updates import NetworkUpdate
from safety_subspaces.weights.measures import (
    Comparison,
    UpdateMeasures,
    compress,
    measure_update,
    pool_measures,
)
from safety_subspaces.weights.names import part_of, type_of
from safety_subspaces.weights.snapshots import START_FILE, SnapshotWriter, snapshot_files, snapshot_path
from safety_subspaces.weights.subspace_file import open_subspace

from .run_subspace import check_source, run_subspace_file
from .watcher import Watcher, board_writers

logger = logging.getLogger(__name__)
# What each heatmap of layer against step shows.
MAPPED = ("frobenius_norm", "energy_fraction", "stable_rank", "overlap")


@final
class WeightDeltaSnapshot(Watcher):
    """Writes ``deltas/step=….safetensors``: the float32 masters less a reference, streamed one weight at a time.

    The same under DDP and ZeRO, where rank zero writes. A LoRA that counts from the start of the run is kept in its
    factors. A disk that fills is said once, and leaves no half-written file.

    Logs ``delta/frobenius_norm``; ``delta/stable_rank`` and ``delta/effective_rank`` (means over matrices);
    ``delta/energy_fraction`` (share of the update's energy inside the alignment subspace, 0 to 1) beside
    ``delta/energy_fraction_chance`` (of a Haar-random subspace of the same ranks); ``delta/overlap`` with another
    update beside ``delta/overlap_chance`` (means over matrices, 0 to 1); ``delta/compression_error`` (share of the
    energy that a compressed snapshot lacks); ``delta/singular_values/<type>`` as histograms; ``time/snapshot_ms``.

    Args:
        every_n_steps: Optimizer steps between two snapshots.
        log_spaced: So many further ones, at steps evenly spaced on a logarithmic scale.
        reference: Folder of the model that the update counts from; by default the start of the run, whose weights are
            kept in ``deltas/reference.safetensors``.
        save: Whether snapshots are written, or only measured.
        compress: Directions of each matrix to keep; by default all, exactly.
        subspace: File of ``analyze.py subspace`` to measure the energy in; or give ``base``, ``aligned`` and ``rank``.
        base: Folder of the base model; the subspace is made once and kept in ``deltas/subspace.safetensors``.
        aligned: Folder of the aligned model.
        rank: Directions of each tensor of the subspace.
        side: ``left`` for output space, ``right`` for input space (with ``base`` and ``aligned``).
        other: Folder of a model whose update from the same reference is compared; the run must start from a folder.
        energy: Share of each update's energy at which the overlap cuts its space.
        spectra: Whether each matrix is decomposed on rank zero: its ranks and its spectrum. Some ten cubes of its
            smaller side in float64: a second for 2048, ten for 4096 on one core, times the number of matrices; turn it
            off, or look rarely, for a large model. Without it ``compress`` and ``other`` are refused.
        types: Only these types of tensors (q, k, v, o, gate, up, down, embeddings, head, norm); all by default.
        layers: Only these blocks.
        patterns: Only names that match one of these, for example ``*.mlp.*``.
        per_layer: Whether values are also logged layer by layer.
        figures: Whether heatmaps and histograms go to TensorBoard.
        name: Tells two of these callbacks in one run apart: part of tags and of the folder.
    """

    clock, keeps_in = "snapshot", "deltas"

    def __init__(
        self,
        every_n_steps: int | None = 200,
        log_spaced: int | None = None,
        reference: str | None = None,
        save: bool = True,
        compress: RankRule | None = None,
        subspace: str | None = None,
        base: str | None = None,
        aligned: str | None = None,
        rank: RankRule | None = None,
        side: Side = "left",
        other: str | None = None,
        energy: float = 0.9,
        spectra: bool = True,
        types: list[str] | None = None,
        layers: list[int] | None = None,
        patterns: list[str] | None = None,
        per_layer: bool = False,
        figures: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(name, every_n_steps, log_spaced, per_layer, figures)
        self.measures_subspace = any(part is not None for part in (subspace, base, aligned, rank))
        if self.measures_subspace:
            check_source("WeightDeltaSnapshot", subspace, base, aligned, rank)
        if not 0 < energy <= 1:
            raise InputError(f"WeightDeltaSnapshot.energy is {energy}; expected a share in (0, 1]")
        if not spectra and (compress is not None or other is not None):
            raise InputError("WeightDeltaSnapshot: compress and other need what spectra: false leaves out")
        self.reference, self.save, self.compress = reference, save, compress
        self.subspace, self.base, self.aligned, self.rank, self.side = subspace, base, aligned, rank, side
        self.other, self.energy, self.spectra = other, energy, spectra
        self.types, self.layers, self.patterns = types, layers, patterns
        self._update: NetworkUpdate | None = None
        self._comparison = Comparison()
        self._facts: dict[str, Any] = {}
        self._start_sha256: str | None = None

    def inputs(self) -> list[str]:
        """Return the models and the subspace that the update is compared with."""
        return [path for path in (self.reference, self.subspace, self.base, self.aligned, self.other) if path]

    def charts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return which curves one chart of TensorBoard holds, by title and group."""
        charts: dict[str, dict[str, tuple[str, ...]]] = {}
        if self.measures_subspace:
            tags = ("delta/energy_fraction", "delta/energy_fraction_chance")
            charts["weights: subspace"] = {"energy inside the alignment subspace": tags}
        if self.other is not None:
            charts["weights: overlap"] = {"overlap with the other update": ("delta/overlap", "delta/overlap_chance")}
        return charts

    def begin(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Check the folder and the reference, and keep the start of the run.

        Raises:
            InputError: A folder with snapshots of another run, read-only or with too little room; a reference,
                subspace or other model that does not fit.
        """
        folder = self.folder(trainer)
        self._update = NetworkUpdate(module.language_model, self.reference, self.types, self.layers, self.patterns)
        (problem, *_) = gather_objects(self._problem_of(trainer, folder) if trainer.is_global_zero else None)
        if problem:
            raise InputError(problem)
        if self.reference is None:
            start, known = folder / START_FILE, self._loaded.get("start_sha256")
            self._start_sha256 = self._update.keep_start(start, known, trainer.is_global_zero)
            reference: Any = {"path": START_FILE, "sha256": self._start_sha256}
        else:
            reference = describe_input(self.reference) if trainer.is_global_zero else None
        self._facts = {"reference": reference, "provenance": provenance() if trainer.is_global_zero else None}
        self._comparison = self._open_comparison(trainer, module, folder)

    def look(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> dict[str, float]:
        """Gather, measure and write the update of each weight in turn."""
        assert self._update is not None
        measures: list[UpdateMeasures] = []
        lost = 0.0
        with self._writer(trainer, step) as writer:
            for name in self._update.names:
                update = self._update.read(name, keeps=trainer.is_global_zero)
                if update is None:
                    keep_step()
                    continue
                measure, stored, share = self._measure(name, update)
                measures.append(measure)
                lost += share * measure.energy
                if writer is not None:
                    writer.write(name, stored, share)
                del update, stored  # before the next weight is gathered
                keep_step()  # the other ranks wait for one weight at a time, not for all
        if writer is not None and writer.failure is not None:
            self.warn_once(
                "snapshot",
                "the snapshot of step %d could not be written (%s), and none of a later step may be: the run goes on "
                "without. Free some space on the disk of %s",
                step,
                writer.failure,
                self.folder(trainer),
            )
        if trainer.is_global_zero and self.figures:
            self._add_histograms(trainer, step, measures)
        return self._publish(step, measures, lost)

    def state_dict(self) -> dict[str, Any]:
        """Keep the hash of the weights that the run started with."""
        return {**super().state_dict(), "start_sha256": self._start_sha256}

    def _measure(self, name: str, update: Update) -> tuple[UpdateMeasures, Update, float]:
        """Measure an update, and return beside it what is to be stored, and the share of its energy that this lacks."""
        if self.compress is None or LEFT in update.parts or not update.is_matrix:
            return measure_update(name, update, self._comparison), update, 0.0
        whole = update.dense()
        if not torch.isfinite(whole).all():
            self.warn_once("finite", "the update of %s is not finite: it is kept as it is, uncompressed", name)
            return measure_update(name, DenseUpdate(whole), Comparison(spectra=False)), DenseUpdate(whole), 0.0
        factors = left_factors(whole)
        compressed, lost = compress(whole, factors, self.compress)
        return measure_update(name, DenseUpdate(whole), self._comparison, factors), compressed, lost

    def _writer(self, trainer: L.Trainer, step: int) -> Any:
        """What writes this step's snapshot; nothing on other ranks, and at the very start where nothing has moved."""
        assert self._update is not None
        is_moved = step > 0 or self.reference is not None
        if not (trainer.is_global_zero and self.save and is_moved):
            return nullcontext()
        path = snapshot_path(self.folder(trainer), step)
        shapes = {name: self._update.shape(name) for name in self._update.names}
        return SnapshotWriter(path, shapes, self._update.dtype, step, self._facts)

    def _publish(self, step: int, measures: list[UpdateMeasures], lost: float) -> dict[str, float]:
        """Pool the measures of rank zero, over all weights and by layer, and hand them to all ranks."""
        by_layer: dict[str, list[UpdateMeasures]] = defaultdict(list)
        for measure in measures:
            by_layer[part_of(measure.name)].append(measure)
        values = pool_measures(measures)
        if self.compress is not None:
            norm = values["frobenius_norm"]
            values["compression_error"] = lost / norm**2 if norm > 0 else math.nan
        pooled = {layer: pool_measures(group) for layer, group in by_layer.items()}
        values, pooled = gather_objects((values, pooled))[0]
        shown = {f"delta/{name}": value for name, value in values.items()}
        for name in MAPPED:
            column = {layer: by[name] for layer, by in pooled.items() if by[name] == by[name]}
            if column:
                self.remember(f"delta/{name}", step, column)
                shown |= self.layered(f"delta/{name}", column)
        return shown

    def _add_histograms(self, trainer: L.Trainer, step: int, measures: list[UpdateMeasures]) -> None:
        spectra: dict[str, list[Tensor]] = defaultdict(list)
        for measure in measures:
            if measure.spectrum is not None:
                spectra[type_of(measure.name)].append(measure.spectrum)
        for writer in board_writers(trainer):
            for kind, values in spectra.items():
                writer.add_histogram(self._named(f"delta/singular_values/{kind}"), torch.cat(values).cpu(), step)

    def _open_comparison(self, trainer: L.Trainer, module: LanguageModelModule, folder: Path) -> Comparison:
        """What updates are compared with: files on disk, whose bases rank zero alone reads, one at a time."""
        start = self.reference or module.source.path
        if self.other is not None and start is None:
            raise InputError("WeightDeltaSnapshot.other needs a reference on disk: this run starts from a seed")
        subspace = others = None
        if self.measures_subspace:
            cached = folder / "subspace.safetensors"
            path = run_subspace_file(trainer, cached, self.subspace, self.base, self.aligned, self.rank, self.side)
            subspace = open_subspace(path)
            self._refuse_misfits(subspace.bases, "the subspace", right=subspace.side == "right")
        if self.other is not None:
            rank = RankRule(energy=self.energy)
            cached = folder / "other.safetensors"
            file = open_subspace(run_subspace_file(trainer, cached, None, start, self.other, rank, "left"))
            self._refuse_misfits(file.bases, "the other update", right=False)
            others = file.bases
        return Comparison(subspace, others, self.energy, self.spectra)

    def _refuse_misfits(self, bases: Mapping[str, Tensor], what: str, right: bool) -> None:
        assert self._update is not None
        problems = []
        for name in self._update.names:
            shape = self._update.shape(name)
            dim = torch.Size(shape).numel() if len(shape) != 2 else shape[1 if right else 0]
            if name in bases and bases[name].shape[0] != dim:
                problems.append(f"{name} has {dim} dimensions, there {bases[name].shape[0]}")
        if not any(name in bases for name in self._update.names):
            problems.append(f"it has none of the watched weights, {self._update.names[0]} first")
        if problems:
            raise InputError(f"{what} is of another model: {'; '.join(problems[:5])}")

    def _problem_of(self, trainer: L.Trainer, folder: Path) -> str | None:
        """Return why no snapshot could be written to a folder, or ``None``; on rank zero."""
        files = snapshot_files(folder)
        if files and not self._loaded:
            return f"{folder} holds {len(files)} snapshots of another run ({files[0].name}); choose another run_dir"
        free, size = shutil.disk_usage(folder).free, self._largest_file()
        start = 0 if self.reference is not None or self._loaded else size
        if free < start + (size if self.save and self.compress is None else 0):
            return (
                f"{folder} has room for {free / 1e9:.2f} GB, the start of the run and one snapshot take up to "
                f"{(start + size) / 1e9:.2f} GB; free some, choose another run_dir, or compress"
            )
        looks = self.count_looks(trainer)
        if self.save and free < start + looks * size:
            logger.warning(
                "%d snapshots of up to %.2f GB are to come, and %.2f GB are free at %s: take fewer, or compress",
                looks,
                size / 1e9,
                free / 1e9,
                folder,
            )
        return None

    def _largest_file(self) -> int:
        """Bytes of an uncompressed snapshot."""
        assert self._update is not None
        numbers = sum(torch.Size(self._update.shape(name)).numel() for name in self._update.names)
        return numbers * self._update.dtype.itemsize
