"""Writing so that nothing is lost: every file and folder appears under its name only when it is whole."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import in_short, parse_json, reading

PARTIAL = re.compile(r"\..+\.partial-\d+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds values by name, as all of ours do.

    Raises:
        InputError: The file is missing or something else.
    """
    with reading(path, "a file of JSON values by name", "remove or mend it"):
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({in_short(error)}); remove or mend it") from error
        if not isinstance(value, dict):
            raise InputError(f"{path} holds a {type(value).__name__}; expected JSON values by name: remove or mend it")
        return value


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
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")
