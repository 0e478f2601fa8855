"""Writing so that nothing is lost: every file and folder appears under its name only when it is whole.

What is under way has a hidden name beside the one that it will get. A process that is killed leaves it there; the next
one that takes the name finds that nobody holds it, and takes it away.
"""

import ctypes
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import in_short, parse_json, reading

logger = logging.getLogger(__name__)

PARTIAL = re.compile(r"\..+\.partial-\d+")
# What an interrupted analysis has done so far is kept beside its result, under this name.
UNFINISHED = ".{}.unfinished"
KEY_FILE = "key.json"
RESULT_FILE = "result.json"

# Seconds that a name is waited for: whoever only looks at it lets go sooner.
MOMENT = 1.0
AT_CURRENT_FOLDER = -100  # AT_FDCWD of renameat2(2)
EXCHANGE = 2  # RENAME_EXCHANGE


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as held:
            with suppress(OSError):  # a file system without locks: nobody will take it for a killed process's
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
            _open_to_mask([partial])
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Tell whether a file is one that :func:`replacing` is writing, or that a killed process left."""
    return PARTIAL.fullmatch(path.name) is not None


def clear_partials(folder: Path) -> None:
    """Take away the files in a folder that killed processes left half written; those of living ones stay."""
    for file in filter(is_partial, folder.glob(".*")):
        with suppress(OSError), file.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
            logger.info("took away %s, which a command that was killed had left", file)


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold a name until the block ends: no other process that asks for it may write there meanwhile.

    The kernel lets go of it when the process ends, however it ends. What processes that were killed left beside the
    name is taken away; a folder that was moved aside when one was killed gets its name back. May be nested.

    Raises:
        InputError: Another process holds it, or nothing can be written there.
    """
    lock = FileLock(_beside(path.absolute(), "lock"), MOMENT, thread_local=False, is_singleton=True)
    if lock.is_locked:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be made: a part of its path is a file; choose another place") from error
    except OSError as error:
        raise InputError(f"{path} cannot be made ({error.strerror}); choose another place") from error
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is writing {path}; wait for it, stop it, or choose another name") from error
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written to ({error.strerror}); choose another place") from error
    try:
        _clear_leavings(path)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it sees that, and makes another
        lock.release()


def clear_leavings(path: Path) -> None:
    """Take away what processes that were killed left beside a name, unless another process holds it."""
    if path.parent.is_dir():
        with suppress(InputError), holding(path):
            pass


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
            "choose another folder, move it away, or say --overwrite"
        )


@contextmanager
def replacing_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Hold a folder's name and yield a temporary one beside it, which takes the name when the block ends well.

    Args:
        target: The folder to make.
        overwrite: Whether a non-empty ``target`` may be replaced; it stays until the new one is whole.

    Raises:
        InputError: ``target`` is a file, or holds something and ``overwrite`` is false; another process writes it.
        FileNotFoundError: The temporary folder was removed meanwhile.
    """
    check_free(target, overwrite)
    with holding(target):
        check_free(target, overwrite)  # another process may have ended just now
        partial = _beside(target, "partial")
        partial.mkdir()
        made = partial.stat()
        try:
            yield partial
            if not os.path.samestat(made, partial.stat()):  # whoever wrote into it last has made it anew
                raise FileNotFoundError(errno.ENOENT, "removed while it was being filled", str(partial))
            _open_to_mask(partial.rglob("*"))
            if target.exists():
                exchange(partial, target)
            else:
                partial.rename(target)
        finally:
            remove(partial)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders' names, in one step where the system can; else :func:`holding` restores what a kill lost."""
    if _renamed_in_one_step(one, other):
        return
    aside = _beside(other, "replaced")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear_leavings(path: Path) -> None:
    """Take away what processes that were killed left beside a name that nobody else holds."""
    aside = _beside(path, "replaced")
    if aside.exists() and not path.exists():
        aside.rename(path)
        logger.info("%s was being replaced when a command was killed; it has its name back", path)
    left = [aside, _beside(path, "partial"), *path.parent.glob(f"{_escaped(_beside(path, 'partial').name)}-*")]
    work = path.with_name(UNFINISHED.format(path.name))
    if _is_published(path, work):
        left.append(work)
    for leaving in left:
        if leaving.exists() or leaving.is_symlink():
            remove(leaving)
            logger.info("took away %s, which a command that was killed had left", leaving)


def _is_published(path: Path, work: Path) -> bool:
    """Tell whether kept work is older than the result: only its removal is missing."""
    result = path / RESULT_FILE if path.is_dir() else path
    if not work.is_dir() or not result.is_file():
        return False
    key = work / KEY_FILE
    return not key.is_file() or result.stat().st_mtime_ns >= key.stat().st_mtime_ns


def _renamed_in_one_step(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux; not every file system has it
    paths = (AT_CURRENT_FOLDER, os.fsencode(one), AT_CURRENT_FOLDER, os.fsencode(other))
    return rename is not None and rename(*paths, EXCHANGE) == 0


def _open_to_mask(files: Iterable[Path]) -> None:
    """Let files be read by whom the user's mask lets: the library of safetensors makes them for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in files:
        if file.is_file() and not file.is_symlink():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | 0o666 & ~mask)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _escaped(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)
