"""The subcommand ``report``: a study folder becomes one HTML page, and a few lines for the terminal."""

import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import holding, write_text
from safety_subspaces.artefacts.study import Study, read_study
from safety_subspaces.artefacts.text import shown
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.models import default_page
from safety_subspaces.findings.organisms import Organism, read_organisms
from safety_subspaces.report.pages.across import across_findings, across_tables
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.pages.seeds import render_across
from safety_subspaces.report.pages.study import render
from safety_subspaces.report.parts.page import is_page
from safety_subspaces.report.parts.table import TERMINAL_WIDTH
from safety_subspaces.report.sections.constraint.tables import constrained_table
from safety_subspaces.report.sections.energy.tables import COMPARED_SUBSPACES, projection_table
from safety_subspaces.report.sections.models.tables import model_table

log = logging.getLogger(__name__)
# A terminal shows a screenful; the page has every row.
TERMINAL_ROWS = 48


@dataclass(frozen=True)
class StudyReport:
    """What ``report`` made: the page, and the same in plain text for a terminal."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.text}\n\nreport: {self.path}"


def report(study: list[str] | str, out: str | None = None, sections: Sequence[str] = ()) -> StudyReport:
    """Write everything that a study has found to one HTML page, which opens without a network.

    Several studies give one page of means and intervals over seeds; those that differ in how their models were aligned
    stand beside each other on it. An earlier page is
    replaced: it is derived from the studies alone. Any other file is left as it is. What is missing is named on a
    study's page with the next command towards it.

    Args:
        study: The study folder, such as runs/organism-0; or a list of them, one a seed and alignment:
            '[runs/organism-0,runs/organism-1]'.
        out: The file to write; by default report/index.html inside the study, of several in a folder "study" beside
            them.
        sections: Sections of your own analyses for a study's page: import paths of functions from a study to a section.

    Returns:
        The file that was written, and the tables and the reading as text.

    Raises:
        InputError: A study folder is missing, holds nothing, or holds a file that cannot be read; two studies of one
            alignment and seed; or ``out`` is a folder, lies in a file, or is a file that is no page of this suite.
    """
    folders = [study] if isinstance(study, str) else study
    if len(folders) == 1:
        known = read_study(folders[0])
        usual, html, text = (
            known.folder / "report" / "index.html",
            partial(render, known, sections),
            partial(summary_text, known),
        )
    else:
        if sections:
            raise InputError("sections stand on the page of one study, and several were given; leave sections out")
        organisms = read_organisms(folders)
        findings = across_findings(organisms)
        usual, html = default_page(folders), partial(render_across, organisms, findings)
        text = partial(across_text, organisms, findings)
    target = usual if out is None else Path(out)
    _refuse_what_is_no_page(target, usual, is_folder_name=out is not None and out.endswith(("/", os.sep)))
    with holding(target):
        write_text(target, html())
    log.info("wrote %s (%.1f MB)", target, target.stat().st_size / 1e6)
    return StudyReport(target, text())


def summary_text(study: str | Study, width: int = TERMINAL_WIDTH) -> str:
    """Return what a terminal shows of a study: the tables of models and projections, then what they say.

    Raises:
        InputError: As :func:`report`.
    """
    known = read_study(study) if isinstance(study, str) else study
    lacking = [f"Missing: {name}. Next step towards it:\n  {command}" for name, command in known.missing().items()]
    constrained = ""
    if len(known.constrained):
        constrained = "Training under a constraint\n" + constrained_table(known).without("n").to_text(width)
    parts = [terminal_tables(known, width), constrained, _said(read(known), width), *lacking]
    return "\n\n".join(part for part in parts if part)


def terminal_tables(study: Study, width: int = TERMINAL_WIDTH) -> str:
    """Return the table of models and the table of projections as plain text, at most ``width`` wide."""
    parts = []
    if len(study.models):
        parts.append("Models\n" + model_table(study).to_text(width))
    if len(study.projections):
        table = projection_table(study)
        title = "Projections"
        if len(table.rows) > TERMINAL_ROWS:
            title += " (top-k and its control of equal energy; the page has every subspace)"
            table = projection_table(study, COMPARED_SUBSPACES)
        parts.append(f"{title}\n" + table.without("chance", "harmful", "unscored").to_text(width))
    return "\n\n".join(parts)


def across_text(organisms: list[Organism], findings: Mapping[str, list[Finding]], width: int = TERMINAL_WIDTH) -> str:
    """Return what a terminal shows of several studies: the tables over seeds, then the headlines; the page has more."""
    parts = [f"{title}\n{table.to_text(width)}" for title, table in across_tables(organisms).items() if table.rows]
    for name, said in findings.items():
        headlines = list(dict.fromkeys(finding.headline for finding in said if finding.headline))
        parts.append(f"What the numbers say: {name}\n{_listed(headlines, width)}")
    return "\n\n".join(parts)


def _said(findings: list[Finding], width: int) -> str:
    return f"What the numbers say\n{_listed([finding.sentence for finding in findings], width)}"


def _listed(sentences: list[str], width: int) -> str:
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
