"""How the tables of the report are made: each heading with what a row says under it, in one place."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pandas as pd

from safety_subspaces.report.parts.table import Table, count, number

# What a row says in one column.
Cell = Callable[[Any], str]
# What the measures of an evaluation are called at the head of a column.
HEADINGS: Final = {
    "utility": "utility",
    "harmful_rate": "harmful",
    "harm_score": "harm 1-5",
    "over_refusal_rate": "over-refusal",
    "benign_answered_rate": "answered",
    "refusal_margin": "margin",
}


def table_of(
    rows: pd.DataFrame | Iterable[Any], columns: Mapping[str, Cell], text_columns: int = 1, note: str = ""
) -> Table:
    """Return a table with a line for each row of a frame, or for each of other things that the cells can read."""
    each = [row for _, row in rows.iterrows()] if isinstance(rows, pd.DataFrame) else rows
    cells = tuple(tuple(cell(row) for cell in columns.values()) for row in each)
    return Table(tuple(columns), cells, text_columns, note)


def text(name: str) -> Cell:
    """Return the cell of a label."""
    return lambda row: str(row[name])


def texts(*names: str) -> dict[str, Cell]:
    """Return the columns of labels that are called what their headings say."""
    return {name: text(name) for name in names}


def compared(row: pd.Series) -> str:
    """Return what is compared: the columns ``first`` and ``second``."""
    return f"{row['first']} - {row['second']}"


def short(name: str) -> Cell:
    """Return the cell of a number that was chosen, not measured, as short as it can be said."""
    return lambda row: f"{row[name]:g}"


def numbers(name: str, digits: int, error: str = "", sign: str = "") -> Cell:
    """Return the cell of a measured number, with the error in the column ``error`` behind it."""
    return lambda row: number(row[name], digits, row[error] if error else None, sign)


def counts(*names: str) -> Cell:
    """Return the cell of whole numbers."""
    return lambda row: "/".join(count(row[name]) for name in names)


def outcomes(measures: Iterable[str], error: str = "_stderr") -> dict[str, Cell]:
    """Return the columns of an evaluation's measures, each with its error in ``<measure><error>``."""
    return {HEADINGS[name]: numbers(name, 2, f"{name}{error}") for name in measures}


def differences(measures: Iterable[str], error: str) -> dict[str, Cell]:
    """Return the columns of ``<measure>_difference``, each with its sign and its error in ``<measure><error>``."""
    return {HEADINGS[name]: numbers(f"{name}_difference", 2, f"{name}{error}", "+") for name in measures}
