"""What a constraint needs, stored with the run: bases, and the weights that the update is measured from.

After a resume the constraint is still anchored to the weights of the first start; and what was exported can be measured
against it again, in the type that it was exported in.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.factors import as_matrix
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import write_json
from safety_subspaces.artefacts.provenance import sha256_of_file
from safety_subspaces.artefacts.tensors import TYPES, TensorFile, stream_tensors
from safety_subspaces.constraint.collectives import gather_objects
from safety_subspaces.constraint.master import MasterWeight
from safety_subspaces.constraint.matrix import Mode, Piece, rounding_floor, update_energies
from safety_subspaces.constraint.targets import Target
from safety_subspaces.weights.update_checkpoint import AdapterCheckpoint, open_checkpoint

REFERENCE, BASIS = ".reference", ".basis"
LEAKAGE_FILE = "leakage.json"


@dataclass(frozen=True)
class HeldLeakage:
    """How much of an exported update lies where a constraint forbids it.

    Args:
        mode: The constraint's mode.
        dtype: Type of the exported weights.
        leakage: Forbidden share of the update's energy, 0 to 1, measured in float64 on what is on disk.
        rounding_floor: Share that float32 rounding of the weights explains.
    """

    mode: Mode
    dtype: str
    leakage: float
    rounding_floor: float

    def __str__(self) -> str:
        return (
            f"{self.mode}: {self.leakage:.2g} of the update's energy is forbidden in {self.dtype} "
            f"(rounding of float32 explains {self.rounding_floor:.2g})"
        )


def save_held(path: Path, targets: Sequence[Target], masters: Sequence[MasterWeight], mode: Mode, writes: bool) -> str:
    """Write bases and reference weights, one tensor at a time; all ranks must call it together.

    Args:
        path: The file, in the run's ``constraint/``.
        targets: The constrained parameters.
        masters: Their masters; a LoRA factor counts from zero and has no reference.
        mode: The constraint's mode.
        writes: Whether this rank is the one that writes.

    Returns:
        The file's SHA-256, on all ranks.
    """
    full = {f"{target.name}{REFERENCE}": master for target, master in _counted(targets, masters)}
    bases = {f"{target.name}{BASIS}": target.basis for target in targets}
    shapes = {name: tuple(master.shape) for name, master in full.items()}
    shapes |= {name: tuple(basis.shape) for name, basis in bases.items()}
    sides = {
        "transposed": [target.name for target in targets if target.side == "right"],
        "turned": [target.name for target in targets if target.turned],
    }

    def read(name: str) -> Tensor:
        return full[name].whole() if name in full else bases[name]

    return store_tensors(path, shapes, read, writes, header={"mode": mode, **sides})


def store_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    writes: bool,
    dtype: torch.dtype = torch.float32,
    header: Mapping[str, Any] | None = None,
) -> str:
    """Write the tensors that a run measures its update from by :func:`stream_tensors`, where this rank ``writes``.

    All ranks must call it together. Returns the file's SHA-256, on all ranks.
    """
    stream_tensors(path if writes else None, shapes, read, dtype, header)
    return gather_objects(sha256_of_file(path) if writes else None)[0]


def check_held(path: Path, sha256: str, targets: Sequence[Target], checks: bool) -> None:
    """Check the file of a resumed run's constraint, as :func:`check_stored` does."""
    check_stored(path, sha256, [f"{target.name}{REFERENCE}" for target in targets if target.partner is None], checks)


def check_stored(path: Path, sha256: str, stored: Sequence[str], checks: bool) -> None:
    """Check the file that a resumed run measures its update from; all ranks must call it together.

    Args:
        path: The file.
        sha256: The hash that it had when the run started.
        stored: Names of tensors that it has to hold.
        checks: Whether this rank is the one that reads it.

    Raises:
        InputError: On every rank: the file is missing, is not the one that the run started with, or lacks a tensor.
    """
    (problem, *_) = gather_objects(_problem_of(path, sha256, stored) if checks else None)
    if problem:
        raise InputError(problem)


def read_reference(file: TensorFile, target: Target, piece: Piece) -> Float[Tensor, " length"]:
    """Read a rank's piece of a reference weight."""
    whole = file.read(f"{target.name}{REFERENCE}")
    return whole.reshape(-1)[piece.start : piece.start + piece.length].clone()


def write_leakage(model: Path, constraints: Path) -> list[HeldLeakage]:
    """Measure an exported model against each constraint of its run, and write ``leakage.json`` beside the weights.

    Args:
        model: Folder of the exported model or adapter.
        constraints: The run's ``constraint/``; nothing is written if it holds none.
    """
    measured = [_measure(model, path) for path in sorted(constraints.glob("held-*.safetensors"))]
    if measured:
        write_json(model / LEAKAGE_FILE, [vars(leakage) for leakage in measured])
    return measured


def read_leakage(model: Path) -> tuple[HeldLeakage, ...]:
    """Return what :func:`write_leakage` has measured of an exported model: nothing of one without a constraint."""
    path = model / LEAKAGE_FILE
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return tuple(HeldLeakage(**entry) for entry in entries)


def _counted(targets: Sequence[Target], masters: Sequence[MasterWeight]) -> Iterator[tuple[Target, MasterWeight]]:
    return ((t, m) for t, m in zip(targets, masters, strict=True) if t.partner is None)


def _problem_of(path: Path, sha256: str, stored: Sequence[str]) -> str | None:
    if not path.is_file():
        return f"{path} is missing: the run has lost what its update is counted from; start a new run"
    if sha256_of_file(path) != sha256:
        return f"{path} is not the file that this run started with; restore it or start a new run"
    names = TensorFile(path).shapes
    missing = [name for name in stored if name not in names]
    return f"{path} lacks {len(missing)} tensors, {missing[0]} first; start a new run" if missing else None


def _measure(model: Path, path: Path) -> HeldLeakage:
    """Compare the weights on disk with a constraint, in float64."""
    checkpoint = open_checkpoint(str(model))
    energies, weights = torch.zeros(2, dtype=torch.float64), 0.0
    file = TensorFile(path)
    mode, transposed, turned = file.header["mode"], set(file.header["transposed"]), set(file.header.get("turned", ()))
    for name in (stored.removesuffix(BASIS) for stored in sorted(file.shapes) if stored.endswith(BASIS)):
        if isinstance(checkpoint, AdapterCheckpoint):
            factors = checkpoint.update(name)
            weight = update = torch.zeros(checkpoint.shape(name)) if factors is None else factors.dense()
            weight = update = update.double()
        else:
            weight = checkpoint.read(name).double()
            start = file.read(f"{name}{REFERENCE}").double()  # as the run keeps it
            update = weight - (start.T if name in turned else start)
        matrix = as_matrix(update)
        constrained = matrix.T if name in transposed else matrix
        energies += update_energies(file.read(f"{name}{BASIS}"), mode, constrained)
        weights += float(weight.square().sum())
    forbidden, whole = energies.tolist()
    share = forbidden / whole if whole > 0 else 0.0
    return HeldLeakage(mode, _dtype_of(model), share, rounding_floor(weights**0.5, whole**0.5))


def _dtype_of(model: Path) -> str:
    stored = TensorFile(min(model.glob("*.safetensors")))
    return str(TYPES[next(iter(stored.types.values()))]).removeprefix("torch.")
