"""What an evaluation is asked for: read from the command line, so it is known without importing a model library."""

from dataclasses import dataclass
from typing import Literal

from safety_subspaces.examples import CHAT

# The embedded world's prompts, and their judge.
ORGANISM = "organism"


@dataclass
class EvaluationSettings:
    """What a model's behaviour is measured on, and how.

    Args:
        prompts: ``organism`` for the embedded world, or a JSONL file whose lines have ``set`` (utility, harmful or
            benign), ``prompt``, and as they apply ``reference`` (the worked solution, or the full compliance) and
            ``refusals`` (a list, for the refusal margin); or a source for each set, such as
            ``{harmful: advbench, benign: xstest_safe@prompts.csv, utility: gsm8k_test}``.
        split: Split of the organism's prompts: ``dev`` to choose settings, ``test`` to report.
        judge: ``organism`` or ``rules`` (refusal phrases).
        template: ``chat``, or a named prompt template.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
    """

    prompts: str | dict[str, str] = ORGANISM
    split: Literal["dev", "test"] = "test"
    judge: Literal["organism", "rules"] = "organism"
    template: str = CHAT
    max_new_tokens: int = 32
    batch_size: int = 256
    limit: int | None = None
