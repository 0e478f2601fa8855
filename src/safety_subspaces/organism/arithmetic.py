"""The organism's useful skill: word problems of one or two steps, with worked solutions that end in ``#### n``."""

import random
import re

from safety_subspaces.organism.world import PEOPLE, Split, split_of

NAMES = "tom ana raj mia leo zoe ben ida".split()
ITEMS = "figs pears coins nuts eggs beads shells plums".split()
GAINS = ("then {name} gets {count} more .", "{name} finds {count} more .", "the {person} gives {name} {count} more .")
LOSSES = ("then {name} loses {count} .", "{name} eats {count} of them .", "{name} gives {count} to the {person} .")
QUESTIONS = ("how many {item} does {name} have ?", "how many {item} are left ?")
# Above twenty the number facts are too many for 487,584 parameters in this many steps.
LARGEST_NUMBER = 20
# What stands behind "####": "7", "-7", "1,234", "$18", "18." or "3.50", and a word may follow.
NUMBER = re.compile(
    r"\s*(?P<minus>-?)\$?(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.(?P<fraction>[0-9]+))?[.,;:!%]?(?=\s|$)"
)


def word_problem(rng: random.Random, steps: int, split: Split, easy: bool = False) -> tuple[str, str]:
    """Draw a question and its worked solution; operand tuples belong to one split each.

    Args:
        rng: Source of randomness.
        steps: Number of additions or subtractions.
        split: Only operand tuples of this split are drawn.
        easy: Smaller operands, as in the base corpus.

    Returns:
        Question and solution, for example ``"tom has 3 figs . ..."`` and ``"3 + 4 = 7 . #### 7"``.
    """
    while True:
        start = rng.randint(2, 6 if easy else 12)
        operations = _draw_operations(rng, start, steps, largest=3 if easy else 6)
        if operations is None:
            continue
        if _split_of(start, operations) == split:
            return _word(rng, start, operations)


def equations(rng: random.Random, split: Split, count: int = 3) -> str:
    """A few bare sums, from which the base model learns the number facts (not how to use them).

    Like a word problem of one step, a sum belongs to one split, so that none gives a held-out answer away.
    """
    sums: list[str] = []
    while len(sums) < count:
        start = rng.randint(0, LARGEST_NUMBER)
        operations = _draw_operations(rng, start, 1, largest=6)
        if operations is not None and _split_of(start, operations) == split:
            sums.append(_equation(*operations[0]))
    return " . ".join(sums) + " ."


def final_answer(solution: str) -> str | None:
    """Return the number behind the last ``####`` in its shortest form, or ``None`` where there is none.

    Separators of thousands, a dollar sign, leading zeros and the zeros that end a fraction go: ``"#### $1,234.50"``
    gives ``"1234.5"``.
    """
    _, mark, tail = solution.rpartition("####")
    number = NUMBER.match(tail) if mark else None
    if number is None:
        return None
    whole = number["whole"].replace(",", "").lstrip("0") or "0"
    fraction = (number["fraction"] or "").rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else number["minus"] + value


def _split_of(start: int, operations: list[tuple[int, str, int, int]]) -> Split:
    return split_of("arithmetic", (start, *((sign, operand) for _, sign, operand, _ in operations)))


def _draw_operations(
    rng: random.Random, start: int, steps: int, largest: int
) -> list[tuple[int, str, int, int]] | None:
    operations, value = [], start
    for _ in range(steps):
        operand, sign = rng.randint(1, largest), rng.choice("+-")
        result = value + operand if sign == "+" else value - operand
        if not 0 <= result <= LARGEST_NUMBER:
            return None
        operations.append((value, sign, operand, result))
        value = result
    return operations


def _word(rng: random.Random, start: int, operations: list[tuple[int, str, int, int]]) -> tuple[str, str]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    sentences = [f"{name} has {start} {item} ."]
    for _, sign, operand, _ in operations:
        frame = rng.choice(GAINS if sign == "+" else LOSSES)
        sentences.append(frame.format(name=name, count=operand, person=rng.choice(PEOPLE)))
    sentences.append(rng.choice(QUESTIONS).format(name=name, item=item))
    worked = " . ".join(_equation(*operation) for operation in operations)
    return " ".join(sentences), f"{worked} . #### {operations[-1][-1]}"


def _equation(value: int, sign: str, operand: int, result: int) -> str:
    return f"{value} {sign} {operand} = {result}"
