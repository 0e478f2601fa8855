"""Text that others wrote, made safe to show: models' answers, prompts, labels, names of tensors and of files.

What such a text may do to the one who looks at it depends on where it stands: on a terminal a control character moves
the cursor or renames the window, in a spreadsheet a cell that begins with ``=`` is a formula, in Markdown an image is
fetched, and half a surrogate pair (what a cut JSON escape leaves) is no text that any file can hold.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Control characters but tab and newline, halves of surrogate pairs, and what is invisible and says how its neighbours
# are set: marks, embeddings, overrides and isolates of direction, other separators of lines, tags.
UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
SURROGATE = re.compile("[\ud800-\udfff]")
# Enough for any message or answer that a person reads; a file has the whole.
MOST_CHARACTERS = 10_000
# What a spreadsheet takes for the start of a formula, which a sign alone is not; and such a start behind apostrophes,
# as `as_cell` adds one.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠](?s:.)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    r"""Return a text as it may be shown: what cannot be seen as an escape (``\x1b``), and what is too long cut.

    Letters of every script stay, and so do tabs, newlines and the joiners that scripts and emoji are written with.
    """
    if len(text) > most:
        text = f"{text[:most]}… ({len(text) - most:,} more characters)"
    return UNSHOWABLE.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    r"""Return a text as :func:`shown` does, newlines and tabs as escapes too."""
    return shown(text, most).replace("\n", "\\n").replace("\t", "\\t")


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can hold: halves of surrogate pairs as the escapes that stand for them (``\ud800``)."""
    return SURROGATE.sub(_escape, text)


def encodable_value(value: Any) -> Any:
    """Return a value of JSON with its texts as :func:`encodable` returns them."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(name): encodable_value(inner) for name, inner in value.items()}
    return [encodable_value(inner) for inner in value] if isinstance(value, list) else value


def as_code(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text as a block of code in Markdown, where nothing of it is a link, an image or a heading."""
    return "\n".join(f"    {line}" for line in shown(text, most).split("\n"))


def as_cell(value: Any) -> Any:
    """Return a value as a spreadsheet shows it: before a text that it would take for a formula an apostrophe is set.

    Numbers stay, also those that are written as text. :func:`from_cell` gives the text back.
    """
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def from_cell(value: Any) -> Any:
    """Take away what :func:`as_cell` has set."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and FORMULA.match(value) else value


def map_texts(frame: "pd.DataFrame", change: Any) -> "pd.DataFrame":
    """Return a table with each of its texts changed, those in its header too; numbers are left alone."""
    import pandas as pd  # half a second that the entry points need not pay before they listen to signals

    changed = frame.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for position, kind in enumerate(changed.dtypes):
        if pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind):
            values = changed.iloc[:, position]
            texts = [change(value) if isinstance(value, str) else value for value in values]
            if any(new is not old for new, old in zip(texts, values, strict=True)):
                changed.isetitem(position, pd.Series(texts, index=changed.index, dtype=kind))
    return changed


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
