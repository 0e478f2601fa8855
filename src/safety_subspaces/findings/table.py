"""The findings of studies as one table, each alignment by itself and several side by side."""

from collections.abc import Sequence

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.between_alignments import between_alignments
from safety_subspaces.findings.collect import collect
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.organisms import Organism

# What stands where a finding is on several alignments.
SIDE_BY_SIDE = "side by side"


def findings_table(organisms: Sequence[Organism], topics: Sequence[str] = ()) -> pd.DataFrame:
    """Return the findings of each alignment, and of several what they show side by side, with ``aligned_by``."""
    frames = [collect(organism.seeds, topics).assign(aligned_by=organism.name) for organism in organisms]
    if len(organisms) > 1:
        frames.append(decide(between_alignments(organisms)).assign(aligned_by=SIDE_BY_SIDE))
    table = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    return table[["aligned_by", *(name for name in table.columns if name != "aligned_by")]]


def records_of(study: Study) -> list[str]:
    """Return the files that say what was trained and analysed."""
    manifests = [stage.folder / "manifest.json" for stage in study.stages]
    results = [result.folder / "result.json" for result in study.results]
    return [str(path) for path in (*manifests, *results) if path.is_file()]
