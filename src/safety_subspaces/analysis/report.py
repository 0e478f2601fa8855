"""The subcommand ``report``: a study folder becomes one HTML page, and a few lines for the terminal."""

import logging
import textwrap
from dataclasses import dataclass
from pathlib import Path

from safety_subspaces.files import write_text
from safety_subspaces.report.page import render
from safety_subspaces.report.reading import read
from safety_subspaces.report.study import Study, read_study
from safety_subspaces.report.tables import TERMINAL_WIDTH, terminal_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyReport:
    """What ``report`` made: the page, and the same in plain text for a terminal."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.text}\n\nreport: {self.path}"


def report(study: str, out: str | None = None) -> StudyReport:
    """Write everything that a study has found to one HTML page, which opens without a network.

    An earlier page is replaced: it is derived from the study alone. What is missing is named on the page with
    the command that makes it.

    Args:
        study: The study folder, such as runs/organism-0.
        out: The file to write; by default report/index.html inside the study.

    Returns:
        The file that was written, and the tables and the reading as text.

    Raises:
        InputError: The study folder is missing, holds nothing, or holds a file that cannot be read.
    """
    known = read_study(study)
    target = Path(out) if out is not None else known.folder / "report" / "index.html"
    write_text(target, render(known))
    log.info("wrote %s (%.1f MB)", target, target.stat().st_size / 1e6)
    return StudyReport(target, summary_text(known))


def summary_text(study: str | Study, width: int = TERMINAL_WIDTH) -> str:
    """Return what a terminal shows of a study: the tables of models and projections, then what they say.

    Raises:
        InputError: As :func:`report`.
    """
    known = read_study(study) if isinstance(study, str) else study
    said = [
        textwrap.fill(finding.sentence, width, initial_indent="- ", subsequent_indent="  ") for finding in read(known)
    ]
    lacking = [f"Missing: {name}. This makes it:\n  {command}" for name, command in known.missing().items()]
    parts = [terminal_tables(known, width), "What the numbers say\n" + "\n".join(said), *lacking]
    return "\n\n".join(part for part in parts if part)
