"""Greedy answers to many prompts: batched, with a KV cache, the same whatever the batch size."""

from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.errors import InputError
from safety_subspaces.prompting import CHAT, check_template, encode_prompt


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    template: str = CHAT,
    progress: str | None = None,
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
        template: ``chat`` or a named prompt template.
        progress: Label of a progress bar; ``None`` for no bar.

    Raises:
        InputError: A prompt that leaves no room for the answer within the model's positions.
    """
    check_template(tokenizer, template)
    encoded = [encode_prompt(tokenizer, prompt, template) for prompt in prompts]
    _check_room(model, prompts, encoded, max_new_tokens)
    settings = _greedy(model, tokenizer, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    batches = range(0, len(order), batch_size)
    was_training, own_settings = model.training, model.generation_config
    model.eval()
    # What is not set in the settings is taken from the model's own: n-gram blocking, suppressed tokens, time limits.
    model.generation_config = settings
    single = progress is None or len(batches) < 2
    for start in tqdm(batches, desc=progress, disable=single, unit="batch", leave=False):
        rows = order[start : start + batch_size]
        input_ids, mask = _pad_left([encoded[row] for row in rows], settings.pad_token_id)
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        )
        texts = tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    model.train(was_training)
    model.generation_config = own_settings
    return answers


def _pad_left(encoded: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, encoded))
    input_ids = torch.full((len(encoded), longest), pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(encoded):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    return input_ids, mask


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = own if own is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=pad,
    )


def _check_room(model: PreTrainedModel, prompts: Sequence[str], encoded: list[list[int]], max_new_tokens: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or not encoded:
        return
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if len(encoded[longest]) + max_new_tokens > positions:
        raise InputError(
            f"prompt {longest} has {len(encoded[longest])} tokens, which with max_new_tokens={max_new_tokens} is "
            f"beyond the model's {positions} positions; shorten it or lower max_new_tokens. "
            f"It begins {prompts[longest][:60]!r}"
        )
