"""The subspace that a callback of a run works with: a file, or made once of two models and kept with the run."""

from pathlib import Path

import lightning as L

from safety_subspaces.analysis.subspace import cached_subspace
from safety_subspaces.errors import InputError
from safety_subspaces.subspace import RankRule
from safety_subspaces.subspace_file import Side, SubspaceFile, open_subspace, read_subspace


def check_source(who: str, subspace: str | None, base: str | None, aligned: str | None, rank: RankRule | None) -> None:
    """Refuse anything but a file alone, or two models and a rank.

    Raises:
        InputError: Both were given, or a part is missing.
    """
    pair = (base, aligned, rank)
    if (subspace is None) == all(part is None for part in pair) or (subspace is None and None in pair):
        raise InputError(f"{who} needs either a subspace file, or all of base, aligned and rank")


def read_run_subspace(
    trainer: L.Trainer,
    cached: Path,
    subspace: str | None,
    base: str | None,
    aligned: str | None,
    rank: RankRule | None,
    side: Side,
) -> SubspaceFile:
    """Read the file, or make it on rank zero at ``cached``; all ranks must call it together.

    Raises:
        InputError: A file that is missing or is no subspace file, or models that do not fit each other.
    """
    return read_subspace(_file_of(trainer, cached, subspace, base, aligned, rank, side))


def find_run_subspace(
    trainer: L.Trainer,
    cached: Path,
    subspace: str | None,
    base: str | None,
    aligned: str | None,
    rank: RankRule | None,
    side: Side,
) -> SubspaceFile:
    """Open the file as :func:`read_run_subspace` reads it, its bases left on disk until they are taken.

    Raises:
        InputError: As there.
    """
    return open_subspace(_file_of(trainer, cached, subspace, base, aligned, rank, side))


def _file_of(
    trainer: L.Trainer,
    cached: Path,
    subspace: str | None,
    base: str | None,
    aligned: str | None,
    rank: RankRule | None,
    side: Side,
) -> str:
    if subspace is not None:
        return subspace
    assert base is not None
    assert aligned is not None
    assert rank is not None
    if trainer.is_global_zero:
        cached_subspace(cached, base, aligned, rank, side)
    trainer.strategy.barrier("subspace")
    return str(cached)
