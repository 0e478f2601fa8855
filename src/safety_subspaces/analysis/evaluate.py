"""``analyze.py evaluate``: the behaviour of any number of models on the same prompts."""

import json
from dataclasses import asdict
from typing import Literal

import pandas as pd
from tqdm import tqdm

from safety_subspaces.analysis.results import ResultFolder
from safety_subspaces.errors import InputError
from safety_subspaces.evaluation import EvaluationSettings, build_evaluator
from safety_subspaces.evaluation.prompt_sets import files_of
from safety_subspaces.language_model import check_model_path, load_language_model
from safety_subspaces.prompting import CHAT


def evaluate(
    models: dict[str, str],
    out: str,
    prompts: str | dict[str, str] = "organism",
    split: Literal["dev", "test"] = "test",
    judge: Literal["organism", "rules"] = "organism",
    template: str = CHAT,
    max_new_tokens: int = 32,
    batch_size: int = 256,
    limit: int | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Measure utility, harm, over-refusal and the refusal margin of each model by greedy generation.

    Writes ``table`` (one row a model) and ``generations.jsonl`` (every answer with its score).

    Args:
        models: Label and path (or Hub id) of each model; adapters are merged into the base that they name.
        out: Folder to write.
        prompts: ``organism``; a JSONL file with the fields set, prompt, reference and refusals; or a source for each of
            utility, harmful and benign: a JSONL file, or a known data set such as advbench, xstest_safe or gsm8k_test.
        split: Split of the organism's prompts: ``dev`` to choose settings, ``test`` to report.
        judge: ``organism`` or ``rules`` (refusal phrases).
        template: ``chat``, or a named prompt template.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
        overwrite: Whether an earlier result under ``out`` may be replaced.

    Raises:
        InputError: A model or prompt file that is missing, or an ``out`` that is occupied. Nothing was computed then.
    """
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    for path in models.values():
        check_model_path(path)
    settings = EvaluationSettings(prompts, split, judge, template, max_new_tokens, batch_size, limit)
    evaluator = build_evaluator(settings)
    arguments = {"models": models, **asdict(settings)}
    inputs = [*models.values(), *files_of(prompts)]
    rows = []
    with (
        ResultFolder(out, "evaluate", arguments, inputs, overwrite) as folder,
        (folder.folder / "generations.jsonl").open("w", encoding="utf-8") as stream,
    ):
        for label, path in tqdm(models.items(), desc="evaluate", unit="model"):
            model, tokenizer = load_language_model(path, device="auto")
            result = evaluator.evaluate(model, tokenizer, label)
            rows.append({"model": label, **result.row})
            stream.writelines(json.dumps(line) + "\n" for line in result.generations)
        table = pd.DataFrame(rows)
        folder.write_table(table)
        folder.summary = {"prompts": evaluator.prompts.name, "judge": judge, "rows": rows}
    return table
