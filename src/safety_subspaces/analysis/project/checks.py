"""What ``analyze.py project`` refuses before anything is computed."""

from collections.abc import Mapping, Sequence

import torch

from safety_subspaces.analysis.project.tables import (
    Sweep,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.subspace_file import open_subspace


def check_basis(path: str, aligned: Checkpoint, names: Sequence[str], fractions: Sequence[float]) -> None:
    """Check that a subspace file is of these tensors and holds as many directions as will be asked for.

    Raises:
        InputError: It does not, or is of the right side, or of directions drawn at random.
    """
    stored = open_subspace(path)
    shapes = {name: tuple(basis.shape) for name, basis in stored.bases.items()}
    if stored.side != "left" or stored.provenance.get("select", "top") != "top":
        raise InputError(
            f"{path} holds a {stored.side} subspace selected by {stored.provenance.get('select', 'top')}; expected the "
            "leading left directions: make one with python analyze.py subspace --side left --select top"
        )
    unknown = [name for name in stored.bases if name not in aligned.names]
    if unknown:
        raise InputError(f"{path} holds a basis of {unknown[0]}, which {aligned.path} does not have")
    for name in names:
        shape = aligned.shape(name)
        shape = shape if len(shape) == 2 else (torch.Size(shape).numel(), 1)
        basis_shape, directions = shapes.get(name, (shape[0], 0)), len(stored.spectra.get(name, ()))
        if basis_shape[0] != shape[0]:
            raise InputError(
                f"{path} holds a basis of {name} with {basis_shape[0]} rows, {aligned.path} has {shape[0]}"
            )
        wanted = min(directions, max(1, round(max(fractions) * min(shape))))
        if basis_shape[1] < wanted:
            raise InputError(
                f"{path} holds {basis_shape[1]} directions of {name}, fraction {max(fractions):g} needs {wanted}; "
                "make it with a larger --rank, or ask for smaller fractions"
            )


def check_updates(sweep: Sweep, base: Checkpoint, aligned: Checkpoint, tuned: Mapping[str, Checkpoint]) -> None:
    """Refuse models that are copies of one another: no number of such a pair would have a meaning."""
    if sweep.alignment_energy == 0:
        raise InputError(f"{base.path} and {aligned.path} have the same weights: there is no alignment update")
    for label, checkpoint in tuned.items():
        if sweep.total(label) == 0:
            raise InputError(f"{checkpoint.path} ({label}) has the weights of {aligned.path}: there is no update")
