"""Further analyses: the tables that no section of the page shows, as they are."""

from typing import Final

from safety_subspaces.artefacts.study import Study
from safety_subspaces.artefacts.study_files import AnalysisResult
from safety_subspaces.findings.watched import trajectories_of, watched_stages
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.table import any_table

# The subcommands whose main table has its place in a section.
SHOWN: Final = ("evaluate", "project", "overlap", "activations", "probe", "steer")


def others(part: Part) -> Section | None:
    """Show the first rows of each further table."""
    tables = {
        f"{result.command} / {result.label}" + ("" if part.is_single else f", seed {seed}"): any_table(
            result.tables["table"]
        )
        for seed, study in part.studies.named
        for result in without_section(study)
    }
    return Section("others", "Further analyses", tables=tables, place=600) if tables else None


def without_section(study: Study) -> list[AnalysisResult]:
    """Return the analyses with a table that no section of the page shows."""
    shown = {result.folder for stage in watched_stages(study) for result in trajectories_of(study, stage)}
    return [
        result
        for result in study.results
        if result.command not in SHOWN and "table" in result.tables and result.folder not in shown
    ]
