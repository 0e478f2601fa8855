"""What is kept of the hidden states of one prompt set in one model, and its cache by content.

However many prompts there are, two things are stored: the moments of two halves at each layer and position, and a
seeded sample of single states for what moments cannot tell. The name of a file in the cache is a hash of all that
determines it: the model's files, the prompts as token ids, the settings, and this program.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import clear_partials
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.progress import Bar
from safety_subspaces.artefacts.provenance import code_state, describe_input, sha256_of_value
from safety_subspaces.artefacts.tensors import TensorFile, write_tensors
from safety_subspaces.language.examples import CHAT_FORMAT, PromptFormat, PromptItem, groups_of
from safety_subspaces.language.prompting import encode_prompt
from safety_subspaces.states.capture import check_layers, stream_states
from safety_subspaces.states.choices import Position, Site
from safety_subspaces.states.equivalence import deal
from safety_subspaces.states.moments import MomentsBuilder, StateMoments

HALVES = ("a", "b")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureSettings:
    """How states are read.

    Args:
        positions: Token positions.
        layers: Layers, or ``None`` for all.
        site: ``residual``, ``attention`` or ``mlp``.
        form: How a text becomes a prompt.
        sample: At most so many prompts' states are kept one by one.
        seed: Seed of the halves and of the sample.
        batch_size: Prompts at once.
    """

    positions: tuple[Position, ...]
    layers: tuple[int, ...] | None
    site: Site
    form: PromptFormat
    sample: int
    seed: int
    batch_size: int


@dataclass(frozen=True)
class CapturedSet:
    """States of one prompt set in one model.

    Args:
        layers: Layers that were read.
        halves: For each position and layer the moments of each half of the prompts; groups of prompts stay together.
        sample: For each position states ``(prompt, layer, hidden)`` of the sampled prompts.
        rows: Which prompts were sampled.
    """

    layers: tuple[int, ...]
    halves: dict[tuple[Position, int], tuple[StateMoments, StateMoments]]
    sample: dict[Position, Float32[Tensor, "prompt layer hidden"]]
    rows: tuple[int, ...]


def captured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    items: Sequence[PromptItem],
    settings: CaptureSettings,
    cache: Path | None,
    label: str,
) -> CapturedSet:
    """Read the states of a prompt set, or take them from the cache.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: Where it was loaded from. What a Hub id holds is not known by its name: it is not cached.
        items: The prompts.
        settings: How they are read.
        cache: Folder of the cache; ``None`` for none.
        label: What the progress bar says.
    """
    file = None
    if cache is not None and Path(path).is_dir():
        file = cache / f"{_key(path, model.dtype, tokenizer, items, settings)}.safetensors"
        try:
            if file.is_file():
                return _read(file, model, items, settings)
        except (InputError, KeyError) as error:
            logger.warning("%s cannot be read (%s): its states are computed again", file, error)
    result = _capture(model, tokenizer, items, settings, label)
    if file is not None:
        _write(file, result)
    return result


def sampled_rows(count: int, settings: CaptureSettings) -> tuple[int, ...]:
    """Return which prompts of a set are sampled: the same ones in every model."""
    if count <= settings.sample:
        return tuple(range(count))
    return tuple(sorted(random.Random(f"sample {settings.seed}").sample(range(count), settings.sample)))


def _capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[PromptItem],
    settings: CaptureSettings,
    label: str,
) -> CapturedSet:
    layers = tuple(check_layers(model, settings.layers, settings.site))
    hidden = model.config.get_text_config().hidden_size
    half = deal(groups_of(items), torch.Generator().manual_seed(settings.seed)) % 2
    rows = sampled_rows(len(items), settings)
    sample_index = {row: index for index, row in enumerate(rows)}
    keys = [(position, layer) for position in settings.positions for layer in layers]
    builders = {(key, number): MomentsBuilder(hidden) for key in keys for number in (0, 1)}
    sample = {position: torch.zeros(len(rows), len(layers), hidden) for position in settings.positions}
    batches = stream_states(
        model,
        tokenizer,
        [item.prompt for item in items],
        settings.positions,
        settings.batch_size,
        form=settings.form,
        site=settings.site,
        layers=layers,
    )
    with Bar(total=len(items), desc=label, unit="prompt", leave=False) as bar:
        for batch in batches:
            of_batch = half[torch.tensor(batch.rows)]
            sampled = [number for number, row in enumerate(batch.rows) if row in sample_index]
            targets = [sample_index[batch.rows[number]] for number in sampled]
            for position, states in batch.states.items():
                sample[position][targets] = states[sampled].cpu()
                for number in (0, 1):
                    part = states[(of_batch == number).to(states.device)]
                    for index, layer in enumerate(layers):
                        builders[(position, layer), number].add(part[:, index])
            bar.update(len(batch.rows))
    halves = {key: (builders[key, 0].moments(), builders[key, 1].moments()) for key in keys}
    return CapturedSet(layers, halves, sample, rows)


def _key(
    path: str,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[PromptItem],
    settings: CaptureSettings,
) -> str:
    described: dict[str, Any] = describe_input(path)
    model = {name: value for name, value in described.items() if name != "path"}
    prompts = [[encode_prompt(tokenizer, item.prompt, settings.form), item.group] for item in items]
    determining = asdict(replace(settings, form=CHAT_FORMAT))  # the prompts are what it makes of them
    determining |= {"batch_size": None}  # affects the cost alone
    return sha256_of_value([model, str(dtype), code_state(), prompts, determining])[:32]


def _write(file: Path, states: CapturedSet) -> None:
    clear_partials(file.parent)
    tensors: dict[str, Tensor] = {f"sample/{position}": sample for position, sample in states.sample.items()}
    for (position, layer), halves in states.halves.items():
        for half, moments in zip(HALVES, halves, strict=True):
            name = f"{position}/{layer}/{half}"
            count = torch.tensor([moments.count], dtype=torch.float64)
            tensors |= {f"{name}/mean": moments.mean, f"{name}/scatter": moments.scatter, f"{name}/count": count}
    write_tensors(file, tensors)


def _read(file: Path, model: PreTrainedModel, items: Sequence[PromptItem], settings: CaptureSettings) -> CapturedSet:
    tensors = TensorFile(file).read_all()
    layers = tuple(check_layers(model, settings.layers, settings.site))

    def moments(name: str) -> StateMoments:
        return StateMoments(int(tensors[f"{name}/count"]), tensors[f"{name}/mean"], tensors[f"{name}/scatter"])

    with reading(file, "hidden states that were kept here", "remove it, and they are computed again"):
        halves = {
            (position, layer): (moments(f"{position}/{layer}/a"), moments(f"{position}/{layer}/b"))
            for position in settings.positions
            for layer in layers
        }
        sample = {position: tensors[f"sample/{position}"] for position in settings.positions}
    return CapturedSet(layers, halves, sample, sampled_rows(len(items), settings))
