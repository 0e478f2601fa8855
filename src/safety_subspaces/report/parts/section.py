"""A section of a page: what is said, charts with captions, tables, and the next step towards what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from safety_subspaces.findings.models import Seeds
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.page import Chart
from safety_subspaces.report.parts.table import Table
from safety_subspaces.report.parts.tile import Tile

# Where a section stands that does not say so: after ours on results, before training, answers and limits.
USUAL_PLACE: Final = 500


@dataclass(frozen=True)
class Part:
    """What a page shows together: the studies of one alignment, one or several seeds, and what they say.

    Args:
        name: What the alignment is called beside others.
        studies: The studies.
        findings: Their decided findings, as :func:`safety_subspaces.findings.collect.collect`.
        anchor: Begins the names of its charts; different in each part of a page.
        colours: Those of its models, the same in all parts of a page.
    """

    name: str
    studies: Seeds
    findings: pd.DataFrame
    anchor: str = ""
    colours: Colours = field(default_factory=Colours)

    @property
    def is_single(self) -> bool:
        """Whether it is one study: what belongs to one run stands on its page alone."""
        return len(self.studies.studies) == 1

    def of_topic(self, topic: str) -> pd.DataFrame:
        """Return the findings of a topic."""
        return self.findings[self.findings["topic"] == topic]


@dataclass(frozen=True)
class Choice:
    """A choice that a reader has: which of several values the charts of a section show (their traces' ``meta``)."""

    name: str
    label: str
    values: tuple[float, ...]
    chosen: float


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        anchor: Its name in links.
        title: Its heading.
        charts: Charts, each with what stands under it.
        tables: Tables with their titles; the empty ones are left out.
        clause: What it adds to the one sentence at the top of the page: a main clause without a capital or a full stop.
        tiles: The numbers that stand at the top of the page.
        hero: A chart for the top of the page, with what stands under it: that of the first section which has one is
            shown there, any other as the first of its section's charts.
        leads: Whether its hero goes before those of the sections that stand earlier.
        warnings: What a reader must know before any number: it stands at the top of the page.
        headlines: What a terminal says of it, and the page before the section is opened.
        sentences: What is said, with the numbers.
        terminal: Tables that a terminal shows, with their titles.
        notes: What a reader must know beside, under the sentences.
        missing: What is not there yet, and the command that is the next step towards it.
        choice: What the charts let a reader choose.
        quotes: Answers of models, by a heading and the set of prompts.
        place: Where it stands on the page: the smallest first.
    """

    anchor: str
    title: str
    charts: list[tuple[Chart, str]] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    clause: str = ""
    tiles: list[Tile] = field(default_factory=list)
    hero: tuple[Chart, str] | None = None
    leads: bool = False
    warnings: list[str] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    terminal: dict[str, Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    choice: Choice | None = None
    quotes: Mapping[str, Any] = field(default_factory=dict)
    place: int = USUAL_PLACE
