"""Where an answer ends: what the chat template writes after one, beside the ends that model and tokenizer name.

A model's own settings may name another end than its template writes (``<|endoftext|>`` under a template that closes
turns by ``<|im_end|>``): an answer would then go on behind its end.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from transformers import GenerationConfig, PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import QUOTED, reading
from safety_subspaces.language.examples import CHAT
from safety_subspaces.language.rendering import bounded_templates

logger = logging.getLogger(__name__)
# Stands for an answer; no template has it.
ANSWER: Final = "Zq7x"


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes around an answer.

    Args:
        end: The token that closes it; ``None`` where there is none.
        is_asked_for: Whether the template writes how an answer begins where it is asked for one.
    """

    end: int | None
    is_asked_for: bool


def turn_of(
    tokenizer: PreTrainedTokenizerBase, template: str = CHAT, template_args: Mapping[str, Any] = MappingProxyType({})
) -> TurnEnd:
    """Return what a template writes around an answer; of a named one the tokenizer's end, which training teaches.

    Raises:
        InputError: The template does not take a question and an answer.
    """
    if template != CHAT:
        return TurnEnd(tokenizer.eos_token_id, True)
    question = [{"role": "user", "content": "a"}]
    answered = [*question, {"role": "assistant", "content": ANSWER}]
    what = f"the chat template of {tokenizer.name_or_path or 'this model'}"
    with reading(what, "one that takes these turns", "choose a named prompt template instead"), bounded_templates():
        texts: list[Any] = [
            tokenizer.apply_chat_template(turns, add_generation_prompt=asks, tokenize=False, **template_args)
            for turns, asks in ((answered, False), (question, True), (question, False))
        ]
        after = tokenizer(texts[0].rpartition(ANSWER)[2], add_special_tokens=False)["input_ids"]
    return TurnEnd(first_mark(tokenizer, after), texts[1] != texts[2])


def first_mark(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int | None:
    """Return the first of some tokens that is none of text, where only spaces stand before it; ``None`` without one."""
    marks = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    for index in ids:
        if index in marks:
            return int(index)
        if tokenizer.decode([index]).strip():
            return None
    return None


def named_ends(settings: GenerationConfig | None) -> list[int]:
    """Return the ends that a model's own settings name.

    Raises:
        InputError: They name something else than a token or a list of them.
    """
    named: Any = settings.eos_token_id if settings is not None else None
    ends = [end for end in (named if isinstance(named, list) else [named]) if end is not None]
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise InputError(
                f"the model's eos_token_id is {repr(named)[:QUOTED]}; expected a token's number or a flat list of "
                "them: mend generation_config.json, or config.json where there is none"
            )
    return ends


def all_ends(settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, *further: int | None) -> list[int]:
    """Return every token at which an answer ends: those of the model's settings, the tokenizer's, and further ones.

    Raises:
        InputError: The model's settings name something else than a token or a list of them.
    """
    named = named_ends(settings)
    return list(dict.fromkeys(int(end) for end in (*named, tokenizer.eos_token_id, *further) if end is not None))


def warn_of_turns(
    tokenizer: PreTrainedTokenizerBase, template: str = CHAT, template_args: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Log what a template leaves a model to learn by itself, before it is trained with it."""
    turn = turn_of(tokenizer, template, template_args)
    if turn.end is None:
        logger.warning(
            "the chat template writes no token after an answer; %r is added to each, so that answers end",
            tokenizer.eos_token,
        )
    if not turn.is_asked_for:
        logger.warning(
            "the chat template ignores add_generation_prompt: how an answer begins is learnt as a part of it, and "
            "nothing asks for it"
        )
