"""Several organisms that differ in how their models were aligned, each over seeds.

Studies are put together by the recipe of their aligned stage, read from its manifest, and not by what their folders are
called. A study whose manifest does not say stands with the others that do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.run_alignment import Alignment, read_alignment_recipe
from safety_subspaces.artefacts.study import Study, read_study
from safety_subspaces.findings.matching import match_labels
from safety_subspaces.findings.models import Seeds, together


@dataclass(frozen=True)
class Organism:
    """The studies of one alignment, one a seed.

    Args:
        name: What it is called beside the others: its objective, and what else is different.
        alignment: Its recipe; ``None`` where no manifest has it.
        seeds: Its studies.
    """

    name: str
    alignment: Alignment | None
    seeds: Seeds


def read_organisms(folders: Sequence[str]) -> list[Organism]:
    """Read studies, and put those of one alignment together, in the order in which they are given.

    One label stands for the same model in all of them.

    Raises:
        InputError: No folder, one that is no study, or two studies of one alignment and one seed.
    """
    if not folders:
        raise InputError("no study given; say --study FOLDER, or a list of folders that differ in seed or alignment")
    studies_of: dict[Alignment | None, list[Study]] = {}
    for study in match_labels([read_study(folder) for folder in folders]):
        studies_of.setdefault(_alignment_of(study), []).append(study)
    groups = {alignment: together(studies) for alignment, studies in studies_of.items()}
    return [Organism(_name(alignment, list(groups)), alignment, seeds) for alignment, seeds in groups.items()]


def _alignment_of(study: Study) -> Alignment | None:
    stage = study.aligned_stage
    return None if stage is None else read_alignment_recipe(stage.manifest)


def _name(alignment: Alignment | None, among: Sequence[Alignment | None]) -> str:
    """Return the objective, with what is different from the first organism of that objective."""
    if alignment is None:
        return "unknown alignment"
    first = next(other for other in among if other is not None and other.objective == alignment.objective)
    rest = alignment.beside(first)
    return f"{alignment.objective}, {rest}" if rest else alignment.objective
