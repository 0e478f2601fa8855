"""Utility by lm-eval (the language model evaluation harness): any of its tasks on a model in memory."""

import importlib.metadata
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import sha256_of_value
from safety_subspaces.evaluation.generation import decoding_by, plain_settings
from safety_subspaces.evaluation.harness.messages import quieted
from safety_subspaces.evaluation.harness.tasks import (
    HarnessSettings,
    HarnessTasks,
    group_fields,
    load_tasks,
    restricted_templates,
)
from safety_subspaces.evaluation.rates import SHARE, estimate
from safety_subspaces.language.examples import CHAT
from safety_subspaces.language.model import evaluating
from safety_subspaces.language.rendering import bounded_templates

# Draws of lm-eval's bootstrap, for metrics whose standard error has no closed form (F1, perplexity, BLEU): a standard
# error from 1,000 draws is itself known to 2 %. lm-eval's default of 100,000 takes minutes for F1.
BOOTSTRAP_DRAWS = 1000
# Metrics of a choice among answers, whose chance level is one over the number of answers.
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
# Names of the setting for the longest answer, of which the first that is set counts; as in lm_eval.models.utils.
LONGEST_ANSWER = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class HarnessResult:
    """One model's scores: a row for each task, metric and filter, and every document's answer with its scores."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]


class Harness:
    """Runs lm-eval's ``simple_evaluate`` on models in memory, the same tasks for each.

    Args:
        settings: What is asked for.
        tasks: The tasks, loaded with their data.
    """

    def __init__(self, settings: HarnessSettings, tasks: HarnessTasks) -> None:
        self.settings = settings
        self.tasks = tasks
        self.described: dict[str, dict[str, Any]] = {}

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer can write the prompts.

        Raises:
            InputError: The chat template is asked for, and it has none.
        """
        if self.settings.template == CHAT and not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
                "say --template none for prompts in plain text"
            )

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str) -> HarnessResult:
        """Answer every document of every task, score the answers and sum up.

        A model's own generation settings are put aside, but for where its answers end: decoding is what the task says,
        greedy where it says nothing.

        Args:
            model: The model; its mode, device and generation settings are kept.
            tokenizer: Its tokenizer. It is given a padding token where it has none.
            label: What it is called in the rows and samples.

        Returns:
            Rows have ``model``, ``task``, ``metric``, ``filter``, ``value``, ``stderr`` (lm-eval's: of documents that
            are independent; 0 where all are right or all are wrong), ``stderr_grouped`` and ``n_groups`` (robust to
            groups of documents that stand and fall together, where the task's metadata names their ``group_field``, or
            a list of two that cross; never 0 for a share; else NaN), ``n``, ``n_truncated``
            (documents whose prompt lost its beginning for want of positions), ``chance`` (of a choice; else NaN),
            ``higher_is_better``, ``num_fewshot`` and ``version`` of the task.

        Raises:
            InputError: No chat template; answers that are longer than the model's positions; a template of a task that
                reaches into Python and is not trusted.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        self.check_tokenizer(tokenizer)
        settings, leaves = self.settings, self.tasks.leaves
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap would fork a process for each core
        greedy = decoding_by(model, plain_settings(model, tokenizer))
        templates = (bounded_templates(), restricted_templates(settings))
        with quieted(), templates[0], templates[1], evaluating(model), greedy:
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, trust_remote_code=False)
            for name, task in leaves.items():
                self._check_room(name, task, lm, label)
            results = simple_evaluate(
                model=lm,
                tasks=list(self.tasks.chosen),
                task_manager=self.tasks.manager,
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                apply_chat_template=settings.template == CHAT,
                gen_kwargs={"max_gen_toks": settings.max_new_tokens} if settings.max_new_tokens else None,
                bootstrap_iters=BOOTSTRAP_DRAWS,
                confirm_run_unsafe_code=settings.unsafe_code,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
            )
            cut = {name: self._truncated(task, results["samples"][name], lm) for name, task in leaves.items()}
        self.described = self.described or {name: _describe(name, results) for name in leaves}
        rows = [{"model": label, **row} for name in results["results"] for row in self._rows(name, results, cut)]
        samples = [
            {"model": label, "task": name, **_sample(sample)} for name in leaves for sample in results["samples"][name]
        ]
        return HarnessResult(rows, samples)

    def _longest_answer(self, task: Any, lm: Any) -> int:
        override = {"max_gen_toks": self.settings.max_new_tokens} if self.settings.max_new_tokens else {}
        settings = (task.config.generation_kwargs or {}) | override
        return next((int(settings[key]) for key in LONGEST_ANSWER if settings.get(key) is not None), lm.max_gen_toks)

    def _check_room(self, name: str, task: Any, lm: Any, label: str) -> None:
        longest = self._longest_answer(task, lm) if task.OUTPUT_TYPE == "generate_until" else 0
        if longest >= lm.max_length:
            raise InputError(
                f"task {name} asks for answers of up to {longest} tokens, and {label} has {lm.max_length} positions, "
                "which leaves none for a prompt; lower it by --max_new_tokens"
            )

    def _truncated(self, task: Any, samples: list[dict[str, Any]], lm: Any) -> int:
        """Count documents whose prompt lm-eval cut on the left to fit into the model's positions."""
        if task.OUTPUT_TYPE == "loglikelihood_rolling":  # it reads long texts in windows
            return 0
        generates = task.OUTPUT_TYPE == "generate_until"
        # The last token of an answer that is only scored is never read.
        room = lm.max_length - self._longest_answer(task, lm) if generates else lm.max_length + 1

        def is_cut(text: str) -> bool:
            # No tokenizer makes more tokens than bytes, but for its start token.
            return len(text.encode()) >= room and len(lm.tok_encode(text)) > room

        first = samples[0]["filter"] if samples else None
        texts = (
            [ask[0] if generates else ask[0] + ask[1] for ask in sample["arguments"]]
            for sample in samples
            if sample["filter"] == first
        )
        return sum(any(map(is_cut, of_document)) for of_document in texts)

    def _rows(self, name: str, results: Mapping[str, Any], cut: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        scores = results["results"][name]
        task = self.tasks.leaves.get(name)
        samples = results["samples"].get(name, [])
        members = [name] if task else [leaf.task_name for leaf in self.tasks.groups[name].get_all_tasks()]
        for key, value in scores.items():
            metric, comma, filtered = key.partition(",")
            if not comma or f"{metric.removesuffix('_stderr')},{filtered}" != key:
                continue  # a name or a count, or the standard error of another
            scored = [sample for sample in samples if sample["filter"] == filtered and metric in sample]
            grouped = _grouped(task, metric, scored) if task else None
            yield {
                "task": name,
                "metric": metric,
                "filter": filtered,
                "value": _number(value),
                "stderr": _number(scores.get(f"{metric}_stderr,{filtered}")),
                "stderr_grouped": grouped.stderr if grouped else math.nan,
                "n": len(scored) if task else scores["sample_count"][key],
                "n_groups": grouped.n_groups if grouped else math.nan,
                "n_truncated": sum(cut[member] for member in members),
                "chance": _chance(task, scored) if task and metric in CHOICE_METRICS else math.nan,
                "higher_is_better": results["higher_is_better"].get(name, {}).get(metric),
                "num_fewshot": results["n-shot"].get(name, math.nan),
                "version": str(results["versions"].get(name)),
            }


def build_harness(settings: HarnessSettings) -> Harness:
    """Load the tasks that the settings name.

    Raises:
        InputError: As :func:`~safety_subspaces.evaluation.harness.tasks.load_tasks`.
    """
    return Harness(settings, load_tasks(settings))


def harness_version() -> str:
    """Return the version of lm-eval."""
    return importlib.metadata.version("lm_eval")


def _describe(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    documents = list(dict.fromkeys(sample["doc_hash"] for sample in results["samples"][name]))
    return {
        "version": results["versions"].get(name),
        "documents": results["n-samples"][name],
        "documents_sha256": sha256_of_value(documents),
        "config": results["configs"][name],
    }


def _grouped(task: Any, metric: str, samples: list[dict[str, Any]]) -> Any:
    """Estimate a mean over documents with an error that is robust to their groups; ``None`` where there are none."""
    from lm_eval.api.metrics import mean

    fields = group_fields(task)
    if not fields or task.aggregation().get(metric) is not mean:
        return None
    values = [float(sample[metric]) for sample in samples]
    groups = [[sample["doc"][field] for sample in samples] for field in fields]
    return estimate(values, groups, SHARE if set(values) <= set(SHARE) else None)


def _chance(task: Any, samples: list[dict[str, Any]]) -> float:
    """Return the share of right answers of one who picks a choice of each document at random."""
    if task.OUTPUT_TYPE != "multiple_choice" or not samples:
        return math.nan
    right = [len(sample["target"]) if isinstance(sample["target"], list) else 1 for sample in samples]
    choices = [len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return math.fsum(a / b for a, b in zip(right, choices, strict=True)) / len(samples)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of one document and filter what a reader wants: prompt, answers as given and as read, scores."""
    return {
        "filter": sample["filter"],
        "document": sample["doc_id"],
        "prompt": sample["arguments"][0][0],
        "choices": [ask[1] for ask in sample["arguments"] if len(ask) > 1 and isinstance(ask[1], str)],
        "reference": sample["target"],
        "answers": sample["resps"],
        "read": sample["filtered_resps"],
        "scores": {metric: sample[metric] for metric in sample["metrics"]},
    }


def _number(value: Any) -> float:
    """Return lm-eval's number; it writes "N/A" for what is missing."""
    return math.nan if value is None or isinstance(value, str) else float(value)
