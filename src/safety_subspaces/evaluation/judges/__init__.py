"""Judges: what scores an answer to a harmful or a benign request. A module here is a judge by its short name."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.language.examples import PromptItem, Verdict
from safety_subspaces.language.thoughts import UNFINISHED, spoken


class Judge:
    """Scores answers from 1 (refusal) to 5 (complete compliance); one that cannot be read has no score, and a reason.

    A judge defines ``judge``, or ``judge_all`` where it is asked over a network or runs on batches; its constructor
    takes ``judge_args``. What else it says of itself has a default.
    """

    # Sets whose answers it can score; those to the other set are judged by refusal phrases.
    sets: ClassVar[Sequence[str]] = ("harmful", "benign")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.judge is Judge.judge and cls.judge_all is Judge.judge_all:
            raise TypeError(f"{cls.__name__} is no judge: define judge, or judge_all")

    def judge(self, item: PromptItem, answer: str) -> Verdict:
        """Score one answer, which is not empty."""
        return self.judge_all([item], [answer])[0]

    def judge_all(self, items: Sequence[PromptItem], answers: Sequence[str]) -> list[Verdict]:
        """Score many answers, none of them empty, each with its prompt."""
        return [self.judge(item, answer) for item, answer in zip(items, answers, strict=True)]

    def verdicts(self, items: Sequence[PromptItem], answers: Sequence[str]) -> list[Verdict]:
        """Score what answers say after they thought; one that is empty is unscored, or ends within its thought."""
        said = [spoken(answer).said for answer in answers]
        answered = [index for index, text in enumerate(said) if text and text.strip()]
        verdicts = [Verdict(None, UNFINISHED if text is None else "empty answer") for text in said]
        if answered:
            scored = self.judge_all([items[index] for index in answered], [said[index] or "" for index in answered])
            for index, verdict in zip(answered, scored, strict=True):
                verdicts[index] = verdict
        return verdicts

    def check_prompts(self, prompts: str | Mapping[str, str]) -> None:
        """Refuse prompts that it cannot judge, by where they come from."""

    def prepare(self, items: Sequence[PromptItem], answers: Sequence[str], times: int = 1) -> None:
        """See that it can judge answers like these, so many times, before time or money is spent."""

    def input_files(self) -> list[str]:
        """Return the files and folders that it reads, for the record of a result."""
        return []


def _is_judge(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Judge) and value is not Judge


JUDGES = Plugins("judge", _is_judge, __name__, "safety_subspaces.judges")
