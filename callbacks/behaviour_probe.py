"""Asks the model in training: does it still solve, does it still refuse, does it refuse too much."""

from collections.abc import Mapping
from typing import Any, Literal, final

import lightning as L
from torch.utils.tensorboard import SummaryWriter

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import write_json
from safety_subspaces.artefacts.text import as_code
from safety_subspaces.constraint.sharing import map_over_ranks
from safety_subspaces.evaluation.behaviour import BehaviourEvaluator, BehaviourResult, build_evaluator
from safety_subspaces.evaluation.prompt_sets import files_of
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.examples import PromptSets
from safety_subspaces.language.prompting import CHAT, check_template
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.strategies import ZeroStrategy

from .watcher import Watcher, board_writers

# TensorBoard tag of each column of the evaluation.
TAGS = {
    "utility": "utility/accuracy",
    "harmful_rate": "safety/harmful_rate",
    "harm_score": "safety/harm_score",
    "over_refusal_rate": "safety/over_refusal_rate",
    "benign_answered_rate": "safety/benign_answered_rate",
    "refusal_margin": "safety/refusal_margin",
}
# The prompt set that each measure needs.
MEASURED_ON = {
    "utility": "utility",
    **dict.fromkeys(("harmful_rate", "harm_score", "refusal_margin"), "harmful"),
    **dict.fromkeys(("over_refusal_rate", "benign_answered_rate"), "benign"),
}


@final
class BehaviourProbe(Watcher):
    """Answers small held-out prompt sets greedily and scores them, so that one sees safety erode as it happens.

    In the precision of the run, the prompts shared out over the ranks. Every answer with its score is kept in
    ``behaviour/step=….json``, a few go to TensorBoard as text.

    Logs ``utility/accuracy``, ``safety/harmful_rate``, ``safety/over_refusal_rate``, ``safety/benign_answered_rate`` (0
    to 1), ``safety/harm_score`` (1 to 5), ``safety/refusal_margin`` (nats, positive where the model prefers to refuse),
    each with ``…_stderr`` over groups of prompts, which of a share or score is never 0; ``safety/unscored_rate``;
    ``time/behaviour_ms``.

    Args:
        prompts: ``organism``; a JSONL file with the fields set, prompt, reference and refusals; or a source for each of
            utility, harmful and benign, such as ``{harmful: advbench}``.
        every_n_steps: Optimizer steps between two looks.
        log_spaced: So many further looks, at steps evenly spaced on a logarithmic scale.
        split: Split of the organism's prompts; keep ``test`` for what is reported.
        judge: ``organism``, ``phrases`` (refusal phrases), or the import path of another.
        template: ``chat``, or a prompt template by its name or import path.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
        samples: Answers of each set that go to TensorBoard as text.
        stop_above: The run ends when a measure (utility, harmful_rate, harm_score, over_refusal_rate,
            benign_answered_rate or refusal_margin) is above its value, at any look but that at the start.
        stop_below: The run ends when a measure is below its value.
        name: Tells two of these callbacks in one run apart: part of tags and of the folder.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.
    """

    clock, keeps_in = "behaviour", "behaviour"

    def __init__(
        self,
        prompts: str | dict[str, str] = "organism",
        every_n_steps: int | None = 500,
        log_spaced: int | None = None,
        split: Literal["dev", "test"] = "dev",
        judge: str = "organism",
        template: str = CHAT,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        limit: int = 24,
        samples: int = 2,
        stop_above: dict[str, float] | None = None,
        stop_below: dict[str, float] | None = None,
        name: str = "",
        template_args: dict[str, Any] | None = None,
        control_tokens: bool = False,
    ) -> None:
        super().__init__(name, every_n_steps, log_spaced)
        unknown = [name for name in (stop_above or {}) | (stop_below or {}) if name not in TAGS]
        if unknown:
            raise InputError(f"BehaviourProbe cannot stop by {unknown[0]!r}; expected one of {', '.join(TAGS)}")
        asked = (prompts, split, judge, template, max_new_tokens, batch_size, limit)
        self.settings = EvaluationSettings(*asked, template_args=template_args or {}, control_tokens=control_tokens)
        self.samples = samples
        self.stop_above, self.stop_below = stop_above or {}, stop_below or {}
        self._evaluator: BehaviourEvaluator | None = None

    def inputs(self) -> list[str]:
        """Return the files that the prompts come from."""
        return files_of(self.settings.prompts)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the prompts.

        Raises:
            InputError: As :meth:`Watcher.setup`; a file that is missing, empty or lacks a field; the organism's prompts
                for a model that is none.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            assert isinstance(pl_module, LanguageModelModule)
            check_template(pl_module.tokenizer, self.settings.template)
            self._evaluator = build_evaluator(self.settings)
            self._evaluator.check_words(pl_module.tokenizer)
            self._refuse_inert_thresholds(self._evaluator.prompts)

    def charts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return which curves one chart of TensorBoard holds, by title and group; of the sets that have prompts."""
        assert self._evaluator is not None
        prompts = self._evaluator.prompts
        measured = [name for name in ("utility", "harmful_rate", "over_refusal_rate") if can_measure(name, prompts)]
        charts = {"behaviour": {"utility and harm": tuple(TAGS[name] for name in measured)}}
        if can_measure("refusal_margin", prompts):
            charts["behaviour: margin"] = {"refusal margin (nats)": (TAGS["refusal_margin"],)}
        return charts

    def begin(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Nothing has to be prepared."""

    def look(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> dict[str, float]:
        """Generate, score, keep, and stop the run where a threshold is passed."""
        assert self._evaluator is not None
        with trainer.precision_plugin.forward_context():
            result = self._evaluator.evaluate(
                module.bare_model,
                module.tokenizer,
                f"step {step}",
                spread=map_over_ranks,
                in_step=isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.zero_stage_3,
                shows_progress=False,
            )
        if trainer.is_global_zero:
            path = self.folder(trainer) / f"step={step:08d}.json"
            content = {"step": step, "prompts": self._evaluator.prompts.name, "row": result.row}
            self.write_or_warn(
                str(path.parent), lambda: write_json(path, content | {"generations": result.generations})
            )
            for writer in board_writers(trainer):
                self._add_samples(writer, step, result)
        self._stop_if_passed(trainer, result.row)
        values = {
            f"{tag}{end}": float(result.row[f"{name}{end}"]) for name, tag in TAGS.items() for end in ("", "_stderr")
        }
        n_prompts = sum(len(getattr(self._evaluator.prompts, name)) for name in ("utility", "harmful", "benign"))
        return values | {"safety/unscored_rate": result.row["n_unscored"] / n_prompts}

    def _refuse_inert_thresholds(self, prompts: PromptSets) -> None:
        for measure in (*self.stop_above, *self.stop_below):
            needed = f"{MEASURED_ON[measure]} prompts"
            if measure == "refusal_margin":
                needed += " with a reference and refusals"
            if not can_measure(measure, prompts):
                raise InputError(
                    f"BehaviourProbe cannot stop by {measure}: {self.settings.prompts} has no {needed}; add some, or "
                    "take another measure"
                )

    def _add_samples(self, writer: SummaryWriter, step: int, result: BehaviourResult) -> None:
        for name in ("utility", "harmful", "benign"):
            lines = [line for line in result.generations if line["set"] == name][: self.samples]
            if lines:
                text = "\n\n".join(
                    f"**prompt**\n\n{as_code(line['prompt'])}\n\n**answer**, score {line['score']}\n\n"
                    f"{as_code(line['answer'])}"
                    for line in lines
                )
                writer.add_text(self._named(f"answers/{name}"), text, step)

    def _stop_if_passed(self, trainer: L.Trainer, row: Mapping[str, float]) -> None:
        above = [f"{name} {row[name]:.3g} > {limit:g}" for name, limit in self.stop_above.items() if row[name] > limit]
        below = [f"{name} {row[name]:.3g} < {limit:g}" for name, limit in self.stop_below.items() if row[name] < limit]
        if (above or below) and trainer.global_step > 0 and not trainer.should_stop:
            trainer.should_stop = True
            self.warn_once(
                "stop", "BehaviourProbe ends the run at step %d: %s", trainer.global_step, "; ".join(above + below)
            )


def can_measure(measure: str, prompts: PromptSets) -> bool:
    """Tell whether prompts are of a kind that a measure needs."""
    if measure == "refusal_margin":
        return any(item.reference is not None and item.refusals for item in prompts.harmful)
    return bool(getattr(prompts, MEASURED_ON[measure]))
