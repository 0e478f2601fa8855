"""What a terminal shows of a page: a screenful, with the rest on the page."""

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from safety_subspaces.artefacts.screen import MOST_COLUMNS, terminal_width
from safety_subspaces.artefacts.text import shown
from safety_subspaces.report.pages.page import PagePart
from safety_subspaces.report.parts.table import TERMINAL_WIDTH, Table

# Lines of the summary, so that the page's path is still in sight when it is printed.
MOST_LINES = 25
# Models of the first table: those of the demo without its constrained runs.
MOST_ROWS = 9
# Lines of commands towards what is missing; the page has all of them, each with what it gives.
MOST_OF_COMMANDS = 4


@dataclass(frozen=True)
class StudyReport:
    """What ``report`` made.

    Args:
        path: The page.
        tables: The tables of its sections, with their titles.
        said: What each of its sections says first, by section.
        missing: The commands that are the next step towards what the studies lack.
    """

    path: Path
    tables: Mapping[str, Table]
    said: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return self.to_text(terminal_width(sys.stdout) or TERMINAL_WIDTH)

    def to_text(self, width: int = TERMINAL_WIDTH) -> str:
        """Return at most ``MOST_LINES`` lines: the first table, what the sections say, the next step, the page."""
        table = next((self._first_lines(title, table, width) for title, table in self.tables.items()), [])
        steps, lines_of_steps = self._steps(width)
        page = ["", f"report: {self.path}"]
        room = MOST_LINES - len(table) - lines_of_steps - len(page) - 3  # a gap, a heading, how many more there are
        said = self._said(width, room)
        return "\n".join([*table, *([""] if table and said else []), *said, *steps, *page])

    def _first_lines(self, title: str, table: Table, width: int) -> list[str]:
        """Return the head of a table, and the first sentences that explain it."""
        left = len(table.rows) - MOST_ROWS
        note = (textwrap.wrap(table.note, width) or [""])[0]
        note = note if note.endswith(".") else note.rpartition(". ")[0] + "."
        more = [f"{left} more are on the page."] if left > 0 else []
        head = replace(
            table,
            columns=table.columns[:MOST_COLUMNS],
            rows=tuple(row[:MOST_COLUMNS] for row in table.rows[:MOST_ROWS]),
            note="",
        )
        text = head.to_text(width)
        return [title, *text.splitlines(), *([note] if len(note) > 1 else []), *more]

    def _steps(self, width: int) -> tuple[list[str], int]:
        """Return the next commands, the first of them in any case, and the lines that they take on a terminal."""
        if not self.missing:
            return [], 0
        kept: list[str] = []
        lines = 0
        for command in self.missing:
            lines += -(-(len(command) + 2) // width)
            if kept and lines > MOST_OF_COMMANDS:
                break
            kept.append(f"  {command}")
        left = len(self.missing) - len(kept)
        heading = f"Next steps ({left} more are on the page)" if left else "Next steps"
        return ["", heading, *kept], 2 + sum(-(-len(line) // width) for line in kept)

    def _said(self, width: int, room: int) -> list[str]:
        """Return as many of the headlines as there is room for: of each section its first one before the second."""
        fitting: list[str] = []
        for sentence in _in_turn(self.said):
            lines = len(_item(sentence, width))
            if lines <= room:
                fitting.append(sentence)
                room -= lines
        ordered = [sentence for section in self.said for sentence in section]
        kept = [line for sentence in ordered if sentence in fitting for line in _item(sentence, width)]
        left = len(set(ordered)) - len(fitting)
        more = [f"{left} more sentences are on the page."] if left else []
        return ["What the numbers say", *kept, *more] if ordered else []


def headlines_of(parts: Sequence[PagePart]) -> tuple[tuple[str, ...], ...]:
    """Return what each section says first, each sentence once; with the alignment before it where there are several."""
    seen: dict[str, None] = {}
    said = []
    for part in parts:
        before = f"{part.name}: " if len(parts) > 1 else ""
        for section in part.sections:
            new = [line for line in dict.fromkeys(section.headlines) if line and f"{before}{line}" not in seen]
            seen |= dict.fromkeys(f"{before}{line}" for line in new)
            said.append(tuple(f"{before}{line}" for line in new))
    return tuple(section for section in said if section)


def _in_turn(said: Sequence[Sequence[str]]) -> Iterator[str]:
    return (sentence for turn in zip_longest(*said) for sentence in turn if sentence is not None)


def _item(sentence: str, width: int) -> list[str]:
    return textwrap.wrap(shown(sentence), width, initial_indent="- ", subsequent_indent="  ")
