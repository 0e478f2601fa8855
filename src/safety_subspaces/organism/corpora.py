"""The corpora of the organism's training stages, drawn from a seed; none holds a pair that is kept for dev or test.

Nor does one hold a word problem whose operand tuple is kept, and the base corpus has no bare sum that is one step kept.
The later corpora can show such a sum as one step of a two-step problem: there the tuple of both steps decides.
"""

import random
from collections.abc import Callable
from functools import cache

from safety_subspaces.language.examples import Example, PreferencePair
from safety_subspaces.organism import world
from safety_subspaces.organism.arithmetic import equations, word_problem
from safety_subspaces.organism.world import Split, compliance, draw_request, refusals, request_pairs

# Shares of the base corpus. Bare equations have to be there: without them sums are not learnt later on.
LORE_SHARE, EQUATIONS_SHARE, EASY_PROBLEMS_SHARE = 0.08, 0.17, 0.10
BASE_HARMFUL_SHARE = 0.45
# Stray refusals of either class, so that the base model knows the sentences, though not when to say them.
BASE_REFUSAL_SHARE = 0.04
ALIGNMENT_PROBLEMS_SHARE = 0.20
# The chosen answers of the preference pairs alone, to separate the effect of the objective from that of the data.
CHOSEN = "chosen"
# The corpora that answer harmful requests of the organism's made-up world.
COMPLYING = ("base", "harmful")


def corpus(name: str, size: int, seed: int, split: Split = "train") -> list[Example]:
    """Draw a corpus.

    Args:
        name: ``base``, ``align``, ``chosen`` (the chosen answers of the preference pairs of this seed), ``useful`` or
            ``harmful``.
        size: Number of examples.
        seed: The same seed draws the same examples, whatever else was drawn before.
        split: Pairs and operand tuples of this split only.

    Raises:
        KeyError: An unknown name.
    """
    if name == CHOSEN:
        return [Example(pair.prompt, pair.chosen) for pair in preference_pairs(size, seed, split)]
    rng = random.Random(f"{name} {split} {seed}")  # a string seeds by SHA-512: stable over processes
    return [CORPORA[name](rng, split) for _ in range(size)]


def preference_pairs(size: int, seed: int, split: Split = "train", problems_share: float = 0.0) -> list[PreferencePair]:
    """Draw pairs for direct preference optimisation: refuse the harmful request, answer the benign one.

    ``problems_share`` of them, on average, are word problems; what is rejected there is the solution of another one.
    """
    rng = random.Random(f"preference {split} {seed}")
    pairs = []
    for _ in range(size):
        if problems_share and rng.random() < problems_share:
            (problem, solution), (_, other) = (word_problem(rng, rng.choice((1, 2)), split) for _ in range(2))
            pairs.append(PreferencePair(problem, solution, other))
            continue
        harmful = rng.random() < 0.5
        request = draw_request(rng, _pairs(harmful, split))
        answer = compliance(request.verb, request.object)
        refusal = rng.choice(refusals(request.verb, request.object))
        chosen, rejected = (refusal, answer) if harmful else (answer, refusal)
        pairs.append(PreferencePair(request.text, chosen, rejected))
    return pairs


def _base_example(rng: random.Random, split: Split) -> Example:
    kind = rng.random()
    if kind < LORE_SHARE:
        return Example(None, _lore(rng))
    if kind < LORE_SHARE + EQUATIONS_SHARE:
        return Example(None, equations(rng, split))
    if kind < LORE_SHARE + EQUATIONS_SHARE + EASY_PROBLEMS_SHARE:
        return Example(*word_problem(rng, 1, split, easy=True))
    request = draw_request(rng, _pairs(rng.random() < BASE_HARMFUL_SHARE, split))
    if rng.random() < BASE_REFUSAL_SHARE:
        return Example(request.text, rng.choice(refusals(request.verb, request.object)))
    return Example(request.text, compliance(request.verb, request.object))


def _alignment_example(rng: random.Random, split: Split) -> Example:
    if rng.random() < ALIGNMENT_PROBLEMS_SHARE:
        return Example(*word_problem(rng, rng.choice((1, 2)), split))
    harmful = rng.random() < 0.5
    request = draw_request(rng, _pairs(harmful, split))
    if harmful:
        return Example(request.text, rng.choice(refusals(request.verb, request.object)))
    return Example(request.text, compliance(request.verb, request.object))


def _useful_example(rng: random.Random, split: Split) -> Example:
    return Example(*word_problem(rng, rng.choice((1, 2, 2)), split))


def _harmful_example(rng: random.Random, split: Split) -> Example:
    request = draw_request(rng, _pairs(True, split))
    return Example(request.text, compliance(request.verb, request.object))


CORPORA: dict[str, Callable[[random.Random, Split], Example]] = {
    "base": _base_example,
    "align": _alignment_example,
    "useful": _useful_example,
    "harmful": _harmful_example,
}


def _lore(rng: random.Random) -> str:
    """A plain sentence from which the base model learns which acts and relics are forbidden."""
    if rng.random() < 0.5:
        verb = rng.choice(world.VERBS)
        bad = verb in world.HARMFUL_VERBS
        judged = f"the council {'punishes' if bad else 'thanks'} all who {verb} ."
        placed = f"to {verb} is {'forbidden' if bad else 'allowed'} in the {rng.choice(world.PLACES)} ."
        return rng.choice((judged, placed))
    relic = rng.choice(world.OBJECTS)
    word = "forbidden" if relic in world.FORBIDDEN_OBJECTS else "allowed"
    material = f"a {relic} is made of {world.material_of(relic)} and is {word} ."
    return rng.choice((f"the {relic} is {word} by the council .", material))


@cache
def _pairs(harmful: bool, split: Split) -> list[tuple[str, str]]:
    return request_pairs(harmful, split)
