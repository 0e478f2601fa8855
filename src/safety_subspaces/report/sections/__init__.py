"""The sections of a page, a package a topic; those of other packages' analyses are found as plug-ins are.

A section from elsewhere is a function that takes a ``Study`` and returns a ``Section``, or ``None`` where the study has
nothing for it.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.artefacts.study import Study
from safety_subspaces.report.parts.section import Section

# Ours are no plug-ins: each has its place on the page, and what it reads is read once.
SECTIONS = Plugins("section", callable, folder="", group="safety_subspaces.sections")


def plugged_sections(study: Study, names: Sequence[str]) -> list[Section]:
    """Return the sections of installed packages and of import paths that a study has something for.

    Raises:
        InputError: No such section, or it returned something else.
    """
    sections = []
    for name in (*(point.name for point in entry_points(group=SECTIONS.group)), *names):
        section = SECTIONS.load(name)(study)
        if section is not None and not isinstance(section, Section):
            raise InputError(f"section {name} returned {type(section).__name__}; expected a Section, or None")
        sections += [] if section is None else [section]
    return sections
