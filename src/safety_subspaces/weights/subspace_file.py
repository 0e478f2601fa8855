"""Subspaces on disk: one ``.safetensors`` of bases and spectra by tensor name, with what they were made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.choices import Side
from safety_subspaces.algebra.factors import check_orthonormal
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensors import StoredTensors, TensorFile, stream_tensors
from safety_subspaces.weights.subspace_path import check_subspace_there

BASIS, SPECTRUM = ".basis", ".singular_values"


@dataclass(frozen=True)
class Subspace:
    """Directions in the space of a model's weights: a basis for each tensor.

    Args:
        bases: Orthonormal columns by canonical tensor name: of output space (left) or input space (right).
        spectra: Singular values of the update that each basis came from, descending.
        side: Which space the bases are of.
        provenance: What the file was made from, as plain values.
    """

    bases: Mapping[str, Float32[Tensor, "dim rank"]]
    spectra: dict[str, Float64[Tensor, " directions"]] = field(default_factory=dict)
    side: Side = "left"
    provenance: dict[str, Any] = field(default_factory=dict)


def write_subspace(path: Path, subspace: Subspace) -> None:
    """Write a subspace file, one tensor at a time."""
    parts: dict[str, tuple[Mapping[str, Tensor], str]] = {}
    for name in dict.fromkeys([*subspace.bases, *subspace.spectra]):
        for suffix, tensors in ((BASIS, subspace.bases), (SPECTRUM, subspace.spectra)):
            if name in tensors:
                parts[f"{name}{suffix}"] = tensors, name
    shapes = {stored: tuple(tensors[name].shape) for stored, (tensors, name) in parts.items()}
    types = {stored: torch.float32 if stored.endswith(BASIS) else torch.float64 for stored in parts}
    header = {"side": subspace.side, "provenance": subspace.provenance}
    stream_tensors(path, shapes, lambda stored: parts[stored][0][parts[stored][1]], types, header)


def read_subspace(path: str) -> Subspace:
    """Read a subspace file and check its bases.

    Raises:
        InputError: No such file, no subspace file, or a basis that is not finite and orthonormal (named).
    """
    opened = open_subspace(path)
    return replace(opened, bases=dict(opened.bases))


def open_subspace(path: str) -> Subspace:
    """Open a subspace file and check its bases; they stay on disk, and are read when they are taken.

    Raises:
        InputError: As :func:`read_subspace`.
    """
    check_subspace_there(path)
    file = TensorFile(Path(path), remedy="make it again with python analyze.py subspace")
    if file.header.get("side") not in ("left", "right"):
        raise InputError(f"{path} is no subspace file (it names no side); make one with python analyze.py subspace")
    bases = StoredTensors({name.removesuffix(BASIS): (file, name) for name in file.shapes if name.endswith(BASIS)})
    for name, shape in file.shapes.items():
        if len(shape) != {BASIS: 2, SPECTRUM: 1}.get(name[name.rfind(".") :], len(shape)):
            raise InputError(
                f"{path} holds {name} of shape {shape}; expected bases as matrices and spectra as vectors: make it "
                "again with python analyze.py subspace"
            )
    for name, basis in bases.items():
        check_orthonormal(basis, f"{name} in {path}")
    spectra = {name.removesuffix(SPECTRUM): file.read(name) for name in file.shapes if name.endswith(SPECTRUM)}
    origin = file.header.get("provenance", {})
    return Subspace(bases, spectra, file.header["side"], origin if isinstance(origin, dict) else {})
