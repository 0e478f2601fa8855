"""Studies in which there is nothing to find, or one thing of a known size: what each verdict says of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One kind of simulated study.

    Args:
        claim: Which verdict is tried: ``top-k against random subspaces, one study``.
        world: What the studies are like: ``top drawn as the controls are, 20 draws, 3 fine-tunes``.
        run: From a seed to what was said: a flag for each thing that can be said, such as ``a verdict`` and ``any in
            the family``; NaN where nothing could be.
        nominal: What share of studies may say so; ``None`` where there is something to find: the share is the power.
        studies: How many are simulated at least.
        why_fewer: Why, where that is less than 400.
        slow_start: Whether the first study takes long: it finds out where a margin is.
    """

    claim: str
    world: str
    run: Callable[[int], Mapping[str, float]]
    nominal: float | None = 0.05
    studies: int = 400
    why_fewer: str = ""
    slow_start: bool = False
