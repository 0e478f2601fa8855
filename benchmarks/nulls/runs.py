"""Training under a constraint where there is nothing to find, and where there is: on selectivity and on safety.

Alignment's subspace is drawn from the law of its controls, so that its run differs from theirs as another seed of the
random subspace would: in margin and utility, normal or with heavy tails, beside the error over prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.nulls import Scenario
from safety_subspaces.findings.contrasts import SCALE_OF, Measured
from safety_subspaces.findings.control_runs import CONTROLS, JOINT
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.safety import KEPT_SHARE, LOST_SHARE, safety_verdict
from safety_subspaces.findings.topics.constraint import beside_random

# Standard deviation of a run over the seeds of its random subspace: nats, and share of sums that are right.
SPREAD = {"refusal_margin": 0.5, "utility": 0.03}
# Standard errors over prompts of one model of the organism.
ERROR = {"refusal_margin": 0.1, "utility": 0.015}
VERDICTS = ("more selective", "less selective", "trade")
NAMES = {"fine_tune": "tuned", "constraint": "away", "rank": "0.25", "details": ""}
# The least and the largest share of the harm that a verdict allows.
POSSIBLE = {
    "kept": (0.0, KEPT_SHARE),
    "kept in part": (KEPT_SHARE, LOST_SHARE),
    "not kept": (LOST_SHARE, 1.0),
    "kept, at least in part": (0.0, LOST_SHARE),
    "lost, at least in part": (KEPT_SHARE, 1.0),
}
# Groups of harmful prompts in the organism's test split.
GROUPS = 61


@dataclass(frozen=True)
class World:
    """What is true of the made-up runs.

    Args:
        seeds: Studies that are read together.
        controls: Control runs of each kind in a study.
        kinds: Kinds of control.
        effect: Nats by which alignment's run spares the margin.
        learnt: Utility by which it is above them.
        tails: Degrees of freedom of the runs' law.
    """

    seeds: int = 1
    controls: int = 1
    kinds: int = 2
    effect: float = 0.0
    learnt: float = 0.0
    tails: float = np.inf


class MadeUpRuns(Seeds):
    """Studies of which only the runs under a constraint are known, and what alignment's are beside the others."""

    def __init__(self, runs: pd.DataFrame, differences: pd.DataFrame) -> None:
        super().__init__(())
        vars(self).update(runs=runs, differences=differences)


def studies_of(world: World, seed: int) -> MadeUpRuns:
    """Return the runs of a world, and the differences of each study's alignment run from the mean of its controls."""
    random = np.random.default_rng(seed)
    runs: list[dict[str, Any]] = []
    differences = []
    for number in range(world.seeds):
        own = _run(world, random, "top", np.nan, number)
        own["refusal_margin"] += world.effect
        own["utility"] += world.learnt
        runs.append(own)
        for other in CONTROLS[: world.kinds]:
            drawn = [_run(world, random, other, draw, number) for draw in range(world.controls)]
            runs += drawn
            row = {**own, "other": other, "runs": world.controls, "groups_harmful": GROUPS, "groups_utility": 104}
            for measure in (*JOINT, "harm_score"):
                row[f"{measure}_difference"] = own[measure] - np.mean([run[measure] for run in drawn])
                row[f"{measure}_error"] = np.sqrt(2) * ERROR.get(measure, 0.0)
            differences.append(row)
    return MadeUpRuns(pd.DataFrame(runs), pd.DataFrame(differences))


def what_is_said(world: World) -> Callable[[int], Mapping[str, float]]:
    """Return what a study of a world says beside one kind of control, and whether it says anything of any."""

    def run(seed: int) -> dict[str, float]:
        findings = decide(beside_random(studies_of(world, seed)))
        said = list(findings.loc[findings["measure"].str.startswith("refusal"), "verdict"])
        first = {verdict: float(said[0] == verdict) for verdict in VERDICTS}
        return first | {"any verdict in the family": float(bool(set(VERDICTS) & set(said)))}

    return run


def evaluated(share: float, groups: int, is_null: bool) -> Callable[[int], Mapping[str, float]]:
    """Return what is said of a run that regained a share of the harm, and whether a second evaluation contradicts it.

    The prompts of a group stand and fall together, each at one of the two ends of the scale: the most that answers can
    vary. At a boundary a verdict for either side is counted as wrong.
    """
    at_boundary = share in (KEPT_SHARE, LOST_SHARE)

    def run(seed: int) -> dict[str, float]:
        random = np.random.default_rng(seed)
        said = [_verdict(random, share, groups) for _ in range(2)]
        if not is_null:
            return {verdict: float(said[0] == verdict) for verdict in POSSIBLE if "least" not in verdict}
        (low, high), (again_low, again_high) = (POSSIBLE.get(verdict, (0.0, 1.0)) for verdict in said)
        return {
            "less harm than is true": float(high < share or (at_boundary and high == share)),
            "more harm than is true": float(low > share or (at_boundary and low == share)),
            "a second evaluation contradicts": float(min(high, again_high) <= max(low, again_low)),
        }

    return run


def _verdict(random: np.random.Generator, share: float, groups: int) -> str:
    regained = float((random.random(groups) < share).mean())
    error = float(np.sqrt(regained * (1 - regained) / (groups - 1)))
    scale = SCALE_OF["harm_score"]
    run = Measured(1 + 4 * regained, 4 * error, float(groups), scale)
    aligned, free = (Measured(end, 0.0, float(groups), scale) for end in scale)
    return safety_verdict(run, aligned, free)[0]


def _run(world: World, random: np.random.Generator, subspace: str, draw: float, seed: int) -> dict[str, Any]:
    """Return one run: its behaviour by the law of the seeds of random subspaces, seen through prompts."""
    own = random.normal(size=len(JOINT)) if np.isinf(world.tails) else random.standard_t(world.tails, len(JOINT))
    seen = {m: SPREAD[m] * value + ERROR[m] * random.normal() for m, value in zip(JOINT, own, strict=True)}
    identity = {"subspace": subspace, "draw": draw, "recipe": f"seed {seed}", "seed": str(seed), "stage": subspace}
    return {**NAMES, **identity, "fraction": 0.25, "energy_inside": 0.2, "harm_score": 5.0, **seen}


def _selectivity(world: World, words: str) -> Scenario:
    is_null = world.effect == world.learnt == 0
    return Scenario("selectivity of runs under a constraint", words, what_is_said(world), 0.05 if is_null else None)


def _safety(share: float, groups: int, is_null: bool) -> Scenario:
    world = f"{100 * share:g} % of the harm regained, {groups} groups of prompts"
    return Scenario("safety of a run", world, evaluated(share, groups, is_null), 0.05 if is_null else None, 1000)


SCENARIOS = (
    _selectivity(World(), "one study, one control run of each kind"),
    _selectivity(World(controls=5), "one study, 5 control runs of each kind"),
    _selectivity(World(controls=19, kinds=1), "one study, 19 control runs of one kind"),
    _selectivity(World(controls=19, kinds=1, tails=2), "one study, 19 control runs of one kind, heavy tails"),
    _selectivity(World(controls=39), "one study, 39 control runs of each kind"),
    *(_selectivity(World(n), f"{n} seeds, one control run of each kind") for n in (2, 3, 4, 5)),
    _selectivity(World(3, 4), "3 seeds, 4 control runs of each kind"),
    _selectivity(World(3, tails=2), "3 seeds, one control run of each kind, heavy tails"),
    _selectivity(World(3, effect=2.0), "3 seeds, margin 2 nats higher"),
    _selectivity(World(5, effect=2.0), "5 seeds, margin 2 nats higher"),
    _selectivity(World(3, effect=5.0), "3 seeds, margin 5 nats higher"),
    _selectivity(World(1, 19, 1, effect=2.0), "one study, 19 control runs of one kind, margin 2 nats higher"),
    _selectivity(World(5, effect=5.0, learnt=-0.4), "5 seeds, margin 5 nats higher, utility 0.4 lower"),
    *(_safety(share, groups, True) for groups in (GROUPS, 25) for share in (0.02, KEPT_SHARE, 0.5, LOST_SHARE, 0.98)),
    *(_safety(share, GROUPS, False) for share in (0.0, 0.02, 0.3, 0.5, 0.98, 1.0)),
)
