"""Hidden states of prompts, and the spaces that they span: the residual stream at the embedding and after each block.

A state is read at a position of the real tokens, by the attention mask, so that neither padding nor the size of a batch
changes it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.errors import InputError
from safety_subspaces.language_model import evaluating
from safety_subspaces.linalg import LeftFactors, left_factors
from safety_subspaces.prompting import CHAT, check_template, encode_prompt, pad_batch, padding_id

Position = Literal["last", "mean"]
Side = Literal["left", "right"]


def prompt_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    position: Position = "last",
    batch_size: int = 64,
    template: str = CHAT,
    padding: Side = "right",
) -> list[Float[Tensor, "place hidden"]]:
    """Return the residual stream of each prompt: at the embedding (place 0) and after each block.

    In float32, on the CPU. After the last block means before the final norm; transformers' own ``hidden_states`` has
    that state behind the norm.

    Args:
        model: Any decoder of transformers, with an adapter in place or not; its mode and device are kept.
        tokenizer: Its tokenizer.
        prompts: What the user says; batched by length.
        position: ``last`` for the last token of the prompt, from where the answer starts; ``mean`` over its tokens.
        batch_size: Prompts at once.
        template: ``chat`` or a named prompt template.
        padding: Side on which shorter prompts are padded.

    Raises:
        InputError: A template that the tokenizer cannot serve, or a network whose blocks cannot be found.
    """
    check_template(tokenizer, template)
    encoded = [encode_prompt(tokenizer, prompt, template) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    states: list[Tensor] = [torch.empty(0)] * len(encoded)
    with evaluating(model), _residual_stream(model) as stream:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            input_ids, mask = pad_batch([encoded[row] for row in rows], padding_id(tokenizer), padding)
            stream.begin(mask.to(model.device), position)
            model(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                use_cache=False,
                logits_to_keep=1,
                **_positions(model, mask, padding),
            )
            batch = torch.stack(stream.states, dim=1)
            for row, state in zip(rows, batch, strict=True):
                states[row] = state
    return states


def state_factors(states: Float[Tensor, "prompt hidden"], center: bool = False) -> LeftFactors:
    """Factorise the states of a prompt set: the basis spans them in the hidden space, the leading directions first.

    Args:
        states: One row a prompt.
        center: Whether their mean is taken out first. Without it the first direction is close to the mean.
    """
    rows = states.double()
    return left_factors((rows - rows.mean(dim=0) if center else rows).T)


class _ResidualStream:
    """Collects the state of each prompt at each place of one forward pass."""

    def __init__(self) -> None:
        self.states: list[Float[Tensor, "batch hidden"]] = []
        self._mask: Tensor = torch.empty(0)
        self._position: Position = "last"

    def begin(self, mask: Int[Tensor, "batch position"], position: Position) -> None:
        """Forget the last batch."""
        self.states, self._mask, self._position = [], mask, position

    def add(self, hidden: Float[Tensor, "batch position hidden"]) -> None:
        """Take the states of one place; places may lie on several devices."""
        mask = self._mask.to(hidden.device)
        if self._position == "mean":
            weights = mask[..., None].float()
            self.states.append(((hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)).cpu())
            return
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(dim=1)
        self.states.append(hidden[torch.arange(len(last), device=last.device), last].float().cpu())


@contextmanager
def _residual_stream(model: nn.Module) -> Iterator[_ResidualStream]:
    """Hook what goes into the first block and what comes out of each; taken off again at the end."""
    stream = _ResidualStream()
    blocks = find_blocks(model)

    def entering(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream.add(positional[0] if positional else named["hidden_states"])

    def leaving(module: nn.Module, positional: tuple[Any, ...], output: Any) -> None:
        stream.add(output[0] if isinstance(output, tuple) else output)

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    try:
        yield stream
    finally:
        for handle in handles:
            handle.remove()


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a network in their order.

    Raises:
        InputError: No list of as many modules as the configuration has layers.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [(name, module) for name, module in lists if len(module) == count]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no list of {count} blocks to look into; its lists of modules are "
            f"{', '.join(f'{name} ({len(module)})' for name, module in lists) or 'none'}"
        )
    # Lists inside a block, as of experts, have longer names.
    return list(min(found, key=lambda entry: entry[0].count("."))[1])


def _positions(model: PreTrainedModel, mask: Tensor, padding: Side) -> dict[str, Tensor]:
    """Position ids for padding on the left: most models count from the first real token only in ``generate``."""
    if padding == "right":
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0).to(model.device)}
