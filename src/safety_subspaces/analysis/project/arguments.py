"""What ``analyze.py project`` refuses by its arguments alone, before what reads models is imported."""

from collections.abc import Mapping, Sequence

from safety_subspaces.algebra.choices import Controls, Method, RankRule, SubspaceKind, of_chance
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import check_labels
from safety_subspaces.evaluation.settings import EvaluationSettings

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
