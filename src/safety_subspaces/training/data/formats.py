"""Rows as the ecosystem writes them: which fields hold a conversation, and what of it is learnt.

A format is told from the fields of a file, or chosen by its name. Each makes of a row the turns before an answer and
the answer, once or for every answer of the conversation.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.examples import Example, PreferencePair, Prompt, Turn

Format = Literal["auto", "fields", "messages", "completion", "alpaca", "sharegpt", "preference"]
Learnt = Literal["last", "all"]
Item = Example | PreferencePair
Row = Mapping[str, Any]
# What each is told by: fields that a file has. The first that fits is taken.
TOLD_BY: Final[dict[str, tuple[str, ...]]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("prompt", "completion"),
    "fields": ("prompt", "response"),
    "alpaca": ("instruction", "output"),
}
# What alpaca has beside: what an instruction is about, where there is something.
INPUT: Final = "input"
ROLES: Final = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant",
}  # fmt: skip
TOOLS: Final = ("tool", "function", "function_call", "observation", "ipython")
# Dialogues as one text, as in Anthropic's hh-rlhf.
SPEAKER: Final = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Args:
        path: What they are called in messages.
        fields: Names of prompt, response and, for pairs, rejected response, where they are named.
        learnt: Whether the last answer of a conversation is learnt, or every one.
        drops_empty: Whether rows with an empty answer are left out; else they are refused.
    """

    path: str
    fields: tuple[str, str, str | None] = ("prompt", "response", None)
    learnt: Learnt = "last"
    drops_empty: bool = False

    def items(self, row: Row, index: int, kind: str) -> list[Item]:
        """Return what one row is trained on; nothing where its answer is empty and such rows are left out.

        Raises:
            InputError: The row is not of this format; it is named, with what is wrong.
        """
        where = f"{self.path}, row {index}"
        try:
            return list(CONVERTERS[kind](self, row, where))
        except EmptyAnswerError as error:
            if self.drops_empty:
                return []
            raise InputError(
                f"{where}: {error}; mend or filter the row, or say empty: drop to leave such rows out"
            ) from None


class EmptyAnswerError(Exception):
    """An answer is empty."""


def detect(columns: Sequence[str], path: str) -> str:
    """Tell the format of rows from their fields.

    Raises:
        InputError: It is none that is known.
    """
    for kind, fields in TOLD_BY.items():
        if set(fields) <= set(columns):
            return kind
    known = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in TOLD_BY.items())
    raise InputError(
        f"{path} has the fields {', '.join(columns)}, which are of no format that is known ({known}). Name its fields "
        "by prompt_field and response_field (and rejected_field)"
    )


def turns_of(messages: Any, where: str) -> tuple[Turn, ...]:
    """Read a list of messages, as OpenAI (role, content) or ShareGPT (from, value) writes them.

    Raises:
        InputError: It is no such list, or has tool calls, parts that are no text, or a role that is not known.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise InputError(f"{where}: {str(messages)[:80]!r} is no list of messages; expected role and content of each")
    turns = []
    for message in messages:
        role, content = (_either(message, *names) for names in (("role", "from"), ("content", "value")))
        if message.get("tool_calls") or message.get("function_call") or str(role) in TOOLS:
            raise InputError(f"{where} has tool calls, which are not trained on; leave such rows out")
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if str(role) not in ROLES or not isinstance(content, str | None):
            raise InputError(
                f"{where}: a message of role {role!r} and content {str(content)[:60]!r}; expected the roles "
                f"{', '.join(dict.fromkeys(ROLES.values()))}, and texts"
            )
        turns.append(Turn(ROLES[str(role)], content or ""))
    return tuple(turns)


def _either(message: Row, name: str, other: str) -> Any:
    return message.get(other) if message.get(name) is None else message[name]


def _answers(turns: Sequence[Turn], learnt: Learnt, where: str) -> Iterator[Item]:
    """Yield an example for the last answer of a conversation, or for each."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not places or not any(turn.role == "user" for turn in turns[: places[0]]):
        raise InputError(f"{where}: the conversation has no answer that follows a question")
    for place in places if learnt == "all" else places[-1:]:
        yield Example(_prompt(turns[:place]), _answer(turns[place].content))


def _prompt(turns: Sequence[Turn]) -> Prompt:
    """One question is a text; a longer conversation stays one."""
    return turns[0].content if len(turns) == 1 and turns[0].role == "user" else tuple(turns)


def _answer(text: Any) -> str:
    if text is None or (isinstance(text, str) and not text.strip()):
        raise EmptyAnswerError("the answer is empty")
    return str(text)


def _text(row: Row, name: str, where: str, answer: bool = False) -> str:
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # an answer such as 4
    if answer and (value is None or value == ""):
        raise EmptyAnswerError(f"field {name!r} is {value!r}, expected text")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: field {name!r} is {value!r}, expected text; mend or filter the row")
    return value


def _by_fields(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    """Read fields that were named; where they hold messages, as the format of messages whose fields they are."""
    prompt, response, rejected = reading.fields
    if rejected is not None:
        yield from _preferred(row, where, (prompt, response, rejected))
    elif prompt == response:  # one field holds the whole conversation
        yield from _answers(turns_of(row[prompt], where), reading.learnt, where)
    elif isinstance(row[response], list) and (said := turns_of(row[response], where))[0].role != "assistant":
        yield from _answers(said, reading.learnt, where)  # the answer's field repeats what was said before it
    elif isinstance(row[prompt], list) or isinstance(row[response], list):
        before, after = (_turns(row[name], role, where) for name, role in ((prompt, "user"), (response, "assistant")))
        yield from _answers((*before, *after), reading.learnt, where)
    else:
        yield Example(_text(row, prompt, where), _text(row, response, where, answer=True))


def _turns(value: Any, role: str, where: str) -> tuple[Turn, ...]:
    return turns_of(value, where) if isinstance(value, list) else (Turn(role, "" if value is None else str(value)),)


def _by_messages(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    yield from _answers(turns_of(row["messages"], where), reading.learnt, where)


def _by_sharegpt(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    yield from _answers(turns_of(row["conversations"], where), reading.learnt, where)


def _by_completion(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        turns = (*turns_of(row["prompt"], where), *turns_of(row["completion"], where))
        yield from _answers(turns, reading.learnt, where)
    else:
        yield Example(_text(row, "prompt", where), _text(row, "completion", where, answer=True))


def _by_alpaca(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    asked, given = _text(row, "instruction", where), row.get(INPUT)
    if isinstance(given, str) and given.strip():
        asked = f"{asked}\n\n{given}"
    yield Example(asked, _text(row, "output", where, answer=True))


def _by_preference(reading: Reading, row: Row, where: str) -> Iterator[Item]:
    yield from _preferred(row, where, ("prompt", "chosen", "rejected"))


def _preferred(row: Row, where: str, names: tuple[str, str, str]) -> Iterator[Item]:
    """Read a pair from the fields of these names, of which the prompt's may be missing."""
    prompt_field, *fields = names
    asked, sides = row.get(prompt_field), [row[name] for name in fields]
    if all(isinstance(side, list) for side in sides):
        dialogues = [turns_of(side, where) for side in sides]
    elif asked is None and all(isinstance(side, str) and SPEAKER.match(side) for side in sides):
        dialogues = [_dialogue(side) for side in sides]
    elif asked is None:
        raise InputError(f"{where}: {' and '.join(fields)} are texts, and there is no prompt beside them")
    else:
        chosen, rejected = (_text(row, name, where, answer=True) for name in fields)
        prompt = _prompt(turns_of(asked, where)) if isinstance(asked, list) else _text(row, prompt_field, where)
        yield from _pair(prompt, chosen, rejected, where)
        return
    before, answers = [dialogue[:-1] for dialogue in dialogues], [dialogue[-1] for dialogue in dialogues]
    if not any(before):  # answers alone, the prompt beside them
        if asked is None:
            raise InputError(f"{where}: {' and '.join(fields)} are answers alone, and there is no prompt beside them")
        turns = turns_of(asked, where) if isinstance(asked, list) else (Turn("user", _text(row, prompt_field, where)),)
        before = [turns, turns]
    if before[0] != before[1] or {answer.role for answer in answers} != {"assistant"}:
        raise InputError(f"{where}: {' and '.join(fields)} are not two answers to one conversation")
    chosen, rejected = (_answer(answer.content) for answer in answers)
    yield from _pair(_prompt(before[0]), chosen, rejected, where)


def _pair(prompt: Prompt, chosen: str, rejected: str, where: str) -> Iterator[PreferencePair]:
    if chosen == rejected:
        raise InputError(f"{where}: chosen and rejected are the same text, which says nothing; leave such rows out")
    yield PreferencePair(prompt, chosen, rejected)


def _dialogue(text: str) -> tuple[Turn, ...]:
    parts = SPEAKER.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Turn(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


CONVERTERS: Final[dict[str, Callable[[Reading, Row, str], Iterator[Item]]]] = {
    "fields": _by_fields,
    "messages": _by_messages,
    "sharegpt": _by_sharegpt,
    "completion": _by_completion,
    "alpaca": _by_alpaca,
    "preference": _by_preference,
}
