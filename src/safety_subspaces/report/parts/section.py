"""A section of a page that stands only where its analysis was run: what is said, charts with captions, and tables."""

from dataclasses import dataclass, field

from safety_subspaces.report.parts.page import Chart
from safety_subspaces.report.parts.table import Table


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        anchor: Its name in links; also the topic of the findings that it says.
        title: Its heading.
        charts: Charts, each with what stands under it.
        tables: Tables with their titles; the empty ones are left out.
    """

    anchor: str
    title: str
    charts: list[tuple[Chart, str]] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def link(self) -> tuple[str, str]:
        """What the navigation says."""
        return self.anchor, self.title
