"""The configurations that come with the suite, by name: ``--config organism/align``, also where nothing was cloned."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import safety_subspaces
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import did_you_mean

CONFIGS, SUFFIX = "configs", ".yaml"
OPTIONS = ("--config", "-c")


@cache
def shipped_configs() -> dict[str, Path]:
    """Return each configuration by its name, which is its path below ``configs/`` without the suffix.

    An installation has them inside the package; a clone at its top.
    """
    package = Path(safety_subspaces.__file__).parent
    folder = next((each for each in (package / CONFIGS, package.parents[1] / CONFIGS) if each.is_dir()), None)
    found = sorted(folder.rglob(f"*{SUFFIX}")) if folder else []
    return {path.relative_to(str(folder)).with_suffix("").as_posix(): path for path in found}


def described() -> dict[str, str]:
    """Return what each configuration says of itself first, by its name."""
    first = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in shipped_configs().items()}
    return {name: line.removeprefix("# ") for name, line in first.items()}


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the path of each configuration that it names; a file of one's own comes first.

    ``organism/align``, ``organism/align.yaml`` and ``configs/organism/align.yaml`` are one name.

    Raises:
        InputError: No such file, and a name that is nearly one of a configuration.
    """
    return list(_with_paths(arguments))


def _with_paths(arguments: Sequence[str]) -> Iterator[str]:
    is_config = False
    for word in arguments:
        option, equals, value = word.partition("=")
        if is_config:
            yield _path_of(word)
        elif equals and option in OPTIONS:
            yield f"{option}={_path_of(value)}"
        else:
            yield word
        is_config = not is_config and word in OPTIONS


def _path_of(value: str) -> str:
    if Path(value).is_file():
        return value
    name = value.removeprefix(f"{CONFIGS}/").removesuffix(SUFFIX)
    known = shipped_configs()
    if name in known:
        return str(known[name])
    near = next(iter(get_close_matches(name, known, 1, 0.8)), None)
    if near is None:
        return value  # the parser says that there is no such file
    raise InputError(
        f"--config {value}: there is no such file, and no configuration of that name comes with the suite"
        f"{did_you_mean(near)}"
    )
