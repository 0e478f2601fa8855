"""Snapshots of a run's weight update on disk: one ``.safetensors`` for a step, read and written one tensor at a time.

An update is kept dense under the weight's name, or in factors as ``<name>.left`` and ``<name>.right`` with a scale:
what LoRA trains, or the leading directions of a compressed one.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch

from safety_subspaces.algebra.update import LEFT, RIGHT, DenseUpdate, FactorUpdate, Update
from safety_subspaces.artefacts.description import facts_about, read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.provenance import describe_input
from safety_subspaces.artefacts.tensors import TensorFile, TensorStream

KIND = "weight update"
# Weights that the run started with, in the folder of the snapshots that count from them.
START_FILE = "reference.safetensors"
FILE_NAME = re.compile(r"step=(\d+)\.safetensors")
# A name, a scale and a lost share in the header: the numbers are at most 25 characters each.
METADATA_PER_TENSOR = 80


@final
class SnapshotWriter:
    """A context that writes one snapshot; the file gets its name when it is whole.

    A disk that refuses ends the writing, not the caller: ``failure`` says why, and nothing is left of the file.

    Args:
        path: The file.
        shapes: Shape of each weight that may come.
        dtype: Type of the numbers.
        step: Optimizer steps that the update is the sum of.
        facts: What else the header says (reference, provenance), as plain values.

    Attributes:
        failure: What the disk said, or ``None``.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        step: int,
        facts: Mapping[str, Any],
    ) -> None:
        self.failure: OSError | None = None
        self._facts: dict[str, Any] = {"kind": KIND, "step": step, **facts}
        self._scales: dict[str, float] = {}
        self._lost: dict[str, float] = {}
        # Room for either form, dense or in factors: which one an update has is known only when it is written.
        slots: dict[str, Sequence[int]] = dict(shapes)
        for name, shape in shapes.items():
            if len(shape) == 2:
                slots |= {name + LEFT: (shape[0], max(shape)), name + RIGHT: (max(shape), shape[1])}
        spare = sum(2 * len(name) + METADATA_PER_TENSOR for name in shapes)
        self._stream = TensorStream(path, slots, dtype, self._header(), spare)

    def __enter__(self) -> "SnapshotWriter":
        self._attempt(self._stream.__enter__)
        return self

    def write(self, name: str, update: Update, lost_energy: float = 0.0) -> None:
        """Append the update of one weight.

        Args:
            name: Canonical name of the weight.
            update: The update, dense or in factors.
            lost_energy: Share of its energy that a compression has left out.
        """
        for part, tensor in update.parts.items():
            if self.failure is None:
                self._attempt(partial(self._stream.write, name + part, tensor))
        if LEFT in update.parts:
            self._scales[name] = update.scale
        self._lost |= {name: lost_energy} if lost_energy else {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.header = self._header()
        if self.failure is None:
            self._attempt(partial(self._stream.__exit__, kind, error, trace))

    def _attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.failure = error
            with suppress(OSError):  # the first error is the one to tell
                self._stream.__exit__(type(error), error, error.__traceback__)

    def _header(self) -> dict[str, Any]:
        return {"snapshot": {**self._facts, "scales": self._scales, "lost_energy": self._lost}}


@final
class Snapshot:
    """A snapshot on disk, its tensors unread.

    Attributes:
        path: The file.
        step: Optimizer steps that the update is the sum of.
        names: Canonical names of the weights.
        shapes: Shape of each weight by canonical name.
        facts: What the header says.
        lost_energy: Share of each weight's energy that a compression has left out; a weight that lost none is absent.

    Args:
        path: The file.

    Raises:
        InputError: The file is damaged, or something else than a snapshot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TensorFile(path, remedy="remove it")
        facts = self._file.header.get("snapshot")
        if not isinstance(facts, dict) or facts.get("kind") != KIND:
            raise InputError(f"{path} is no snapshot of a weight update; callbacks.WeightDeltaSnapshot writes them")
        self.facts: dict[str, Any] = facts
        with reading(path, "a snapshot as callbacks.WeightDeltaSnapshot writes it", "remove it"):
            self.step = operator.index(facts["step"])
            self.lost_energy: dict[str, float] = _numbers(facts["lost_energy"])
            self._scales: dict[str, float] = _numbers(facts["scales"])
            self.shapes = self._shapes_of_weights()
            reference = facts.get("reference")
            if isinstance(reference, dict) and not isinstance(reference["path"], str | None):
                raise ValueError(f"its reference is {reference['path']!r}")
        self.names = tuple(self.shapes)

    @property
    def reference(self) -> dict[str, Any]:
        """The model that the update counts from, as the snapshot names it: a path and hashes."""
        reference = self.facts.get("reference")
        return {"path": reference, "sha256": None} if not isinstance(reference, dict) else {"sha256": None, **reference}

    @property
    def counts_from_start(self) -> bool:
        """Whether the update counts from the start of its own run, so that it was zero at step 0."""
        return self.reference["path"] == START_FILE

    def read(self, name: str) -> Update:
        """Read the update of one weight."""
        if name not in self._scales:
            return DenseUpdate(self._file.read(name))
        return FactorUpdate(self._file.read(name + LEFT), self._file.read(name + RIGHT), self._scales[name])

    def reference_folder(self) -> str:
        """Return the model folder that the update counts from: the one it names, or the one that its run started from.

        Raises:
            InputError: It is not known, or has changed since.
        """
        reference, run = self.reference, self.path.parent.parent
        if self.counts_from_start:
            manifest = read_manifest(run / "manifest.json") if (run / "manifest.json").is_file() else {}
            start = next((path for path in facts_about("starts_from", manifest) if path), None)
            with reading(run / "manifest.json", "inputs with a path each", "train the run again"):
                recorded = {entry["path"]: entry for entry in manifest.get("inputs") or ()}
                reference = {"sha256": None, **recorded.get(start, {"path": start})}
        if not isinstance(reference["path"], str):
            raise InputError(
                f"the model that {run} started from is not known (no part of its manifest.json says starts_from), so "
                "neither are its weights; give a model folder, or leave others out"
            )
        if reference["sha256"] is not None and describe_input(reference["path"])["sha256"] != reference["sha256"]:
            raise InputError(
                f"{reference['path']} is missing or has changed since the run counted from it (another sha256), so the "
                "update would not be from the same weights; put it back"
            )
        return reference["path"]

    def _shapes_of_weights(self) -> dict[str, tuple[int, ...]]:
        """Put the shapes of weights together from those of what is stored."""
        stored, whole = self._file.shapes, {}
        for name, shape in stored.items():
            if name.removesuffix(LEFT).removesuffix(RIGHT) == name:
                whole[name] = shape
        for name in self._scales:
            (rows, rank), (inner, columns) = stored[name + LEFT], stored[name + RIGHT]
            if rank != inner:
                raise ValueError(f"the factors of {name} have ranks {rank} and {inner}")
            whole[name] = (rows, columns)
        return whole


def _numbers(by_name: Any) -> dict[str, float]:
    """Check that texts are mapped to finite numbers."""
    if not all(math.isfinite(value) for value in by_name.values()):
        raise ValueError("a number in its header is not finite")
    return dict(by_name)


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the file of a step; names sort as steps do."""
    return folder / f"step={step:08d}.safetensors"


def snapshot_files(folder: Path) -> list[Path]:
    """Return the snapshot files in a folder, by step."""
    files = [path for path in folder.glob("step=*.safetensors") if FILE_NAME.fullmatch(path.name)]
    return sorted(files, key=lambda path: int(FILE_NAME.fullmatch(path.name)[1]))  # type: ignore[index]


def open_snapshots(folder: Path) -> list[Snapshot]:
    """Open all snapshots of a run, by step.

    Raises:
        InputError: There is none, one is damaged, or two differ in their weights, shapes or reference.
    """
    snapshots = [Snapshot(path) for path in snapshot_files(folder)]
    if not snapshots:
        raise InputError(
            f"{folder} holds no snapshot (step=….safetensors); train with "
            "--trainer.callbacks+=callbacks.WeightDeltaSnapshot"
        )
    first = snapshots[0]
    for other in snapshots[1:]:
        if other.facts.get("reference") != first.facts.get("reference"):
            raise InputError(f"{other.path.name} and {first.path.name} count from different references; keep one kind")
        if other.shapes != first.shapes:
            raise InputError(f"{other.path.name} and {first.path.name} are not of the same weights; keep one kind")
    return snapshots
