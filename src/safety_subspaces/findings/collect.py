"""Asks every topic what it found in some studies, and decides it: the one way to the findings of a page or a table.

A topic is a function from :class:`~safety_subspaces.findings.models.Seeds` to findings. Ours live in ``topics/``; those
of other packages are found by entry points (``safety_subspaces.findings``) or named by import paths.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points

import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.findings.finding import Finding, decide
from safety_subspaces.findings.models import Seeds

GROUP = "safety_subspaces.findings"
TOPICS = Plugins("finding", callable, folder="safety_subspaces.findings.topics", group=GROUP)


def collect(studies: Seeds, plugged: Sequence[str] = ()) -> pd.DataFrame:
    """Return what every topic found in the studies of one alignment, decided.

    Args:
        studies: One study, or several that differ in their seed.
        plugged: Import paths of further topics.

    Returns:
        As :func:`~safety_subspaces.findings.finding.decide`.

    Raises:
        InputError: No such topic, or it returned something else; or as a topic.
    """
    found: list[Finding] = []
    for name in dict.fromkeys((*TOPICS.names(), *(point.name for point in entry_points(group=GROUP)), *plugged)):
        said = TOPICS.load(name)(studies)
        if not isinstance(said, list) or not all(isinstance(finding, Finding) for finding in said):
            raise InputError(f"finding {name} returned {type(said).__name__}; expected a list of findings")
        found += said
    return decide(found)
