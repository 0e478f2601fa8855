"""From text to token ids, in one place for training and evaluation, so that both see a prompt in the same form."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.language.control_tokens import ids_with_text
from safety_subspaces.language.examples import CHAT, CHAT_FORMAT, EncodedExample, Example, Prompt, PromptFormat, Turn
from safety_subspaces.language.rendering import bounded_templates
from safety_subspaces.language.turns import TurnEnd, first_mark, turn_of


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and "{prompt}" in value


TEMPLATES = Plugins(
    "prompt template",
    _is_template,
    folder="safety_subspaces.language.templates",
    group="safety_subspaces.templates",
    reserved=(CHAT,),
)


@cache
def named_template(name: str) -> str:
    """Return a prompt template other than ``chat``, by its short name or import path.

    Raises:
        InputError: No such template, or it has other braces than those of the prompt.
    """
    text: str = TEMPLATES.load(name)
    try:
        text.format(prompt="")
    except (LookupError, ValueError) as error:
        raise InputError(f"prompt template {name} has other braces than {{prompt}}; double them: {{{{ }}}}") from error
    return text


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Refuse a template that this tokenizer cannot serve.

    Raises:
        InputError: As :func:`named_template`, or ``chat`` with a tokenizer that has no chat template.
    """
    if template == CHAT:
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
                f"choose a named prompt template instead: {', '.join(TEMPLATES.names())}"
            )
    else:
        named_template(template)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, form: PromptFormat = CHAT_FORMAT) -> list[int]:
    """Return the ids of a prompt up to where the answer starts, special tokens included.

    Raises:
        InputError: A conversation of several turns, and a named template, which knows one question.
    """
    if form.template == CHAT:
        return chat_ids(tokenizer, _messages(prompt), True, form)
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt template {form.template} knows one question, no conversation; expected template: {CHAT}"
        )
    written = named_template(form.template)
    return _text_ids(
        tokenizer, prompt, form, lambda text: written.format(prompt=text), partial(_without_end, tokenizer)
    )


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, form: PromptFormat = CHAT_FORMAT
) -> EncodedExample:
    """Return the ids of prompt and response, closed by the end of the turn, and the length of the prompt.

    The end is part of what is learnt, else the model never stops: where the chat template writes none, the tokenizer's
    is added. Plain text (no prompt) starts with the tokenizer's start token, where it has one.

    Raises:
        InputError: The chat template writes an answered prompt otherwise than the prompt alone, so that it is unclear
            where the answer starts.
    """
    end = [tokenizer.eos_token_id]
    plain = partial(_ids, tokenizer, add_special_tokens=False)
    if example.prompt is None:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        text = _text_ids(tokenizer, example.response, form, str, plain)
        return EncodedExample([*start, *text, *end], min(1, len(start)))
    prompt = encode_prompt(tokenizer, example.prompt, form)
    if form.template != CHAT:
        response = _text_ids(tokenizer, example.response, form, str, plain)
        return EncodedExample([*prompt, *response, *end], len(prompt))
    turns = [*_messages(example.prompt), {"role": "assistant", "content": example.response}]
    whole = chat_ids(tokenizer, turns, False, form)
    if whole[: len(prompt)] != prompt:
        raise InputError(
            "the tokenizer's chat template writes an answered prompt otherwise than the prompt alone, so the start of "
            f"the answer is unclear; choose a named prompt template instead: {', '.join(TEMPLATES.names())}"
        )
    if tokenizer.eos_token_id is not None and not is_closed(tokenizer, whole[len(prompt) :]):
        whole += end
    return EncodedExample(whole, len(prompt))


def is_closed(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> bool:
    """Tell whether a mark stands at the end of a response, with spaces behind it at most."""
    return first_mark(tokenizer, response[::-1]) is not None


class Encoder:
    """Encodes with one tokenizer and template, each text once: a sweep asks the same prompts of every model.

    Args:
        tokenizer: The tokenizer, which must not change meanwhile.
        form: How a text becomes a prompt.

    Raises:
        InputError: A template that this tokenizer cannot serve.
    """

    def serves(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Tell whether another tokenizer gives the same ids: it is this one, or was read from files like its."""
        return tokenizer is self.tokenizer or _content_of(tokenizer) == _content_of(self.tokenizer) != ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: PromptFormat = CHAT_FORMAT) -> None:
        check_template(tokenizer, form.template)
        self.tokenizer = tokenizer
        try:
            self.turn = turn_of(tokenizer, form.template, form.template_args)
        except InputError:  # a template of questions alone can be asked
            self.turn = TurnEnd(None, True)
        self.prompt = cache(partial(encode_prompt, tokenizer, form=form))
        self.example = cache(partial(encode_example, tokenizer, form=form))


def check_room(
    config: PretrainedConfig, lengths: Sequence[int], texts: Sequence[str], further: int = 0, what: str = "prompt"
) -> None:
    """Refuse texts that a model has no positions for; beyond them it fails, or reads what it was never trained on.

    Args:
        config: The model's.
        lengths: Tokens of each text.
        texts: What each begins with.
        further: Tokens that are to follow each.
        what: What they are called.

    Raises:
        InputError: Names the longest.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions or not lengths:
        return
    longest = max(range(len(lengths)), key=lambda index: lengths[index])
    if lengths[longest] + further > positions:
        after = f" with max_new_tokens={further}" if further > 1 else ""
        raise InputError(
            f"{what} {longest} has {lengths[longest]} tokens, which{after} is beyond the model's {positions} positions"
            f"; shorten it{' or lower max_new_tokens' if after else ''}. It begins {texts[longest][:60]!r}"
        )


def pad_batch(
    encoded: Sequence[Sequence[int]], pad_token_id: int, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    """Pad sequences to the longest, and return them with their attention mask: 1 at real tokens, 0 at padding."""
    longest = max(map(len, encoded))
    input_ids = torch.full((len(encoded), longest), pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(encoded):
        span = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
        input_ids[row, span] = torch.tensor(ids)
        mask[row, span] = 1
    return input_ids, mask


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the padding token, else the end token (labels mask it by position, not by value)."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    add_generation_prompt: bool,
    form: PromptFormat = CHAT_FORMAT,
) -> list[int]:
    """Return the ids of some turns by the tokenizer's own chat template, rendered within bounds.

    Raises:
        InputError: The template does not take such turns, or goes beyond the bounds; or a control token in them cannot
            be read as text.
    """
    what = f"the chat template of {tokenizer.name_or_path or 'this model'}"

    def render(contents: Sequence[str]) -> str:
        said = [{**turn, "content": content} for turn, content in zip(turns, contents, strict=True)]
        with reading(what, "one that takes these turns", "choose a named prompt template instead"), bounded_templates():
            text: Any = tokenizer.apply_chat_template(
                said, add_generation_prompt=add_generation_prompt, tokenize=False, **form.template_args
            )
        return str(text)

    contents = [turn["content"] for turn in turns]
    at_once = partial(_ids, tokenizer, add_special_tokens=False)
    if form.control_tokens:
        return at_once(render(contents))
    return ids_with_text(tokenizer, contents, render, at_once)


def _text_ids(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    form: PromptFormat,
    render: Callable[[str], str],
    at_once: Callable[[str], list[int]],
) -> list[int]:
    if form.control_tokens:
        return at_once(render(text))
    return ids_with_text(tokenizer, [text], lambda texts: render(texts[0]), at_once)


def _content_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all that decides what ids a tokenizer gives; nothing of one that is no fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    return f"{backend.to_str()} {tokenizer.chat_template} {tokenizer.special_tokens_map}"


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _without_end(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text with the start that the tokenizer sets before it, and not the end that some set behind.

    An answer follows: behind an end of text none would.
    """
    whole, own = _ids(tokenizer, text), _ids(tokenizer, text, add_special_tokens=False)
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return whole[: start + len(own)]
    return whole


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    with reading(f"a text by the tokenizer of {tokenizer.name_or_path or 'this model'}", "one that takes any text"):
        return list(tokenizer(text, **options)["input_ids"])
