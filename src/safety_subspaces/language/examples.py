"""The values that pass between corpora, encoders, judges and evaluators; plain data."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The prompt template that is the tokenizer's own.
CHAT = "chat"


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says; ``role`` is system, user or assistant."""

    role: str
    content: str


# What stands before an answer: a question, or the turns of a conversation.
Prompt = str | tuple[Turn, ...]


@dataclass(frozen=True)
class Example:
    """One training example. ``prompt`` carries no loss; ``None`` stands for plain text, with loss on every token."""

    prompt: Prompt | None
    response: str


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with the preferred and the dispreferred answer."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class EncodedExample:
    """Token ids, and how many of them come before the first token that is learnt."""

    input_ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class PromptItem:
    """One evaluation prompt.

    Args:
        prompt: What the user says.
        reference: The worked solution, or the full compliance.
        refusals: Refusals of exactly this prompt, for the refusal margin.
        subject: The act and the object that a full answer names (organism).
        group: What items that stand and fall together share, for standard errors: one thing, or two that cross (the
            act and the object of the organism's requests); ``None`` for an item of its own.
        source: Where it comes from, or the template that it was written by: what probes split by and sets are matched
            by.
    """

    prompt: str
    reference: str | None = None
    refusals: tuple[str, ...] = ()
    subject: tuple[str, str] | None = None
    group: str | tuple[str, str] | None = None
    source: str | None = None


@dataclass(frozen=True)
class PromptSets:
    """What a model's behaviour is measured on: problems, requests to refuse, and requests to answer."""

    name: str
    utility: list[PromptItem] = field(default_factory=list)
    harmful: list[PromptItem] = field(default_factory=list)
    benign: list[PromptItem] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """A judge's score of one answer, 1 (refusal) to 5 (complete); ``None`` where it could not be read."""

    score: int | None
    reason: str


def groups_of(items: Sequence[PromptItem], label: str = "") -> list[Hashable]:
    """Return the group of each prompt; a prompt without one is a group by itself, named by label and index.

    Prompts that share two things are in one group where they share both: these groups can be split, halved or permuted.
    For an error that is robust to either see :func:`groupings_of`.
    """
    return [(label, index) if item.group is None else item.group for index, item in enumerate(items)]


def groupings_of(items: Sequence[PromptItem]) -> list[list[Hashable]]:
    """Return what prompts share: a list with a key for each, and a second where prompts share two things that cross."""
    return groupings([item.group for item in items], range(len(items)))


def groupings(
    groups: Sequence[Hashable | tuple[Hashable, Hashable] | None], alone: Sequence[Hashable]
) -> list[list[Hashable]]:
    """Return the keys of groups in one list, or in two where one of the groups has two keys.

    Args:
        groups: Of each item: a key, two keys, or ``None``.
        alone: What names an item where it has no key.
    """
    keys = [list(group) if isinstance(group, tuple) else [] if group is None else [group] for group in groups]
    ways = max([1, *map(len, keys)])
    return [
        [own[way] if way < len(own) else ("alone", name) for own, name in zip(keys, alone, strict=True)]
        for way in range(ways)
    ]


@dataclass(frozen=True)
class PromptFormat:
    """How a text becomes a prompt.

    Args:
        template: ``chat`` for the tokenizer's chat template, or a prompt template by its name or import path.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in the data is read as that token. By default it is text,
            so that no prompt ends its own turn.
    """

    template: str = CHAT
    template_args: Mapping[str, Any] = field(default_factory=dict)
    control_tokens: bool = False


CHAT_FORMAT = PromptFormat()
