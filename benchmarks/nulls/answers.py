"""Studies of what models answer: means and rates over prompts, probes of states, steering along random directions.

Everything that is judged is judged by the functions of the analyses themselves, on values that are drawn here.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.nulls import Scenario
from safety_subspaces.algebra.statistics import Z95, number_groups, share_interval
from safety_subspaces.analysis.steer.selectivity import Dose, selectivity
from safety_subspaces.evaluation.rates import SCORE, SHARE, estimate
from safety_subspaces.findings.finding import holm
from safety_subspaces.language.examples import groupings_of
from safety_subspaces.organism import evaluation_sets
from safety_subspaces.states.probes import (
    area_under_curve,
    auc_with_error,
    group_folds,
    predict_held_out,
    refitted_error,
)

# Groups of like prompts in a probe's study, dimensions of its states, and what its prompts of a group share.
GROUPS, DIMENSIONS, SHARED = 55, 16, 0.5
DOSES = (0.0, 0.25, 0.5, 1.0)
ACTS = 20


@cache
def requests() -> list[list[Any]]:
    """What the organism's 200 harmful requests share: their acts, and their objects."""
    return groupings_of(evaluation_sets("test").harmful)


def mean_over_requests(seed: int, ways: int = 2) -> Mapping[str, float]:
    """The organism's 200 requests with effects of the act and of the object, each as large as that of the request.

    One way (the pair) instead of two misses a fifth of the time.
    """
    rng = np.random.default_rng(seed)
    crossed = requests()
    groupings = crossed if ways == 2 else [list(zip(*crossed, strict=True))]
    numbers = [number_groups(keys).numpy() for keys in crossed]
    values = sum(rng.normal(size=number.max() + 1)[number] for number in numbers) + rng.normal(size=len(numbers[0]))
    found = estimate(np.asarray(values).tolist(), groupings)
    return {"95 % interval misses": abs(found.mean) > stats.t.ppf(0.975, found.n_groups - 1) * found.stderr}


def rare_answers(seed: int, rate: float) -> Mapping[str, float]:
    """Requests in 61 groups whose answers half agree within a group, and a rate near 0 of harmful ones.

    A harmful answer scores 5, another one 1.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(61), 1 + rng.poisson(2.3, 61))
    harmful = rng.random(len(groups)) < rng.beta(rate, 1 - rate, 61)[groups]
    share = estimate(harmful.astype(float).tolist(), [groups.tolist()], SHARE)
    score = estimate((1.0 + 4 * harmful).tolist(), [groups.tolist()], SCORE)
    low, high = share_interval(share.mean, share.stderr, share.n_groups)
    return {
        "95 % interval of the rate misses": not low <= rate <= high,
        "95 % interval of the harm score misses": abs(score.mean - 1 - 4 * rate) > Z95 * score.stderr,
        "an error of 0": share.stderr == 0 or score.stderr == 0,
    }


def probed_states(rng: np.random.Generator, groups: int, shift: float) -> tuple[Any, Any, list[int]]:
    """States of groups of like prompts, their labels and groups; the mean of a label is shifted in one coordinate."""
    number = np.repeat(np.arange(groups), 1 + rng.poisson(2, groups))
    labels = number % 2
    states = np.sqrt(SHARED) * rng.normal(size=(groups, DIMENSIONS))[number]
    states += np.sqrt(1 - SHARED) * rng.normal(size=(len(number), DIMENSIONS))
    states[:, 0] += shift * labels
    return torch.from_numpy(states), torch.from_numpy(labels), number.tolist()


@cache
def true_area(kind: str, shift: float) -> float:
    """The area under the curve of probes that are trained on as many prompts as a fold, over fresh ones."""
    rng = np.random.default_rng(2**32)
    fresh, labels, _ = probed_states(rng, 600, shift)
    areas = []
    for _ in range(40):
        states, of_states, _ = probed_states(rng, GROUPS * 4 // 5, shift)
        everything = (torch.cat([states, fresh]), torch.cat([of_states, labels]))
        split = (np.arange(len(states)), np.arange(len(states), len(everything[0])))
        areas.append(area_under_curve(predict_held_out(*everything, [split], kind, 0), everything[1]))
    return float(np.mean(areas))


def probe_intervals(seed: int, kinds: tuple[str, ...], shift: float) -> Mapping[str, float]:
    """Whether the interval of an area misses that of probes of as many prompts."""
    cells = _cells(seed, kinds, shift, layers=1)
    return {
        f"95 % interval of {kind} misses": abs(area - true_area(kind, shift)) > Z95 * error
        for kind, area, error in cells
    }


def probes_above(seed: int, kinds: tuple[str, ...], shift: float = 0.0, layers: int = 2) -> Mapping[str, float]:
    """Which probes are above chance by their 95 % interval, each for itself and by Holm's method over the study.

    Every layer has states of its own; a ``shift`` of 0 leaves nothing to read.
    """
    cells = list(_cells(seed, kinds, shift, layers))
    p_values = np.array([2 * stats.norm.sf(abs(area - 0.5) / error) for _, area, error in cells])
    above = (holm(p_values) <= 0.05) & np.array([area > 0.5 for _, area, _ in cells])
    said = {f"{kind} above chance": area - Z95 * error > 0.5 for kind, area, error in cells[: len(kinds)]}
    return said | {f"any of {len(cells)} cells above chance (Holm)": bool(above.any())}


def _cells(seed: int, kinds: tuple[str, ...], shift: float, layers: int) -> Iterator[tuple[str, float, float]]:
    rng = np.random.default_rng(seed)
    for _ in range(layers):
        states, labels, groups = probed_states(rng, GROUPS, shift)
        splits = group_folds(labels, groups, 5, seed)
        trained = float(np.mean([len(train) for train, _ in splits]))
        for kind in kinds:
            found = predict_held_out(states, labels, splits, kind, seed)
            area, over_prompts = auc_with_error(found, labels, [groups])
            yield kind, area, refitted_error(over_prompts, len(labels), trained)


def steered(seed: int, draws: int, law: str, effect: float = 0.0) -> Mapping[str, float]:
    """A direction and random ones whose changes in harm at a cost follow one law, but for the ``effect`` on its own.

    ``normal``: changes differ by a normal factor, and from act to act and object to object. ``jump``: one direction in
    seven takes most answers from 1 to 5, the others none. The effect is in standard deviations of the random changes.
    """
    rng = np.random.default_rng(seed)
    keys = [rng.integers(ACTS, size=64) for _ in range(2)]
    solved = (rng.random(64) < 0.8).astype(float)

    def curve(own: float) -> list[Dose]:
        slope, price = 1 + 0.5 * (rng.normal() + own), np.exp(0.4 * rng.normal())
        by_prompt = slope + 0.3 * (sum(rng.normal(size=ACTS)[key] for key in keys) + rng.normal(size=64))
        jumps = (rng.random() < 1 / 7 or own > 0) & (rng.random(64) < 0.9)
        lost, doses = rng.random(64), []
        for size in DOSES:
            harm = 1 + 4.0 * (jumps & (size >= 0.5)) if law == "jump" else np.clip(1 + 2 * by_prompt * size, 1, 5)
            utility = np.where(lost < 0.25 * price * size, 0.0, solved)
            doses.append(Dose(size, harm, -by_prompt * size, utility, 0.5 + 0.2 * price * size + 0.02 * lost))
        return doses

    groupings = [key.tolist() for key in keys]
    curves = [curve(effect), *(curve(0.0) for _ in range(draws))]
    found = selectivity(curves[0], curves[1:], groupings, [range(64)], "perplexity", 0.1)
    said: dict[str, float] = {}
    for one in found[: 1 if law == "jump" else 2]:  # margins do not jump
        said[f"{one.measure} called higher or lower"] = one.verdict in ("higher", "lower")
        if one.low == one.low:  # the harm score has none
            said[f"{one.measure}: 95 % interval on one side of 0"] = one.low > 0 or one.high < 0
    return said


LINEAR_AND_RBF = ("linear", "rbf_svm")
STEERED = "steering: a direction beside random ones"
SCENARIOS = [
    Scenario(
        "mean over prompts",
        "200 requests, effects of 29 acts, 28 objects and each request alike",
        mean_over_requests,
        studies=2000,
    ),
    *(
        Scenario("rate near 0", f"{rate:.1%} harmful, 61 groups that half agree", partial(rare_answers, rate=rate))
        for rate in (0.005, 0.02, 0.05)
    ),
    Scenario("area of a probe", "shift of 1.5 deviations", partial(probe_intervals, kinds=LINEAR_AND_RBF, shift=1.5)),
    Scenario("area of a probe", "nothing to read", partial(probe_intervals, kinds=LINEAR_AND_RBF, shift=0.0)),
    Scenario("probe above chance", "nothing to read, 2 layers", partial(probes_above, kinds=LINEAR_AND_RBF)),
    Scenario(
        "probe above chance",
        "nothing to read, 1 layer",
        partial(probes_above, kinds=("mlp",), layers=1),
        studies=100,
        why_fewer="five MLPs take a second",
    ),
    Scenario(
        "probe above chance",
        "shift of 1.5 deviations, 2 layers",
        partial(probes_above, kinds=LINEAR_AND_RBF, shift=1.5),
        nominal=None,
        studies=100,
        why_fewer="power alone",
    ),
    *(
        Scenario(STEERED, f"{draws} draws, changes that are {law}", partial(steered, draws=draws, law=law))
        for law in ("normal", "jump")
        for draws in (3, 5, 19)
    ),
    *(
        Scenario(
            STEERED,
            f"an effect of 4 deviations of the draws, {draws} draws",
            partial(steered, draws=draws, law="normal", effect=4.0),
            nominal=None,
        )
        for draws in (3, 19)
    ),
]
