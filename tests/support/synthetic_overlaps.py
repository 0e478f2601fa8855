"""Made-up overlaps of one organism over seeds, so that every reading of them can be provoked."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

PAIRS = (
    ("useful", "harmful"),
    ("useful", "useful_again"),
    ("useful", "harmful_again"),
    ("harmful", "useful_again"),
    ("harmful", "harmful_again"),
    ("useful_again", "harmful_again"),
)
FLOORS = {("useful", "useful_again"), ("harmful", "harmful_again")}
BLOCK = ("q", "v", "up")
TYPES = ("embeddings", *BLOCK, "norm", "head")
LAYERS = 2


@dataclass(frozen=True)
class Overlaps:
    """What is true in the made-up world."""

    position: float = 0.1  # of useful-harmful between matched chance (0) and the floor (1)
    repeated: float | None = None  # of the pairs with one repeat; as `position` where None
    floor: float = 0.6
    noise: float = 0.01  # standard deviation of a seed's own position, in overlap
    offset: float = 0.0  # standard deviation of what shifts everything in a seed alike
    has_floors: bool = True
    seeds: int = 3
    energies: tuple[float, ...] = (0.9,)
    analyses: tuple[str, ...] = ("weights",)


APART = Overlaps()
AT_CHANCE = Overlaps(position=0.0)
AS_THE_FLOORS = Overlaps(position=1.0)
IN_BETWEEN = Overlaps(position=0.5, noise=0.05)


def overlaps_of(world: Overlaps = APART, seed: int = 0) -> pd.DataFrame:
    """Return the table of every seed, with the columns of ``Study.overlaps`` and ``seed``."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(world.seeds):
        shift = world.offset * random.normal()
        noise = {pair: 0.0 if pair in FLOORS else world.noise * random.normal() for pair in PAIRS}
        for analysis in world.analyses:
            suffix = "_lora" if analysis == "adapters" else ""
            for first, second in PAIRS if world.has_floors else PAIRS[:1]:
                for tensor, layer, kind in _tensors():
                    for energy in world.energies:
                        chance, matched = 0.15 + 0.01 * (layer + 1), 0.2 + 0.01 * (layer + 1)
                        is_mixed = first.endswith("_again") != second.endswith("_again")
                        position = world.repeated if is_mixed and world.repeated is not None else world.position
                        if (first, second) in FLOORS:
                            position = 0.9 if first == "useful" else 1.1
                        value = matched + position * (world.floor - matched) + noise[first, second]
                        value += 0.01 * random.normal()
                        row = {
                            "analysis": analysis,
                            "first": _label(first, suffix),
                            "second": _label(second, suffix),
                            "tensor": tensor,
                            "layer": layer,
                            "type": kind,
                            "energy": energy,
                            "rank_first": 20,
                            "rank_second": 22,
                            "overlap": value * energy + shift,
                            "chance": chance * energy + shift,
                            "p_haar": 0.01,
                            "matched_chance": matched * energy + shift,
                            "p_matched": 0.3 if position < 0.05 else 0.01,
                            "floor": (first, second) in FLOORS,
                            "seed": str(number),
                        }
                        rows.append(row)
    return pd.DataFrame(rows)


def _label(name: str, suffix: str) -> str:
    return f"{name.removesuffix('_again')}{suffix}{'_again' if name.endswith('_again') else ''}"


def _tensors() -> list[tuple[str, int, str]]:
    inner = [
        (f"model.layers.{layer}.{kind}.weight", layer, kind) for layer in range(LAYERS) for kind in (*BLOCK, "norm")
    ]
    outer = [("model.embed_tokens.weight", -1, "embeddings"), ("lm_head.weight", -1, "head")]
    return [*inner, *outer, ("model.norm.weight", -1, "norm")]
