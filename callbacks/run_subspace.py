"""The subspace that a callback of a run works with: a file, or made once of two models and kept with the run."""

from pathlib import Path

import lightning as L

from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.analysis.subspace.command import cached_subspace
from safety_subspaces.artefacts.errors import InputError


def check_source(who: str, subspace: str | None, base: str | None, aligned: str | None, rank: RankRule | None) -> None:
    """Refuse anything but a file alone, or two models and a rank.

    Raises:
        InputError: Both were given, or a part is missing.
    """
    pair = (base, aligned, rank)
    if (subspace is None) == all(part is None for part in pair) or (subspace is None and None in pair):
        raise InputError(f"{who} needs either a subspace file, or all of base, aligned and rank")


def run_subspace_file(
    trainer: L.Trainer,
    cached: Path,
    subspace: str | None,
    base: str | None,
    aligned: str | None,
    rank: RankRule | None,
    side: Side,
) -> str:
    """Return the file, made on rank zero at ``cached`` where none was given; all ranks must call it together.

    Raises:
        InputError: Models that cannot be read, or do not fit each other.
    """
    if subspace is not None:
        return subspace
    assert base is not None
    assert aligned is not None
    assert rank is not None
    if trainer.is_global_zero:
        cached_subspace(cached, base, aligned, rank, side)
    trainer.strategy.barrier("subspace")
    return str(cached)
