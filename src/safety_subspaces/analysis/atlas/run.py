"""The steps of ``analyze.py atlas``: the models of each seed, the choices it goes through, and what it refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.atlas.tensors import ALIGNMENT, Choice, SeedModels
from safety_subspaces.analysis.work import Record
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model_paths import check_distinct
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.compatibility import (
    check_compatible,
    coverage,
)
from safety_subspaces.weights.delta import warn_of_foreign_bases

PLACEHOLDER = "{seed}"


GIVEN = "given"  # what the tables call the seed of paths that are taken as they are


def expand_seeds(base: str, aligned: str, tuned: Mapping[str, str], seeds: Sequence[int]) -> tuple[SeedModels, ...]:
    """Return the models of each seed.

    Raises:
        InputError: A path has a place for a seed and there is none, or has none and there are several; or a seed was
            given twice.
    """
    paths = {"base": base, "aligned": aligned, **{f"tuned.{label}": path for label, path in tuned.items()}}
    if len(set(seeds)) < len(seeds):
        raise InputError(f"a seed was given twice: {list(seeds)}")
    for what, path in paths.items():
        if PLACEHOLDER in path and not seeds:
            raise InputError(f"{what} is {path}, and no seeds were given to stand for {PLACEHOLDER}; say --seeds [0,1]")
        if PLACEHOLDER not in path and len(seeds) > 1:
            raise InputError(
                f"{what} is {path}, one model for {len(seeds)} seeds; expected a path with {PLACEHOLDER} in the place "
                "of the seed"
            )
    if not seeds:
        return (SeedModels(GIVEN, base, aligned, dict(tuned)),)
    models = []
    for one in map(str, seeds):
        fine_tunes = {label: path.replace(PLACEHOLDER, one) for label, path in tuned.items()}
        models.append(SeedModels(one, base.replace(PLACEHOLDER, one), aligned.replace(PLACEHOLDER, one), fine_tunes))
    return tuple(models)


def check_labels(tuned: Mapping[str, str], floors: Sequence[Sequence[str]]) -> None:
    """Check labels, and that floors are pairs of them.

    Raises:
        InputError: None was given, or one is unknown or reserved.
    """
    if not tuned:
        raise InputError("no fine-tune was given; expected at least one label and folder (--tuned.useful FOLDER)")
    if ALIGNMENT in tuned:
        raise InputError(f"{ALIGNMENT!r} is what the audit calls the update of the aligned model; take another label")
    for pair in floors:
        if len(pair) != 2 or len(set(pair)) != 2:
            raise InputError(f"a floor is a pair of different labels, got {list(pair)}")
        for label in pair:
            if label not in tuned:
                raise InputError(
                    f"floor {list(pair)} names {label!r}, which is no fine-tune; expected two of {', '.join(tuned)}"
                )


def list_choices(fractions: Sequence[float], energies: Sequence[float], counts: Sequence[int]) -> tuple[Choice, ...]:
    """Return the rank rules with their values, as they are asked for.

    Raises:
        InputError: None was given, one twice, or one is out of range.
    """
    for values in (fractions, energies, counts):
        if len(set(values)) < len(values):
            raise InputError(f"a rank was given twice: {list(values)}")
    for fraction in fractions:
        RankRule(fraction=fraction)  # raises outside (0, 1)
    for energy in energies:
        RankRule(energy=energy)  # raises outside (0, 1]
    for count in counts:
        RankRule(count=count)  # raises below 1
    choices = [Choice("fraction", value) for value in fractions]
    choices += [Choice("energy", value) for value in energies]
    choices += [Choice("count", value) for value in counts]
    if not choices:
        raise InputError("no rank was given; expected at least one of fractions, energies or counts")
    return tuple(choices)


def check_models(models: Sequence[SeedModels], opened: Mapping[str, Checkpoint]) -> Checkpoint:
    """Check that all can be compared, and return the first aligned model."""
    origin = opened[models[0].aligned]
    check_compatible(origin, *(checkpoint for checkpoint in opened.values() if checkpoint is not origin))
    for one in models:
        labelled = {label: opened[path] for label, path in one.tuned.items()}
        check_distinct(one.base, one.aligned, one.tuned)
        warn_of_foreign_bases(opened[one.aligned], labelled)
    return origin


def check_updates(audit: Sequence[Mapping[str, Any]], models: Sequence[SeedModels]) -> None:
    """Refuse an update that is zero everywhere: every number of it would be missing."""
    moved = {(row["seed"], row["update"]) for row in audit if row["numerical_rank"]}
    for one in models:
        for label, path in {ALIGNMENT: one.aligned, **one.tuned}.items():
            start = one.base if label == ALIGNMENT else one.aligned
            if audit and (one.seed, label) not in moved:
                raise InputError(
                    f"{path} ({label}) has the weights of {start} in every tensor that was compared: there is no update"
                )


def left_out(
    records: Mapping[str, Record],
    models: Sequence[SeedModels],
    opened: Mapping[str, Checkpoint],
    names: Sequence[str],
) -> list[dict[str, str]]:
    """Return what could not be compared, with the reason."""
    listed: dict[str, Checkpoint] = {}
    for one in models:
        prefix = f"seed {one.seed}, " if len(models) > 1 else ""
        for label, path in {"base": one.base, "aligned": one.aligned, **one.tuned}.items():
            listed[prefix + label] = opened[path]
    return [*coverage(listed, names), *(row for record in records.values() for row in record["left_out"])]
