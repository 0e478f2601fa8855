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
from safety_subspaces.states.capture import check_layers, find_blocks, find_part

# What writes into the residual stream in the decoders of transformers.
OUTPUTS = ("o_proj", "c_proj", "out_proj", "dense", "down_proj", "fc2", "dense_4h_to_h", "w2")
# Norms between the output of attention or MLP and the stream in some blocks: they change the directions that are added.
POST_NORMS = ("post_feedforward_layernorm", "post_attn_norm", "post_mlp_norm", "post_self_attn_layernorm")


@runtime_checkable
class Intervention(Protocol):
    """Changes hidden states, whatever their batch and length."""

    def change(self, hidden: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
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

    def change(self, hidden: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
        """Add the direction at every position."""
        return hidden + self.strength * self.direction.to(hidden)


@dataclass(frozen=True)
class Ablation:
    """``h - B B^T h``.

    Args:
        basis: Orthonormal columns.
    """

    basis: Float[Tensor, "hidden k"]

    def change(self, hidden: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
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

    def change(self, hidden: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
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
        InputError: A block without the usual parts.

    Source: Arditi et al., arXiv 2406.11717, section 2.4.
    """
    ablation = Ablation(basis)
    blocks = find_blocks(model)
    parts = [find_part(block, site) for block in blocks for site in ("attention", "mlp")]
    with _hooked([(blocks[0], True, ablation), *((part, False, ablation) for part in parts)]):
        yield


@torch.no_grad()
def ablate_weights(model: PreTrainedModel, basis: Float[Tensor, "hidden k"]) -> None:
    """Take directions out of the weights that write to the residual stream, in place.

    The model then has the logits of :func:`ablated`, without hooks, and can be saved.

    Embeddings (of positions too), the output projection of each attention and MLP, and their biases. A head that shares
    the embedding keeps a copy of its own, as it reads the stream and does not write to it.

    Raises:
        InputError: A structure in which this would not be exact: norms behind attention or MLP, or parts whose
            output projection is not a single linear map.

    Source: Arditi et al., arXiv 2406.11717, section 2.4 and appendix E.
    """
    blocks = find_blocks(model)
    writers: list[Any] = []
    for block in blocks:
        for name, _ in block.named_children():
            if name in POST_NORMS:
                raise InputError(
                    f"{type(block).__name__} normalises what it writes ({name}): directions cannot be taken out of its "
                    "weights; use hooks (safety_subspaces.states.steering.ablated)"
                )
        writers += [_output_of(find_part(block, site)) for site in ("attention", "mlp")]
    inside = {id(module) for block in blocks for module in block.modules()}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    _untie(model)
    for embedding in embeddings:
        _take_out(embedding.weight, basis, columns=True)
    for writer in writers:
        _take_out(writer.weight, basis, columns=isinstance(writer, Conv1D))
        if writer.bias is not None:
            _take_out(writer.bias.unsqueeze(0), basis, columns=True)


def _output_of(part: nn.Module) -> Any:
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
