"""Sweeps in which top-k is drawn as its random controls are, and sweeps with an effect of the DPO organism's size.

A subspace has a deviation of its own in margin, utility and energy, which all methods and fractions share, and noise of
each point beside it. Under the null top-k's are drawn from the law of the controls, whose tails are heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.nulls import Scenario
from safety_subspaces.artefacts.known_models import LABEL_COLUMNS, KnownModel, KnownModels
from safety_subspaces.artefacts.study import Study
from safety_subspaces.artefacts.study_files import EVALUATION_COLUMNS
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.intervals import LEAST_DRAWS
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.topics.energy import ALONE, AT_EQUAL, INSIDE, energy
from safety_subspaces.findings.topics.selectivity import JUDGED, OTHERS, QUESTIONS, selectivity

FRACTIONS = (0.1, 0.25, 0.5, 0.75)
ENERGIES = ("tuned", "subspace", "method", "fraction", "draw", "energy_kept", "chance_energy")
TUNED = ("contaminated", "harmful", "useful")


@dataclass(frozen=True)
class World:
    """What is true in the made-up studies.

    Args:
        seeds: Studies that are read together.
        draws: Draws that are evaluated; with none, nothing is, and energies alone are measured.
        energies: Draws whose energy is known.
        fine_tunes: How many fine-tunes are swept.
        effect: Nats by which top-k spares the margin (away) or spends it (onto), the mean over seeds.
        spread: Standard deviation of a subspace's own margin, nats.
        over_seeds: Standard deviation of the effect over seeds, nats.
        excess: Share of the energy that lies in top-k beyond chance.
        misses: Standard deviation of a draw's energy around top-k's: a fifth of 0.02 misses it by more than that.
    """

    seeds: int = 1
    draws: int = 3
    energies: int = 0
    fine_tunes: int = 1
    effect: float = 0.0
    spread: float = 1.0
    over_seeds: float = 0.0
    excess: float = 0.0
    misses: float = 0.015


def studies_of(world: World, seed: int) -> Seeds:
    """Return the studies of a world, without files."""
    random = np.random.default_rng(seed)
    return Seeds(tuple(_study(world, str(number), random) for number in range(world.seeds)))


def _study(world: World, name: str, random: np.random.Generator) -> Study:
    offset, effect = 2 * random.normal(), world.effect + world.over_seeds * random.normal()
    rows = [row for tuned in TUNED[: world.fine_tunes] for row in _sweep(world, tuned, random, offset, effect)]
    frame = pd.DataFrame(rows).reindex(columns=[*rows[0], *(c for c in EVALUATION_COLUMNS if c not in rows[0])])
    frame = frame.assign(analysis="sweep", group=frame["tuned"], aligned_model="aligned", tuned_model=frame["tuned"])
    ends = [{"model": "aligned", "refusal_margin": 8.0}]
    ends += [{"model": tuned, "refusal_margin": -8.0 + place} for place, tuned in enumerate(TUNED)]
    models = pd.DataFrame(ends).reindex(columns=["model", *EVALUATION_COLUMNS])
    nothing = pd.DataFrame()
    known = KnownModels(pd.DataFrame(columns=LABEL_COLUMNS), aligned=KnownModel("aligned"))
    return Study(name, Path(name), (), (), models, frame, nothing, nothing, nothing, known)


def _sweep(world: World, tuned: str, random: np.random.Generator, offset: float, effect: float) -> list[dict]:
    """Return one fine-tune's projections onto and away from top-k and its controls."""
    top = _Own.drawn(world, random, 0.0)
    of_top = {fraction: fraction + world.excess + top.energy for fraction in FRACTIONS}
    rows = _rows(tuned, "top", 0, replace(top, margin=top.margin + effect), of_top, random, offset)
    for draw in range(world.draws):
        own = _Own.drawn(world, random, world.misses)
        missed = {fraction: kept + own.energy for fraction, kept in of_top.items()}
        rows += _rows(tuned, "random-energy", draw, own, missed, random, offset)
    rows += _rows(tuned, "scaled", 0, _Own.drawn(world, random, 0.0), of_top, random, offset)
    for draw in range(world.energies):
        own = _Own.drawn(world, random, 0.0)
        kept = {fraction: fraction + own.energy for fraction in FRACTIONS}
        rows += _rows(tuned, "random", draw, own, kept, random, offset, is_evaluated=draw < world.draws)
    return rows if world.draws else [{name: row[name] for name in ENERGIES} for row in rows]


@dataclass(frozen=True)
class _Own:
    """What one subspace has of its own."""

    margin: float
    utility: float
    energy: float

    @classmethod
    def drawn(cls, world: World, random: np.random.Generator, misses: float) -> "_Own":
        # Student's t with 4 degrees of freedom, of the standard deviation that is asked for.
        margin = world.spread * random.standard_t(4) / 2**0.5
        return cls(margin, 0.02 * random.normal(), (misses or 0.01) * random.normal())


def _rows(
    tuned: str,
    subspace: str,
    draw: int,
    own: _Own,
    inside: Mapping[float, float],
    random: np.random.Generator,
    offset: float,
    is_evaluated: bool = True,
) -> list[dict]:
    rows = []
    for method, sign in (("onto", -1), ("away", 1)):
        for fraction, share in inside.items():
            kept = float(np.clip(share if sign < 0 else 1 - share, 0, 1))
            chance = np.nan if subspace == "scaled" else fraction if sign < 0 else 1 - fraction
            row = {"tuned": tuned, "subspace": subspace, "method": method, "fraction": fraction, "draw": draw}
            row |= {"energy_kept": kept, "chance_energy": chance}
            margin = 8 + offset - 16 * kept + sign * own.margin + 0.3 * random.normal()
            utility = float(np.clip(0.1 + 0.85 * kept + own.utility + 0.02 * random.normal(), 0, 1))
            harm = 1 + 4 / (1 + np.exp(2 * margin))
            rows.append(row | _evaluated(utility, harm, margin) if is_evaluated else row)
    return rows


def _evaluated(utility: float, harm: float, margin: float) -> dict[str, float]:
    measured = {"utility": utility, "harm_score": harm, "refusal_margin": margin, "over_refusal_rate": 0.01}
    errors = {"utility_stderr": 0.03, "harm_score_stderr": 0.05, "refusal_margin_stderr": 0.2}
    return measured | errors | {"n_utility": 256, "n_harmful": 200, "n_benign": 128, "n_groups_harmful": 50}


def said_of_top(world: World) -> Callable[[int], Mapping[str, float]]:
    """Return what is said of top-k beside its controls, by family."""

    def run(seed: int) -> Mapping[str, float]:
        found = decide(selectivity(studies_of(world, seed)))
        told = found["verdict"].isin(("more selective", "less selective", "as random"))
        beside_random, is_judged = told & (found["question"] == QUESTIONS["random-energy"]), found["family"] == JUDGED
        return {
            "judged fine-tune, top against random": float((beside_random & is_judged).any()),
            "judged fine-tune, any in the family": float((told & is_judged).any()),
            "other fine-tunes, any in the family": float((told & (found["family"] == OTHERS)).any())
            if world.fine_tunes > 1
            else np.nan,
        }

    return run


def said_of_energy(world: World) -> Callable[[int], Mapping[str, float]]:
    """Return what is said of kept energy: of the share inside top-k, and at equal energy."""

    def run(seed: int) -> Mapping[str, float]:
        found = decide(energy(studies_of(world, seed)))
        not_alone = (found["question"] == ALONE) & (found["verdict"] == "not alone")
        of_outcomes = {
            "kinds at equal energy, any in a family": _any(found, AT_EQUAL, "more", "less"),
            "energy orders the outcome, but not alone": float(not_alone.any()),
        }
        return {
            "energy inside top-k, any in the family": _any(found, INSIDE, "more than random", "less than random"),
            **(of_outcomes if world.seeds > 1 and world.draws else {}),
        }

    return run


def _any(found: pd.DataFrame, question: str, *verdicts: str) -> float:
    return float(((found["question"] == question) & found["verdict"].isin(verdicts)).any())


TOP, ENERGY = "top-k against its controls", "kept energy"
# Draws, and fine-tunes, of one study: below 19 draws nothing can be shown, below 39 nothing of two further fine-tunes.
ONE_STUDY = ((2, 1), (3, 1), (4, 1), (8, 1), (20, 1), (3, 3), (8, 3), (20, 3), (40, 3))
# Seeds, draws and fine-tunes.
OVER_SEEDS = ((2, 3, 1), (3, 3, 1), (5, 3, 1), (3, 20, 1), (2, 3, 3), (3, 3, 3), (5, 3, 3))
# At equal utility DPO's selectivity was +5.8 nats, +3.3 to +8.4 over three seeds: a standard deviation of 1.0, of which
# a half is that of subspaces.
DPO = World(effect=5.8, spread=0.7, over_seeds=0.7, fine_tunes=3)


def _words(world: World) -> str:
    counts = {"seed": world.seeds, "evaluated draw": world.draws, "fine-tune": world.fine_tunes}
    return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts.items())


def _null(world: World, claim: str = TOP) -> Scenario:
    run = said_of_top(world) if claim == TOP else said_of_energy(world)
    drawn = "top-k drawn as the controls are" + (f", {world.energies} energies" if world.energies else "")
    if world.seeds == 1 and claim == TOP and world.draws < LEAST_DRAWS:
        return Scenario(claim, f"{drawn}, {_words(world)}", run, studies=40, why_fewer="too few draws for any verdict")
    return Scenario(claim, f"{drawn}, {_words(world)}", run)


def _power(world: World, claim: str, effect: str) -> Scenario:
    run = said_of_top(world) if claim == TOP else said_of_energy(world)
    return Scenario(claim, f"{effect}, {_words(world)}", run, nominal=None, studies=100, why_fewer="a power near 1")


SCENARIOS = (
    *(_null(World(1, draws, fine_tunes=fine_tunes)) for draws, fine_tunes in ONE_STUDY),
    *(_null(World(seeds, draws, fine_tunes=fine_tunes)) for seeds, draws, fine_tunes in OVER_SEEDS),
    *(_null(World(seeds, 0, energies=99, fine_tunes=n), ENERGY) for seeds, n in ((1, 1), (1, 3), (3, 3))),
    *(_null(World(seeds, 3, fine_tunes=fine_tunes), ENERGY) for seeds, fine_tunes in ((2, 1), (3, 1), (5, 1), (3, 3))),
    _power(replace(DPO, draws=19), TOP, "as selective as DPO's"),
    _power(replace(DPO, seeds=3), TOP, "as selective as DPO's"),
    _power(replace(DPO, seeds=5), TOP, "as selective as DPO's"),
    _power(replace(DPO, seeds=3), ENERGY, "as selective as DPO's"),
    *(_power(World(n, 0, energies=99, fine_tunes=3, excess=0.05), ENERGY, "0.05 more energy in top-k") for n in (1, 3)),
)
