"""What a configuration says of a network's weights: transformers builds the network without any, and is asked.

Hardly anything is known here of single architectures: their names for weights, which of them are tied, and which are
kept the other way round are read off the network that would be run. Of a multimodal model that is its text part.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.pytorch_utils import Conv1D

from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.language.model_files import bounded_by_files, check_model_files

CONFIG = "config.json"
# What multimodal models put before the names of their text part, or into them.
TEXT_PART = re.compile(r"(?:^|(?<=\.))(?:language_model|text_model)\.")
# Where fused experts are (experts, in, out) and transformers does not mark them so: Llama 4's `torch.bmm`.
TRANSPOSED_EXPERTS = ("llama4", "llama4_text")
# Networks that are kept, each without weights.
KEPT = 16


@dataclass(frozen=True)
class Architecture:
    """The weights of a network.

    Args:
        shapes: Shape of every parameter by its name in the network, ties included.
        ties: For each parameter that is another one under a second name, that one.
        transposed: Weights of linear maps that are kept as ``(in, out)``: of Conv1D layers, and fused experts.
        is_text_part: Whether the model has further parts, which are not read.
    """

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    transposed: frozenset[str]
    is_text_part: bool = False
    _prefix: str = ""
    _renamings: tuple[Any, ...] = field(default=(), repr=False)
    _converters: tuple[Any, ...] = field(default=(), repr=False)

    def name_of(self, stored: str) -> str:
        """Return what the network calls a tensor of a file, by transformers' own renaming; else the name itself."""
        name, _ = self._renamed(stored, ())
        return name if name in self.shapes else stored

    def filled_by(self, stored: str) -> str | None:
        """Return the parameter that a tensor of this name is read into, as it is or with others; else ``None``."""
        name, pattern = self._renamed(stored, self._converters)
        return name if pattern is not None or name in self.shapes else None

    def _renamed(self, stored: str, converters: tuple[Any, ...]) -> tuple[str, str | None]:
        name = text_name(stored) if self.is_text_part else stored
        return rename_source_key(name, list(self._renamings), list(converters), self._prefix, dict(self.shapes))


def text_name(stored: str) -> str:
    """Return what the text part of a multimodal model calls a tensor of it; of other parts the name itself."""
    return TEXT_PART.sub("", stored, count=1)


def text_part_of(settings: dict[str, Any]) -> PretrainedConfig | None:
    """Return the configuration of a multimodal model's text part, where transformers has it as a language model.

    Args:
        settings: What the model's ``config.json`` says.

    Returns:
        ``None`` of a model that is text alone, or whose text part is no causal language model by itself.
    """
    if str(settings.get("model_type")) not in CONFIG_MAPPING or not isinstance(settings.get("text_config"), dict):
        return None
    config = AutoConfig.for_model(**settings)
    part: Any = getattr(config, "text_config", None)
    if type(part) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    if "tie_word_embeddings" in settings and "tie_word_embeddings" not in settings["text_config"]:
        part.tie_word_embeddings = settings["tie_word_embeddings"]
    found: PretrainedConfig = part
    return found


def read_architecture(folder: Path) -> Architecture | None:
    """Return what the configuration in a folder says of the weights there.

    Returns:
        ``None`` where there is no configuration, or one of no causal language model that transformers has.

    Raises:
        InputError: The configuration asks for more than its weights fill, or for what no model has.
    """
    file = folder / CONFIG
    if not file.is_file():
        return None
    check_model_files(str(folder))
    with reading(file, "the configuration of a model"), bounded_by_files(folder):
        return _built(json.dumps(read_json(file), sort_keys=True))


def architecture_of(model: PreTrainedModel, is_text_part: bool = False) -> Architecture:
    """Return what a network says of its weights."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
    transforms = get_model_conversion_mapping(model)
    return Architecture(
        shapes,
        dict(model.all_tied_weights_keys),
        frozenset(transposed_weights(model) | _transposed_experts(model)),
        is_text_part,
        model.base_model_prefix,
        tuple(each for each in transforms if not isinstance(each, WeightConverter)),
        tuple(each for each in transforms if isinstance(each, WeightConverter)),
    )


def transposed_weights(network: nn.Module) -> set[str]:
    """Return the weights of linear maps of a network, by name, that are kept as ``(in, out)``."""
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, Conv1D)}


def _transposed_experts(network: PreTrainedModel) -> set[str]:
    """Return the weights of fused experts, by name, each of which is kept as ``(experts, in, out)``."""
    always = network.config.model_type in TRANSPOSED_EXPERTS
    return {
        f"{name}.{weight}"
        for name, module in network.named_modules()
        if name.endswith(".experts") and (always or getattr(module, "is_transposed", False))
        for weight, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def network_without_weights(folder: Path) -> PreTrainedModel | None:
    """Return the network that the configuration in a folder describes, on no device; ``None`` and errors as above."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    check_model_files(str(folder))
    with reading(file, "the configuration of a model"), bounded_by_files(folder):
        return _network(read_json(file))


def _network(settings: dict[str, Any]) -> PreTrainedModel | None:
    config = text_part_of(settings)
    if config is None:
        if str(settings.get("model_type")) not in _known_types():
            return None
        config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return network


@lru_cache(maxsize=KEPT)
def _built(config: str) -> Architecture | None:
    settings = json.loads(config)
    network = _network(settings)
    return None if network is None else architecture_of(network, text_part_of(settings) is not None)


@lru_cache(maxsize=1)
def _known_types() -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
