"""Writing so that nothing is lost: every file and folder appears under its name only when it is whole."""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError

PARTIAL = re.compile(r"\..+\.partial-\d+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _open_to_mask([partial])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Tell whether a file is what a killed process left of one that it was writing."""
    return PARTIAL.fullmatch(path.name) is not None


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or not there."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as :func:`write_text` does; what JSON does not know (paths, enums) is written as text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}); remove or mend it") from error


def is_occupied(folder: Path) -> bool:
    """Tell whether a folder exists and holds anything."""
    return folder.is_dir() and any(folder.iterdir())


def check_free(target: Path, overwrite: bool = False) -> None:
    """Check that a folder may be made or replaced.

    Raises:
        InputError: ``target`` is a file, or holds something and ``overwrite`` is false.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, expected a folder to write to; choose another name")
    if is_occupied(target) and not overwrite:
        raise InputError(
            f"{target} already holds results, which are not written over; "
            "choose another folder, move it away, or say --overwrite true"
        )


@contextmanager
def replacing_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that takes its name when the block ends without an error.

    Args:
        target: The folder to make.
        overwrite: Whether a non-empty ``target`` may be replaced; it stays until the new one is whole.

    Raises:
        InputError: ``target`` is a file, or holds something and ``overwrite`` is false.
    """
    check_free(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{target} cannot be made: a part of its path is a file; choose another folder") from error
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _open_to_mask(partial.rglob("*"))
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_to_mask(files: Iterable[Path]) -> None:
    """Let files be read by whom the user's mask lets: the library of safetensors makes them for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in files:
        if file.is_file() and not file.is_symlink():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | 0o666 & ~mask)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")
