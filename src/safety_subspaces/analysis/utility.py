"""``analyze.py utility``: models on the tasks of the lm-evaluation-harness, or on the organism's problems by it."""

import json
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd
import torch
from tqdm import tqdm

from safety_subspaces.analysis.results import ResultFolder
from safety_subspaces.errors import InputError
from safety_subspaces.evaluation.harness import Harness, HarnessSettings, harness_version
from safety_subspaces.language_model import check_model_path, load_language_model


def utility(
    models: dict[str, str],
    tasks: list[str],
    out: str,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    chat: bool = True,
    max_new_tokens: int | None = None,
    split: Literal["dev", "test"] = "test",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Run tasks of lm-eval on each model in memory.

    The paper's setting is --tasks '[gsm8k]' --num_fewshot 1, read at the filter flexible-extract. Writes table and
    samples.jsonl (every problem with its answer and scores).

    Args:
        models: Label and path (or Hub id) of each model; adapters are merged into the base that they name.
        tasks: Ids of lm-eval, as gsm8k; organism for the embedded world's word problems, graded as by evaluate.
        out: Folder to write.
        include_path: Folder of your own task YAMLs; functions that they name are run.
        num_fewshot: Worked examples before each problem; by default each task's own number.
        limit: At most so many problems of each task, the first ones.
        batch_size: Problems at once.
        chat: Whether problems go through the tokenizer's chat template.
        max_new_tokens: Longest answer; by default each task's own.
        split: Split of the organism's problems.
        dtype: Type in which models are run.
        device: As for activations.
        seed: Of the choice of worked examples.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each model, task, metric and filter: value, stderr, n, version and settings. stderr takes problems
        as independent; stderr_grouped, for the organism, does not.

    Raises:
        InputError: Before a model is loaded: lm-eval is not installed, a task or its data cannot be read, an argument
            that cannot be used, an out that is occupied.

    Source: Gao et al., the language model evaluation harness, https://github.com/EleutherAI/lm-evaluation-harness.
    """
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    for path in models.values():
        check_model_path(path)
    settings = HarnessSettings(
        tuple(tasks), include_path, num_fewshot, limit, batch_size, chat, max_new_tokens, split, seed
    )
    arguments: dict[str, Any] = {"models": models, **asdict(settings), "tasks": tasks, "dtype": dtype, "device": device}
    results = ResultFolder(out, "utility", arguments, list(models.values()), overwrite)
    results.check_free()
    harness = Harness(settings)
    rows: list[dict[str, Any]] = []
    with results as folder, (folder.folder / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for label, path in tqdm(models.items(), desc="utility", unit="model"):
            model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
            found, samples = harness.evaluate(model, tokenizer)
            rows += [{"model": label, **row} for row in found]
            stream.writelines(json.dumps({"model": label, **line}, default=str) + "\n" for line in samples)
        table = pd.DataFrame(rows)
        folder.write_table(table)
        folder.summary = {
            "lm_eval": harness_version(),
            "rows": table.astype(object).where(table.notna(), None).to_dict("records"),
        }
    return table
