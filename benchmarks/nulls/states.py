"""Studies of hidden states and trajectories with nothing to be found, or a known amount, and what is said of them.

Each function makes one study from a seed. A study takes well under a second, but the first of a world at the margin,
which finds out where that is.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.nulls import Scenario
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.algebra.path import find_change_points
from safety_subspaces.states.chance import StateSpace, matched_states_control
from safety_subspaces.states.equivalence import Equivalence, StateParts, overlap_equivalence

LEVEL = 0.05
# Samples that find the margin are none of those that are counted.
CALIBRATION_SEEDS = 1_000_000
Mean = Literal["even", "scaled", "one", "weak", "own"]


@dataclass(frozen=True)
class World:
    """What all sets of states of a study have in common.

    Args:
        seed: Seed of scales, means and kinds.
        hidden: Dimension.
        scale: Standard deviation of the logarithms of the coordinates' scales; outlier dimensions of real models make
            it about 1.
        mean: ``even`` over coordinates; ``scaled``, large where a coordinate is; ``one`` coordinate alone; ``weak``
            and scaled; ``own``: scaled, and another one for each set.
    """

    seed: int
    hidden: int = 96
    scale: float = 0.8
    mean: Mean = "scaled"

    def sets(self, count: int, mix: float, studies: int) -> list[Tensor]:
        """Return two sets of so many states, of one kind at a mix of 0 and of independent kinds at a quarter turn.

        A kind is a Gaussian covariance of directions of its own, with a spectrum that falls linearly, in coordinates
        whose scales all kinds share.

        Args:
            count: States of each set.
            mix: Angle in radians.
            studies: Seed of the states; kinds depend on the world alone.
        """
        fixed, drawn = generator(self.seed, 0), generator(self.seed, 1, studies)
        scales = torch.exp(self.scale * gaussian(fixed, self.hidden))
        decay = torch.linspace(1, 0.02, self.hidden, dtype=torch.float64)[:, None]
        first, other = (gaussian(fixed, self.hidden, self.hidden) * decay * scales for _ in range(2))
        kinds = first, math.cos(mix) * first + math.sin(mix) * other
        mean = gaussian(fixed, self.hidden)
        return [
            self._mean(mean if self.mean != "own" else gaussian(fixed, self.hidden), scales)
            + 0.3 * gaussian(drawn, count, self.hidden) @ kind
            for kind in kinds
        ]

    def _mean(self, mean: Tensor, scales: Tensor) -> Tensor:
        match self.mean:
            case "even":
                return 2 * mean
            case "one":
                return 10 * (torch.arange(self.hidden) == 0).double()
            case "weak":
                return 0.2 * mean * scales
            case _:
                return 2 * mean * scales


def generator(*seeds: int) -> torch.Generator:
    """Return a generator of its own for each tuple of seeds."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def gaussian(source: torch.Generator, *shape: int) -> Tensor:
    """Draw from a standard normal distribution in float64."""
    return torch.randn(shape, generator=source, dtype=torch.float64)


def matched_p_value(
    seed: int,
    scale: float = 0.8,
    center: bool = False,
    mean: Mean = "scaled",
    hidden: int = 96,
    prompts: int = 60,
    energy: float = 0.9,
    turn: float = math.pi / 2,
    draws: int = 39,
) -> float:
    """Return ``p_matched`` of two sets that share their mean and the scales of coordinates, and nothing else.

    With a turn of less than a right angle they share directions as well: the rate of small p-values is the power.
    """
    sets = World(seed, hidden, scale, mean).sets(prompts, turn, 0)
    first, second = (StateSpace(states, center) for states in sets)
    overlaps = mode_subspace_overlap(first.factors, second.factors, [energy])
    return matched_states_control(first, second, overlaps, draws, generator(seed, 2))[0].p_value


def equivalence_of(world: World, seed: int, turn: float, prompts: int, center: bool, energy: float) -> Equivalence:
    """Return the equivalence test of two samples of so many prompts from the two kinds of a world."""
    sets = world.sets(prompts, turn, seed)
    first, second = (StateParts(states, generator(seed, 3, side), center) for side, states in enumerate(sets))
    return overlap_equivalence(first, second, [energy], generator(seed, 4))[0]


@cache
def turn_at_margin(world: World, prompts: int, center: bool, energy: float, samples: int = 60) -> float:
    """Return the angle between two kinds whose overlap lies on the margin in the mean over samples of their own."""

    def above(turn: float) -> float:
        seeds = range(CALIBRATION_SEEDS, CALIBRATION_SEEDS + samples)
        tests = [equivalence_of(world, seed, turn, prompts, center, energy) for seed in seeds]
        return float(np.mean([test.overlap - test.margin for test in tests]))

    low, high = 0.3, 1.3
    values = above(low), above(high)
    for _ in range(4):  # false position: the mean falls smoothly and almost linearly from one kind to independent ones
        turn = low + (high - low) * values[0] / (values[0] - values[1])
        value = above(turn)
        low, high, values = (turn, high, (value, values[1])) if value > 0 else (low, turn, (values[0], value))
    return low + (high - low) * values[0] / (values[0] - values[1])


def claims(
    verdict: str, seed: int, world: World, prompts: int, center: bool, energy: float, turn: float | None = None
) -> bool:
    """Tell whether a study gets a verdict of the equivalence test; on the margin, where no turn is given."""
    angle = turn_at_margin(world, prompts, center, energy) if turn is None else turn
    return equivalence_of(world, seed, angle, prompts, center, energy).verdict == verdict


def is_significant(seed: int, **settings: Any) -> bool:
    """Tell whether ``p_matched`` of :func:`matched_p_value` is at most 0.05; a rounding of float32 above it counts."""
    return matched_p_value(seed, **settings) <= LEVEL + 1e-6


Course = Literal["walk", "reverting", "saturating", "cosine walk", "spaced walk", "jump"]


def course(kind: Course, seed: int, count: int) -> np.ndarray:
    """Return a series as a trajectory measures it: without a change but for ``jump``.

    A ``walk`` with drift, of Gaussian moves; one that is ``reverting`` to its mean, a fifth of the way a step;
    ``saturating``, as the norm of an update does; a walk whose moves follow a ``cosine walk`` of the learning rate; a
    walk seen at logarithmically ``spaced walk`` steps; a ``jump`` by six deviations half-way along a walk.
    """
    drawn = np.random.default_rng([seed, count])
    steps, noise = np.arange(count), drawn.standard_normal(count)
    match kind:
        case "walk":
            return np.cumsum(0.5 + noise)
        case "reverting":
            values = [noise[0]]
            for move in noise[1:]:
                values.append(0.8 * values[-1] + 0.6 * move)
            return np.array(values)
        case "saturating":
            return 1 - np.exp(-4 * steps / count) + 0.01 * noise
        case "cosine walk":
            return np.cumsum((1 + np.cos(np.pi * steps / count)) * (1 + noise) / 4)
        case "spaced walk":
            seen = np.unique(np.geomspace(1, 1000, count).round().astype(int))
            return np.cumsum(0.05 + drawn.standard_normal(1001))[seen]
        case "jump":
            return np.cumsum(noise) + 6 * (steps >= count // 2)


def largest_move(seed: int, kind: Course, count: int) -> float:
    """Return the largest move at a change of level of a series, in its usual moves; 0 where no change is found."""
    changes = find_change_points(course(kind, seed, count).tolist()).changes
    return max((abs(change.move) / change.usual_move for change in changes), default=0.0)


MARGIN: dict[str, Any] = {"world": World(1, 48, 0.3, "even"), "prompts": 120, "center": True, "energy": 0.9}
KEPT_MEAN: dict[str, Any] = {"world": World(1, 48, 0.8, "scaled"), "prompts": 120, "center": False, "energy": 0.9}


def _matched(center: bool, scale: float) -> Scenario:
    world = f"{'centred' if center else 'uncentred'}, coordinates' scales lognormal {scale:g}"
    run = partial(_flag, "p at most .05", partial(is_significant, scale=scale, center=center))
    return Scenario("overlap of activations above matched chance", world, run)


def _claimed(verdict: str, words: str, settings: Mapping[str, Any]) -> Scenario:
    run = partial(_flag, verdict, partial(claims, verdict, **settings))
    return Scenario("prompt sets as parts of one set", f"overlap at the margin, {words}", run, slow_start=True)


def _powered(claim: str, world: str, what: str, told: Callable[[int], bool]) -> Scenario:
    return Scenario(claim, world, partial(_flag, what, told), nominal=None)


def _flag(what: str, told: Callable[[int], bool], seed: int) -> dict[str, float]:
    return {what: float(told(seed))}


SCENARIOS = (
    *(_matched(center, scale) for center in (False, True) for scale in (0.3, 0.8, 1.2)),
    *(
        _claimed(verdict, words, settings)
        for words, settings in (("centred", MARGIN), ("uncentred", KEPT_MEAN))
        for verdict in ("overlapping", "distinct")
    ),
    _powered(
        "overlap of activations above matched chance",
        "uncentred, a sixth of a turn apart",
        "p at most .05",
        partial(is_significant, turn=math.pi / 3, energy=0.99),
    ),
    _powered(
        "overlap of activations above matched chance",
        "centred, a sixth of a turn apart",
        "p at most .05",
        partial(is_significant, turn=math.pi / 3, energy=0.99, center=True),
    ),
    _powered(
        "prompt sets as parts of one set",
        "one kind, centred",
        "overlapping",
        partial(claims, "overlapping", turn=0.0, **MARGIN),
    ),
    _powered(
        "prompt sets as parts of one set",
        "independent kinds, centred",
        "distinct",
        partial(claims, "distinct", turn=math.pi / 2, **MARGIN),
    ),
)
