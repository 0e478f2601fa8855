"""Studies as a page and a terminal show them: read, and made into parts."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from safety_subspaces.artefacts.text import shown
from safety_subspaces.findings.organisms import Organism, read_organisms
from safety_subspaces.findings.table import SIDE_BY_SIDE, findings_table
from safety_subspaces.report.pages.page import PagePart, part_of, terminal_tables
from safety_subspaces.report.pages.side_by_side import alignments
from safety_subspaces.report.parts.colours import colours_of
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.parts.table import TERMINAL_WIDTH, Table
from safety_subspaces.report.sections import sections_of


@dataclass(frozen=True)
class StudyPage:
    """What a page and a terminal show of some studies: their findings, and the parts and tables made of these."""

    organisms: list[Organism]
    findings: pd.DataFrame
    parts: list[PagePart]

    @property
    def tables(self) -> dict[str, Table]:
        """The tables of a terminal, with their titles."""
        return terminal_tables(self.parts)

    def to_text(self, width: int = TERMINAL_WIDTH) -> str:
        """Return what a terminal shows: the tables, then what each section says first; the page has the numbers."""
        said = [f"{title}\n{table.to_text(width)}" for title, table in self.tables.items()]
        for part in self.parts:
            of_part = f": {part.name}" if len(self.parts) > 1 else ""
            headlines = dict.fromkeys(line for section in part.sections for line in section.headlines if line)
            said.append(f"What the numbers say{of_part}\n{_listed(headlines, width)}")
            lacking = [(what, command) for section in part.sections for what, command in section.missing if command]
            said += [
                f"{textwrap.fill(f'{what} Next step towards it:', width)}\n  {command}" for what, command in lacking
            ]
        return "\n\n".join(dict.fromkeys(said))


def read_page(folders: Sequence[str], sections: Sequence[str] = (), topics: Sequence[str] = ()) -> StudyPage:
    """Read studies, and make what a page and a terminal show of them.

    Raises:
        InputError: As :func:`report`.
    """
    organisms = read_organisms(folders)
    findings = findings_table(organisms, topics)
    is_alone = len(organisms) == 1
    parts, colours = [], colours_of(organisms[0].seeds)
    if not is_alone:
        beside = alignments(organisms, findings[findings["aligned_by"] == SIDE_BY_SIDE])
        parts += [] if beside is None else [PagePart("Side by side", "Side by side", "side-by-side", "", [beside])]
    for number, organism in enumerate(organisms):
        of_part = findings[findings["aligned_by"] == organism.name]
        anchor = "" if is_alone else f"organism-{number}"
        part = Part(organism.name, organism.seeds, of_part, anchor, colours)
        parts.append(part_of(organism, part, sections_of(part, sections), is_alone))
    return StudyPage(organisms, findings, parts)


def _listed(sentences: Sequence[str] | dict[str, None], width: int) -> str:
    return "\n".join(
        textwrap.fill(shown(text), width, initial_indent="- ", subsequent_indent="  ") for text in sentences
    )
