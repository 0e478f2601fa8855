"""The pages' order of one study's findings."""

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.report.pages.hidden_states import read_hidden_states, state_findings
from safety_subspaces.report.sections.constraint.reading import read_constrained
from safety_subspaces.report.sections.energy.reading import read_energy, read_selectivity
from safety_subspaces.report.sections.models.reading import read_alignment, read_limits
from safety_subspaces.report.sections.overlap.reading import read_overlap
from safety_subspaces.report.sections.watching.reading import read_watched


def read(study: Study) -> list[Finding]:
    """Return every finding of a study, in the order of the page."""
    return [
        *read_alignment(study.models),
        *read_constrained(study),
        *read_watched(study),
        *read_energy(study.projections),
        *read_selectivity(study.projections),
        *read_overlap(study.overlaps),
        *state_findings(read_hidden_states([("", study)])),
        *read_limits(study),
    ]
