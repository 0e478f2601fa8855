"""Hidden states of prompts, and the spaces that they span: the residual stream at the embedding and after each block.

A state is read at a position of the real tokens, by the attention mask, so that neither padding nor the size of a batch
changes it. Prompts of similar length share a batch; states that were not asked for are never copied.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.algebra.factors import Factors, left_factors
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.examples import CHAT_FORMAT, PromptFormat
from safety_subspaces.language.model import count_blocks, evaluating, input_device
from safety_subspaces.language.model_paths import check_model_path
from safety_subspaces.language.prompting import check_room, check_template, encode_prompt, pad_batch, padding_id
from safety_subspaces.states.choices import POSITIONS, Position, Site
from safety_subspaces.states.stream import parts_of

Side = Literal["left", "right"]
# Words of PyTorch's error where a CPU runs out of memory; for a GPU it has a class of errors.
NO_ROOM = ("can't allocate memory", "not enough memory")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateBatch:
    """States of one batch of prompts.

    Args:
        rows: Which prompts they are.
        states: For each position ``(prompt, layer, hidden)``, in float32, on the device where the model computed them
            (on the CPU where its layers lie on several devices).
    """

    rows: list[int]
    states: dict[Position, Float[Tensor, "prompt layer hidden"]]


def prompt_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    position: Position = "last",
    batch_size: int = 64,
    form: PromptFormat = CHAT_FORMAT,
    padding: Side = "right",
    site: Site = "residual",
    layers: Sequence[int] | None = None,
) -> list[Float[Tensor, "layer hidden"]]:
    """Return the states of each prompt at one position, in float32, on the CPU; all of them are kept.

    Arguments, layer indices and errors are those of :func:`stream_states`.
    """
    states: list[Tensor] = [torch.empty(0)] * len(prompts)
    batches = stream_states(model, tokenizer, prompts, (position,), batch_size, form, padding, site, layers)
    for batch in batches:
        for row, state in zip(batch.rows, batch.states[position].cpu(), strict=True):
            states[row] = state
    return states


def stream_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    positions: Sequence[Position] = ("last",),
    batch_size: int = 64,
    form: PromptFormat = CHAT_FORMAT,
    padding: Side = "right",
    site: Site = "residual",
    layers: Sequence[int] | None = None,
) -> Iterator[StateBatch]:
    """Yield the states of prompts batch by batch, shortest prompts first.

    In the residual stream layer 0 is the embedding and layer i is what block i leaves; of the outputs of attention or
    MLP layer i is that of block i, counted from 1. After the last block means before the final norm; transformers' own
    ``hidden_states`` has that state behind the norm.

    A batch that does not fit into memory is halved, with one warning each time.

    Args:
        model: Any decoder of transformers, with an adapter in place or not; its mode and device are kept. It may be
            spread over devices.
        tokenizer: Its tokenizer.
        prompts: What the user says; batched by length.
        positions: ``last`` for the last token of the prompt, from where the answer starts; ``mean`` over its tokens;
            ``first_generated`` for the first token of the greedy answer, which takes a second pass.
        batch_size: Prompts at once.
        form: How a text becomes a prompt.
        padding: Side on which shorter prompts are padded.
        site: ``residual``, or what each block adds to it by its ``attention`` or ``mlp``.
        layers: Layers to read, in the order given; by default all.

    Raises:
        InputError: A template that the tokenizer cannot serve, a position or layer that does not exist, a network whose
            blocks cannot be found, or one whose blocks add something else than what two modules return.
    """
    check_template(tokenizer, form.template)
    unknown = [position for position in positions if position not in POSITIONS]
    if unknown or not positions:
        raise InputError(f"position {', '.join(unknown) or 'none'}; expected one or more of {', '.join(POSITIONS)}")
    layer_indices = check_layers(model, layers, site)
    encoded = [encode_prompt(tokenizer, prompt, form) for prompt in prompts]
    check_room(model.config, [len(ids) for ids in encoded], prompts, int("first_generated" in positions))
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    start = 0
    while start < len(order):
        rows = order[start : start + batch_size]
        try:
            with evaluating(model), _capturing(model, site, layer_indices) as capture:
                states = _read(
                    model, [encoded[row] for row in rows], positions, padding, padding_id(tokenizer), capture
                )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(rows) == 1 or not _is_lack_of_memory(error):
                raise
            batch_size = len(rows) // 2
            logger.warning("a batch of %d prompts did not fit into memory: going on with %d", len(rows), batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield StateBatch(rows, states)
        start += len(rows)


def check_models(models: Mapping[str, str], layers: Sequence[int] | None, site: Site) -> dict[str, int]:
    """Return the number of blocks of each model, by its configuration alone.

    Raises:
        InputError: A model that is missing, or a layer that it does not have.
    """
    blocks = {}
    for label, path in models.items():
        check_model_path(path)
        count = blocks[label] = count_blocks(path)
        lowest = 0 if site == "residual" else 1
        wrong = [layer for layer in layers or [] if not lowest <= layer <= count]
        if wrong:
            raise InputError(
                f"layers {wrong} do not exist in {label} ({path}) of {count} blocks; expected {lowest} to {count}"
            )
    return blocks


def check_layers(model: nn.Module, layers: Sequence[int] | None, site: Site = "residual") -> list[int]:
    """Return the layers to read: those asked for, or all of the site.

    Raises:
        InputError: One that does not exist, or one twice.
    """
    count = len(find_blocks(model))
    known = list(range(0 if site == "residual" else 1, count + 1))
    if layers is None:
        return known
    wrong = [layer for layer in layers if layer not in known]
    if wrong or not layers or len(set(layers)) < len(layers):
        raise InputError(
            f"layers {list(layers)}: expected different ones of {known[0]} to {known[-1]} ({count} blocks; 0 is the "
            "embedding, i what block i leaves)"
        )
    return list(layers)


def state_factors(states: Float[Tensor, "prompt hidden"], center: bool = False) -> Factors:
    """Factorise the states of a prompt set: the basis spans them in the hidden space, the leading directions first.

    Args:
        states: One row a prompt.
        center: Whether their mean is taken out first. Without it the first direction is close to the mean.
    """
    rows = states.double()
    return left_factors((rows - rows.mean(dim=0) if center else rows).T)


class _Capture:
    """Collects the states of one forward pass at each layer and position."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = layers
        self._states: dict[tuple[Position, int], Tensor] = {}
        self._mask: Tensor = torch.empty(0)
        self._positions: Sequence[Position] = ()

    def begin(self, mask: Int[Tensor, "batch position"], positions: Sequence[Position]) -> None:
        """Set the positions that the next forward pass is read at."""
        self._mask, self._positions = mask, positions

    def add(self, layer: int, hidden: Float[Tensor, "*batch hidden"]) -> None:
        """Take the states of one layer."""
        mask = self._mask.to(hidden.device)
        hidden = hidden.reshape(*mask.shape, -1)  # OPT's MLP has one row a token
        for position in self._positions:
            if position == "mean":
                weights = mask[..., None].float()
                self._states[position, layer] = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
            else:
                last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
                self._states[position, layer] = hidden[torch.arange(len(last), device=last.device), last].float()

    def states(self, positions: Sequence[Position]) -> dict[Position, Tensor]:
        """Return ``(prompt, layer, hidden)`` of each position, in the order of the layers."""
        devices = {state.device for state in self._states.values()}
        together = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")
        return {
            position: torch.stack([self._states[position, layer].to(together) for layer in self._layers], dim=1)
            for position in positions
        }


def _read(
    model: PreTrainedModel,
    encoded: Sequence[list[int]],
    positions: Sequence[Position],
    padding: Side,
    pad: int,
    capture: _Capture,
) -> dict[Position, Tensor]:
    """Read the states of one batch; that of the first generated token in a second pass over prompt and token."""
    of_prompt = [position for position in positions if position != "first_generated"]
    generates = len(of_prompt) < len(positions)
    logits = _forward(model, encoded, of_prompt, padding, pad, capture, generates)
    if generates:
        following = logits.argmax(dim=-1).tolist()
        longer = [[*ids, token] for ids, token in zip(encoded, following, strict=True)]
        _forward(model, longer, ["first_generated"], padding, pad, capture)
    return capture.states(positions)


def _forward(
    model: PreTrainedModel,
    encoded: Sequence[list[int]],
    positions: Sequence[Position],
    padding: Side,
    pad: int,
    capture: _Capture,
    generates: bool = False,
) -> Float[Tensor, "batch vocabulary"]:
    """Run the model; return logits, where ``generates`` is set those after each sequence's last token."""
    input_ids, mask = pad_batch(encoded, pad, padding)
    lasts = (mask * torch.arange(mask.shape[1])).argmax(dim=1)
    read_positions = lasts.unique() if generates else lasts[-1:]
    device = input_device(model)
    capture.begin(mask.to(device), list(positions))
    output = model(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        use_cache=False,
        logits_to_keep=read_positions.to(device),
        **_positions(device, mask, padding),
    )
    logits: Tensor = output.logits
    return logits[torch.arange(len(encoded)), torch.searchsorted(read_positions, lasts)] if generates else logits[:, 0]


@contextmanager
def _capturing(model: PreTrainedModel, site: Site, layers: Sequence[int]) -> Iterator[_Capture]:
    """Hook the input of the first block and the output of each block, or of its part; hooks come off at the end."""
    capture = _Capture(layers)
    blocks = find_blocks(model)
    parts = parts_of(model, blocks) if site != "residual" else []

    def entering(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        capture.add(0, positional[0] if positional else named["hidden_states"])

    def leaving(layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, positional: tuple[Any, ...], output: Any) -> None:
            capture.add(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)] if 0 in layers else []
    for layer, block in enumerate(blocks, start=1):
        if layer in layers:
            module = block if site == "residual" else getattr(parts[layer - 1], site)
            handles.append(module.register_forward_hook(leaving(layer)))
    try:
        yield capture
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
    matching = [(name, module) for name, module in lists if len(module) == count]
    if not matching:
        raise InputError(
            f"{type(model).__name__} has no list of {count} blocks to look into; its lists of modules are "
            f"{', '.join(f'{name} ({len(module)})' for name, module in lists) or 'none'}"
        )
    # Lists inside a block, as of experts, have longer names.
    return list(min(matching, key=lambda entry: entry[0].count("."))[1])


def _positions(device: torch.device, mask: Tensor, padding: Side) -> dict[str, Tensor]:
    """Position ids for padding on the left: most models count from the first real token only in ``generate``."""
    if padding == "right":
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0).to(device)}


def _is_lack_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_ROOM)
