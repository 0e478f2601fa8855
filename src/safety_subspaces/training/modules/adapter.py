"""Adapters through PEFT, with the checks that PEFT leaves out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import in_short
from safety_subspaces.training.modules.frozen_basis import FrozenBasisSettings, add_frozen_basis

# All linear maps of a Llama-shaped block.
BLOCK_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class LoraSettings:
    """A low-rank adapter: ``delta = (alpha / rank) B A`` on each target, ``B`` zero at the start.

    Args:
        rank: Width of the factors.
        alpha: Numerator of the scale.
        dropout: Dropout before ``A``.
        targets: Last parts of the names of the linear layers that get an adapter.
        seed: Seed of the initial ``A``.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] = BLOCK_PROJECTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise InputError(
                f"LoRA rank {self.rank}, dropout {self.dropout}, targets {list(self.targets)}: expected a rank of at "
                "least 1, a dropout in [0, 1) and at least one target"
            )


AdapterSettings = LoraSettings | FrozenBasisSettings


def add_adapter(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    """Freeze a model and put an adapter on it.

    Raises:
        InputError: A target that matches no linear layer, or a subspace file that does not fit.
    """
    if isinstance(settings, FrozenBasisSettings):
        return add_frozen_basis(model, settings)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in settings.targets:
        if not any(re.search(rf"(^|\.){re.escape(target)}$", name) for name in linear):
            raise InputError(
                f"LoRA target {target!r} matches no linear layer; the model's linear layers end in {', '.join(ends)}"
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"PEFT puts no such adapter on {type(model).__name__}: {in_short(error)}") from error
