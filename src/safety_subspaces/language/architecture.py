"""What a configuration says of a network's weights: transformers builds the network without any, and is asked.

Nothing is known here of single architectures: their names for weights, which of them are tied, and which are kept the
other way round are read off the network that would be run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.pytorch_utils import Conv1D

from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.language.model_files import bounded_by_files, check_model_files

CONFIG = "config.json"
# Networks that are kept, each without weights.
KEPT = 16


@dataclass(frozen=True)
class Architecture:
    """The weights of a network.

    Args:
        shapes: Shape of every parameter by its name in the network, ties included.
        ties: For each parameter that is another one under a second name, that one.
        transposed: Weights of linear maps that are kept as ``(in, out)``: of Conv1D layers.
    """

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    transposed: frozenset[str]
    _prefix: str = ""
    _renamings: tuple[Any, ...] = field(default=(), repr=False)
    _converters: tuple[Any, ...] = field(default=(), repr=False)

    def name_of(self, stored: str) -> str:
        """Return what the network calls a tensor of a file, by transformers' own renaming; else the name itself."""
        name, _ = rename_source_key(stored, list(self._renamings), [], self._prefix, dict(self.shapes))
        return name if name in self.shapes else stored

    def takes(self, stored: str) -> bool:
        """Tell whether transformers reads a tensor of this name into the network, as it is or with others."""
        name, pattern = rename_source_key(
            stored, list(self._renamings), list(self._converters), self._prefix, dict(self.shapes)
        )
        return pattern is not None or name in self.shapes


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


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Return what a network says of its weights."""
    names = {id(module): name for name, module in model.named_modules()}
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
    turned = (f"{names[id(module)]}.weight" for module in model.modules() if isinstance(module, Conv1D))
    transforms = get_model_conversion_mapping(model)
    return Architecture(
        shapes,
        dict(model.all_tied_weights_keys),
        frozenset(turned),
        model.base_model_prefix,
        tuple(each for each in transforms if not isinstance(each, WeightConverter)),
        tuple(each for each in transforms if isinstance(each, WeightConverter)),
    )


def transposed_weights(network: nn.Module) -> set[str]:
    """Return the parameters of a network, by name, that are kept as ``(in, out)``."""
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, Conv1D)}


def network_without_weights(folder: Path) -> PreTrainedModel | None:
    """Return the network that the configuration in a folder describes, on no device; ``None`` and errors as above."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    check_model_files(str(folder))
    with reading(file, "the configuration of a model"), bounded_by_files(folder):
        return _network(read_json(file))


def _network(settings: dict[str, Any]) -> PreTrainedModel | None:
    if str(settings.get("model_type")) not in _known_types():
        return None
    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    return network


@lru_cache(maxsize=KEPT)
def _built(config: str) -> Architecture | None:
    network = _network(json.loads(config))
    return None if network is None else architecture_of(network)


@lru_cache(maxsize=1)
def _known_types() -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
