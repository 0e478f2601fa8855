"""Snapshots of a run's weight update on disk: one ``.safetensors`` for a step, read and written one tensor at a time.

An update is kept dense under the weight's name, or in factors as ``<name>.left`` and ``<name>.right`` with a scale:
what LoRA trains, or the leading directions of a compressed one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open

from safety_subspaces.algebra.update import LEFT, RIGHT, DenseUpdate, FactorUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensor_stream import TensorStream

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
        # Room for either form: how an update is kept is known when it comes.
        slots: dict[str, Sequence[int]] = dict(shapes)
        for name, shape in shapes.items():
            if len(shape) == 2:
                slots |= {name + LEFT: (shape[0], max(shape)), name + RIGHT: (max(shape), shape[1])}
        room = len(json.dumps(self._header())) + sum(2 * len(name) + METADATA_PER_TENSOR for name in shapes)
        self._stream = TensorStream(path, slots, dtype, room)

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
        self._stream.metadata = self._header()
        if self.failure is None:
            self._attempt(partial(self._stream.__exit__, kind, error, trace))

    def _attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.failure = error
            with suppress(OSError):  # the first error is the one to tell
                self._stream.discard()

    def _header(self) -> dict[str, str]:
        return {"snapshot": json.dumps({**self._facts, "scales": self._scales, "lost_energy": self._lost}, default=str)}


@final
class Snapshot:
    """A snapshot on disk, its tensors unread.

    Attributes:
        path: The file.
        step: Optimizer steps that the update is the sum of.
        facts: What the header says.
        lost_energy: Share of each weight's energy that a compression has left out; a weight that lost none is absent.

    Args:
        path: The file.

    Raises:
        InputError: The file is damaged, or something else than a snapshot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or cut short ({error}); remove it") from error
        self.facts: dict[str, Any] = json.loads((self._file.metadata() or {}).get("snapshot", "{}"))
        if self.facts.get("kind") != KIND:
            raise InputError(f"{path} is no snapshot of a weight update; callbacks.WeightDeltaSnapshot writes them")
        self.step = int(self.facts["step"])
        self.lost_energy: dict[str, float] = self.facts["lost_energy"]
        self._scales: dict[str, float] = self.facts["scales"]
        self._dense = [name for name in self._file.keys() if name.removesuffix(LEFT).removesuffix(RIGHT) == name]  # noqa: SIM118

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights."""
        return (*self._dense, *self._scales)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        if name not in self._scales:
            return tuple(self._file.get_slice(name).get_shape())
        left, right = (self._file.get_slice(name + part).get_shape() for part in (LEFT, RIGHT))
        return left[0], right[1]

    def read(self, name: str) -> Update:
        """Read the update of one weight."""
        if name not in self._scales:
            return DenseUpdate(self._file.get_tensor(name))
        left, right = (self._file.get_tensor(name + part) for part in (LEFT, RIGHT))
        return FactorUpdate(left, right, self._scales[name])


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the file of a step; names sort as steps do."""
    return folder / f"step={step:08d}.safetensors"


def snapshot_files(folder: Path) -> list[Path]:
    """Return the snapshot files in a folder, by step."""
    found = [path for path in folder.glob("step=*.safetensors") if FILE_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(FILE_NAME.fullmatch(path.name)[1]))  # type: ignore[index]


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
        shapes = [{name: snapshot.shape(name) for name in snapshot.names} for snapshot in (first, other)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{other.path.name} and {first.path.name} are not of the same weights; keep one kind")
    return snapshots
