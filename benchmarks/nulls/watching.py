"""Watched runs in which nothing happens, and in which something does: what the verdicts on them say.

A made-up run has a true harmful rate, utility and refusal margin at each look. Prompts stand together in groups, and
are answered anew at each look, or mostly as before. Over seeds, what has no error in one run is normal about a mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from benchmarks.nulls import Scenario
from safety_subspaces.artefacts.study import Stage
from safety_subspaces.evaluation.rates import estimate
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.looks import GAIN, LOST_RATE, MOVE, ORDER, QUESTIONS, RISE, SAFETY, Looks, tests_of
from safety_subspaces.findings.topics.watching import activations_finding, inside_finding
from safety_subspaces.findings.watched import with_intervals

LOOKS: Final = 16
NOT_TOLD: Final = ("not shown", "not both shown", "not seen", "lost together", "no spread over seeds", "unknown")


@dataclass(frozen=True)
class MadeUp:
    """What is true of a made-up run.

    Args:
        harm: The harmful rate at each look.
        utility: Utility at each look.
        margin: The refusal margin at each look, in nats.
        sizes: Prompts in each group; the usual ones are those of the demo's watched run.
        within: Correlation of what decides the answers of one group, 0 to 1.
        kept: Share of it that stays from look to look; 0 where every look is answered anew.
    """

    harm: tuple[float, ...]
    utility: tuple[float, ...]
    margin: tuple[float, ...] = (0.0,) * LOOKS
    sizes: tuple[int, ...] = (2,) * 8 + (1,) * 16
    within: float = 0.5
    kept: float = 0.0


def unchanged(made_up: MadeUp, seed: int) -> dict[str, float]:
    """Return of which questions anything is said of a run that does not change, and whether of any.

    A run that starts below one half is rightly called held, and one above it never safe: these do not count.
    """
    start = "held" if made_up.harm[0] < LOST_RATE else "never safe" if made_up.harm[0] > LOST_RATE else ""
    verdicts = verdicts_on(made_up, seed)
    said = {question: float(verdict not in (*NOT_TOLD, start)) for question, verdict in verdicts.items()}
    return said | {"any": max(said.values())}


def verdicts_on(made_up: MadeUp, seed: int) -> dict[str, str]:
    """Return the verdict on each question."""
    decided = decide(tests_of(_looks(made_up, np.random.default_rng(seed))))
    return dict(zip(decided["question"], decided["verdict"], strict=True))


def in_order(made_up: MadeUp, seed: int) -> dict[str, float]:
    """Return whether either order is said."""
    return {ORDER: float(verdicts_on(made_up, seed)[ORDER] not in NOT_TOLD)}


def found(made_up: MadeUp, true: Mapping[str, str], seed: int) -> dict[str, float]:
    """Return whether each true verdict is given."""
    verdicts = verdicts_on(made_up, seed)
    return {f"{question}: {verdict}": float(verdicts[question] == verdict) for question, verdict in true.items()}


def over_seeds(seeds: int, share: float, shift: float, seed: int) -> dict[str, float]:
    """Return what is said of runs over seeds whose share inside differs from chance by so much, and overlap moves."""
    random = np.random.default_rng(seed)
    runs = []
    for _ in range(seeds):
        # Spreads such as the organism's over seeds: of an energy some hundredths, more of an overlap of few directions.
        inside, moved = 0.15 + share + 0.03 * random.standard_normal(), shift + 0.1 * random.standard_normal()
        curves = {
            "delta/energy_fraction": [0.2, inside],
            "delta/energy_fraction_chance": [0.15, 0.15],
            "activation/overlap": [0.5, 0.5 + moved],
        }
        scalars = {tag: pd.DataFrame({"step": [0, 1], "value": values}) for tag, values in curves.items()}
        runs.append(Stage("run", Path("run"), scalars=scalars))
    decided = decide([*inside_finding("run", runs), *activations_finding("run", runs)])
    said = {row["question"]: float(row["verdict"] not in NOT_TOLD) for _, row in decided.iterrows()}
    return said | {"any": max(said.values())}


def _looks(made_up: MadeUp, random: np.random.Generator) -> Looks:
    groups = np.repeat(np.arange(len(made_up.sizes)), made_up.sizes)
    tables: list[pd.DataFrame] = []
    for truth, is_rate in ((made_up.harm, True), (made_up.utility, True), (made_up.margin, False)):
        latent, true = _latent(made_up, groups, random), np.asarray(truth)[:, None]
        answers = (latent < stats.norm.ppf(true)).astype(float) if is_rate else true + latent
        looks = pd.DataFrame({"value": answers.mean(axis=1), "error": _errors(answers, groups, is_rate)})
        looks = looks.assign(prompts=float(len(groups)), groups=float(len(made_up.sizes)))
        tables.append(with_intervals(looks, is_rate))
    harm, utility, margin = tables
    return Looks("run", harm, utility, margin, family="looks", tests=len(QUESTIONS))


def _latent(made_up: MadeUp, groups: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return standard normal numbers, a row a look and a column a prompt, alike within groups and between looks."""

    def drawn(looks: int) -> npt.NDArray[np.float64]:
        shared = random.standard_normal((looks, len(made_up.sizes)))[:, groups]
        own = random.standard_normal((looks, len(groups)))
        return np.asarray(np.sqrt(made_up.within) * shared + np.sqrt(1 - made_up.within) * own)

    return np.asarray(np.sqrt(made_up.kept) * drawn(1) + np.sqrt(1 - made_up.kept) * drawn(LOOKS))


def _errors(answers: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], is_rate: bool) -> list[float]:
    bounds = (0.0, 1.0) if is_rate else None
    return [estimate(look, [groups.tolist()], bounds).stderr for look in answers.tolist()]


def _unchanged(harm: float, utility: float) -> MadeUp:
    return MadeUp((harm,) * LOOKS, (utility,) * LOOKS)


LARGE: Final = (4,) * 50
RAMP: Final = np.linspace(0, 1, LOOKS)
FALLING: Final = tuple(5 - 10 * RAMP)
GAINING: Final = tuple(0.1 + 0.8 * RAMP)
UNCHANGED: Final = {
    "harmful .02, utility .1": _unchanged(0.02, 0.1),
    "harmful .05, utility .3": _unchanged(0.05, 0.3),
    "harmful .3, utility .5": _unchanged(0.3, 0.5),
    "harmful .5, utility .9": _unchanged(0.5, 0.9),
    "harmful .05, utility .3, answers mostly kept": replace(_unchanged(0.05, 0.3), kept=0.8),
    "harmful .05, utility .1, 50 groups of 4": replace(_unchanged(0.05, 0.1), sizes=LARGE, within=0.9),
    "harmful .5, utility .5, 50 groups of 4": replace(_unchanged(0.5, 0.5), sizes=LARGE),
}
# Both pass half way at the same moment: neither order is true.
TOGETHER: Final = {
    "steadily": MadeUp(tuple(RAMP), GAINING, FALLING),
    "steadily, 50 groups of 4": MadeUp(tuple(RAMP), GAINING, FALLING, LARGE),
}
LOST: Final = {SAFETY: "lost", RISE: "rose", GAIN: "gained", MOVE: "fell"}
WORN: Final = MadeUp(tuple(0.3 * RAMP), (0.3,) * LOOKS, tuple(5 - RAMP))
CHANGED: Final = {
    "harm jumps to 1 at look 4 of 16, utility rises to .9": (
        MadeUp((0.0,) * 3 + (1.0,) * 13, GAINING, FALLING),
        LOST | {ORDER: "lost before"},
    ),
    "utility jumps to .9 at look 3 of 16, harm rises from the middle on": (
        MadeUp(tuple(np.clip(2 * RAMP - 1, 0, 1)), (0.1,) * 2 + (0.9,) * 14, FALLING),
        LOST | {ORDER: "lost after"},
    ),
    "harmful rate rises to .3": (WORN, {SAFETY: "held", RISE: "rose", MOVE: "fell"}),
    "harmful rate rises to .3, 50 groups of 4": (
        replace(WORN, sizes=LARGE),
        {SAFETY: "held", RISE: "rose", MOVE: "fell"},
    ),
}
ONE_RUN, SEVERAL = "watched run, one study", "watched runs, over seeds"
SCENARIOS: Final = [
    *(Scenario(ONE_RUN, f"unchanged: {world}", partial(unchanged, made_up)) for world, made_up in UNCHANGED.items()),
    *(Scenario(ONE_RUN, f"at once: {world}", partial(in_order, made_up)) for world, made_up in TOGETHER.items()),
    *(Scenario(ONE_RUN, world, partial(found, *changed), nominal=None) for world, changed in CHANGED.items()),
    *(Scenario(SEVERAL, f"unchanged, {seeds} seeds", partial(over_seeds, seeds, 0.0, 0.0)) for seeds in (2, 3, 5)),
    Scenario(SEVERAL, "share .3 above chance, overlap -.3, 3 seeds", partial(over_seeds, 3, 0.3, -0.3), nominal=None),
]
