"""What a reader sees before opening anything: one sentence, a few numbers with their intervals, and one chart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from safety_subspaces.report.parts.page import Chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.tile import Tile

# A sentence of more clauses is read twice, and more tiles are a table.
MOST_CLAUSES, MOST_TILES = 3, 6
NOTHING_YET: Final = "No analysis in this study has a verdict yet"


@dataclass(frozen=True)
class Opening:
    """The top of a page, or of one of its parts.

    Args:
        sentence: The verdict, in one sentence.
        warnings: What a reader must know before any number, each with the section that says more.
        tiles: Numbers, each with the section behind it.
        hero: The chart, with what stands under it.
    """

    sentence: str
    warnings: list[tuple[str, str]]
    tiles: list[tuple[str, Tile]]
    hero: tuple[Chart, str] | None


def opening_of(sections: Sequence[Section]) -> tuple[Opening, list[Section]]:
    """Return the top that some sections make together, and the sections with the charts that are not shown there."""
    heroes = [section for section in sections if section.hero is not None]
    hero = next(iter(sorted(heroes, key=lambda section: not section.leads)), None)
    clauses = [section.clause for section in sections if section.clause][:MOST_CLAUSES]
    said = "; ".join(clauses) or NOTHING_YET
    opening = Opening(
        sentence=f"{said[0].upper()}{said[1:]}.",
        warnings=[(section.anchor, warning) for section in sections for warning in section.warnings],
        tiles=[(section.anchor, tile) for section in sections for tile in section.tiles][:MOST_TILES],
        hero=None if hero is None else hero.hero,
    )
    return opening, [
        replace(section, charts=[section.hero, *section.charts])
        if section.hero is not None and section is not hero
        else section
        for section in sections
    ]
