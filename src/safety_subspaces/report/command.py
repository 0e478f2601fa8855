"""The subcommand ``report``: study folders become one HTML page, and a few lines for the terminal."""

import logging
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import holding, write_text
from safety_subspaces.artefacts.text import shown
from safety_subspaces.findings.command import SIDE_BY_SIDE, findings_table
from safety_subspaces.findings.models import default_page
from safety_subspaces.findings.organisms import Organism, read_organisms
from safety_subspaces.report.pages.page import PagePart, part_of, render, terminal_tables
from safety_subspaces.report.pages.side_by_side import alignments
from safety_subspaces.report.parts.page import is_page
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.parts.table import TERMINAL_WIDTH, Table
from safety_subspaces.report.sections import sections_of

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class StudyReport:
    """What ``report`` made: the page, and the same in plain text for a terminal."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.text}\n\nreport: {self.path}"


def report(
    study: list[str] | str, out: str | None = None, sections: Sequence[str] = (), topics: Sequence[str] = ()
) -> StudyReport:
    """Write everything that studies have found to one HTML page, which opens without a network.

    Several studies give means and intervals over seeds; those that differ in how their models were aligned stand beside
    each other. An earlier page is replaced: it is derived from the studies alone. Any other file is left as it is. What
    is missing is named with the next command towards it. ``findings`` writes the same findings as a table.

    Args:
        study: The study folder, such as runs/organism-0; or a list of them, one a seed and alignment:
            '[runs/organism-0,runs/organism-1]'.
        out: The file to write; by default report/index.html inside the study, of several in a folder "study" beside
            them.
        sections: Sections of your own analyses: import paths of functions from a part of a page to a section.
        topics: Findings of your own, which such a section can show: import paths of functions from studies to findings.

    Returns:
        The file that was written, and the tables and headlines as text.

    Raises:
        InputError: A study folder is missing, holds nothing, or holds a file that cannot be read; two studies of one
            alignment and seed; or ``out`` is a folder, lies in a file, or is a file that is no page of this suite.
    """
    folders = [study] if isinstance(study, str) else study
    page = read_page(folders, sections, topics)
    usual = page.organisms[0].seeds.studies[0].folder / "report" / "index.html"
    usual = usual if len(folders) == 1 else default_page(folders)
    target = usual if out is None else Path(out)
    _refuse_what_is_no_page(target, usual, is_folder_name=out is not None and out.endswith(("/", os.sep)))
    html = render(page.organisms, page.parts)
    with holding(target):
        write_text(target, html)
    log.info("wrote %s (%.1f MB)", target, target.stat().st_size / 1e6)
    return StudyReport(target, page.to_text())


def read_page(folders: Sequence[str], sections: Sequence[str] = (), topics: Sequence[str] = ()) -> StudyPage:
    """Read studies, and make what a page and a terminal show of them.

    Raises:
        InputError: As :func:`report`.
    """
    organisms = read_organisms(folders)
    findings = findings_table(organisms, topics)
    is_alone = len(organisms) == 1
    parts = []
    if not is_alone:
        beside = alignments(organisms, findings[findings["aligned_by"] == SIDE_BY_SIDE])
        parts += [] if beside is None else [PagePart("Side by side", "Side by side", "side-by-side", "", [beside])]
    for number, organism in enumerate(organisms):
        of_part = findings[findings["aligned_by"] == organism.name]
        part = Part(organism.name, organism.seeds, of_part, "" if is_alone else f"organism-{number}")
        parts.append(part_of(organism, part, sections_of(part, sections), is_alone))
    return StudyPage(organisms, findings, parts)


def _listed(sentences: Sequence[str] | dict[str, None], width: int) -> str:
    return "\n".join(
        textwrap.fill(shown(text), width, initial_indent="- ", subsequent_indent="  ") for text in sentences
    )


def _refuse_what_is_no_page(target: Path, usual: Path, is_folder_name: bool) -> None:
    """Raise where writing ``target`` would fail, or replace a file that is neither ``usual`` nor a page."""
    if target.is_dir() or is_folder_name:
        raise InputError(f"{target} is a folder, expected a file to write the page to, such as {target / 'index.html'}")
    in_the_way = next((above for above in target.parents if above.exists() and not above.is_dir()), None)
    if in_the_way is not None:
        raise InputError(f"{in_the_way} is a file, expected a folder to write {target.name} to; choose another --out")
    if not target.exists() or (target.is_file() and (target.resolve() == usual.resolve() or is_page(target))):
        return
    raise InputError(
        f"{target} exists and is no page that `analyze.py report` made, so it is not written over; "
        "choose another --out, or move it away"
    )
