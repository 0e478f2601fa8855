"""Subspaces on disk: one ``.safetensors`` of bases and spectra by tensor name, with what they were made from."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jaxtyping import Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safety_subspaces.algebra.factors import check_orthonormal
from safety_subspaces.algebra.subspace import Side
from safety_subspaces.artefacts.errors import InputError

BASIS, SPECTRUM = ".basis", ".singular_values"


@dataclass(frozen=True)
class SubspaceFile:
    """Bases by canonical tensor name.

    Args:
        bases: Orthonormal columns of each tensor's subspace: of output space (left) or input space (right).
        spectra: Singular values of the update that each basis came from, descending.
        side: Which space the bases are of.
        provenance: What the file was made from, as plain values.
    """

    bases: Mapping[str, Float32[Tensor, "dim rank"]]
    spectra: dict[str, Float64[Tensor, " directions"]]
    side: Side
    provenance: dict[str, Any]


def write_subspace(path: Path, subspace: SubspaceFile) -> None:
    """Write a subspace file under a temporary name, then rename it."""
    tensors = {f"{name}{BASIS}": basis.contiguous() for name, basis in subspace.bases.items()}
    tensors |= {f"{name}{SPECTRUM}": values.contiguous() for name, values in subspace.spectra.items()}
    metadata = {"side": subspace.side, "provenance": json.dumps(subspace.provenance, default=str)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_subspace(path: str) -> SubspaceFile:
    """Read a subspace file and check its bases.

    Raises:
        InputError: No such file, no subspace file, or a basis that is not finite and orthonormal (named).
    """
    opened = open_subspace(path)
    return replace(opened, bases=dict(opened.bases))


def open_subspace(path: str) -> SubspaceFile:
    """Open a subspace file and check its bases; they stay on disk, and are read when they are taken.

    Raises:
        InputError: As :func:`read_subspace`.
    """
    if not Path(path).is_file():
        raise InputError(f"subspace file {path} does not exist; make it with python analyze.py subspace")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata, names = stored.metadata() or {}, list(stored.keys())
            spectra = {name.removesuffix(SPECTRUM): stored.get_tensor(name) for name in names if SPECTRUM in name}
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file: {error}") from error
    if metadata.get("side") not in ("left", "right"):
        raise InputError(f"{path} is no subspace file (it names no side); make one with python analyze.py subspace")
    bases = StoredBases(path, [name.removesuffix(BASIS) for name in names if name.endswith(BASIS)])
    for name, basis in bases.items():
        check_orthonormal(basis, f"{name} in {path}")
    side: Side = "left" if metadata["side"] == "left" else "right"
    return SubspaceFile(bases, spectra, side, json.loads(metadata.get("provenance", "{}")))


@final
class StoredBases(Mapping[str, Tensor]):
    """The bases of a subspace file, read from disk one at a time; nothing of them stays in memory.

    Args:
        path: The file.
        names: The tensors that it has a basis of.
    """

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._path, self._names = path, dict.fromkeys(names)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each basis, unread."""
        with safe_open(self._path, framework="pt") as stored:
            shapes = {name: stored.get_slice(f"{name}{BASIS}").get_shape() for name in self._names}
        return {name: (shape[0], shape[1]) for name, shape in shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, framework="pt") as stored:
            return stored.get_tensor(f"{name}{BASIS}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
