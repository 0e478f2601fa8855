"""What each colour of a page means: a kind of subspace, or a model; everything else is drawn in the colour of the text.

Lines and symbols of one colour are told apart by their dashes and shapes; grey is chance and other levels to compare
with.
"""

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
# The aligned model is the first; further models than these share a colour and differ in their symbols.
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
    """The colours of the models of a page, each the same in every chart.

    Args:
        labels: Models that have the first colours; others follow as they are asked for.
    """

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self._numbers = {label: number for number, label in enumerate(labels)}

    def of(self, model: str) -> str:
        """Return a model's colour."""
        return MODELS[self._number(model) % len(MODELS)]

    def style(self, model: str) -> dict[str, Any]:
        """Return how a model's curve is drawn."""
        number = self._number(model)
        return _style(self.of(model), number, DASHES[number // len(MODELS) % len(DASHES)])

    def _number(self, model: str) -> int:
        return self._numbers.setdefault(model, len(self._numbers))


def colours_of(studies: Seeds) -> Colours:
    """Return the colours of some studies' models: the aligned one first, then the fine-tunes in their order."""
    rank = {"aligned": 0, "tuned": 1, "base": 2}
    roles = studies.roles
    return Colours(tuple(sorted(roles, key=lambda label: rank.get(roles[label], len(rank)))))


def _style(colour: str, number: int, dash: str) -> dict[str, Any]:
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.4, "dash": dash},
        "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[number % len(SYMBOLS)]},
    }
