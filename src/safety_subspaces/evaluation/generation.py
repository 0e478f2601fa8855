"""Greedy answers to many prompts: batched, with a KV cache, the same whatever the batch size."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.artefacts.progress import Bar
from safety_subspaces.language.model import evaluating, input_device
from safety_subspaces.language.prompting import Encoder, check_room, pad_batch
from safety_subspaces.language.thoughts import SPECIAL, opened_by
from safety_subspaces.language.turns import all_ends

# Tokens that the mark of a thought is made of, with a line's end after it.
MOST_OF_A_MARK = 24
# Tokens that a network is tried with for whether it masks padding, and how near its logits have to come then, as a
# share of the largest; of coarser types some roundings.
TRIED: Final = (3, 5, 7)
MASKED_WITHIN: Final = 1e-4
ROUNDINGS: Final = 16

logger = logging.getLogger(__name__)
# By the kind of network and of its attention.
_MASKING: dict[tuple[str, str], bool] = {}


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    progress: str | None = None,
    in_step: bool = False,
    encoder: Encoder | None = None,
) -> list[str]:
    """Answer each prompt greedily.

    Prompts are padded on the left and masked, and batched by length. Sampling and penalties that the model's own
    generation settings may ask for are off.

    Args:
        model: The model; its mode and device are kept.
        tokenizer: Its tokenizer.
        prompts: What the user says.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        progress: Label of a progress bar; ``None`` for no bar.
        in_step: Whether the ranks share the weights (ZeRO-3), so that each goes on until the longest answer of all is
            finished. They then need equal numbers of prompts.
        encoder: Remembers the prompts' ids from one model to the next; of this tokenizer. Made for the chat template
            where none is given.

    Raises:
        InputError: A prompt that leaves no room for the answer within the model's positions.
    """
    encoder = encoder or Encoder(tokenizer)
    encoded = [encoder.prompt(prompt) for prompt in prompts]
    check_room(model.config, [len(ids) for ids in encoded], prompts, max_new_tokens)
    end = encoder.turn.end
    answers = generate_encoded(model, tokenizer, encoded, max_new_tokens, batch_size, progress, in_step, end)
    # A thought that the prompt has begun is the answer's.
    ends = decoded(tokenizer, [ids[-MOST_OF_A_MARK:] for ids in encoded])
    return [
        f"{mark}{answer}" if (mark := opened_by(end)) else answer for end, answer in zip(ends, answers, strict=True)
    ]


def generate_encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: str | None = None,
    in_step: bool = False,
    end: int | None = None,
) -> list[str]:
    """Go on greedily with ids; arguments as for :func:`generate_answers`, and a further ``end`` of answers."""
    settings = plain_settings(model, tokenizer, end, max_new_tokens=max_new_tokens)
    # Ranks that go in step try it together, however many prompts each has.
    if batch_size > 1 and (in_step or len(encoded) > 1) and not masks_padding(model, settings, in_step):
        batch_size = 1
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    batches = range(0, len(order), batch_size)
    device = input_device(model)
    single = progress is None or len(batches) < 2
    with evaluating(model), decoding_by(model, settings):
        for start in Bar(batches, desc=progress, disable=single, unit="batch", leave=False):
            rows = order[start : start + batch_size]
            input_ids, mask = pad_batch([encoded[row] for row in rows], settings.pad_token_id, "left")
            output = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                synced_gpus=in_step,
            )
            texts = decoded(tokenizer, output[:, input_ids.shape[1] :].tolist())
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
    return answers


def masks_padding(model: PreTrainedModel, settings: GenerationConfig, in_step: bool = False) -> bool:
    """Tell whether a network goes on with a prompt as if no padding stood before it; each kind is tried once.

    Some read every token whatever the mask says, such as RWKV: their prompts have to be answered one by one.
    """
    kind = (model.config.model_type, str(getattr(model.config, "_attn_implementation", "")))
    if kind not in _MASKING:
        # Not the embedding's rows, which lie on other ranks under ZeRO-3.
        vocabulary, device = model.config.get_text_config().vocab_size, input_device(model)
        ids = [index % vocabulary for index in TRIED]
        one = GenerationConfig(
            do_sample=False, max_new_tokens=1, pad_token_id=settings.pad_token_id, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        logits = []
        with evaluating(model), decoding_by(model, one):
            for before in (0, len(TRIED)):
                input_ids, mask = pad_batch([ids], settings.pad_token_id or 0, "left")
                input_ids = torch.nn.functional.pad(input_ids, (before, 0), value=ids[0])
                mask = torch.nn.functional.pad(mask, (before, 0), value=0)
                found: Any = model.generate(
                    input_ids=input_ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=one,
                    synced_gpus=in_step,
                )
                logits.append(found.logits[0].float())
        rounding = max(MASKED_WITHIN, ROUNDINGS * torch.finfo(model.dtype).eps)
        _MASKING[kind] = float((logits[0] - logits[1]).abs().max()) <= rounding * float(logits[0].abs().max())
        if not _MASKING[kind]:
            logger.warning(
                "%s reads padding whatever its mask says: prompts are answered one by one", type(model).__name__
            )
    return _MASKING[kind]


def decoded(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of answers without special tokens, but for those at which thoughts begin and end."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    marks = {index for index in special & set(added) if added[index].content in SPECIAL}
    if not marks:
        return tokenizer.batch_decode(answers, skip_special_tokens=True)
    kept = [[index for index in answer if index in marks or index not in special] for answer in answers]
    return tokenizer.batch_decode(kept, skip_special_tokens=False)


@contextmanager
def decoding_by(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replace a model's generation settings for the time being.

    What a call does not set would be taken from the model's: penalties, n-gram blocking, suppressed tokens, the longest
    answer.
    """
    defaults = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = defaults


def plain_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end: int | None = None, **decoding: Any
) -> GenerationConfig:
    """Return generation settings that keep of the model's own only where an answer ends, with the tokenizer's end."""
    ends = all_ends(model.generation_config, tokenizer, end)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else None
    return GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, eos_token_id=ends or None, pad_token_id=pad, **decoding
    )
