"""``analyze.py utility``: any task of lm-eval on any number of models."""

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free
from safety_subspaces.artefacts.screen import View
from safety_subspaces.language.model_paths import check_there

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

VIEW = View(
    columns=("model", "task", "metric", "filter", "value", "chance", "n", "n_truncated"),
    errors=(("value", "stderr_grouped"),),
    says="value is lm-eval's; its error is over groups of documents.",
)


def utility(
    models: dict[str, str],
    out: str,
    tasks: list[str] | str = "organism",
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    template: Literal["chat", "none"] = "chat",
    split: Literal["dev", "test"] = "test",
    max_new_tokens: int | None = None,
    unsafe_code: bool = False,
    trust_task_code: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Measure utility by lm-eval, on its tasks or your own. The paper's is gsm8k, num_fewshot 1, flexible-extract.

    Writes table (a row for each model, task, metric and filter) and samples.jsonl (every document's prompt, answers and
    scores). stderr is lm-eval's, of independent documents; stderr_grouped is robust to documents that stand and fall
    together, where the task's metadata names their group_field. n_truncated counts documents whose prompt was cut on
    the left to fit into the model; chance is that of picking among the choices. Decoding is what the task says: a
    model's own generation settings are put aside, but for where an answer ends.

    Args:
        models: Label and path (or Hub id) of each model; adapters are merged into the base that they name.
        out: Folder to write.
        tasks: Ids of tasks, tags or groups, one or a list; organism is the embedded one, the same problems and grade
            as of evaluate.
        include_path: Folder of task YAMLs of your own. Where they call Python that lies beside them (!function), they
            are refused unless trust_task_code is said.
        num_fewshot: Worked examples in each prompt; by default what the task says.
        limit: At most so many documents of each task, the first ones.
        batch_size: Sequences at once.
        template: chat for the tokenizer's chat template, with worked examples as turns; none for plain text.
        split: Split of the organism's problems: dev to choose settings, test to report.
        max_new_tokens: Longest answer, in tokens; by default what the task says.
        unsafe_code: Run tasks that execute code which the model writes, or which a metric fetches from the Hub.
        trust_task_code: Run the Python that YAMLs in include_path call, and let their templates reach into it. Have
            read it; only the command line can say so.
        dtype: Type in which models are run.
        device: cpu, cuda, cuda:<n>, auto (a GPU, if there is one), or spread (over all of them, through accelerate).
        seed: Seed of which worked examples are drawn, and of tasks that sample.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each model, task, metric and filter.

    Raises:
        InputError: Before a model is loaded: lm-eval is not installed, a task is unknown, broken, without its data or
            unsafe, a number is out of range, a tokenizer lacks a chat template, a model is missing, out is occupied.

    Source: Gao et al., the Language Model Evaluation Harness, doi 10.5281/zenodo.10256836; arXiv 2505.14185 (setting).
    """
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    check_there(*models.values())
    check_result_free(out, "utility", overwrite)

    import pandas as pd
    import torch

    from safety_subspaces.evaluation.harness.run import build_harness, harness_version
    from safety_subspaces.evaluation.harness.tasks import HarnessSettings, check_installed, task_files
    from safety_subspaces.language.model import load_language_model, load_tokenizer
    from safety_subspaces.language.model_paths import check_model_path

    for path in models.values():
        check_model_path(path)
    check_installed()
    names = (tasks,) if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    settings = HarnessSettings(
        names,
        include_path,
        num_fewshot,
        limit,
        batch_size,
        template,
        split,
        max_new_tokens,
        unsafe_code,
        trust_task_code,
        seed,
    )
    arguments: dict[str, Any] = {"models": models, **asdict(settings), "dtype": dtype, "device": device}
    arguments["tasks"] = list(names)
    inputs = [*models.values(), *task_files(include_path)]
    results = ResultFolder(out, "utility", arguments, inputs, overwrite)
    results.check_free()
    harness = build_harness(settings)
    for path in models.values():
        harness.check_tokenizer(load_tokenizer(path))
    rows: list[dict[str, Any]] = []
    with results, (results.folder / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for number, (label, path) in enumerate(models.items(), start=1):
            logger.info("lm-eval of %s (%d of %d)", label, number, len(models))  # its progress bars name no model
            model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
            result = harness.evaluate(model, tokenizer, label)
            del model
            rows += result.rows
            stream.writelines(json.dumps(line, default=_plain) + "\n" for line in result.samples)
        table = pd.DataFrame(rows)
        results.write_table(table)
        results.summary = {"lm_eval": harness_version(), "tasks": harness.described}
    return table


def _plain(value: Any) -> Any:
    """Turn NumPy's scalars into Python's, and what JSON does not know into text."""
    return value.item() if hasattr(value, "item") else str(value)
