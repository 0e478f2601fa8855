"""A warning before everything else, where models do not look like what they were given as."""

from typing import Final

from safety_subspaces.report.parts.section import Part, Section

MEANING: Final = "Unless this was meant, what these analyses measured is not what the page calls it."


def lineage(part: Part) -> Section | None:
    """Say which analyses compared models that are not in their places."""
    found = part.of_topic("lineage")
    sentences = [f"{row['subject']}: {'; '.join(row['details']['said'])}." for _, row in found.iterrows()]
    if not sentences:
        return None
    return Section(
        "lineage",
        "Models that do not look like what they were given as",
        clause="models here do not look like what they were given as",
        warnings=[f"{sentence} {MEANING}" for sentence in sentences],
        headlines=[sentences[0]],
        sentences=sentences,
        notes=[MEANING],
        place=0,
    )
