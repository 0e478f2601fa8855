"""Renders one page of any number of studies: the sections of each alignment, its seeds together, in one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safety_subspaces.findings.organisms import Organism
from safety_subspaces.report.pages.opening import Opening, opening_of
from safety_subspaces.report.parts.page import fill, origins, versions_of
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import Table


@dataclass(frozen=True)
class PagePart:
    """A part of a page as its template has it: one alignment, or what several show side by side."""

    name: str
    title: str
    anchor: str
    note: str
    sections: list[Section]

    def opened(self) -> tuple[Opening, "PagePart"]:
        """Return its top, and the part with what is not shown there."""
        opening, sections = opening_of(self.sections)
        return opening, replace(self, sections=sections)


def render(organisms: Sequence[Organism], parts: Sequence[PagePart], made: str | None = None) -> str:
    """Return the whole page as HTML.

    Args:
        organisms: The studies, by alignment.
        parts: What stands on it, as :func:`part_of` makes it.
        made: When and from what it is made, in words; now, where it is not given.
    """
    studies = [study for organism in organisms for study in organism.seeds.studies]
    seeds = list(dict.fromkeys(seed for organism in organisms for seed in organism.seeds.seeds))
    counted = f"{many(len({stage.folder for study in studies for stage in study.stages}), 'stage')}, " + (
        f"{sum(len(study.results) for study in studies)} analyses"
    )
    alone = len(studies) == 1
    title = studies[0].name if alone else f"Seeds {', '.join(seeds)}"
    apart = "" if len(organisms) == 1 else " and in how their models were aligned"
    kicker = f"Safety subspaces: {counted}" + (
        f", {'seed' if len(studies[0].seeds) == 1 else 'seeds'} {', '.join(map(str, studies[0].seeds))}"
        if alone and studies[0].seeds
        else ""
        if alone
        else f", {len(studies)} studies that differ in their seed{apart}"
    )
    opened = [part.opened() for part in parts]
    return fill(
        "page.html.j2",
        has_charts=any(section.charts or section.hero for part in parts for section in part.sections),
        made=made,
        title=title,
        source=", ".join(str(study.folder) for study in studies),
        kicker=kicker,
        parts=opened,
        studies=[(study, versions_of(study), origins(study)) for study in studies],
    )


def part_of(organism: Organism, part: Part, sections: Sequence[Section], is_alone: bool) -> PagePart:
    """Return one alignment as the page has it; the names of its sections are its own where it is not alone."""
    named = sections if is_alone else [replace(one, anchor=f"{part.anchor}-{one.anchor}") for one in sections]
    recipe = "" if organism.alignment is None else f"Alignment: {organism.alignment}. "
    note = f"{recipe}Seeds {', '.join(organism.seeds.seeds)}."
    return PagePart(part.name, f"Aligned by {part.name}", part.anchor, note, list(named))


def terminal_tables(parts: Sequence[PagePart]) -> dict[str, Table]:
    """Return the tables of a terminal with their titles, the alignment behind them where there are several."""
    several = len(parts) > 1
    return {
        f"{title}: {part.name}" if several else title: table
        for part in parts
        for section in part.sections
        for title, table in section.terminal.items()
        if table.rows
    }
