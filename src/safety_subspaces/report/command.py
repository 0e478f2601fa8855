"""The subcommand ``report``: study folders become one HTML page, and a few lines for the terminal."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.artefacts.files import holding, write_text

log = logging.getLogger(__name__)


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
    check_extra("plotly", "a page with figures")
    from safety_subspaces.findings.models import default_page
    from safety_subspaces.report.pages.page import render
    from safety_subspaces.report.pages.studies import read_page

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


def _refuse_what_is_no_page(target: Path, usual: Path, is_folder_name: bool) -> None:
    """Raise where writing ``target`` would fail, or replace a file that is neither ``usual`` nor a page."""
    from safety_subspaces.report.parts.page import is_page

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
