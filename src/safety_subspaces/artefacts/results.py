"""The result folder that every ``analyze.py`` subcommand fills: settings, tables, summary and provenance."""

import csv
import json
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import yaml

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import (
    RESULT_FILE,
    check_free,
    clear_leavings,
    is_occupied,
    read_json,
    replacing_folder,
    write_json,
    write_text,
)
from safety_subspaces.artefacts.provenance import check_unchanged, describe_all, peak_memory_bytes, provenance
from safety_subspaces.artefacts.secrets import without_secrets
from safety_subspaces.artefacts.text import as_cell, encodable, map_texts, shown

if TYPE_CHECKING:
    import pandas as pd

# Parameters that say where a result goes and what works on it; what it is does not depend on them.
NOT_RECORDED = ("out", "overwrite", "workers", "devices", "num_nodes")


def recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a subcommand was called with as plain values: ``recorded(locals())``, before it has other locals."""
    return {name: _plain(value) for name, value in parameters.items() if name not in NOT_RECORDED}


def write_table(folder: Path, frame: "pd.DataFrame", name: str) -> None:
    """Write a table as ``<name>.parquet``, and as ``<name>.csv`` with no text that a spreadsheet would run."""
    frame = map_texts(frame, encodable)
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    cells = map_texts(frame, as_cell)
    text = cells.to_csv(index=False)
    if "\r" in text:  # outside of quotes it would begin a new row
        text = cells.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")


def check_labels(labels: Iterable[str]) -> None:
    """Refuse labels that would be a path elsewhere.

    Raises:
        InputError: One is empty, hidden, or has a separator.
    """
    for label in labels:
        if not label or "/" in label or label.startswith("."):
            raise InputError(f"label {label!r} names a folder and rows of tables; expected letters, digits, - and _")


def check_result_free(out: str | Path, command: str, overwrite: bool) -> None:
    """Check that a folder of results may be made; ``overwrite`` lets an earlier one of that subcommand be replaced.

    Raises:
        InputError: ``out`` is occupied and ``overwrite`` is false, or holds something else.
    """
    clear_leavings(Path(out))
    if not is_occupied(Path(out)):
        return
    earlier = Path(out) / RESULT_FILE
    if not earlier.is_file() or read_json(earlier).get("analysis") != command:
        raise InputError(
            f"{out} holds something else than an earlier result of {command}, which is never replaced; "
            "choose another folder"
        )
    check_free(Path(out), overwrite)


class ResultFolder:
    """A context that collects one subcommand's results and publishes them whole, or not at all.

    On leaving without an error the folder holds ``config.yaml`` (the arguments), ``result.json`` (summary, inputs with
    hashes, what was left out and why, provenance) and each table as Parquet with a CSV beside it.

    Args:
        out: The folder to make.
        command: Name of the subcommand.
        arguments: What it was called with, as plain values.
        inputs: Paths (or Hub ids) of the models and files that it reads.
        overwrite: Whether an earlier result of the same subcommand under ``out`` may be replaced.
        started: When the work began, by ``time.monotonic``; by default when the context is entered.

    Raises:
        InputError: An argument holds half a surrogate pair, which no table can. On entering, if ``out`` is occupied and
            ``overwrite`` is false, holds something else, or another process writes it. On leaving, if an input was
            changed meanwhile.
    """

    def __init__(
        self,
        out: str | Path,
        command: str,
        arguments: dict[str, Any],
        inputs: list[str],
        overwrite: bool = False,
        started: float | None = None,
    ) -> None:
        self.out = Path(out)
        self.folder = self.out  # the temporary folder, while the context is open
        self.summary: dict[str, Any] = {}
        self.left_out: list[dict[str, str]] = []
        self._command = command
        self._arguments = without_secrets(arguments)
        said = json.dumps(arguments, default=str, ensure_ascii=False)
        if said != encodable(said):
            raise InputError(f"{command}: {shown(said)} is no text that UTF-8 can hold; give names and labels in UTF-8")
        self._inputs = inputs
        self._started, self._overwrite = started, overwrite
        self._replacing = replacing_folder(self.out, overwrite)

    def __enter__(self) -> "ResultFolder":
        self.check_free()
        self._provenance = provenance()
        self._described = describe_all(self._inputs)
        self.folder = self._replacing.__enter__()
        self._started = time.monotonic() if self._started is None else self._started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._replacing.__exit__(kind, error, trace)
        else:
            with ExitStack() as publishing:
                publishing.push(self._replacing)
                self._write_record()
        self.folder = self.out

    def check_free(self) -> None:
        """Check that the folder may be made, as :func:`check_result_free`."""
        check_result_free(self.out, self._command, self._overwrite)

    def write_table(self, frame: "pd.DataFrame", name: str = "table") -> None:
        """Write a table as :func:`write_table` does."""
        write_table(self.folder, frame, name)

    def leave_out(self, name: str, reason: str) -> None:
        """Record a tensor, prompt or comparison that was not used, with the reason."""
        self.left_out.append({"name": name, "reason": reason})

    def _write_record(self) -> None:
        check_unchanged(self._described)
        write_text(self.folder / "config.yaml", yaml.safe_dump(self._arguments, sort_keys=False))
        write_json(
            self.folder / RESULT_FILE,
            {
                "analysis": self._command,
                "out": str(self.out),  # tells which paths lie in the same study, wherever that is moved
                "summary": without_secrets(self.summary),
                "inputs": self._described,
                "left_out": without_secrets(self.left_out),
                "wall_seconds": round(time.monotonic() - (self._started or 0.0), 3),
                "peak_memory_bytes": peak_memory_bytes(),
                "provenance": self._provenance,
            },
        )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value
