"""What watching shows: which came first in a run, safety lost or usefulness gained, and how often over seeds.

In one run the unit is a group of prompts; how much of the update lay in the alignment subspace, and how the activations
moved, has no spread there and is described. Over seeds a run is the unit: how it came out is counted, and what is a
number has Student's interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.findings.finding import Finding, Words, asked, decide
from safety_subspaces.findings.intervals import t_interval
from safety_subspaces.findings.looks import MOVE, NOT_SHOWN, QUESTIONS, TOPIC, Looks, outcome_of, tests_of
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.rates import WIDEST, exact_interval
from safety_subspaces.findings.watched import (
    HARM,
    MARGIN,
    UTILITY,
    compared_at_ends,
    is_uncentred,
    last_beside_chance,
    look_steps,
    measured,
    prompt_sets,
    watched_stages,
)

OUTCOME, LOOKS, INSIDE, ACTIVATIONS = "outcome", "looks", "update inside", "activations"
# A share within a tenth of its chance level is called near it.
NEAR: Final = 0.1
# An overlap moves by a large part of 1 when one direction enters or leaves a subspace of a few: less is no change.
LEAST_SHIFT: Final = 0.05
ONE_STUDY, OVER_SEEDS = "looks of one study's runs", "watched runs over seeds"


@dataclass(frozen=True)
class Run:
    """A watched run: which of the studies it belongs to, what that is called, and the run."""

    study: int
    seed: str
    stage: Stage


def watching(studies: Seeds) -> list[Finding]:
    """Return what the watched runs show: of one study each run, of several each kind of run over seeds.

    Of one study: ``QUESTIONS`` with p-values over groups of prompts. Of both: how the runs came out, how much of the
    update lay inside the alignment subspace, and how the activations moved; the latter two have a p over seeds alone.
    """
    is_single = len(studies.studies) == 1
    tests = [_tests_of(study) for study in studies.studies]
    decided = [decide(found) for found in tests]
    found = tests[0] if is_single else []
    for kind, runs in _kinds(studies).items():
        verdicts = [_verdicts(decided[run.study], run.stage.name) for run in runs]
        found += _counts(OUTCOME, kind, runs, [outcome_of(each) for each in verdicts])
        found += [] if is_single else _counts(MOVE, kind, runs, [each[MOVE] for each in verdicts])
        stages = [run.stage for run in runs]
        found += [*inside_finding(kind, stages), *activations_finding(kind, stages)]
        found += [_looks_into(stage) for stage in stages if is_single]
    return found


def _kinds(studies: Seeds) -> dict[str, list[Run]]:
    """Return the watched runs of each kind, the first of each study; of one study each run is a kind of its own.

    A kind is what the manifests say is the same but for seeds; the name of the run where one does not say.
    """
    runs = [
        Run(index, seed, stage) for index, (seed, study) in enumerate(studies.named) for stage in watched_stages(study)
    ]
    kinds = [run.stage.kind for run in runs]
    is_named = len(studies.studies) == 1 or not all(kinds)
    grouped: dict[str, dict[int, Run]] = {}
    for run, kind in zip(runs, kinds, strict=True):
        grouped.setdefault(run.stage.name if is_named else str(kind), {}).setdefault(run.study, run)
    named: dict[str, list[Run]] = {}
    for each in grouped.values():
        first = next(iter(each.values()))
        name = first.stage.name if first.stage.name not in named else f"{first.stage.name} (seed {first.seed})"
        named[name] = list(each.values())
    return named


def _tests_of(study: Study) -> list[Finding]:
    """Return the tests on the looks into each run of a study, one family."""
    runs = watched_stages(study)
    tests = len(QUESTIONS) * len(runs)
    found = []
    for run in runs:
        harm, utility, margin = (measured(run, tag) for tag in (HARM, UTILITY, MARGIN))
        found += tests_of(Looks(run.name, harm, utility, margin, ONE_STUDY, tests))
    return found


def _verdicts(decided: pd.DataFrame, run: str) -> dict[str, str]:
    rows = decided[decided["subject"] == run]
    return dict(zip(rows["question"], rows["verdict"], strict=True))


def _counts(question: str, kind: str, runs: list[Run], verdicts: list[str]) -> list[Finding]:
    """Count how often each verdict was given, with the exact interval of its share of the runs of this kind."""
    found, n = [], len(runs)
    for verdict in dict.fromkeys(verdicts):
        seeds = [run.seed for run, other in zip(runs, verdicts, strict=True) if other == verdict]
        low, high = exact_interval(np.array(len(seeds) / n), np.array(float(n) if n > 1 else np.nan))
        found.append(
            Finding(
                TOPIC,
                question,
                kind,
                f"share of runs: {verdict}",
                estimate=len(seeds) / n,
                low=float(low),
                high=float(high),
                unit="seeds",
                n=n,
                verdict=verdict,
                rule="a count of the verdicts on each run; the interval is exact",
                details={"seeds": seeds},
            )
        )
    return found


def inside_finding(kind: str, stages: Sequence[Stage]) -> list[Finding]:
    """Compare the share of the update inside the alignment subspace at the last look with its chance level.

    Returns:
        One finding, or none where no run has it: a description of one run, a test of several.
    """
    tag = "delta/energy_fraction"
    ends = [end for stage in stages if (end := last_beside_chance(stage, tag)) is not None]
    if not ends:
        return []
    table = pd.DataFrame(ends).astype(float)
    interval = t_interval(table["value"] - table["chance"])
    known = table.dropna()
    share, chance = float(table["value"].mean()), float(known["chance"].mean())
    ratio = float(known["value"].mean()) / chance if chance > 0 else np.nan
    described = "near chance" if abs(ratio - 1) <= NEAR else "above chance" if ratio > 1 else "below chance"
    finding = Finding(
        TOPIC,
        INSIDE,
        kind,
        "share of the update's energy inside the alignment subspace, less chance",
        estimate=interval.mean,
        low=interval.low,
        high=interval.high,
        unit="seeds",
        n=interval.n,
        null="the share is that of a random subspace of the same ranks",
        p=interval.p_value,
        words=Words("above chance", "below chance", NOT_SHOWN),
        least=NEAR * chance if chance > 0 else 0.0,
        verdict=_untested(interval.n, described, "chance level not known"),
        rule=f"t over seeds; one run has no spread: a ratio within {NEAR:g} of 1 is near chance, and no test",
        family=OVER_SEEDS,
        details={"step": int(table["step"].max()), "share": share, "chance": chance, "ratio": ratio},
    )
    return [finding]


def activations_finding(kind: str, stages: Sequence[Stage]) -> list[Finding]:
    """Compare the overlap of the two prompt sets' activations at the last look with that at the first.

    Returns:
        As :func:`inside_finding`.
    """
    ends = [end for stage in stages if (end := compared_at_ends(stage)) is not None]
    if not ends:
        return []
    table = pd.DataFrame(ends).astype(float)
    interval = t_interval(table["last"] - table["first"])
    described = "stayed" if abs(interval.mean) < LEAST_SHIFT else "rose" if interval.mean > 0 else "fell"
    finding = Finding(
        TOPIC,
        ACTIVATIONS,
        kind,
        "overlap of the activations of two prompt sets at the last look, less that at the first",
        estimate=interval.mean,
        low=interval.low,
        high=interval.high,
        unit="seeds",
        n=interval.n,
        null="the same overlap at both looks",
        p=interval.p_value,
        words=Words("rose", "fell", NOT_SHOWN),
        least=LEAST_SHIFT,
        verdict=_untested(interval.n, described, "not measured"),
        rule=f"t over seeds; one run has no spread: less than {LEAST_SHIFT:g} stayed, and no test",
        family=OVER_SEEDS,
        details={
            **{str(name): float(value) for name, value in table.mean().items()},
            "sets": list(prompt_sets(stages[0])),
            "is_uncentred": is_uncentred(stages[0]),
        },
    )
    return [finding]


def _untested(n: int, described: str, unknown: str) -> str:
    """Return the verdict where there is no p: what one run is described by, or why several have none."""
    return described if n == 1 else unknown if n == 0 else "no spread over seeds"


def _looks_into(run: Stage) -> Finding:
    """Return how often a run was looked at, how far apart, and what its fewest harmful prompts leave open."""
    steps = look_steps(run)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    counts = run.prompts[["n_harmful", "n_groups_harmful"]].astype(float).dropna(subset="n_harmful")
    independent = counts["n_groups_harmful"].fillna(counts["n_harmful"])
    fewest = counts.iloc[[int(independent.argmin())]] if len(counts) else counts.reindex([0])
    n = max(float(independent.min()), 1.0)
    return Finding(
        TOPIC,
        LOOKS,
        run.name,
        "looks",
        estimate=float(len(steps)),
        unit="looks",
        n=len(steps),
        verdict="a count",
        details={
            "gaps": [min(gaps), max(gaps)] if gaps else [],
            **{str(name): float(fewest[name].iloc[0]) for name in fewest},
            "largest_error": float(np.sqrt(WIDEST / n)),
            "room_at_zero": float(exact_interval(np.array(0.0), np.array(n))[1]),
        },
    )


def runs_of(findings: pd.DataFrame) -> list[str]:
    """Return the runs, or kinds of run, that decided findings of this topic are about."""
    return list(dict.fromkeys(asked(findings, OUTCOME)["subject"]))
