"""Utility by EleutherAI's lm-evaluation-harness (``lm-eval``): its tasks, your own YAML, or the organism's problems.

The harness is an extra, and imported when it is first needed: the tasks are looked up, and their data read, before a
model is loaded.
"""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.errors import InputError
from safety_subspaces.evaluation.behaviour import exact_match
from safety_subspaces.evaluation.rates import estimate
from safety_subspaces.examples import PromptItem
from safety_subspaces.organism.evaluation_sets import evaluation_sets
from safety_subspaces.organism.world import Split

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

ORGANISM_TASK = "organism"
ORGANISM_TOKENS = 32
# What it says of every task and batch; its warnings stay.
NOISY = ("lm_eval", "lm-eval", "datasets", "evaluate")
NEAREST = 5


@dataclass(frozen=True)
class HarnessSettings:
    """How tasks are run.

    Args:
        tasks: Their ids; ``organism`` is the embedded world's.
        include_path: Folder of your own task YAMLs.
        num_fewshot: Worked examples before each problem; by default each task's own number.
        limit: At most so many problems of each task, the first ones.
        batch_size: Problems at once.
        chat: Whether problems go through the tokenizer's chat template.
        max_new_tokens: Longest answer; by default each task's own.
        split: Split of the organism's problems.
        seed: Of the choice of worked examples.
    """

    tasks: tuple[str, ...]
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 16
    chat: bool = True
    max_new_tokens: int | None = None
    split: Split = "test"
    seed: int = 0


class Harness:
    """Tasks of the harness, found and read.

    Args:
        settings: Which, and how.

    Raises:
        InputError: The harness is not installed, a task is unknown, cannot be read, or runs code that models write.
    """

    def __init__(self, settings: HarnessSettings) -> None:
        _check(settings)
        self.settings = settings
        self._groups = {item.prompt: item.group for item in evaluation_sets(settings.split).utility}
        with _quiet():
            self._manager = _manager(settings)
            self._tasks = [organism_task(settings.split) if name == ORGANISM_TASK else name for name in settings.tasks]
            _read(self._tasks, self._manager)

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Run the tasks on a model in memory.

        Returns:
            A row for each task, metric and filter: ``value``, ``stderr`` (the harness's: of problems that are taken as
            independent), ``stderr_grouped`` and ``n_groups`` (robust to problems that share a solution; NaN and 0 where
            no groups are known), ``n``, ``higher_is_better``, ``num_fewshot``, ``version``. And every problem with its
            answer and scores.

        Raises:
            InputError: The tokenizer has no chat template and one was asked for.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        own = self.settings
        if own.chat and not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; say --chat false to give the "
                "problems as they are"
            )
        given = {} if own.max_new_tokens is None else {"max_gen_toks": own.max_new_tokens}
        with _quiet():
            found: Any = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=own.batch_size),
                tasks=list(self._tasks),
                task_manager=self._manager,
                num_fewshot=own.num_fewshot,
                limit=own.limit,
                apply_chat_template=own.chat,
                gen_kwargs=given or None,
                random_seed=own.seed,
                numpy_random_seed=own.seed,
                torch_random_seed=own.seed,
                fewshot_random_seed=own.seed,
            )
        samples = [_sample(task, one) for task, lines in found["samples"].items() for one in lines]
        return [*self._rows(found, samples)], samples

    def _rows(self, found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for task, values in found["results"].items():
            counted = found.get("n-samples", {}).get(task, {}).get("effective")
            for key, value in values.items():
                metric, _, filtered = key.partition(",")
                if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                stderr = values.get(f"{metric}_stderr,{filtered}")
                yield {
                    **{"task": task, "metric": metric, "filter": filtered, "value": float(value)},
                    "stderr": float(stderr) if isinstance(stderr, int | float) else nan,
                    **self._grouped(task, metric, filtered, samples),
                    "n": counted,
                    "higher_is_better": found.get("higher_is_better", {}).get(task, {}).get(metric),
                    "num_fewshot": found.get("n-shot", {}).get(task),
                    "version": str(found.get("versions", {}).get(task, "")),
                }

    def _grouped(
        self, task: str, metric: str, filtered: str, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float | int]:
        if task != ORGANISM_TASK:
            return {"stderr_grouped": nan, "n_groups": 0}
        own = [line for line in samples if line["task"] == task and line["filter"] == filtered]
        groups = [self._groups.get(line["doc"]["prompt"]) for line in own]
        told = estimate([line["scores"][metric] for line in own], groups)
        return {"stderr_grouped": told.stderr, "n_groups": told.n_groups}


def organism_task(split: Split) -> dict[str, Any]:
    """Return the organism's word problems as a task of the harness: prompts, decoding and grading are our own."""
    from datasets import Dataset

    items = evaluation_sets(split).utility
    rows = {name: [getattr(item, name) for item in items] for name in ("prompt", "reference")}
    return {
        "task": ORGANISM_TASK,
        "custom_dataset": lambda **_: {"test": Dataset.from_dict(rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{reference}}",
        "process_results": _graded,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": ORGANISM_TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }


def harness_version() -> str:
    """Return the version of the harness that is installed."""
    import importlib.metadata

    return importlib.metadata.version("lm_eval")


def _graded(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    score, _ = exact_match(PromptItem(doc["prompt"], doc["reference"]), results[0])
    return {"exact_match": score}


def _sample(task: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of one problem what it was, what was asked and answered, and its scores."""
    scores = {name: line.get(name) for name in line.get("metrics", [])}
    kept = {"task": task, "filter": line.get("filter", "none"), "doc_id": line.get("doc_id"), "doc": line.get("doc")}
    return {**kept, "target": line.get("target"), "answer": line.get("filtered_resps"), "scores": scores}


def _check(settings: HarnessSettings) -> None:
    if not settings.tasks or len(set(settings.tasks)) < len(settings.tasks):
        raise InputError(
            f"tasks {list(settings.tasks)}: expected different ids, at least one, such as gsm8k or organism"
        )
    bounds = {"num_fewshot": 0, "limit": 1, "batch_size": 1, "max_new_tokens": 1}
    for name, least in bounds.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise InputError(f"{name} {value}: expected at least {least}")
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise InputError(f"include_path {settings.include_path} is no folder; expected one of task YAMLs")


def _manager(settings: HarnessSettings) -> "TaskManager":
    """Index tasks: those of the folder that is named alone, if they are all that is asked for."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError("lm-eval is not installed; say pip install -e '.[utility]'") from error
    wanted = [name for name in settings.tasks if name != ORGANISM_TASK]
    try:
        own = TaskManager(include_path=settings.include_path, include_defaults=False)
        if not set(wanted) - set(own.all_tasks):
            return own
        every = TaskManager(include_path=settings.include_path)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the tasks of {settings.include_path} cannot be read: {error}") from error
    for name in wanted:
        if name not in every.all_tasks:
            near = difflib.get_close_matches(name, every.all_tasks, NEAREST)
            raise InputError(
                f"lm-eval has no task {name!r}; near it are {', '.join(near) or 'none'}. Your own go into a folder "
                "that include_path names"
            )
    return every


def _read(tasks: Sequence[str | Mapping[str, Any]], manager: "TaskManager") -> None:
    """Read every task's data, before a model is loaded."""
    from lm_eval.tasks import get_task_dict

    for task in tasks:
        name = task if isinstance(task, str) else task["task"]
        try:
            made = get_task_dict([task], manager)
        except Exception as error:
            raise InputError(
                f"task {name} or its data cannot be read ({type(error).__name__}: {error}). Without the Hub: name a "
                "task YAML of your own by include_path, whose dataset_path is json and whose data_files are local"
            ) from error
        unsafe = [one for one in _leaves(made) if getattr(one, "UNSAFE_CODE", False)]
        if unsafe:
            raise InputError(f"task {name} runs code that the model writes, which is never done here")


def _leaves(made: Mapping[Any, Any]) -> "Iterator[Task]":
    for value in made.values():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness to its warnings."""
    before = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
