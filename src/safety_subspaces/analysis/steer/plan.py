"""What a steering analysis does: the directions of each layer, and every dose of every intervention along them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.analysis.steer.choices import BasisSource, DirectionKind, InterventionKind
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.examples import PromptItem
from safety_subspaces.language.prompting import encode_prompt
from safety_subspaces.states.capture import prompt_states
from safety_subspaces.states.choices import Position
from safety_subspaces.states.directions import (
    Direction,
    mean_difference,
    overlap_vectors,
    paired_differences,
    probe_direction,
    random_direction,
)
from safety_subspaces.states.matching import match_prompts
from safety_subspaces.states.steering import Ablation, Addition, Intervention, Rotation
from safety_subspaces.weights.subspace_file import read_subspace

# Share of energy of the subspaces whose overlap is steered along.
OVERLAP_ENERGY = 0.99


@dataclass(frozen=True)
class Point:
    """One intervention at one dose."""

    direction: str
    draw: int | None
    intervention: InterventionKind
    layer: int
    strength: float


def read_basis(basis: BasisSource | None, directions: Sequence[str]) -> Tensor | None:
    """Read the basis to steer along, if one was given.

    Raises:
        InputError: The direction ``basis`` without one, or the reverse; a tensor or rank that the file does not have.
    """
    if ("basis" in directions) != (basis is not None):
        raise InputError("the direction 'basis' and the argument basis belong together: give both, or neither")
    if basis is None:
        return None
    stored = read_subspace(basis.path).bases
    if basis.tensor not in stored:
        raise InputError(
            f"{basis.path} has no subspace of {basis.tensor!r}; it has {', '.join(sorted(stored)[:5])} ..."
        )
    vectors = stored[basis.tensor]
    if not 1 <= basis.rank <= vectors.shape[1]:
        raise InputError(
            f"{basis.path} holds {vectors.shape[1]} directions of {basis.tensor}, rank {basis.rank} was asked"
        )
    return vectors[:, : basis.rank]


def make_directions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[PromptItem]],
    labels: tuple[str, str],
    layer: int,
    kinds: Sequence[DirectionKind],
    position: Position,
    given: Tensor | None,
    settings: EvaluationSettings,
) -> list[Direction]:
    """Make the directions of one layer.

    Raises:
        InputError: Sets without a difference there, none to pair, or a basis of another space.
    """
    states = []
    for label in labels:
        texts = [item.prompt for item in sets[label]]
        states_of_label = prompt_states(
            model, tokenizer, texts, position, settings.batch_size, settings.form, layers=[layer]
        )
        states.append(torch.stack(states_of_label)[:, 0])
    positive, negative = states
    result = []
    for kind in kinds:
        if kind == "mean_difference":
            result.append(mean_difference(positive, negative))
        elif kind == "probe":
            result.append(probe_direction(positive, negative))
        elif kind == "overlap":
            result.append(overlap_vectors(positive, negative, OVERLAP_ENERGY))
        elif kind == "paired":
            lengths = [
                [len(encode_prompt(tokenizer, item.prompt, settings.form)) for item in sets[label]] for label in labels
            ]
            sources = [[item.source for item in sets[label]] for label in labels]
            pairs = match_prompts(lengths[0], lengths[1], sources[0], sources[1])
            if not pairs:
                raise InputError(
                    f"no prompts of {labels[0]} and {labels[1]} are alike in length and template to be paired"
                )
            result.append(paired_differences(positive, negative, pairs))
        elif given is not None:
            result.append(_given_direction(given, positive, negative))
    return result


def _given_direction(basis: Tensor, positive: Tensor, negative: Tensor) -> Direction:
    if basis.shape[0] != positive.shape[1]:
        raise InputError(
            f"the basis has vectors of {basis.shape[0]} numbers, the residual stream {positive.shape[1]}; name a "
            "tensor that writes to the stream in a left file (o_proj, down_proj), or one that reads it in a right file"
        )
    apart = positive.double().mean(dim=0) - negative.double().mean(dim=0)
    signed = basis.clone()
    signed[:, 0] *= -1.0 if float(basis[:, 0].double() @ apart) < 0 else 1.0
    # How far the sets differ along one given direction says little of how far to steer: a strength of 1 is the whole
    # distance between their means.
    return Direction("basis", signed, float(apart.norm()))


def list_points(
    by_layer: Mapping[int, Sequence[Direction]],
    interventions: Sequence[InterventionKind],
    strengths: Sequence[float],
    angles: Sequence[float],
    draws: int,
) -> Iterator[Point]:
    """Every direction and its random controls, at every dose; ablation has no layer and one dose."""
    for layer, directions in by_layer.items():
        for direction in directions:
            for draw in (None, *range(draws)):
                name = direction.name if draw is None else f"random:{direction.name}"
                for intervention in interventions:
                    doses = {"addition": strengths, "ablation": (1.0,), "rotation": angles}[intervention]
                    yield from (Point(name, draw, intervention, layer, float(dose)) for dose in doses)


def planned(
    points: Sequence[Point], by_layer: Mapping[int, Sequence[Direction]], seed: int
) -> Iterator[tuple[Point, Intervention | None]]:
    """Yield the point without an intervention, then each point with its intervention."""
    yield Point("none", None, "addition", -1, 0.0), None
    for point in points:
        kind = point.direction.removeprefix("random:")
        direction = next(one for one in by_layer[point.layer] if one.name == kind)
        key = np.random.SeedSequence([seed, point.layer, 0 if point.draw is None else point.draw + 1, *kind.encode()])
        generator = torch.Generator().manual_seed(int(key.generate_state(1)[0]))
        if point.draw is not None:
            direction = random_direction(direction.basis.shape[0], direction, generator)
        first = direction.basis[:, 0]
        if point.intervention == "addition":
            yield point, Addition(first, point.strength * direction.scale)
        elif point.intervention == "ablation":
            yield point, Ablation(direction.basis)
        else:
            second = torch.randn(len(first), generator=generator, dtype=torch.float64)
            plane = torch.linalg.qr(torch.stack([first.double(), second], dim=1)).Q
            plane[:, 0] *= torch.sign(plane[:, 0] @ first.double())
            yield point, Rotation(plane.float(), point.strength)
