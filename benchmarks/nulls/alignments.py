"""Alignments beside each other: of no different selectivity, of traits that have nothing to do with it, and otherwise.

A seed moves all of its alignments together, for they share their base model, and each by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.nulls import Scenario
from safety_subspaces.artefacts.run_alignment import Alignment
from safety_subspaces.findings.alignments import TRAITS
from safety_subspaces.findings.between_alignments import (
    CHANGES,
    CLOSING,
    MORE_THAN_HALF,
    OBJECTIVES,
    WITH_SELECTIVITY,
    compare_alignments,
)
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.organisms import Organism

# As in `make alignments`: four changes of the first objective, five of the second.
OBJECTIVE_OF = {"first": 5, "second": 6}
# Standard deviation of an alignment's share over seeds beside what the seed does to all, and of its prompts.
OWN, SHARED, PROMPTS = 0.05, 0.05, 0.01
GAP, CHANGE, CLOSED = "the objectives differ", "any change differs", "any change closes more than half of the gap"
ONE, TRAIT = "that change differs", "any trait goes with selectivity"
NOTHING = ("no difference", "no change shown", "not told", "not shown", "not known")


@dataclass(frozen=True)
class World:
    """What is true of the made-up alignments.

    Args:
        seeds: Seeds of each.
        gap: Share by which the second objective is more selective.
        changed: Share by which one change of the first objective is more selective than the first of it.
        spread: Standard deviation of the true share over alignments, beside.
        bound: How far a trait follows the share: 0 not at all, 1 in its order.
    """

    seeds: int = 3
    gap: float = 0.0
    changed: float = 0.0
    spread: float = 0.0
    bound: float = 0.0


def made_up(world: World, seed: int) -> tuple[list[Organism], pd.DataFrame]:
    """Return alignments and their numbers, a row for each and seed."""
    random = np.random.default_rng(seed)
    names = [(objective, number) for objective, count in OBJECTIVE_OF.items() for number in range(count)]
    organisms = [
        Organism(f"{objective} {number}", Alignment(objective, "data", number, None, ()), Seeds(()))
        for objective, number in names
    ]
    true = world.spread * random.normal(size=len(names))
    true += world.gap * np.array([objective == "second" for objective, _ in names])
    true[names.index(("first", 1))] += world.changed
    order = true.argsort().argsort()
    traits = {trait: world.bound * order + (1 - world.bound) * random.permutation(len(names)) for trait in TRAITS}
    rows = []
    for number in range(world.seeds):
        together = SHARED * random.normal()
        for place, organism in enumerate(organisms):
            share = true[place] + together + OWN * random.normal()
            errors = {"lost_share_error": PROMPTS, "selectivity_error": 10 * PROMPTS}
            seen = {trait: values[place] + 0.1 * random.normal() for trait, values in traits.items()}
            measured = {"lost_share": share, "selectivity": 10 * share, "harm_selectivity": 4 * share}
            rows.append({"organism": organism.name, "seed": str(number), **measured, **errors, **seen})
    return organisms, pd.DataFrame(rows)


def what_is_said(world: World, *families: str) -> Callable[[int], Mapping[str, float]]:
    """Return whether anything is said in some families, and of the one change there is."""

    def run(seed: int) -> dict[str, float]:
        organisms, by_seed = made_up(world, seed)
        findings = decide(compare_alignments(organisms, by_seed))
        said = findings[findings["p"].notna() & ~findings["verdict"].isin(NOTHING)]
        closed = said[(said["question"] == CLOSING) & (said["verdict"] == MORE_THAN_HALF)]
        said_of = {
            GAP: said["question"] == OBJECTIVES,
            CHANGE: said["question"] == CHANGES,
            CLOSED: said.index.isin(closed.index),
            ONE: said["subject"] == "first 1 minus first 0",
            TRAIT: said["question"] == WITH_SELECTIVITY,
        }
        return {family: float(said_of[family].any()) for family in families}

    return run


def _beside(world: World, words: str, nominal: float | None, *families: str) -> Scenario:
    return Scenario("alignments side by side", words, what_is_said(world, *families), nominal)


ALIKE = "alignments alike"
DIFFERENT = "alignments differ, by chance beside every trait"
SCENARIOS = (
    *(_beside(World(n), f"{ALIKE}, {n} seeds", 0.05, GAP, CHANGE, CLOSED, TRAIT) for n in (2, 3, 5)),
    *(_beside(World(n, spread=0.15), f"{DIFFERENT}, {n} seeds", 0.05, TRAIT) for n in (1, 3, 5)),
    _beside(World(3, gap=0.3, changed=0.15), "3 seeds, a change that closes half of the gap", 0.05, CLOSED),
    _beside(World(5, gap=0.3, changed=0.15), "5 seeds, a change that closes half of the gap", 0.05, CLOSED),
    _beside(World(3, gap=0.3), "3 seeds, objectives 0.3 of the lost margin apart", None, GAP),
    _beside(World(3, gap=0.3, changed=0.3), "3 seeds, and one change of 0.3", None, GAP, ONE, CLOSED),
    _beside(World(5, gap=0.3, changed=0.3), "5 seeds, and one change of 0.3", None, GAP, ONE, CLOSED),
    _beside(World(3, spread=0.3, bound=0.8), "3 seeds, traits in nearly the order of the share", None, TRAIT),
)
