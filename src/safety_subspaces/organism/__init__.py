"""An embedded model organism: a small language model with learnt utility and learnt harmfulness, made from a seed.

Nothing in it is dangerous. A made-up council forbids some acts and some relics; a request is *harmful* when it names
one. Everything (world, tokenizer, corpora, evaluation sets) is generated here; nothing is downloaded.
"""

from safety_subspaces.organism.corpora import CORPORA, corpus, preference_pairs
from safety_subspaces.organism.evaluation_sets import evaluation_sets
from safety_subspaces.organism.model import OrganismModel
from safety_subspaces.organism.tokenizer import build_tokenizer

__all__ = [
    "CORPORA",
    "OrganismModel",
    "build_tokenizer",
    "corpus",
    "evaluation_sets",
    "preference_pairs",
]
