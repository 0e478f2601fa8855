"""What the blocks of a network add to the residual stream: found by running it once and adding up.

In most families a block adds what its attention returns, then what its MLP returns. Some add a norm of it (Gemma 2 and
3, OLMo 2, GLM-4, EXAONE 4), some a multiple (Granite), and in some a module returns the stream itself (BLOOM, MPT). So
the modules are looked for whose outputs together are what the stream gains; where none are, nothing is assumed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import evaluating, input_device

# How near the sum has to come, as a share of the largest number of the stream; of coarser types some roundings.
WITHIN: Final = 1e-5
ROUNDINGS: Final = 8
# Tokens that are run: enough that no two modules give the same by chance.
LENGTH: Final = 6


@dataclass(frozen=True)
class Parts:
    """The modules of a block whose outputs are added to the stream."""

    attention: nn.Module
    mlp: nn.Module


@dataclass
class _Seen:
    """The stream before and behind a block, and what its modules returned, in the order in which they ran."""

    before: Tensor | None = None
    behind: Tensor | None = None
    returned: list[tuple[str, nn.Module, Tensor]] = field(default_factory=list)


_FOUND: "WeakKeyDictionary[nn.Module, list[Parts]]" = WeakKeyDictionary()


def parts_of(model: PreTrainedModel, blocks: list[nn.Module]) -> list[Parts]:
    """Return for each block the two modules whose outputs are what the stream gains in it.

    Args:
        model: The network; it is run once on a few tokens, and remembered.
        blocks: Its blocks in their order.

    Raises:
        InputError: A block gains something else; its modules are named.
    """
    if model not in _FOUND:
        with evaluating(model), _watched(blocks) as seen:
            model(input_ids=_some_ids(model), use_cache=False)
        _FOUND[model] = [_parts(block, each) for block, each in zip(blocks, seen, strict=True)]
    return _FOUND[model]


def _some_ids(model: PreTrainedModel) -> Tensor:
    count = model.config.get_text_config().vocab_size  # under ZeRO-3 the embedding lies on other ranks
    return torch.arange(1, LENGTH + 1, device=input_device(model))[None] % count


def _parts(block: nn.Module, seen: _Seen) -> Parts:
    assert seen.before is not None
    assert seen.behind is not None
    before, behind = seen.before.float(), seen.behind.float()
    gained = behind - before
    rounding = ROUNDINGS * torch.finfo(seen.behind.dtype).eps
    within = max(WITHIN, rounding) * float(torch.maximum(before.abs().max(), behind.abs().max()))
    outputs = [(module, value.float().reshape(gained.shape)) for _, module, value in seen.returned]
    for (first, one), (second, other) in combinations(outputs, 2):
        if float((one + other - gained).abs().max()) <= within:
            return Parts(first, second)
    raise InputError(
        f"{type(block).__name__} adds to the residual stream what is not the sum of what two of its modules return "
        f"({', '.join(name for name, _, _ in seen.returned) or 'none that returns states'}): a multiple of it, or the "
        "stream is inside. Expected site: residual, and interventions other than ablation"
    )


@contextmanager
def _watched(blocks: list[nn.Module]) -> Iterator[list[_Seen]]:
    seen = [_Seen() for _ in blocks]
    handles: list[Any] = []

    def state_of(output: Any) -> Any:
        return output[0] if isinstance(output, tuple) else output

    def entering(into: _Seen) -> Any:
        def hook(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            into.before = (positional[0] if positional else named["hidden_states"]).detach().clone()

        return hook

    def leaving(into: _Seen) -> Any:
        def hook(module: nn.Module, positional: tuple[Any, ...], output: Any) -> None:
            into.behind = state_of(output).detach().clone()

        return hook

    def returning(into: _Seen, name: str) -> Any:
        def hook(module: nn.Module, positional: tuple[Any, ...], output: Any) -> None:
            state = state_of(output)
            if isinstance(state, Tensor) and into.before is not None and state.numel() == into.before.numel():
                into.returned.append((name, module, state.detach().clone()))

        return hook

    for block, into in zip(blocks, seen, strict=True):
        handles.append(block.register_forward_pre_hook(entering(into), with_kwargs=True))
        handles.append(block.register_forward_hook(leaving(into)))
        handles += [child.register_forward_hook(returning(into, name)) for name, child in block.named_children()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
