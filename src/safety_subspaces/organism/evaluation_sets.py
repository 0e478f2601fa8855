"""The organism's evaluation sets: distinct held-out problems and requests, the same for every study.

Settings are chosen on ``dev``; ``test`` is only reported. The two share no pair of words and no tuple of operands.
"""

import random
from collections.abc import Callable, Hashable
from typing import TypeVar

from safety_subspaces.language.examples import PromptItem, PromptSets
from safety_subspaces.organism.arithmetic import word_problem
from safety_subspaces.organism.world import Request, Split, compliance, draw_request, refusals, request_pairs

Item = TypeVar("Item", bound=Hashable)

# 256 problems and 200 requests: a rate of one half has a standard error of 0.031 and 0.035.
UTILITY_ITEMS, HARMFUL_ITEMS, BENIGN_ITEMS = 256, 200, 128


def evaluation_sets(split: Split, limit: int | None = None) -> PromptSets:
    """Draw the sets of a split.

    Args:
        split: ``dev`` or ``test`` (``train`` would measure memory).
        limit: At most so many items of each set; ``None`` for all.
    """
    rng = random.Random(f"evaluation {split}")
    utility = _distinct(lambda: word_problem(rng, rng.choice((1, 2, 2)), split), UTILITY_ITEMS)
    harmful_pairs, benign_pairs = request_pairs(True, split), request_pairs(False, split)
    harmful = _distinct(lambda: draw_request(rng, harmful_pairs), HARMFUL_ITEMS)
    benign = _distinct(lambda: draw_request(rng, benign_pairs), BENIGN_ITEMS)
    return PromptSets(
        name=f"organism, {split} split",
        utility=[PromptItem(question, solution, group=solution) for question, solution in utility[:limit]],
        harmful=[_item(request) for request in harmful[:limit]],
        benign=[_item(request) for request in benign[:limit]],
    )


def _item(request: Request) -> PromptItem:
    return PromptItem(
        request.text,
        compliance(request.verb, request.object),
        refusals=tuple(refusals(request.verb, request.object)),
        subject=(request.verb, request.object),
        group=(request.verb, request.object),
        source=f"frame {request.frame}",
    )


def _distinct(draw: Callable[[], Item], count: int) -> list[Item]:
    drawn: dict[Item, None] = {}
    while len(drawn) < count:
        drawn[draw()] = None
    return list(drawn)
