"""A LoRA whose one factor is a frozen basis: the update cannot leave the subspace, and nothing has to be projected.

What ``SubspaceProjection`` holds by projecting every weight at every step, this holds by what it trains: only the
coordinates of the update in the basis have gradients and optimizer states.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers, stored as (in, out)

from safety_subspaces.algebra.choices import Side
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.targets import listed, select_names
from safety_subspaces.weights.names import type_of
from safety_subspaces.weights.subspace_file import Subspace, read_subspace

logger = logging.getLogger(__name__)
ADAPTER = "default"  # PEFT's name of a model's only adapter


@dataclass
class FrozenBasisSettings:
    """An adapter that trains the coordinates of the update in a given subspace, from zero.

    A left subspace ``L (out, rank)`` gives ``delta = L C`` with ``lora_B = L`` frozen; a right one ``R (in, rank)``
    gives ``delta = C R^T`` with ``lora_A = R^T`` frozen. The scale is 1. Every other weight is frozen, so the update of
    the whole model is one that *onto* allows. With SGD training equals a projected run; Adam normalises the coordinates
    and not the weights, and weight decay shrinks the update and not the weights: tune the learning rate anew.

    Args:
        subspace: File of ``analyze.py subspace``; each linear layer with a basis in it gets an adapter of its rank.
        types: Only these types of tensors (q, k, v, o, gate, up, down, head); all by default.
        layers: Only these blocks.
        patterns: Only names that match one of these, for example ``*.mlp.*``.
    """

    subspace: str
    types: list[str] | None = None
    layers: list[int] | None = None
    patterns: list[str] | None = None


def add_frozen_basis(model: PreTrainedModel, settings: FrozenBasisSettings) -> PeftModel:
    """Freeze a model and train the coordinates of its update in a subspace.

    Raises:
        InputError: The file cannot be read, does not fit the model, or holds what an adapter cannot serve.
    """
    subspace = read_subspace(settings.subspace)
    bases = {name.removesuffix(".weight"): subspace.bases[name] for name in _served_names(model, subspace, settings)}
    # PEFT matches a pattern with the end of a name; the anchor makes it the whole name.
    ranks = {f"^{re.escape(module)}": basis.shape[1] for module, basis in bases.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules="|".join(map(re.escape, bases)),
        task_type="CAUSAL_LM",
    )
    # Built without storage: nothing is drawn at random, and a factor that is not filled below fails when it is used.
    network = get_peft_model(model, config, low_cpu_mem_usage=True)
    fill_factors(network, bases, subspace.side)
    return network


@torch.no_grad()
def fill_factors(network: PeftModel, bases: Mapping[str, Float32[Tensor, "dim rank"]], side: Side) -> None:
    """Put the basis of each module into its frozen factor, and zeros into the trained one.

    Args:
        network: A model with an adapter of the right shape on each of the modules.
        bases: Bases by the name of the module in the bare model.
        side: Which space the bases are of.
    """
    for name, basis in bases.items():
        layer = network.get_base_model().get_submodule(name)
        weight = layer.base_layer.weight
        basis_in_b = (side == "left") != isinstance(layer.base_layer, Conv1D)
        frozen, trained = ("lora_B", "lora_A") if basis_in_b else ("lora_A", "lora_B")
        other = weight.shape[1 if side == "left" else 0]
        zeros = torch.zeros((basis.shape[1], other) if basis_in_b else (other, basis.shape[1]), device=weight.device)
        values = (basis if basis_in_b else basis.T).to(weight.device).clone(memory_format=torch.contiguous_format)
        getattr(layer, frozen)[ADAPTER].weight = nn.Parameter(values, requires_grad=False)
        getattr(layer, trained)[ADAPTER].weight = nn.Parameter(zeros)
        # PEFT makes both factors trainable again after `disable_adapter()`, except those that are named here.
        layer.frozen_peft_weight_names = {ADAPTER: (frozen,)}


def check_factors_are_exact(network: PeftModel) -> None:
    """Refuse a precision that has rounded the bases.

    Raises:
        InputError: A factor is narrower than the float32 of the file.
    """
    for name, factor in network.named_parameters():
        if ".lora_" in name and factor.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"the frozen basis is rounded to {factor.dtype} ({name}), and no longer spans its subspace; use "
                "trainer.precision 32-true, bf16-mixed or 64-true"
            )


def _served_names(model: PreTrainedModel, subspace: Subspace, settings: FrozenBasisSettings) -> list[str]:
    """Names of the linear layers' weights that get an adapter."""
    weights = dict(model.named_parameters())
    unknown = [name for name in subspace.bases if name not in weights]
    if unknown:
        raise InputError(f"the subspace has {len(unknown)} tensors that the model lacks: {listed(unknown)}")
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    chosen = select_names(subspace.bases, settings.types, settings.layers, settings.patterns)
    served = [name for name in chosen if name in linear]
    others = {name: _kind_of(name, weights[name]) for name in chosen if name not in linear}
    # Norms, embeddings and biases stay frozen. Whoever asks for one, or trains a matrix in another shape, has to know.
    narrowed = bool(settings.types or settings.layers or settings.patterns)
    refused = [f"{name} is no linear layer" for name, kind in others.items() if narrowed or kind == "other"]
    problems = refused + [
        problem for name in served if (problem := _misfit(name, subspace.bases[name], weights[name], subspace.side))
    ]
    if problems:
        raise InputError(
            f"a frozen basis cannot serve {len(problems)} of the subspace's tensors: {listed(problems)}; narrow types, "
            "layers or patterns (*.weight leaves out biases) to linear layers that fit, or make another subspace file"
        )
    if not served:
        raise InputError("the subspace has no basis of a linear layer; a frozen basis serves no other weight")
    if others:
        kinds = ", ".join(sorted(set(others.values())))
        logger.info("frozen basis: %d tensors of the subspace stay frozen (%s)", len(others), kinds)
    return served


def _misfit(name: str, basis: Tensor, weight: Tensor, side: Side) -> str | None:
    dim, rank = basis.shape
    rows = weight.shape[0 if side == "left" else 1]
    if dim != rows:
        return f"{name} has {rows} dimensions on the {side}, its basis {dim}"
    if rank in (0, dim):
        return f"{name} has a basis of rank {rank} in {dim} dimensions, which constrains all or nothing"
    return None


def _kind_of(name: str, weight: Tensor) -> str:
    kind = type_of(name)
    if kind in ("norm", "embeddings"):
        return kind
    return "bias" if weight.ndim == 1 else "other"
