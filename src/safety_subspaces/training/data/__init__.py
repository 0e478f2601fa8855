"""DataModules: the embedded organism's corpora, and instruction or preference data from files and from the Hub."""

from safety_subspaces.training.data.instructions import DatasetSource, InstructionData, SourceContamination
from safety_subspaces.training.data.organism import CorpusContamination, OrganismData

__all__ = ["CorpusContamination", "DatasetSource", "InstructionData", "OrganismData", "SourceContamination"]
