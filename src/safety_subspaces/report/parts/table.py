"""The report's tables as text cells: page and terminal show the same, one place decides what a cell says."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safety_subspaces.artefacts.screen import table_text

TERMINAL_WIDTH = 110
NOTHING = "-"


class Number(str):
    """A number as a table shows it, which knows what it was before it was rounded: what is exported has all digits."""

    __slots__ = ("error", "value")
    value: float | int
    error: float | None

    def __new__(cls, said: str, value: float | int, error: float | None = None) -> "Number":
        """Return what is said of a number, with the number and its error."""
        made = super().__new__(cls, said)
        made.value, made.error = value, error
        return made

    def __getnewargs__(self) -> tuple[str, float | int, float | None]:  # type: ignore[override]
        """Return what a copy is made from."""
        return str(self), self.value, self.error


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: Headings, one a column.
        rows: The cells.
        text_columns: How many of the first columns are text, set to the left; the others are numbers.
        note: What the reader must know to read it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""

    def to_text(self, width: int = TERMINAL_WIDTH) -> str:
        """Return aligned plain text of at most ``width`` a line; text columns give way where it is short."""
        is_text = [index < self.text_columns for index in range(len(self.columns))]
        return "\n".join([table_text(self.columns, self.rows, is_text, width), *textwrap.wrap(self.note, width)])

    def without(self, *names: str) -> "Table":
        """Return the table without some columns, where a terminal has no room for them."""
        indices = [index for index, name in enumerate(self.columns) if name not in names]
        text_columns = sum(index < self.text_columns for index in indices)
        rows = tuple(tuple(row[index] for index in indices) for row in self.rows)
        return Table(tuple(self.columns[index] for index in indices), rows, text_columns, self.note)


def any_table(frame: pd.DataFrame, most_rows: int = 40) -> Table:
    """Show the first rows of a table that the page has no section for."""
    shown = frame.head(most_rows)
    is_text = [not pd.api.types.is_numeric_dtype(kind) for kind in shown.dtypes]
    rows = tuple(
        tuple(number(value, 4) if isinstance(value, float) else str(value) for value in row)
        for row in shown.itertuples(index=False)
    )
    left = len(frame) - len(shown)
    note = f"{left} more rows stand in the table's file." if left else ""
    first_number = is_text.index(False) if False in is_text else len(is_text)
    return Table(tuple(map(str, shown.columns)), rows, text_columns=first_number, note=note)


def number(value: Any, digits: int, error: Any = None, sign: str = "") -> str:
    """Return ``0.97±0.01`` with that many decimals, without an error that is missing, ``-`` for a missing number."""
    if value is None or pd.isna(value):
        return NOTHING
    said = format(float(value), f"{sign}z.{digits}f")
    if error is None or pd.isna(error):
        return Number(said, float(value))
    return Number(f"{said}±{float(error):.{digits}f}", float(value), float(error))


def count(value: Any) -> str:
    """Return a whole number with thousands set apart, ``-`` for a missing one."""
    return NOTHING if value is None or pd.isna(value) else Number(f"{round(float(value)):,}", round(float(value)))


def duration(seconds: Any) -> str:
    """Return seconds as ``54 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds is None or pd.isna(seconds):
        return NOTHING
    whole = round(float(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: Any) -> str:
    """Return bytes in GiB or MiB."""
    if size is None or pd.isna(size):
        return NOTHING
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def sample_words(frame: pd.DataFrame) -> str:
    """Return how many prompts of each set were asked, and in how many independent groups."""
    words = []
    for kind in ("utility", "harmful", "benign"):
        asked, groups = frame[f"n_{kind}"].max(), frame[f"n_groups_{kind}"].max()
        number_of = "an unknown number of" if pd.isna(asked) else count(asked)
        words.append(f"{number_of} {kind} prompts" + ("" if pd.isna(groups) else f" in {count(groups)} groups"))
    return ", ".join(words)


def seeds_of(row: pd.Series, measures: Iterable[str]) -> str:
    """Return over how many seeds the measures are means: one count, or all of them where they differ."""
    return joined_counts([count(row[f"{measure}_seeds"]) for measure in measures])


def joined_counts(counts: list[str]) -> str:
    """Return the count that all share, else all of them in their order."""
    return counts[0] if len(set(counts)) == 1 else "/".join(counts)
