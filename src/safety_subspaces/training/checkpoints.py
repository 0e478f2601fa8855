"""Checkpoints that are whole or not there: written beside their name, named when complete, checked when read."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.files import exchange, replacing, write_json

# What ModelCheckpoint calls those of our configurations, with the number that Lightning adds where one is in the way.
NAME = re.compile(r"step=(\d+)(?:-v(\d+))?\.ckpt")
# Of a checkpoint that is a folder: the files that it consists of, written when all ranks have written theirs.
COMPLETE = "complete.json"


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a file that is on the disk before it has its name."""
    import torch  # a run folder is looked at without the seconds of its import

    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def step_of(path: Path) -> tuple[int, int] | None:
    """Return the optimizer step that a checkpoint's name says, with its version; ``None`` for a name not of ours."""
    name = NAME.fullmatch(path.name)
    return (int(name[1]), int(name[2] or 0)) if name else None


def partial_folder(path: Path) -> Path:
    """Return the name beside a checkpoint under which all ranks write a folder; one rank says it to the others."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def name_folder(partial: Path, path: Path) -> None:
    """Mark a folder that all ranks have written to as complete, and give it its name; on one rank."""
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    write_json(partial / COMPLETE, {str(file.relative_to(partial)): file.stat().st_size for file in files})
    if os.path.lexists(path):
        exchange(partial, path)
        remove(partial)
    else:
        partial.rename(path)


def remove(path: Path) -> None:
    """Remove a checkpoint, its name first."""
    leaving = path.with_name(f".{path.name.lstrip('.')}.removed.partial-{os.getpid()}")
    path.rename(leaving)
    if leaving.is_dir() and not leaving.is_symlink():
        shutil.rmtree(leaving)
    else:
        leaving.unlink()


def flaw_of(path: Path) -> str | None:
    """Return why a checkpoint cannot be gone on from, or ``None`` for a whole one; it reads all of it."""
    if not path.is_dir():
        return _flaw_of_file(path)
    if not (path / COMPLETE).is_file():
        return f"it has no {COMPLETE}, so that not all ranks have written their part"
    try:
        sizes = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        files = {path / name: int(size) for name, size in sizes.items()}
    except (ValueError, AttributeError, TypeError, OSError):
        return f"its {COMPLETE} is damaged"
    if not all(file.resolve().is_relative_to(path.resolve()) for file in files):
        return f"its {COMPLETE} names files that lie elsewhere"
    for file, size in files.items():
        if not file.is_file():
            return f"{file.relative_to(path)} is missing"
        if file.stat().st_size != size:
            return f"{file.relative_to(path)} has {file.stat().st_size} bytes of {size}"
    flaws = ((file, _flaw_of_file(file)) for file in files if file.suffix == ".pt")
    return next((f"{file.relative_to(path)}: {flaw}" for file, flaw in flaws if flaw), None)


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of our names in a folder, whole or not."""
    named = [(step, path) for path in folder.glob("*.ckpt") if (step := step_of(path)) is not None]
    return [path for _, path in sorted(named, reverse=True)]


def _flaw_of_file(path: Path) -> str | None:
    """Read a file of torch.save to its end, against the sums that it holds itself: torch.load does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        return f"it is damaged or was cut short ({error})"
    return f"it is damaged in {damaged}" if damaged else None
