"""Control tokens in data are text: a prompt that holds ``<|im_end|>`` does not end its turn by it.

A tokenizer reads the text of a control token as that token wherever it stands. Where the data hold one, the text is
taken apart at the tokens that the template wrote, and only the pieces between them are read as text.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError

logger = logging.getLogger(__name__)
# Set into the text of a control token of the data, so that it is none; of Unicode's private use, and in no template.
SEAM = "\uf8d1"
# Stands in the place of such a text where reading in pieces is compared with reading at once.
PLAIN = "x"


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that a tokenizer reads as control tokens, longest first."""
    marks = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)


def held_in(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Return the control tokens whose text stands in some texts."""
    return [mark for mark in control_tokens(tokenizer) if any(mark in text for text in texts)]


def ids_with_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    render: Callable[[Sequence[str]], str],
    at_once: Callable[[str], Sequence[int]],
) -> list[int]:
    """Return the ids of texts in what a template writes around them; control tokens of the texts as text.

    Args:
        tokenizer: The tokenizer.
        texts: What the data say.
        render: Writes a template around such texts.
        at_once: Encodes what was written, with all that this tokenizer does to a whole text.

    Raises:
        InputError: This tokenizer reads a text in pieces otherwise than at once, so that the ids would be others than
            those of the same text without control tokens.
    """
    held = held_in(tokenizer, texts)
    if not held:
        return list(at_once(render(texts)))
    _tell(tuple(held), tokenizer.name_or_path)
    plain = render([_replaced(text, held, dict.fromkeys(held, PLAIN)) for text in texts])
    expected = list(at_once(plain))
    start = _start(tokenizer, expected, plain)
    if start is None:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} reads a text in pieces otherwise than at once, "
            f"so that {held[0]}, which the data hold, cannot be read as text; take it out of the data, or say "
            "control_tokens: true to have it read as the token"
        )
    seamed = render([_replaced(text, held, {mark: f"{mark[0]}{SEAM}{mark[1:]}" for mark in held}) for text in texts])
    return [*expected[:start], *_in_pieces(tokenizer, seamed)]


def _start(tokenizer: PreTrainedTokenizerBase, whole: Sequence[int], text: str) -> int | None:
    """Return how many ids stand before those of a text's pieces; ``None`` where they are not the rest of the whole."""
    pieces = _in_pieces(tokenizer, text)
    start = len(whole) - len(pieces)
    return start if start >= 0 and list(whole[start:]) == pieces else None


def _in_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    marks = control_tokens(tokenizer)
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, marks))})", text):
        if piece in marks:
            ids.append(int(tokenizer.convert_tokens_to_ids(piece)))
        elif piece:
            whole = piece.replace(SEAM, "")
            ids += tokenizer(whole, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _replaced(text: str, held: Sequence[str], by: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, held)), lambda match: by[match[0]], text)


@lru_cache(maxsize=64)
def _tell(held: tuple[str, ...], tokenizer: str) -> None:
    logger.warning("the data hold the text of control tokens (%s); it is read as text", ", ".join(held))
