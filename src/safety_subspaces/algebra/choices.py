"""What one chooses of an alignment subspace: the words that a command line takes, known without importing PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safety_subspaces.artefacts.errors import InputError

Side = Literal["left", "right"]
Selection = Literal["top", "random-k", "random"]
SubspaceKind = Literal["top", "random", "random-k", "random-energy", "scaled"]
Method = Literal["onto", "away", "opposite"]
Controls = Literal["sampled", "closed"]
# Kinds of subspace without chance: every draw would be the same.
DRAWN_ONCE: tuple[SubspaceKind, ...] = ("top", "scaled")


@dataclass(frozen=True)
class RankRule:
    """How many directions make the subspace: exactly one of the three.

    Args:
        count: That many.
        fraction: ``max(1, round_half_even(fraction * min(out, in)))``, strictly between 0 and 1.
        energy: The fewest whose squared singular values reach this share of the whole, in (0, 1].

    Raises:
        InputError: None or several were given, or one is out of its range.
    """

    count: int | None = None
    fraction: float | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError(f"a rank is given by exactly one of count, fraction and energy, got {given or 'none'}")
        if self.count is not None and self.count < 1:
            raise InputError(f"the count of directions must be at least 1, got {self.count}")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise InputError(f"a fraction of the rank must be strictly between 0 and 1, got {self.fraction}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError(f"an energy share must be in (0, 1], got {self.energy}")


def of_chance(subspaces: Sequence[SubspaceKind]) -> list[SubspaceKind]:
    """Return the kinds that are drawn at random."""
    return [kind for kind in subspaces if kind not in DRAWN_ONCE]
