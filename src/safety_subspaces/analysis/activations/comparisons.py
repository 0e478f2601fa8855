"""Rows of the tables of ``activations``: what the states of several prompt sets in one model say of one another."""

from collections.abc import Hashable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from safety_subspaces.algebra.nulls import overlap_moments, overlap_p_value
from safety_subspaces.algebra.overlap import (
    mode_subspace_overlap,
    nested_principal_angles,
    summarise_angles,
)
from safety_subspaces.states.captured import CapturedSet
from safety_subspaces.states.chance import StateSpace, matched_states_control
from safety_subspaces.states.choices import Position
from safety_subspaces.states.equivalence import StateParts, overlap_equivalence
from safety_subspaces.states.intrinsic_dimension import mle_dimension, two_nn
from safety_subspaces.states.similarity import cka_with_error
from safety_subspaces.states.two_sample import two_sample_tests

# The paper's range of hidden-state indices, of n: from int(0.65 n) to int(0.9 n) - 1.
PAPER_DEPTH = (0.65, 0.9)
# Draws of the matched control that tell its level well enough (to a tenth of its own standard deviation), where no
# finding rests on its p: of the halves of a set, and of matched prompts.
LEVEL_DRAWS = 99


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared, and how often a null is drawn.

    Args:
        energies: Shares of energy at which subspaces are cut.
        center: Whether the mean of each set is taken out.
        controls: Draws of the matched control.
        permutations: Permutations of the two-sample tests.
        seed: Seed of all of them.
    """

    energies: tuple[float, ...]
    center: bool
    controls: int
    permutations: int
    seed: int

    def generator(self, *names: object) -> torch.Generator:
        """Return a generator of its own for each comparison: a further set or layer changes none of the others."""
        seed = np.random.SeedSequence([self.seed, *"|".join(map(str, names)).encode()]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))


@dataclass(frozen=True)
class ModelStates:
    """States of every prompt set in one model.

    Args:
        label: The model.
        sets: The sets by label.
        groups: For each set what its sampled prompts that stand and fall together share.
        pairs: For each pair of sets the sampled prompts of like length and template, as indices into the two samples;
            without the pairs of sets that have too few.
    """

    label: str
    sets: Mapping[str, CapturedSet]
    groups: Mapping[str, Sequence[Hashable]]
    pairs: Mapping[tuple[str, str], Sequence[tuple[int, int]]]

    def indexed_layers(self) -> Iterator[tuple[Position, int, int]]:
        """Yield each position and layer, and the index of that layer in a sample."""
        some = next(iter(self.sets.values()))
        for position in some.sample:
            for index, layer in enumerate(some.layers):
                yield position, layer, index

    def matched(self, first: str, second: str, position: Position, index: int) -> tuple[Tensor, Tensor, list[int]]:
        """Return the states of matched prompts of two sets, and the indices of the first's."""
        pairs = self.pairs[first, second]
        rows, columns = ([pair[side] for pair in pairs] for side in (0, 1))
        samples = (self.sets[first].sample, self.sets[second].sample)
        return samples[0][position][rows, index], samples[1][position][columns, index], rows


def overlap_rows(states: ModelStates, settings: ComparisonSettings) -> Iterator[dict[str, Any]]:
    """Yield the overlaps of each pair of sets, of the two halves of each set, and of matched prompts."""
    center, share = settings.center, max(settings.energies)
    for position, layer, index in states.indexed_layers():
        where = {"position": position, "layer": layer}
        whole: dict[str, StateSpace] = {}
        for label, prompt_set in states.sets.items():
            halves = prompt_set.halves[position, layer]
            whole[label] = StateSpace(halves[0].merged(halves[1]), center, share)
            parts = [StateSpace(half, center, share) for half in halves]
            generator = settings.generator(states.label, label, position, layer)
            for row in _overlaps(parts, generator, settings.energies, min(settings.controls, LEVEL_DRAWS)):
                yield {**_named(states, label, label, parts), **where, **row, "floor": True, "matched": False}
        for first, second in combinations(states.sets, 2):
            generator = settings.generator(states.label, first, second, position, layer)
            spaces = [whole[first], whole[second]]
            for row in _overlaps(spaces, generator, settings.energies, settings.controls):
                yield {**_named(states, first, second, spaces), **where, **row, "floor": False, "matched": False}
            if (first, second) in states.pairs:
                *rows, _ = states.matched(first, second, position, index)
                alike = [StateSpace(part, center) for part in rows]
                for row in _overlaps(alike, generator, settings.energies, min(settings.controls, LEVEL_DRAWS)):
                    yield {**_named(states, first, second, alike), **where, **row, "floor": False, "matched": True}


def equivalence_rows(states: ModelStates, settings: ComparisonSettings) -> Iterator[dict[str, Any]]:
    """Yield for each pair of sets whether they overlap as parts of one set do."""
    for position, layer, index in states.indexed_layers():
        parts = {
            label: StateParts(
                prompt_set.sample[position][:, index],
                settings.generator("parts", label),  # the same parts at every layer and in every model
                settings.center,
                states.groups[label],
            )
            for label, prompt_set in states.sets.items()
        }
        for first, second in combinations(states.sets, 2):
            named = _named(states, first, second, [states.sets[label].rows for label in (first, second)])
            generator = settings.generator("chance", states.label, first, second, position, layer)
            for test in overlap_equivalence(parts[first], parts[second], settings.energies, generator):
                yield {**named, "position": position, "layer": layer, **asdict(test)}


def two_sample_rows(states: ModelStates, settings: ComparisonSettings) -> Iterator[dict[str, Any]]:
    """Yield for each pair of sets whether their states have one distribution; also for matched prompts alone."""
    for position, layer, index in states.indexed_layers():
        for first, second in combinations(states.sets, 2):
            sides = [
                (states.sets[label].sample[position][:, index], list(states.groups[label])) for label in (first, second)
            ]
            cases = [(False, sides)]
            if (first, second) in states.pairs:
                pair = states.pairs[first, second]
                cases.append((True, [_chosen(*side, [rows[n] for rows in pair]) for n, side in enumerate(sides)]))
            for matched, ((rows, groups), (others, other_groups)) in cases:
                generator = settings.generator(states.label, first, second, position, layer, matched)
                tests = two_sample_tests(rows, others, settings.permutations, generator, groups, other_groups)
                named = _named(states, first, second, [rows, others])
                counts = {"n_groups_first": len(set(groups)), "n_groups_second": len(set(other_groups))}
                values = {
                    "mmd": tests.mmd.value,
                    "mmd_chance": tests.mmd.null_mean,
                    "mmd_p": tests.mmd.p_value,
                    "mean_distance": tests.mean_distance.value,
                    "mean_p": tests.mean_distance.p_value,
                    "mean_distance_standardised": tests.standardised,
                    "standardised_chance": tests.standardised_chance,
                    "least_p": tests.mean_distance.least_p,
                    "permutations": settings.permutations,
                }
                yield {**named, "position": position, "layer": layer, **values, **counts, "matched": matched}


def dimension_rows(states: ModelStates) -> Iterator[dict[str, Any]]:
    """Yield the intrinsic dimension of each set, of one prompt a group: near copies would be nearest neighbours."""
    firsts = {
        label: list({group: row for row, group in reversed(list(enumerate(groups)))}.values())
        for label, groups in states.groups.items()
    }
    for position, layer, index in states.indexed_layers():
        for label, prompt_set in states.sets.items():
            points = prompt_set.sample[position][firsts[label], index]
            nearest, likelihood = two_nn(points), mle_dimension(points)
            yield {
                "model": states.label,
                "set": label,
                "position": position,
                "layer": layer,
                "two_nn": nearest.value,
                "two_nn_stderr": nearest.stderr,
                "mle": likelihood.value,
                "mle_stderr": likelihood.stderr,
                "n": nearest.n,
                "n_duplicates": nearest.duplicates,
            }


def cka_rows(models: Sequence[ModelStates]) -> Iterator[dict[str, Any]]:
    """Yield how alike two models lay out the same prompts, layer by layer."""
    for first, second in combinations(models, 2):
        for position, layer, index in first.indexed_layers():
            for label, prompt_set in first.sets.items():
                other = second.sets[label]
                if layer not in other.layers:
                    continue
                pair = (prompt_set.sample[position][:, index], other.sample[position][:, other.layers.index(layer)])
                linear = cka_with_error(*pair, groups=first.groups[label])
                kernel = cka_with_error(*pair, bandwidth_factor=1.0, groups=first.groups[label])
                yield {
                    "first_model": first.label,
                    "second_model": second.label,
                    "set": label,
                    "position": position,
                    "layer": layer,
                    "linear": linear.value,
                    "linear_stderr": linear.stderr,
                    "rbf": kernel.value,
                    "rbf_stderr": kernel.stderr,
                    "n": linear.n,
                }


def depth_table(table: pd.DataFrame, n_states: int) -> pd.DataFrame:
    """Average overlaps over the paper's range of depth.

    Args:
        table: Overlaps of one or several models, a row for each layer: the columns of :func:`overlap_rows`.
        n_states: Number of hidden states of a model: blocks and the embedding.

    Returns:
        One row for each model, pair, position, energy and kind. Columns: ``model``, ``first``, ``second``,
        ``position``, ``energy``, ``floor``, then the means ``overlap``, ``chance`` and ``matched_chance``, and
        ``layers``, the range as text.
    """
    low, high = int(PAPER_DEPTH[0] * n_states), max(int(PAPER_DEPTH[0] * n_states), int(PAPER_DEPTH[1] * n_states) - 1)
    rows = table[(table["layer"] >= low) & (table["layer"] <= high) & ~table["matched"]]
    keys = ["model", "first", "second", "position", "energy", "floor"]
    means = rows.groupby(keys, sort=False)[["overlap", "chance", "matched_chance"]].mean().reset_index()
    return means.assign(layers=f"{low} to {high}")


def _overlaps(
    spaces: Sequence[StateSpace], generator: torch.Generator, energies: Sequence[float], draws: int
) -> list[dict[str, Any]]:
    first, second = spaces
    bases = first.factors, second.factors
    overlaps = mode_subspace_overlap(*bases, energies)
    controls = matched_states_control(first, second, overlaps, draws, generator)
    ranks = [(overlap.rank_first, overlap.rank_second) for overlap in overlaps]
    angles = [summarise_angles(pair) for pair in nested_principal_angles(bases[0].basis, bases[1].basis, ranks)]
    rows = []
    for overlap, control, angle in zip(overlaps, controls, angles, strict=True):
        pair = (overlap.rank_first, overlap.rank_second)
        rows.append(
            {
                "energy": overlap.energy,
                "rank_first": pair[0],
                "rank_second": pair[1],
                "overlap": overlap.value,
                "chance": overlap_moments(bases[0].rows, *pair).mean,
                "p_haar": overlap_p_value(overlap.value, bases[0].rows, *pair),
                "matched_chance": control.mean,
                "p_matched": control.p_value,
                "controls": draws,
                "smallest_angle_radians": angle.smallest,
                "mean_angle_radians": angle.mean,
                "largest_angle_radians": angle.largest,
            }
        )
    return rows


def _named(states: ModelStates, first: str, second: str, sets: Sequence[Sized]) -> dict[str, Any]:
    counts = {"n_first": len(sets[0]), "n_second": len(sets[1])}
    return {"model": states.label, "first": first, "second": second, **counts}


def _chosen(rows: Tensor, groups: Sequence[Hashable], indices: Sequence[int]) -> tuple[Tensor, list[Hashable]]:
    return rows[list(indices)], [groups[index] for index in indices]
