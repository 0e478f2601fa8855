"""What ``analyze.py project`` refuses before anything is computed."""

from collections.abc import Mapping, Sequence

import torch

from safety_subspaces.algebra.choices import Controls, Method, RankRule, SubspaceKind
from safety_subspaces.algebra.projection import of_chance
from safety_subspaces.analysis.project.tables import (
    Sweep,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import check_labels
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.subspace_file import open_subspace

SUBSPACES: tuple[SubspaceKind, ...] = ("top", "random", "random-k", "random-energy", "scaled")
METHODS: tuple[Method, ...] = ("onto", "away", "opposite")


def check_arguments(
    tuned: Mapping[str, str],
    subspaces: Sequence[str],
    methods: Sequence[str],
    fractions: Sequence[float],
    draws: int,
    energy_draws: int,
) -> None:
    """Check labels, kinds, methods, fractions and draws.

    Raises:
        InputError: One is missing, unknown or out of range.
    """
    if not tuned:
        raise InputError("no fine-tune was given; expected at least one label and folder (--tuned.useful FOLDER)")
    check_labels(tuned)
    for what, got, known in (("subspace", subspaces, SUBSPACES), ("method", methods, METHODS)):
        unknown = [value for value in got if value not in known]
        if unknown or not got:
            raise InputError(f"unknown {what} {unknown[0] if unknown else '(none given)'}; expected {', '.join(known)}")
    if not fractions:
        raise InputError("no fraction was given; expected at least one between 0 and 1")
    for fraction in fractions:
        RankRule(fraction=fraction)  # raises outside (0, 1)
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if energy_draws < 0:
        raise InputError(f"energy_draws must be 0 or more, got {energy_draws}")


def check_models(
    controls: Controls,
    subspaces: Sequence[SubspaceKind],
    tensors: Sequence[str],
    write: bool,
    evaluate: EvaluationSettings | None,
) -> None:
    """Check that the models that are written or evaluated exist: of single draws, and of every tensor.

    Raises:
        InputError: They do not.
    """
    if controls not in ("sampled", "closed"):
        raise InputError(f"controls is {controls!r}; expected sampled or closed")
    if not (write or evaluate):
        return
    random = of_chance(subspaces)
    if controls == "closed" and random:
        raise InputError(
            f"controls are in closed form, so that {random[0]} has no draw whose model could be written or evaluated; "
            "say --controls sampled, or leave the random subspaces out"
        )
    if tensors:
        raise InputError("a model of some tensors cannot be written or evaluated; leave --tensors out")


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
