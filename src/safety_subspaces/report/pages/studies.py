"""Studies as a page and a terminal show them: read, and made into parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from safety_subspaces.findings.organisms import Organism, read_organisms
from safety_subspaces.findings.table import SIDE_BY_SIDE, findings_table
from safety_subspaces.report.pages.page import PagePart, part_of, terminal_tables
from safety_subspaces.report.pages.side_by_side import alignments
from safety_subspaces.report.parts.colours import colours_of
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.parts.table import Table
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
