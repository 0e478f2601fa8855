"""What an evaluation is asked for: read from the command line, so it is known without importing a model library."""

from dataclasses import dataclass, field
from typing import Any, Literal

from safety_subspaces.language.examples import CHAT, PromptFormat

# The embedded world's prompts, and their judge.
ORGANISM = "organism"


@dataclass
class EndpointSettings:
    """A model behind an OpenAI-compatible endpoint, and how it may be asked. Keys come from the environment alone.

    Args:
        model: Name that the endpoint knows the model by.
        base_url: Address, such as ``http://localhost:8000/v1``; OpenAI's by default.
        api_key_env: Environment variable of the key; servers on this machine need none.
        concurrency: Requests at once.
        timeout_seconds: Longest wait for one reply.
        retries: How often a request is sent again after status 429 or 5xx, a time-out or a lost connection, each time
            after a longer wait.
        input_price: US dollars for a million tokens sent.
        output_price: US dollars for a million tokens returned.
        max_cost: Refuse to send what may cost more US dollars than this in all; needs both prices.
        cache: SQLite file that replies are kept in; by default in the user's cache folder.
    """

    model: str = ""
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout_seconds: float = 120.0
    retries: int = 6
    input_price: float | None = None
    output_price: float | None = None
    max_cost: float | None = None
    cache: str | None = None


@dataclass
class EvaluationSettings:
    """What a model's behaviour is measured on, and how.

    Args:
        prompts: ``organism`` for the embedded world, or a JSONL file whose lines have ``set`` (utility, harmful or
            benign), ``prompt``, and as they apply ``reference`` (the worked solution, or the full compliance) and
            ``refusals`` (a list, for the refusal margin); or a source for each set, such as
            ``{harmful: advbench, benign: xstest_safe@prompts.csv, utility: gsm8k_test}``.
        split: Split of the organism's prompts: ``dev`` to choose settings, ``test`` to report.
        judge: ``organism``, ``phrases`` (refusal phrases), ``rubric`` (a chat model, asked for a score from 1 to 5),
            ``classifier``, or the import path of another (:mod:`safety_subspaces.evaluation.judges`).
        template: ``chat``, or a prompt template by its name or import path.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
        judge_args: What the judge is made with: of the rubric an endpoint's settings, of the classifier its own.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.
    """

    prompts: str | dict[str, str] = ORGANISM
    split: Literal["dev", "test"] = "test"
    judge: str = ORGANISM
    template: str = CHAT
    max_new_tokens: int = 32
    batch_size: int = 256
    limit: int | None = None
    judge_args: dict[str, Any] = field(default_factory=dict)
    template_args: dict[str, Any] = field(default_factory=dict)
    control_tokens: bool = False

    @property
    def judged_by(self) -> str:
        """What stands beside every harm score: the judge, and the model that it asks or runs."""
        asked = self.judge_args.get("model") or self.judge_args.get("path")
        return f"{self.judge} {asked}" if asked else self.judge

    @property
    def form(self) -> PromptFormat:
        """How a text becomes a prompt."""
        return PromptFormat(self.template, self.template_args, self.control_tokens)
