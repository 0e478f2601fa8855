"""The steps of ``analyze.py steer``: layers, what is measured at a dose, comparisons, models that are written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.analysis.steer.plan import Point
from safety_subspaces.analysis.steer.selectivity import Cost, Dose, selectivity
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import provenance
from safety_subspaces.artefacts.results import check_labels
from safety_subspaces.evaluation.behaviour import BehaviourEvaluator, BehaviourResult
from safety_subspaces.evaluation.margin import log_probabilities
from safety_subspaces.language.examples import Example, PromptItem, groupings_of
from safety_subspaces.language.model import count_blocks, load_language_model
from safety_subspaces.language.model_card import CardFacts, as_inline_code, write_card
from safety_subspaces.language.model_paths import check_model_path
from safety_subspaces.language.prompting import Encoder
from safety_subspaces.states.directions import Direction
from safety_subspaces.states.steering import Ablation, Intervention, ablate_weights, ablated, steered
from safety_subspaces.training.card import data_behind

# What a model without a direction has to be said of.
ABLATED = (
    "A direction that tells harmful requests from others may be what refusals rest on: without it the model may answer "
    "what it refused. It was made for research on safety; do not deploy it."
)


@dataclass
class Curves:
    """What was measured of one model: the rows of the table, and each point's scores prompt by prompt."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    doses: dict[Point, Dose] = field(default_factory=dict)


def layers_of(models: Mapping[str, str], layers: Sequence[int] | None) -> dict[str, list[int]]:
    """Return the layers of each model, by its configuration alone."""
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    check_labels(models)
    chosen = {}
    for label, path in models.items():
        check_model_path(path)
        count = count_blocks(path)
        chosen[label] = list(layers) if layers is not None else [(count + 1) // 2]
        if not chosen[label] or any(not 0 <= layer <= count for layer in chosen[label]):
            raise InputError(f"layers {layers}: expected one or more of 0 to {count}, which {label} ({path}) has")
    return chosen


def shared_with(evaluator: BehaviourEvaluator, sets: Mapping[str, Sequence[PromptItem]]) -> set[str]:
    """Return the prompts that directions are made from and that are measured as well."""
    measured = {item.prompt for name in ("utility", "harmful", "benign") for item in getattr(evaluator.prompts, name)}
    return measured & {item.prompt for items in sets.values() for item in items}


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluator: BehaviourEvaluator,
    point: Point,
    intervention: Intervention | None,
    label: str,
) -> tuple[BehaviourResult, NDArray[np.float64]]:
    """Measure behaviour, and the nats of worked solutions, under one intervention."""
    with ExitStack() as stack:
        if isinstance(intervention, Ablation):
            stack.enter_context(ablated(model, intervention.basis))
        elif intervention is not None:
            stack.enter_context(steered(model, intervention, [point.layer]))
        result = evaluator.evaluate(model, tokenizer, label, shows_progress=False)
        return result, _solution_nats(model, tokenizer, evaluator)


def _solution_nats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, evaluator: BehaviourEvaluator
) -> NDArray[np.float64]:
    """Nats a token of each worked solution, given its problem."""
    settings = evaluator.settings
    items = evaluator.prompts.utility
    encoder = Encoder(tokenizer, settings.form)
    texts = [encoder.example(Example(item.prompt, str(item.reference))) for item in items]
    sums = log_probabilities(model, texts, settings.batch_size)
    nats = [-total / (len(text.input_ids) - text.prompt_length) for total, text in zip(sums, texts, strict=True)]
    return np.array(nats, dtype=float)


def selectivities(
    label: str, curves: Curves, evaluator: BehaviourEvaluator, costs: Mapping[Cost, float]
) -> Iterator[dict[str, Any]]:
    """Compare each direction with its random ones, in each sense of each intervention."""
    items = [getattr(evaluator.prompts, name) for name in ("harmful", "utility")]
    of_harmful, of_utility = (groupings_of(of_set) for of_set in items)
    start = next(dose for point, dose in curves.doses.items() if point.direction == "none")
    points = [point for point in curves.doses if point.draw is None and point.direction != "none"]
    cells = dict.fromkeys((p.direction, p.intervention, p.layer, p.strength > 0) for p in points)
    for direction, intervention, layer, upwards in cells:

        def curve(name: str, draw: int | None) -> list[Dose]:
            doses = [
                dose
                for point, dose in curves.doses.items()
                if (point.direction, point.draw) == (name, draw)
                and (point.intervention, point.layer, point.strength > 0) == (intervention, layer, upwards)  # noqa: B023
            ]
            return [start, *sorted(doses, key=lambda dose: dose.size)]

        control = f"random:{direction}"
        draws = sorted({p.draw for p in curves.doses if p.direction == control and p.draw is not None})
        named = {"model": label, "direction": direction, "intervention": intervention, "layer": layer}
        named["sign"] = "+" if upwards else "-"
        counts = {"n_harmful": len(items[0]), "n_utility": len(items[1])}
        if not draws or not items[0] or not items[1]:
            reason = "no random direction was drawn" if not draws else "no harmful or no utility prompts are measured"
            yield {**named, "measure": "harm_score", "selectivity": float("nan"), **counts, "reason": reason}
            continue
        randoms = [curve(control, draw) for draw in draws]
        for matched_on, cost in costs.items():
            main_curve = curve(direction, None)
            for comparison in selectivity(main_curve, randoms, of_harmful, of_utility, matched_on, cost):
                yield {**named, **asdict(comparison), **counts}


def check_ablatable(path: str, dtype: str) -> None:
    """Refuse a model whose weights cannot have a direction taken out, before its doses are measured.

    Raises:
        InputError: As :func:`~safety_subspaces.states.steering.ablate_weights`.
    """
    model, _ = load_language_model(path, getattr(torch, dtype))
    ablate_weights(model, torch.eye(model.config.get_text_config().hidden_size, 1, dtype=model.dtype))


def write_ablated(path: str, by_layer: Mapping[int, Sequence[Direction]], folder: Path, dtype: str) -> None:
    """Write the model of each layer with each direction ablated from its weights, and its card."""
    origin = provenance()
    data, harmful = data_behind(path)
    for layer, directions in by_layer.items():
        for direction in directions:
            model, tokenizer = load_language_model(path, getattr(torch, dtype))
            ablate_weights(model, direction.basis)
            target = folder / f"{direction.name}-layer{layer}"
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            what = f"A model from whose weights the direction {as_inline_code(direction.name)} of the hidden states at "
            what += f"layer {layer} was taken out, by Safety Subspaces."
            facts = CardFacts(what, path, origin, data, harmful, warnings=(ABLATED,))
            write_card(target, facts)
