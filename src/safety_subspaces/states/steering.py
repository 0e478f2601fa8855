"""Interventions on the residual stream by forward hooks, and directional ablation written into weights.

A layer is a hidden-state index: 0 is the embedding, i what block i leaves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import evaluating, input_device
from safety_subspaces.states.capture import check_layers, find_blocks
from safety_subspaces.states.stream import parts_of

# What writes into the residual stream in the decoders of transformers.
OUTPUTS = ("o_proj", "c_proj", "out_proj", "dense", "down_proj", "fc2", "dense_4h_to_h", "w2")
# Tokens on which weights without directions are compared with hooks, and how near their logits have to come, as a share
# of the largest; in half precision less near.
PROBED, SAME_LOGITS, SAME_COARSE = 8, 1e-4, 0.1


@runtime_checkable
class Intervention(Protocol):
    """Changes hidden states, whatever their batch and length."""

    def change(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the changed states, in float32."""


@dataclass(frozen=True)
class Addition:
    """``h + strength v``.

    Args:
        direction: v, of unit length.
        strength: In the units of the states; negative goes the other way.
    """

    direction: Float[Tensor, " hidden"]
    strength: float

    def change(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Add the direction at every position."""
        return hidden + self.strength * self.direction.to(hidden)


@dataclass(frozen=True)
class Ablation:
    """``h - B B^T h``.

    Args:
        basis: Orthonormal columns.
    """

    basis: Float[Tensor, "hidden k"]

    def change(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Take the directions out at every position."""
        basis = self.basis.to(hidden)
        return hidden - (hidden @ basis) @ basis.T


@dataclass(frozen=True)
class Rotation:
    """Turn the part of a state that lies in a plane by an angle; its length stays.

    Args:
        plane: Two orthonormal columns; the angle runs from the first to the second.
        angle_radians: The angle.

    Source: Vu and Nguyen, arXiv 2510.26243.
    """

    plane: Float[Tensor, "hidden 2"]
    angle_radians: float

    def change(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Rotate at every position."""
        plane, angle = self.plane.to(hidden), torch.tensor(self.angle_radians)
        turn = torch.stack([torch.stack([angle.cos() - 1, -angle.sin()]), torch.stack([angle.sin(), angle.cos() - 1])])
        return hidden + (hidden @ plane) @ turn.to(hidden).T @ plane.T


@contextmanager
def steered(model: PreTrainedModel, intervention: Intervention, layers: Sequence[int]) -> Iterator[None]:
    """Change the residual stream at some layers, in every pass, generation with a cache among them.

    In float32, back to the model's type; taken off at the end, by an error too.

    Raises:
        InputError: A layer that does not exist.
    """
    blocks = find_blocks(model)
    with _hooked(
        (blocks[0] if layer == 0 else blocks[layer - 1], layer == 0, intervention)
        for layer in check_layers(model, layers)
    ):
        yield


@contextmanager
def ablated(model: PreTrainedModel, basis: Float[Tensor, "hidden k"]) -> Iterator[None]:
    """Take directions out of the embedding and out of all that attention and MLP write: no layer's states contain them.

    Raises:
        InputError: A block that adds to the stream something else than what two of its modules return.

    Source: Arditi et al., arXiv 2406.11717, section 2.4.
    """
    ablation = Ablation(basis)
    blocks = find_blocks(model)
    parts = [part for each in parts_of(model, blocks) for part in (each.attention, each.mlp)]
    with _hooked([(blocks[0], True, ablation), *((part, False, ablation) for part in parts)]):
        yield


@torch.no_grad()
def ablate_weights(model: PreTrainedModel, basis: Float[Tensor, "hidden k"]) -> None:
    """Take directions out of the weights that write to the residual stream, in place.

    The model then has the logits of :func:`ablated`, without hooks, and can be saved.

    Embeddings (of positions too), the output projection of each attention and MLP, and their biases. A head that shares
    the embedding keeps a copy of its own, as it reads the stream and does not write to it.

    Raises:
        InputError: A structure in which this is not exact: norms behind attention, MLP or embeddings, or parts whose
            output projection is not a single linear map. The weights are then as they were.

    Source: Arditi et al., arXiv 2406.11717, section 2.4 and appendix E.
    """
    blocks = find_blocks(model)
    parts = [part for each in parts_of(model, blocks) for part in (each.attention, each.mlp)]
    writers = [_output_of(part) for part in parts]
    ids = torch.arange(1, PROBED + 1, device=input_device(model))[None] % model.config.get_text_config().vocab_size
    with evaluating(model), ablated(model, basis):
        expected = model(input_ids=ids, use_cache=False).logits.float()
    inside = {id(module) for block in blocks for module in block.modules()}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    _untie(model)
    changed = [(embedding.weight, True) for embedding in embeddings]
    changed += [(writer.weight, isinstance(writer, Conv1D)) for writer in writers]
    changed += [(writer.bias.unsqueeze(0), True) for writer in writers if writer.bias is not None]
    before = [weight.clone() for weight, _ in changed]
    for weight, columns in changed:
        _take_out(weight, basis, columns)
    with evaluating(model):
        found = model(input_ids=ids, use_cache=False).logits.float()
    coarse = torch.finfo(model.dtype).eps > torch.finfo(torch.float32).eps
    within = (SAME_COARSE if coarse else SAME_LOGITS) * max(1.0, float(expected.abs().max()))
    if not float((found - expected).abs().max()) <= within:
        for (weight, _), value in zip(changed, before, strict=True):
            weight.copy_(value)
        raise InputError(
            f"{type(model).__name__} does something between its embeddings or parts and the stream, such as a norm: "
            "directions cannot be taken out of its weights; use hooks (safety_subspaces.states.steering.ablated)"
        )


def _output_of(part: nn.Module) -> Any:
    if isinstance(part, nn.Linear | Conv1D):
        return part
    if not list(part.children()):
        raise InputError(
            f"what is added to the stream is normalised ({type(part).__name__}): directions cannot be taken out of the "
            "weights before it; use hooks (safety_subspaces.states.steering.ablated)"
        )
    maps = [module for name, module in part.named_children() if name in OUTPUTS]
    if len(maps) != 1 or not isinstance(maps[0], nn.Linear | Conv1D):
        raise InputError(
            f"{type(part).__name__} has no single linear map of the names {', '.join(OUTPUTS)} that writes its output; "
            "use hooks (safety_subspaces.states.steering.ablated)"
        )
    return maps[0]


def _take_out(weight: Tensor, basis: Tensor, columns: bool) -> None:
    """Subtract the part of a weight's rows (or columns) along a basis, in float64."""
    values, vectors = weight.double(), basis.to(weight.device).double()
    along = (values @ vectors) @ vectors.T if columns else vectors @ (vectors.T @ values)
    weight.copy_((values - along).to(weight.dtype))


def _untie(model: PreTrainedModel) -> None:
    """Give the head a separate copy of the weight where it shares the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


@contextmanager
def _hooked(hooks: Any) -> Iterator[None]:
    handles = []
    try:
        for module, before, intervention in hooks:
            if before:
                handles.append(module.register_forward_pre_hook(_entering(intervention), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_leaving(intervention)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(intervention: Intervention, hidden: Tensor) -> Tensor:
    return intervention.change(hidden.float()).to(hidden.dtype)


def _entering(intervention: Intervention) -> Callable[..., Any]:
    def hook(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if positional:
            return (_changed(intervention, positional[0]), *positional[1:]), named
        return positional, {**named, "hidden_states": _changed(intervention, named["hidden_states"])}

    return hook


def _leaving(intervention: Intervention) -> Callable[..., Any]:
    def hook(module: nn.Module, positional: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (_changed(intervention, output[0]), *output[1:])
        return _changed(intervention, output)

    return hook
