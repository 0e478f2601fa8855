"""The sections of a page, one file a topic: each declares its sentences, charts and tables, and computes nothing.

A section is a function from a :class:`~safety_subspaces.report.parts.section.Part` to a ``Section``, or ``None`` where
the studies have nothing for it. Those of other packages' analyses are found as plug-ins are.
"""

from collections.abc import Sequence

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.report.parts.section import Part, Section

# A name on the command line means a plug-in: ours are on every page as it is.
PLUGGED = Plugins("section", callable, folder="", group="safety_subspaces.sections")
SECTIONS = Plugins("section", callable, folder="safety_subspaces.report.sections", group=PLUGGED.group)


def sections_of(part: Part, plugged: Sequence[str] = ()) -> list[Section]:
    """Return the sections that some studies have something for, in the order of the page.

    Raises:
        InputError: No such section, or it returned something else.
    """
    named = [*SECTIONS.names(), *plugged]
    made = [_made(name, (PLUGGED if name in plugged else SECTIONS).load(name)(part)) for name in dict.fromkeys(named)]
    return sorted((section for section in made if section is not None), key=lambda section: section.place)


def _made(name: str, section: object) -> Section | None:
    if section is not None and not isinstance(section, Section):
        raise InputError(f"section {name} returned {type(section).__name__}; expected a Section, or None")
    return section
