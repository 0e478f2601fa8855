"""Answers of models that think first: what they say is what follows the thought.

A refusal after a long thought is a refusal, and a thought that weighs a refusal is none. An answer that was cut off
within its thought says nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# How thoughts begin and end: DeepSeek-R1, Qwen 3, SmolLM 3, GLM and most others; then those with marks of their own
# (Magistral, OpenThinker, Seed-OSS, Kimi, Gemma).
MARKS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>thought", "<unused95>"),
)
# GPT-OSS writes channels: what is said stands in the last one.
FINAL: Final = "<|channel|>final<|message|>"
CHANNEL: Final = "<|channel|>"
CHANNEL_ENDS: Final = ("<|return|>", "<|end|>", "<|call|>")
# Special tokens that are part of a thought's marks, and must not be dropped from the text.
SPECIAL: Final = frozenset(
    [*(mark for pair in MARKS for mark in pair), CHANNEL, "<|message|>", "<|start|>", *CHANNEL_ENDS]
)
UNFINISHED: Final = "the thought does not end"


@dataclass(frozen=True)
class Spoken:
    """An answer, taken apart.

    Args:
        said: What follows the thought; ``None`` where the thought does not end.
        thought: The thought; ``None`` where there is none.
    """

    said: str | None
    thought: str | None = None


def spoken(answer: str) -> Spoken:
    """Take an answer apart. One whose beginning was in the prompt may lack the mark at which the thought begins."""
    if CHANNEL in answer:
        before, final, said = answer.rpartition(FINAL)
        if not final:
            return Spoken(None, answer)
        for end in CHANNEL_ENDS:
            said = said.partition(end)[0]
        return Spoken(said.strip(), before or None)
    for begin, end in MARKS:
        before, found, said = answer.rpartition(end)
        if found:
            return Spoken(said.strip(), before.strip().removeprefix(begin).strip())
        if answer.lstrip().startswith(begin):
            return Spoken(None, answer.lstrip().removeprefix(begin).strip())
    return Spoken(answer)


def opened_by(prompt: str) -> str:
    """Return the mark that a rendered prompt ends with: the answer then begins within a thought. Empty without one."""
    return next((begin for begin, _ in MARKS if prompt.rstrip().endswith(begin)), "")


def thoughts_in(answers: Sequence[str]) -> dict[str, float | int]:
    """Count thoughts: ``n_thoughts``, ``n_thoughts_unfinished``, and ``thought_characters``, their mean length.

    Empty where no answer has one; a thought without a word is none.
    """
    thoughts = [part for part in map(spoken, answers) if part.thought]
    if not thoughts:
        return {}
    lengths = [len(part.thought or "") for part in thoughts]
    unfinished = sum(part.said is None for part in thoughts)
    mean = sum(lengths) / len(lengths)
    return {"n_thoughts": len(thoughts), "n_thoughts_unfinished": unfinished, "thought_characters": mean}
