"""Foreign bytes: files, replies and settings that someone else wrote, maybe to do harm.

Parsers raise what comes when such bytes are not what they expect, and what is small in a file can be large in memory.
Here any of that becomes one :class:`InputError` that names the file.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from re import _parser as regex_parser  # type: ignore[attr-defined]  # how a pattern repeats, no public part tells
from typing import Any

import yaml

from safety_subspaces.artefacts.errors import InputError

# Lists and maps within one another. Configurations nest about ten deep; what walks a value recurses at each.
MAX_DEPTH = 64
# Values of a YAML file with its aliases written out; our largest configuration has about a hundred.
MAX_VALUES = 100_000
# How often the steps that a regular expression may take double: on one way through it each repetition of unknown length
# can end at any of a name's letters, and each choice can be taken back.
REPETITION, CHOICE, MOST_DOUBLINGS = 6.0, 1.2, 29.0
# Characters of a parser's own words in a message.
QUOTED = 300

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def reading(what: object, expected: str, remedy: str = "copy or download it again") -> Iterator[None]:
    """Turn what is raised while foreign bytes are parsed into one message; only parsing belongs inside.

    Args:
        what: The file, or other words for where the bytes come from.
        expected: What it should be.
        remedy: What to do.

    Raises:
        InputError: Anything went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic of a library in Rust (tokenizers, safetensors) is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, UnicodeDecodeError):
            remedy = f"save it in UTF-8, or {remedy}"
        raise InputError(f"{what} cannot be read ({in_short(error)}); expected {expected}: {remedy}") from error


def in_short(error: BaseException) -> str:
    """Return what an error says in one line, cut short; its name where it says nothing."""
    return " ".join(str(error).split())[:QUOTED] or type(error).__name__


def parse_json(text: str, **options: Any) -> Any:
    """Parse JSON.

    Args:
        text: The text.
        **options: Those of ``json.loads``.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings by name; an empty one has none.

    Raises:
        InputError: It is something else, or would be huge.
    """
    with reading(path, "a YAML file of settings by name", "remove or mend it"):
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        value = yaml.load(text, Loader=YAML_LOADER) or {}
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value


def check_yaml(text: str) -> None:
    """Refuse YAML that would be huge with its aliases written out, or is nested too deeply.

    Raises:
        yaml.YAMLError: It is, or is no YAML.
    """
    sizes: dict[str | None, int] = {}  # of what an anchor names
    started: list[tuple[str | None, int]] = []  # anchors of the lists and maps around, and the count where they began
    count = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        if isinstance(event, yaml.AliasEvent):
            # One that is not closed yet holds itself: endless.
            count += sizes.get(event.anchor, MAX_VALUES)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            started.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = started.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values, with its aliases written out")
        if len(started) > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def check_pattern(pattern: str) -> None:
    """Refuse a regular expression that is none, or could take for ever to match.

    Raises:
        ValueError: It is none, repeats what has several ways to match, or has many repetitions and choices in a row.
    """
    try:
        doublings = _doublings(regex_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:QUOTED]!r} is no pattern: {error}") from error
    if doublings > MOST_DOUBLINGS:
        raise ValueError(f"the pattern {pattern[:QUOTED]!r} repeats a repetition, or has many of them")


def _doublings(pattern: Any) -> float:
    """Add up the repetitions and choices on the way through a parsed pattern that has most of them."""
    total = 0.0
    for code, value in pattern:
        if str(code) == "BRANCH":
            total += CHOICE + max(map(_doublings, value[1]))
        elif str(code).endswith("_REPEAT"):
            least, most, inner = value
            within = _doublings(inner)
            if most > 1 and within:
                return float("inf")
            total += within + (0.0 if least == most else REPETITION if most > 1 else CHOICE)
        else:
            total += sum(map(_doublings, _parts(value)))
    return total


def _parts(value: Any) -> list[Any]:
    """Return the patterns that a part of a parsed one holds: of a group, an assertion or a condition."""
    values = value if isinstance(value, tuple) else (value,)
    return [part for part in values if isinstance(part, regex_parser.SubPattern)]
