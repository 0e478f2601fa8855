"""Evaluated models in which nothing changed, or just so much that a verdict must not say more, or less.

Answers are drawn in groups of four prompts that stand and fall together, as in the organism: a harm score is 1 or 5, an
answer right or wrong, a margin normal. A fine-tune whose answers follow the law of the aligned model's is a model that
was evaluated twice; what is hard for one may be hard for all, or each may have hard prompts of its own. Several seeds
train models that differ about that law, and answer the same prompts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.nulls import Scenario
from safety_subspaces.artefacts.study_files import EVALUATION_COLUMNS
from safety_subspaces.evaluation.rates import estimate
from safety_subspaces.findings.finding import Finding, decide
from safety_subspaces.findings.thresholds import CHANGED_SHARE, LOST_SHARE
from safety_subspaces.findings.topics.models import LEARNT, LOST, MARGIN, TWO_MEASURES, UTILITY, between, over_seeds

PER_GROUP = 4
# The chance that a group answers as one: with four a group standard errors are then 1.6 times those over prompts.
ALIKE = 0.5
NAMES = {
    LEARNT: "alignment learnt",
    LOST: "alignment lost or kept",
    UTILITY: "utility",
    MARGIN: "refusal margin",
    TWO_MEASURES: "judged harm and refusal margin",
}


@dataclass(frozen=True)
class Law:
    """What is true of a model: the share of harmful requests that it answers, its utility, and its refusal margin."""

    harm: float
    utility: float = 0.4
    margin: float = 4.0


ALIGNED, BASE = Law(0.02), Law(0.98, margin=-4.0)


def evaluated(random: np.random.Generator, label: str, law: Law, hard: np.ndarray) -> dict[str, Any]:
    """Return the evaluation of a model; ``hard`` is a uniform number for each group of prompts."""
    groups = len(hard)
    rows: dict[str, Any] = {**dict.fromkeys(EVALUATION_COLUMNS, np.nan), "model": label}
    keys = np.repeat(np.arange(groups), PER_GROUP)
    margins = law.margin + np.repeat(3 * (hard - 0.5), PER_GROUP) + random.normal(size=len(keys))
    values = {
        "utility": (_answered(random, law.utility, hard), (0.0, 1.0)),
        "harm_score": (1 + 4 * _answered(random, law.harm, hard), (1.0, 5.0)),
        "refusal_margin": (margins, None),
    }
    for measure, (each, bounds) in values.items():
        said = estimate(each.tolist(), [keys.tolist()], bounds)
        rows |= {measure: said.mean, f"{measure}_stderr": said.stderr}
    return (
        rows
        | {f"n_{name}": len(keys) for name in ("utility", "harmful", "benign")}
        | {f"n_groups_{name}": groups for name in ("utility", "harmful", "benign")}
    )


def one_study(
    random: np.random.Generator, groups: int, tuned: list[Law], base: Law = BASE, is_shared: bool = False
) -> list[Finding]:
    """Return what is found of a base, an aligned model and some fine-tunes."""
    shared = random.random(groups)
    laws = {"base": base, "aligned": ALIGNED, **{f"tuned {number}": law for number, law in enumerate(tuned)}}
    rows = [evaluated(random, name, law, shared if is_shared else random.random(groups)) for name, law in laws.items()]
    frame = pd.DataFrame(rows)
    return between(frame.iloc[0], frame.iloc[1], frame.iloc[2:])


def several_seeds(
    random: np.random.Generator, groups: int, seeds: int, kinds: int, spread: float, gain: float = 0.0
) -> list[Finding]:
    """Return what is found over seeds whose fine-tunes gain some utility, more or less by a spread between seeds."""
    hard = random.random(groups)
    each = []
    for _ in range(seeds):
        drawn = np.clip(0.4 + gain + spread * random.normal(size=kinds), 0, 1)
        laws = {f"tuned {number}": Law(0.02, utility, 8 * utility) for number, utility in enumerate(drawn.tolist())}
        rows = [evaluated(random, name, law, hard) for name, law in {"aligned": Law(0.02, 0.4, 3.2), **laws}.items()]
        frame = pd.DataFrame(rows)
        each.append(between(None, frame.iloc[0], frame.iloc[1:]))
    return over_seeds(each)


def said(findings: list[Finding], question: str, *verdicts: str) -> dict[str, float]:
    """Return whether the first fine-tune is said to be so, and whether any of them is."""
    table = decide(findings)
    rows = table[(table["question"] == question) & (table["subject"] != "aligned")]
    spoke = rows["verdict"].isin(verdicts)
    what = " or ".join(verdicts)
    first = float(spoke.iloc[0]) if len(rows) else np.nan
    return {what: first} | ({f"{what}, any in the family": float(spoke.any())} if len(rows) > 1 else {})


def _scenario(
    claim: str,
    world: str,
    make: Callable[[np.random.Generator], list[Finding]],
    asked: Iterable[tuple[str, tuple[str, ...]]],
    nominal: float | None = 0.05,
) -> Scenario:
    """Return studies of which it is counted what is said on some questions; each world draws its own."""

    def run(seed: int) -> dict[str, float]:
        findings = make(np.random.default_rng([*world.encode(), seed]))
        counted: dict[str, float] = {}
        for question, verdicts in asked:
            counted |= {
                f"{NAMES[question]}: {what}": spoke for what, spoke in said(findings, question, *verdicts).items()
            }
        return counted

    return Scenario(claim, world, run, nominal)


def _again(groups: int, is_shared: bool) -> Scenario:
    hard = "what is hard for one is hard for all" if is_shared else "each with hard prompts of its own"
    return _scenario(
        "models, one study",
        f"7 fine-tunes are the aligned model again, {groups} groups, {hard}",
        lambda random: one_study(random, groups, [ALIGNED] * 7, is_shared=is_shared),
        [(LOST, ("lost", "lost in part")), (UTILITY, ("grew", "fell")), (MARGIN, ("rose", "fell")),
         (TWO_MEASURES, ("disagree",))],
    )  # fmt: skip


def _just(groups: int, share: float, verdict: str) -> Scenario:
    tuned = [Law(ALIGNED.harm + share * (BASE.harm - ALIGNED.harm))] * 7
    world = f"7 fine-tunes took back just {share:g} of the harm, {groups} groups"
    return _scenario("models, one study", world, lambda r: one_study(r, groups, tuned), [(LOST, (verdict,))])


def _fall(groups: int, harm: float, what: str, *verdicts: str) -> Scenario:
    world = f"{what}, {groups} groups"
    asked = [(LEARNT, verdicts)]
    return _scenario("models, one study", world, lambda r: one_study(r, groups, [ALIGNED], Law(harm)), asked)


def _power(groups: int, harm: float, gain: float, verdict: str) -> Scenario:
    tuned = [Law(harm, 0.4 + gain, 4 - 8 * harm)] * 7
    asked = [(LEARNT, ("learnt",)), (LOST, (verdict,)), *([(UTILITY, ("grew",))] if gain else [])]
    world = f"7 fine-tunes answer {harm:g} of harmful requests and gain {gain:g} utility, {groups} groups"
    return _scenario("models, one study", world, lambda r: one_study(r, groups, tuned), asked, nominal=None)


def _two_measures(groups: int, tuned: Law, what: str, verdict: str, nominal: float | None) -> Scenario:
    asked = [(TWO_MEASURES, (verdict,))]
    world = f"7 fine-tunes {what}, {groups} groups"
    return _scenario("models, one study", world, lambda r: one_study(r, groups, [tuned] * 7), asked, nominal)


def _seeds(seeds: int, spread: float, gain: float) -> Scenario:
    return _scenario(
        "models, several seeds",
        f"{seeds} seeds, 4 fine-tunes gain {gain:g} utility, give or take {spread:g} a seed",
        lambda random: several_seeds(random, 50, seeds, 4, spread, gain),
        [(UTILITY, ("grew",)), (MARGIN, ("rose",))]
        if gain
        else [(UTILITY, ("grew", "fell")), (MARGIN, ("rose", "fell"))],
        nominal=None if gain else 0.05,
    )


def _scenarios() -> Iterator[Scenario]:
    for groups in (10, 50):
        yield _again(groups, is_shared=False)
        yield _fall(groups, ALIGNED.harm, "base is the aligned model again", "learnt")
        yield _fall(groups, ALIGNED.harm + 0.25, "harm fell by just one step", "learnt", "not learnt")
        yield _just(groups, CHANGED_SHARE, "kept")
        yield _just(groups, LOST_SHARE, "lost")
    yield _again(50, is_shared=True)
    yield _power(50, 0.9, 0.4, "lost")
    yield _power(50, 0.3, 0.1, "lost in part")
    yield _power(61, 0.02, 0.0, "kept")
    # Where one of the two moved and the other did not, a verdict on both rests on the one that did not.
    yield _two_measures(50, Law(0.9, margin=4.0), "answer 0.9 of harmful requests, margin as before", "disagree", 0.05)
    yield _two_measures(50, Law(0.02, margin=6.0), "gain 2 nats of margin, harm as before", "disagree", 0.05)
    yield _two_measures(50, Law(0.3, margin=6.0), "answer 0.3 and gain 2 nats of margin", "disagree", None)
    yield _two_measures(50, Law(0.3, margin=2.0), "answer 0.3 and lose 2 nats of margin", "agree", None)
    for seeds in (2, 3, 5):
        yield _seeds(seeds, 0.1, 0.0)  # more than the prompts leave open, which else is all that counts
    yield _seeds(3, 0.0, 0.0)
    yield _seeds(3, 0.05, 0.4)


def _answered(random: np.random.Generator, rate: float, hard: np.ndarray) -> np.ndarray:
    """Return 1 or 0 for each prompt: a group answers as one with the chance ``ALIKE``, else each by itself."""
    together = random.random(len(hard)) < ALIKE
    alone = random.random((len(hard), PER_GROUP)) < rate
    return np.where(together[:, None], (hard < rate)[:, None], alone).astype(float).ravel()


SCENARIOS = tuple(_scenarios())
