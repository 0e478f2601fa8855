"""What a command may run that a file names: code is trusted by the command line alone, never by a file.

Importing a module runs its code, and configurations, manifests and model folders come from other people too. So modules
are imported from packages that are installed, from this suite, and from folders that the command line names; and an
option that trusts something counts where it was said on the command line, not where a YAML says it.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError

# The packages of this suite.
SUITE = ("safety_subspaces", "callbacks")
# Installed packages that nothing is taken from: they install packages, or decide what is imported.
NEVER = frozenset(("jsonargparse", "pip", "pkg_resources", "setuptools", "distutils", "_distutils_hack"))
# Begins the name of a module that an editable installation leaves to find its packages.
EDITABLE = "__editable___"
PLUGINS = "plugins"
INIT = "init_args"  # what stands between a class and its arguments
# Options that let code run, by name and by the value that does so; also all that begin with TRUST.
TRUST, TRUSTING = "trust_", {"unsafe_code": True, "weights_only": False}

# Top-level names that may be imported; None in a notebook, where the caller's own code says what it wants.
_importable: frozenset[str] | None = None


def import_only_trusted(clone: Path, folders: Iterable[Path] = ()) -> frozenset[str]:
    """From now on import what files name from installed packages, this suite and the named folders alone.

    Installed is what stands on Python's own path. The folder that the command runs in is taken off it, and what
    ``PYTHONPATH`` names relative to that, for such folders often hold other people's files.

    Args:
        clone: Folder of the entry points; only this suite's own packages are taken from it.
        folders: Folders that the command line names; they are added to Python's path.

    Returns:
        The top-level names that may be imported.

    Raises:
        InputError: A named folder is not there.
    """
    global _importable
    own = [folder.resolve() for folder in folders]
    for folder in own:
        if not folder.is_dir():
            raise InputError(f"--{PLUGINS} {folder} is no folder; expected one that holds modules of yours")
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    named = {_real(entry) for entry in given if Path(entry).is_absolute()}
    suite = {_real(clone), _real(clone / "src")}
    unnamed = {_real("."), *map(_real, given)} - named - suite
    sys.path[:] = [entry for entry in sys.path if _real(entry) not in unnamed]
    installed = {name for entry in sys.path if _real(entry) not in suite for name in _names_in(Path(entry))}
    finders = [module for name, module in sys.modules.items() if name.startswith(EDITABLE)]
    installed |= {name.partition(".")[0] for finder in finders for name in getattr(finder, "MAPPING", {})}
    sys.path += [str(folder) for folder in own]
    mine = {name for folder in own for name in _names_in(folder)}
    _importable = frozenset((installed | mine) - sys.stdlib_module_names - NEVER | set(SUITE))
    return _importable


def check_importable(path: str, kind: str) -> None:
    """Refuse an import path from elsewhere, before anything of it is imported.

    Args:
        path: The import path.
        kind: What it stands for, for the message.

    Raises:
        InputError: Its module is neither installed, nor of this suite, nor in a folder that the command line names.
    """
    module = path.partition(".")[0]
    if _importable is not None and module not in _importable:
        raise InputError(f"{kind} {path}: {unknown_module(module)}")


def unknown_module(module: str) -> str:
    """Say why a module is not imported, and what to do."""
    return (
        f"there is no module {module} among the installed packages or in this suite. Importing a module runs its code: "
        f"one of your own is taken where the command line says --{PLUGINS} <folder that holds it>"
    )


def plugin_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that a command line names by ``--plugins``, several of them separated as in ``PYTHONPATH``."""
    said = [value for option, value in _options(arguments) if option == PLUGINS]
    return [Path(folder).expanduser() for value in said for folder in value.split(os.pathsep) if folder]


def without_plugin_folders(arguments: Sequence[str]) -> list[str]:
    """Return a command line less ``--plugins``, for a parser that does not know it."""
    option, kept = f"--{PLUGINS}", []
    words = iter(arguments)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def is_said(arguments: Sequence[str], name: str, value: bool) -> bool:
    """Tell whether a command line gives a setting a truth value.

    Args:
        arguments: The command line.
        name: The setting, dotted from the top; an option may leave out ``init_args``, and the subcommand.
        value: The value.
    """
    asked = [part for part in name.split(".") if part != INIT]
    for option, said in _options(arguments):
        parts = [part for part in option.split(".") if part != INIT]
        if asked[-len(parts) :] == parts and said.lower() == str(value).lower():
            return True
    return False


def check_trust(config: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Refuse a configuration that trusts something which the command line does not.

    Args:
        config: The configuration, files and command line together, as plain values.
        arguments: The command line.

    Raises:
        InputError: An option lets code run, and was not said on the command line.
    """
    for path, value in _settings(config):
        name = path.rpartition(".")[2]
        if path.count(".") < 2 and name == PLUGINS and value and not plugin_folders(arguments):
            raise InputError(f"a configuration says {PLUGINS}: {value}, which only the command line may: --{PLUGINS} …")
        trusts = value is True if name.startswith(TRUST) else name in TRUSTING and value is TRUSTING[name]
        if trusts and not is_said(arguments, path, value):
            said = str(value).lower()
            raise InputError(
                f"a configuration says {path}: {said}, which lets code run that came with a file. Only the command "
                f"line may say that: give the option itself by its full name, --….{name} {said}, where you have read "
                "the code and trust it"
            )


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option of a command line with its value; one without a value is ``true``."""
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            yield option, value if equals else "true" if following.startswith("--") else following


def _settings(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its dotted name; what stands in a list has the list's."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{above}{name}", inner
            yield from _settings(inner, f"{above}{name}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _settings(inner, above)


def _real(path: str | Path) -> str:
    return os.path.realpath(path)


def _names_in(folder: Path) -> set[str]:
    """Return the names that an import statement finds in a folder: of modules, packages and plain folders."""
    try:
        names = {path.name.partition(".")[0] for path in folder.iterdir() if path.is_dir() or path.suffix}
    except OSError:  # an archive, or a folder that is not there
        return set()
    return {name for name in names if name.isidentifier()}
