"""What each colour of a page means: a kind of subspace, or a model; everything else is drawn in the colour of the text.

Lines and symbols of one colour are told apart by their dashes and shapes; grey is chance and other levels to compare
with.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import count
from typing import Any, Final

from safety_subspaces.artefacts.palette import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    INDIGO,
    INK,
    OLIVE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
)
from safety_subspaces.findings.models import Seeds

SUBSPACES: Final = {"top": VERMILION, "random-energy": BLUE, "random": SKY, "random-k": GREEN, "scaled": GREY}
# The aligned model is the first; further models than these share a colour and differ in their dashes and symbols.
MODELS: Final = (ORANGE, PURPLE, INDIGO, OLIVE, BROWN)
SYMBOLS: Final = ("circle", "diamond", "square", "triangle-up", "triangle-down", "pentagon", "star")
# Without the short dashes and dots of chance levels and controls.
DASHES: Final = ("solid", "longdash", "dashdot", "longdashdot")
# Scales of a measure that is shown as a colour: from 0 up, and to both sides of 0.
SEQUENTIAL: Final = "Cividis"
DIVERGING: Final = ((0.0, "#40004b"), (0.5, "#f7f7f7"), (1.0, "#00441b"))


def subspace_colour(subspace: str) -> str:
    """Return the colour of a kind of subspace."""
    return SUBSPACES.get(subspace, INK)


def ink_style(number: int) -> dict[str, Any]:
    """Return how the curve of something that is no model and no subspace is drawn, by its number in the chart."""
    return _style(INK, number, DASHES[number % len(DASHES)])


class Colours:
    """The colours of the models of a page, each the same in every chart, and no two drawn alike.

    Args:
        labels: Models that have the first colours; others follow as they are asked for.
        repeats: Models that repeat another one with another seed: they have its colour and another dash.
    """

    def __init__(self, labels: Iterable[str] = (), repeats: Mapping[str, str] | None = None) -> None:
        self._repeats, self._numbers = repeats or {}, dict[str, int]()
        for label in labels:
            self._number(label)

    def of(self, model: str) -> str:
        """Return a model's colour."""
        return MODELS[self._number(model) % len(MODELS)]

    def style(self, model: str) -> dict[str, Any]:
        """Return how a model's curve is drawn."""
        number = self._number(model)
        return _style(self.of(model), number, DASHES[number // len(MODELS) % len(DASHES)])

    def _number(self, model: str) -> int:
        if model not in self._numbers:
            taken = set(self._numbers.values())
            first = self._numbers.get(self._repeats.get(model, ""))
            own = count() if first is None else count(first, len(MODELS))
            self._numbers[model] = next(number for number in own if number not in taken)
        return self._numbers[model]


def colours_of(studies: Seeds) -> Colours:
    """Return the colours of some studies' models, as :func:`ranked` gives them."""
    stages = [
        (study, dict(zip(study.known.labels["stage"], study.known.labels["label"], strict=True)))
        for study in studies.studies
    ]
    held = {
        label_of.get(stage.name, stage.name)
        for study, label_of in stages
        for stage in study.stages
        if stage.constraint is not None
    }
    repeats = {
        name: label_of.get(first, first)
        for study, label_of in stages
        for again, first in study.repeats.items()
        for name in (again, label_of.get(again, again))
    }
    return ranked(studies.roles, held, repeats)


def ranked(roles: Mapping[str, str], held: Collection[str], repeats: Mapping[str, str]) -> Colours:
    """Return colours by how often models share a chart: aligned, base and fine-tunes, then runs held to a subspace.

    Args:
        roles: Each model's role.
        held: Those whose update was held to a subspace.
        repeats: Those that repeat another one, which have its colour.
    """
    rank = {"aligned": 0, "base": 1, "tuned": 2}

    def place(label: str) -> tuple[bool, bool, int]:
        return label in repeats, label in held, rank.get(roles[label], len(rank))

    return Colours(sorted(roles, key=place), repeats)


def _style(colour: str, number: int, dash: str) -> dict[str, Any]:
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.4, "dash": dash},
        "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[number % len(SYMBOLS)]},
    }
