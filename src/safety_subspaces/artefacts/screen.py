"""Tables as a terminal shows them: plain text, as wide as the terminal, in few enough columns to be read at once.

A file that is written to instead of a terminal gets each line whole, whatever its length, so that programs and people
find the same words in the same place. Texts are shown as they are: nothing in them is a colour, a link or a cursor.
"""

import math
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

from safety_subspaces.artefacts.text import one_line

if TYPE_CHECKING:
    import pandas as pd

# What a person takes in at once; a table on disk has all of it.
MOST_COLUMNS: Final = 8
MOST_ROWS: Final = 40
# Characters of one cell where no terminal sets a width: a path or a sentence is whole.
MOST_IN_CELL: Final = 200
# A label is not cut below this, for cut ones look alike, and a number never: columns at the right give way instead.
LEAST_TEXT: Final = 24
MOST_DECIMALS: Final = 4
# Of a smaller number its order alone is read.
TINY: Final = 1e-4
NOTHING: Final = "-"
BETWEEN: Final = 2
# Wider than any line, for output that no terminal wraps.
UNBOUNDED: Final = 100_000


@dataclass(frozen=True)
class View:
    """What a terminal shows of a subcommand's table.

    Rows that agree in ``by`` are one line, with the mean and the standard deviation of each measure over them. A column
    that the table does not have, or that has no value there, is left out, and then what exceeds ``MOST_COLUMNS``.

    Args:
        columns: Columns in their order, the most important first; with ``by`` these are measures.
        says: What the table means, in one line.
        by: Columns that tell lines apart, shown before the others; without them each row is a line.
        over: What the rows of one line are, in the plural: draws, layers.
        errors: Column of the standard error of a measure, where it is not called ``<measure>_stderr``.
        where: Tells the rows that are shown; all where there are none.
    """

    columns: tuple[str, ...]
    says: str
    by: tuple[str, ...] = ()
    over: str = "rows"
    errors: tuple[tuple[str, str], ...] = ()
    where: "Callable[[pd.DataFrame], Any] | None" = None


def terminal_width(stream: Any) -> int | None:
    """Return how many characters a line of a stream holds; ``None`` where it is no terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):  # closed, or in memory
        return None


def table_text(
    columns: Sequence[str], rows: Sequence[Sequence[str]], is_text: Sequence[bool], width: int | None = None
) -> str:
    """Return a table as aligned lines: texts to the left, numbers to the right, one line a row.

    Args:
        columns: Headings.
        rows: The cells.
        is_text: Whether a column holds texts, which are cut where the lines are too long.
        width: Most characters in a line. Where numbers alone take more, the last columns are left out and named.
    """
    from rich.box import Box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[one_line(cell) for cell in row] for row in (columns, *rows)]
    sizes = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    least = [min(size, LEAST_TEXT) if text else size for size, text in zip(sizes, is_text, strict=True)]
    fitting = len(columns)
    while width is not None and fitting > 1 and sum(least[:fitting]) + BETWEEN * (fitting - 1) > width:
        fitting -= 1
    rule = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="none")
    for heading, text in zip(cells[0][:fitting], is_text, strict=False):
        table.add_column(Text(heading), justify="left" if text else "right", no_wrap=not text)
    for row in cells[1:]:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row[:fitting]))
    console = Console(file=StringIO(), width=width or UNBOUNDED, color_system=None, legacy_windows=False, _environ={})
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if fitting < len(columns):
        lines += textwrap.wrap(f"Too narrow for: {', '.join(cells[0][fitting:])}.", width or UNBOUNDED)
    return "\n".join(lines)


def frame_text(frame: "pd.DataFrame", view: View | None = None, width: int | None = None) -> str:
    """Return what a terminal shows of a result: a table, what it means, and how much more there is.

    Args:
        frame: The result.
        view: What is shown of it; by default its first columns and rows.
        width: Most characters in a line; lines are as long as they need where it is ``None``.
    """
    view = view or View(tuple(map(str, frame.columns[:MOST_COLUMNS])), "")
    kept = frame if view.where is None else frame[view.where(frame)]
    kept = frame if kept.empty else kept
    keys = [name for name in view.by if _has_values(kept, name)]
    measures = [name for name in view.columns if _has_values(kept, name)][: MOST_COLUMNS - len(keys)]
    lines, note = _spread(kept, keys, measures, view) if keys else _rows(kept, measures, view)
    is_text = [not _is_number(kept, name) for name in (*keys, *measures)]
    said = [table_text([*keys, *measures], lines[:MOST_ROWS], is_text, width), view.says, note]
    if "judge" in kept and "judge" not in (*keys, *measures):
        said.append(f"Judge: {', '.join(dict.fromkeys(map(str, kept['judge'].dropna())))}.")
    if len(lines) > MOST_ROWS:
        said.append(f"{len(lines) - MOST_ROWS} more lines are in the table on disk.")
    notes = one_line(" ".join(filter(None, said[1:])))
    return "\n".join(filter(None, [said[0], notes if width is None else textwrap.fill(notes, width)]))


def _has_values(frame: "pd.DataFrame", name: str) -> bool:
    return name in frame and (frame.empty or bool(frame[name].notna().any()))


def _is_number(frame: "pd.DataFrame", name: str) -> bool:
    return frame[name].dtype.kind in "iuf"


def _rows(frame: "pd.DataFrame", columns: Sequence[str], view: View) -> tuple[list[list[str]], str]:
    """Return each row as a line, with the standard error behind the measures that have one."""
    errors = {name: _error_of(frame, name, view) for name in columns}
    lines = [
        [_cell(row[name], row[error] if (error := errors[name]) else None) for name in columns]
        for _, row in frame.iterrows()
    ]
    return lines, "± one standard error." if any(errors.values()) else ""


def _spread(
    frame: "pd.DataFrame", keys: Sequence[str], measures: Sequence[str], view: View
) -> tuple[list[list[str]], str]:
    """Return a line for each set of keys: means and standard deviations over its rows."""
    groups = [group for _, group in frame.groupby(list(keys), sort=False, dropna=False)]
    if all(len(group) == 1 for group in groups):
        return _rows(frame, [*keys, *measures], view)
    lines = []
    for group in groups:
        first = group.iloc[0]
        means = [
            _cell(group[name].mean(), group[name].std() if len(group) > 1 else None)
            if _is_number(frame, name)
            else _cell(first[name])
            for name in measures
        ]
        lines.append([*(_cell(first[name]) for name in keys), *means])
    return lines, f"Means ± standard deviation over {view.over}."


def _error_of(frame: "pd.DataFrame", name: str, view: View) -> str | None:
    error = dict(view.errors).get(name, f"{name}_stderr")
    return error if error in frame else None


def _cell(value: Any, error: Any = None) -> str:
    if value is None or value != value or str(value) == "<NA>":
        return NOTHING
    if isinstance(value, float):
        return _number(value, error)
    said = str(value)
    return said if len(said) <= MOST_IN_CELL else f"{said[: MOST_IN_CELL - 1]}…"


def _number(value: float, error: Any) -> str:
    """Return a number to four digits, or to the second one of its error, which stands behind it."""
    if error is None or error != error or not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else MOST_DECIMALS + 1
    if decimals > MOST_DECIMALS:
        return f"{value:.{4 if abs(value) > TINY else 2}g}±{error:.1g}"
    return f"{value:.{decimals}f}±{error:.{decimals}f}"
