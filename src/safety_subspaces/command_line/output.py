"""What a command prints: its result on standard output and nothing else there; bars, notes and errors elsewhere.

``--json`` prints the result as one JSON object, ``--quiet`` where it is and nothing but warnings and errors beside.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, Final

from jsonargparse import ArgumentParser

from safety_subspaces.artefacts.screen import View, frame_text, terminal_width

# Module constant of a subcommand that says what a terminal shows of its table.
VIEW: Final = "VIEW"
OPTIONS: Final = {
    "json": "Print the result as one JSON object, and nothing else on standard output.",
    "quiet": "Print where the result is, and nothing else but warnings and errors.",
}
# The root of all loggers, and Lightning's, which have handlers of their own.
LOGGERS: Final = (None, "lightning", "lightning.pytorch", "lightning.fabric")
_chosen: set[str] = set()


class _Choose(argparse.Action):
    """An option of the command line alone: it is no argument of the subcommand, and stands in no configuration."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=options["help"])

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        choose(str(option).removeprefix("--"))


def add_output_options(parser: ArgumentParser) -> None:
    """Add ``--json`` and ``--quiet`` to the parser of a command."""
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", action=_Choose, help=text)


def choose(name: str) -> None:
    """Have results shown as an option says."""
    _chosen.add(name)
    if name == "quiet":
        for each in LOGGERS:
            logging.getLogger(each).setLevel(logging.WARNING)
        from safety_subspaces.artefacts.progress import Bar  # which a help text need not wait for

        Bar.quiet = True
        os.environ["TQDM_DISABLE"] = "1"  # bars of libraries that import tqdm later


def is_chosen(name: str) -> bool:
    """Whether the command line has an option."""
    return name in _chosen


@contextmanager
def reserved_output() -> Iterator[None]:
    """Send what is printed meanwhile to standard error, by libraries and by processes that they start too."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed: there is nothing to keep apart
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def show(command: str, result: Any, out: str | None = None, view: View | None = None) -> None:
    """Print a result as the command line asks for: for people, as JSON, or only where it is.

    Args:
        command: The subcommand.
        result: A table, a text, or a dataclass with a ``path`` whose text is for people.
        out: Where it is, of a result that does not say so itself.
        view: What a terminal shows of a table.
    """
    pandas = sys.modules.get("pandas")  # a result is a table only where it was imported
    frame = result if pandas and isinstance(result, pandas.DataFrame) else None
    if frame is not None and not len(frame.columns):
        return  # of a rank that has left the result to the first one
    where = str(getattr(result, "path", None) or (frame is not None and frame.attrs.get("result")) or out or "")
    if is_chosen("json"):
        said = {"command": command, "result": where or None, **_fields(result, frame)}
        _print(json.dumps(_as_json(said), allow_nan=False))
    elif is_chosen("quiet"):
        _print(where)
    elif frame is not None:
        text = frame_text(frame, view, terminal_width(sys.stdout))
        _print(f"{text}\nresult: {where}" if where else text)
    else:
        _print(str(result))


def _fields(result: Any, frame: Any) -> Mapping[str, Any]:
    if frame is not None:
        return {"table": frame.to_dict("records")}
    if isinstance(result, Mapping):
        return {"values": result}
    if is_dataclass(result) and not isinstance(result, type):
        return {name: value for name, value in asdict(result).items() if name != "path"}
    return {"text": str(result)}


def _as_json(value: Any) -> Any:
    """Return plain values with all their digits; NaN and infinities, for which JSON has no numbers, are null."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return None if _is_missing(value) else str(value)


def _is_missing(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and value in (pandas.NA, pandas.NaT)


def _print(text: str) -> None:
    if text:
        print(text)  # noqa: T201 - the result
