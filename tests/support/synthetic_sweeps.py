"""Made-up sweeps of projected fine-tunes over seeds, so that every reading of them can be provoked.

Utility and margin are linear in the energy that works: a gap in margin at equal utility is known in closed form.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.known_models import LABEL_COLUMNS, KnownModel, KnownModels
from safety_subspaces.artefacts.study import Study
from safety_subspaces.artefacts.study_files import EVALUATION_COLUMNS
from safety_subspaces.findings.models import Seeds
from support.synthetic_study import measures

COLUMNS = ("chance_energy", *EVALUATION_COLUMNS)

DRAWN = ("random-energy", "random", "random-k")
FRACTIONS = (0.01, 0.1, 0.25, 0.4, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class Sweeps:
    """What is true in the made-up world."""

    works: float = 1.0  # of a fine-tune's energy: 0, and nothing moves
    utility_moves: bool = True
    selectivity: float = 0.0  # nats by which top spares the margin (away) or spends it (onto) at equal utility
    trade: float = 0.0  # share of its energy that does not work in top: less learnt, more margin, on the same curve
    scaled_gain: float = 0.0  # nats of margin that scaled has at equal utility, in both methods
    disorder: float = 0.0  # noise of every utility and margin, as a share of what they move: 1 hides the order
    own_noise: float = 0.0  # standard deviation of a kind's own shift in margin, in a seed, method and draw
    offset: float = 0.0  # standard deviation of what shifts every margin of a seed alike
    seeds: int = 3
    draws: int = 3
    fractions: tuple[float, ...] = FRACTIONS
    tuned: tuple[str, ...] = ("contaminated",)
    subspaces: tuple[str, ...] = ("top", *DRAWN, "scaled")


ENERGY_ALONE = Sweeps()
MORE_SELECTIVE = Sweeps(selectivity=2.0)
LESS_SELECTIVE = Sweeps(selectivity=-2.0)
A_TRADE = Sweeps(trade=0.3)
SCALED_BETTER = Sweeps(scaled_gain=1.5)
NOTHING_MOVES = Sweeps(works=0.0)
NO_ORDER = Sweeps(works=0.0, utility_moves=False, disorder=1.0)
PARTLY = Sweeps(disorder=1.5)
HARM_ALONE = Sweeps(utility_moves=False, tuned=("harmful",))


def sweeps_of(world: Sweeps = ENERGY_ALONE, seed: int = 0) -> pd.DataFrame:
    """Return the table of every seed, with the columns of ``Study.projections`` and ``seed``."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(world.seeds):
        offset = world.offset * random.normal()
        for tuned in world.tuned:
            for subspace in world.subspaces:
                for method in ("onto", "away"):
                    for draw in range(world.draws if subspace in DRAWN else 1):
                        shift = offset + world.own_noise * random.normal() + _gain(world, subspace, method)
                        for fraction in world.fractions:
                            row = {"tuned": tuned, "subspace": subspace, "method": method, "fraction": fraction}
                            row |= {"draw": draw, "seed": str(number), **_projected(world, row, shift, random)}
                            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.assign(
        analysis="sweep_" + frame["tuned"], group=frame["tuned"], aligned_model="aligned", tuned_model=frame["tuned"]
    )


def models_of(world: Sweeps = ENERGY_ALONE) -> pd.DataFrame:
    """Return the evaluated models that the sweeps lie between."""
    rows = []
    for number in range(world.seeds):
        rows.append({"model": "aligned", "seed": str(number), **measures(0.1, 0.0, 8.0)})
        rows += [{"model": name, "seed": str(number), **measures(0.98, 1.0, -8.0)} for name in world.tuned]
    return pd.DataFrame(rows)


def _gain(world: Sweeps, subspace: str, method: str) -> float:
    if subspace == "top":
        return world.selectivity if method == "away" else -world.selectivity
    return world.scaled_gain if subspace == "scaled" else 0.0


def _projected(world: Sweeps, row: dict, shift: float, random: np.random.Generator) -> dict[str, float]:
    # Random subspaces of equal rank keep their share of directions; the others what top keeps.
    inside = row["fraction"] if row["subspace"] in ("random", "random-k") else row["fraction"] ** 0.7
    energy = inside if row["method"] == "onto" else 1 - inside
    working = world.works * energy
    if row["subspace"] == "top":
        working *= 1 - world.trade
    utility = 0.1 + (0.88 * working if world.utility_moves else 0.0)
    margin = 8 - 16 * working + shift
    if world.disorder:
        utility += 0.2 * world.disorder * random.normal() if world.utility_moves else 0.0
        utility = float(np.clip(utility, 0, 1))
        margin += 4 * world.disorder * random.normal()
    harm = float(1 / (1 + np.exp(2 * margin)))
    chance = row["fraction"] if row["method"] == "onto" else 1 - row["fraction"]
    energies = {"energy_kept": energy, "chance_energy": np.nan if row["subspace"] == "scaled" else chance}
    return energies | measures(utility, harm, margin)


def studies_of(world: Sweeps = ENERGY_ALONE, seed: int = 0) -> Seeds:
    """Return the studies of a world, one a seed, without files."""
    return as_studies(sweeps_of(world, seed), models_of(world))


def as_studies(projections: pd.DataFrame, models: pd.DataFrame) -> Seeds:
    """Return studies that have these projections and these evaluated models, one for each seed."""
    projections = projections.reindex(columns=[*projections, *(c for c in COLUMNS if c not in projections)])
    models = models.reindex(columns=[*models, *(c for c in COLUMNS if c not in models)])
    known = KnownModels(pd.DataFrame(columns=LABEL_COLUMNS), aligned=KnownModel("aligned"))
    nothing = pd.DataFrame()
    studies = []
    for name in dict.fromkeys(models["seed"]):
        own, ends = (frame[frame["seed"] == name].reset_index(drop=True) for frame in (projections, models))
        tables = (ends.drop(columns="seed"), own.drop(columns="seed"), nothing, nothing, nothing)
        studies.append(Study(str(name), Path(str(name)), (), (), *tables, known))
    return Seeds(tuple(studies))
