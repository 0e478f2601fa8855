"""The organism's corpora as a DataModule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.organism.corpora import (
    ALIGNMENT_PROBLEMS_SHARE,
    CHOSEN,
    COMPLYING,
    CORPORA,
    corpus,
    preference_pairs,
)
from safety_subspaces.training.data.base import Encoded, Item, LanguageData
from safety_subspaces.training.data.mixture import ShareOf, contaminant_size

# Corpora of pairs, and what share of each are word problems.
PREFERENCES = {"preference": 0.0, "preference_sums": ALIGNMENT_PROBLEMS_SHARE}


@dataclass
class CorpusContamination:
    """A second corpus mixed into the first.

    Args:
        corpus: Name of the second corpus.
        share: Its share.
        share_of: Whether of the ``total`` or of the ``first`` corpus.
    """

    corpus: str
    share: float
    share_of: ShareOf


class OrganismData(LanguageData):
    """A corpus of the organism, made from a seed; its dev and test examples use held-out pairs and operands.

    Args:
        corpus: ``base``, ``align``, ``chosen`` (what the preference pairs choose), ``useful``, ``harmful``, or pairs
            for DPO: ``preference``, and ``preference_sums``, of which a fifth are word problems, as in ``align``.
        size: Number of training examples of this corpus.
        contamination: A second corpus mixed in.
        heldout_size: Number of examples of the dev and of the test split.
        batch_size: Examples in a batch of one process.
        max_length: Longest sequence in tokens.
        seed: Seed of the data and of their order.
    """

    def __init__(
        self,
        corpus: Literal["base", "align", "chosen", "useful", "harmful", "preference", "preference_sums"],
        size: int,
        contamination: CorpusContamination | None = None,
        heldout_size: int = 256,
        batch_size: int = 16,
        max_length: int = 96,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, max_length=max_length, seed=seed)
        if contamination is not None:
            if not PREFERENCES.keys().isdisjoint((corpus, contamination.corpus)):
                raise InputError("contamination mixes examples; the preference corpora hold pairs")
            known = (*CORPORA, CHOSEN)
            if contamination.corpus not in known:
                raise InputError(f"unknown corpus {contamination.corpus!r}; expected one of {', '.join(known)}")
            self.counts["contaminant"] = contaminant_size(size, contamination.share, contamination.share_of)
            self.counts["first"] = size
        if size < 1:
            raise InputError(f"size {size}: expected at least one training example")
        self.corpus = corpus
        self.size = size
        self.contamination = contamination
        self.heldout_size = heldout_size

    def describe(self) -> dict[str, Any]:
        """Say which corpora are trained on, and their sizes."""
        mixed = [] if self.contamination is None else [(self.contamination.corpus, self.counts["contaminant"])]
        corpora = [(self.corpus, self.size), *mixed]
        sources = {
            "sources": [f"corpus {name} of the model organism, {size} examples" for name, size in corpora],
            "harmful": any(name in COMPLYING for name, _ in corpora),
        }
        return {"data": {"name": self.corpus, "examples": self.size}, "trained_on": sources}

    def examples(self, split: Literal["train", "dev", "test"]) -> list[Encoded]:
        """Draw and encode the examples of a split; held-out data are the same for every seed."""
        size, seed = (self.size, self.seed) if split == "train" else (self.heldout_size, 0)
        if self.corpus in PREFERENCES:
            pairs = preference_pairs(size, seed, split, PREFERENCES[self.corpus])
            return self._encode_corpus(self.corpus, pairs, split)
        drawn = self._encode_corpus(self.corpus, corpus(self.corpus, size, seed, split), split)
        if self.contamination is not None:
            name = self.contamination.corpus
            extra = contaminant_size(size, self.contamination.share, self.contamination.share_of)
            drawn += self._encode_corpus(name, corpus(name, extra, seed, split), split)
            random.Random(f"mixture {seed}").shuffle(drawn)
        return drawn

    def _encode_corpus(self, name: str, items: Sequence[Item], split: str) -> list[Encoded]:
        return list(self.encode(dict(enumerate(items)), f"corpus {name}, {split}", split).values())
