"""DataModules: the embedded organism's corpora, and instruction or preference data from files and from the Hub."""

from safety_subspaces.data.instructions import DatasetSource, InstructionData, SourceContamination
from safety_subspaces.data.organism import CorpusContamination, OrganismData

__all__ = ["CorpusContamination", "DatasetSource", "InstructionData", "OrganismData", "SourceContamination"]
