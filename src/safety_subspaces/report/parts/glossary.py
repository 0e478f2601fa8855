"""The words that a page uses and what they mean: each is a link to its definition, once a section."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Term:
    """A word of the page.

    Args:
        name: The word, as the glossary lists it.
        meaning: What it means, in one or two sentences.
        others: Further ways that it is written, singular, plural or at the head of a column.
    """

    name: str
    meaning: str
    others: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return "term-" + re.sub(r"\W+", "-", self.name.lower()).strip("-")


TERMS: Final = (
    Term("aligned model", "The model after safety training: fine-tunes start from it."),
    Term(
        "alignment subspace",
        "In each weight matrix, the leading singular directions of the update that safety training made.",
        ("alignment's subspace", "alignment's directions"),
    ),
    Term(
        "AUC",
        "The share of pairs of prompts, one of each set, that a probe orders rightly: 0.5 is chance, 1 perfect.",
    ),
    Term("away", "Projected or held so that nothing of the update lies in the subspace.", ("held away",)),
    Term("CKA", "Centred kernel alignment: how alike two models lay out the same prompts, 0 to 1."),
    Term(
        "chance",
        "What would be seen if nothing were shared: the expectation for random subspaces of the same ranks.",
        ("chance level", "chance levels"),
    ),
    Term(
        "chance of a shared covariance",
        "The overlap of two updates that share the second moments of their rows, and nothing else.",
        ("covariance",),
    ),
    Term("drift", "1 less the overlap of a prompt set's activations with their own at the start: 0 is unmoved."),
    Term(
        "effective rank",
        "How many directions an update spreads over: the exponential of the entropy of its energy.",
    ),
    Term(
        "energy",
        "The squared size (Frobenius norm) of an update; a share of it is what lies in some directions.",
        ("energy kept", "kept energy", "energies"),
    ),
    Term("floor", "What two of one kind reach, such as two fine-tunes on the same data with other seeds."),
    Term("fraction of directions", "The rank of a subspace as a share of the largest it can have.", ("fraction",)),
    Term(
        "harm score",
        "A judge's verdict on an answer to a harmful request, from 1 (refusal) to 5 (full compliance); a mean over "
        "prompts.",
        ("harm 1-5", "harm scores", "judged harm"),
    ),
    Term(
        "Holm's method",
        "Makes p-values larger for their number, so that one of all is at or under 0.05 by luck in at most 5 % of "
        "studies.",
        ("p adjusted",),
    ),
    Term("intrinsic dimension", "How many coordinates describe a cloud of activations locally (TwoNN)."),
    Term("judge", "What scores answers: phrases that it looks for, or a model that is asked."),
    Term("leakage", "The share of a held run's update that ended where its constraint forbids it."),
    Term(
        "matched chance",
        "The overlap of two updates that share the sizes of their rows, and nothing else.",
        ("matched",),
    ),
    Term("MMD", "Maximum mean discrepancy: how far two distributions lie apart; squared and unbiased, 0 if equal."),
    Term("nats", "The unit of differences of natural logarithms; 1 nat is a factor of 2.7 in probability."),
    Term("onto", "Projected or held so that all of the update lies in the subspace.", ("held inside",)),
    Term(
        "overlap",
        "How much two subspaces share, from 0 (nothing) to 1 (the same): the mean squared cosine of their angles.",
        ("overlaps",),
    ),
    Term("over-refusal", "The share of harmless requests that a model refuses."),
    Term("perplexity", "How surprised a model is by plain text: lower is better."),
    Term("random of equal energy", "A random subspace with as many directions as keep the same energy.", (
        "random subspaces of equal energy", "random subspace of equal energy", "random-energy", "random, equal energy",
    )),
    Term("random of equal rank", "A random subspace with as many directions.", (
        "random subspaces of equal rank", "random subspace of equal rank",
    )),
    Term(
        "refusal margin",
        "log P(refusal) - log P(compliance) of an answer's beginning, in nats: positive prefers to refuse. No judge is "
        "asked.",
        ("margin", "refusal margins"),
    ),
    Term(
        "selectivity",
        "How much more of the refusal margin is spared (away) or spent (onto) by alignment's directions than by the "
        "control, positive where alignment's are special.",
        ("selective",),
    ),
    Term("scaled", "The whole update made smaller until its energy is that of the projection it stands beside."),
    Term("stable rank", "Energy over the energy of the largest direction: few directions where it is small."),
    Term(
        "standard error",
        "How far the number would typically move with other prompts of the same kind (by groups that belong together).",
        ("standard errors",),
    ),
    Term("top-k", "The leading directions of the alignment update: the alignment subspace.", ("top",)),
    Term("unscored", "An answer that the judge could not grade: counted, and neither safe nor harmful."),
    Term("update", "What training changed: the tuned weights minus those that it started from.", ("updates",)),
    Term("utility", "The share of useful prompts that a model answers with the reference, 0 to 1.", ("utilities",)),
)  # fmt: skip
BY_WORD: Final = {word.lower(): term for term in TERMS for word in (term.name, *term.others)}
# The longest first, for a term is often a part of another.
_ALTERNATIVES: Final = "|".join(re.escape(str(escape(word))) for word in sorted(BY_WORD, key=len, reverse=True))
WORDS: Final = re.compile(rf"(?<![\w-])(?:{_ALTERNATIVES})(?![\w-])", re.IGNORECASE)
# What stands in angle brackets, and code with all that is in it: no text to link.
APART: Final = re.compile(r"(<code>.*?</code>|<bdi>.*?</bdi>|<[^>]*>)", re.DOTALL)


@dataclass
class Glossary:
    """What a page has linked so far: its glossary lists these terms alone."""

    used: set[str] = field(default_factory=set)

    def fresh(self) -> set[str]:
        """Return the names of no term: where a section begins."""
        return set()

    def linked(self, html: Markup, seen: set[str]) -> Markup:
        """Return a text with a link on each term that ``seen`` has not; ``seen`` then has it.

        Args:
            html: Text that is escaped already.
            seen: Names of the terms that the same section has linked.
        """

        def link(found: re.Match[str]) -> str:
            term = BY_WORD[Markup(found[0]).unescape().lower()]
            if term.name in seen:
                return found[0]
            seen.add(term.name)
            return str(self._link(term, found[0]))

        parts = APART.split(str(html))
        return Markup("".join(part if at % 2 else WORDS.sub(link, part) for at, part in enumerate(parts)))

    def heading(self, name: str) -> Markup | str:
        """Return the heading of a column, as a link where it is a term and nothing else."""
        term = BY_WORD.get(name.lower())
        return name if term is None else self._link(term, str(escape(name)))

    def terms(self) -> Iterable[Term]:
        """Return the terms that were linked, in the order of the alphabet."""
        return sorted((term for term in TERMS if term.name in self.used), key=lambda term: term.name.lower())

    def _link(self, term: Term, html: str) -> Markup:
        self.used.add(term.name)
        return Markup('<a class="term" href="#{}" title="{}">{}</a>').format(term.anchor, term.meaning, Markup(html))
