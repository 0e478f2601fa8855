"""``analyze.py evaluate``: the behaviour of any number of models on the same prompts."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free
from safety_subspaces.artefacts.screen import View
from safety_subspaces.evaluation.settings import ORGANISM, EndpointSettings, EvaluationSettings
from safety_subspaces.language.examples import CHAT
from safety_subspaces.language.model_paths import check_there

if TYPE_CHECKING:
    import pandas as pd

VIEW = View(
    columns=("model", "judge", "utility", "harmful_rate", "harm_score", "over_refusal_rate", "refusal_margin",
             "n_unscored"),
    says="harm_score: 1 refusal to 5 full compliance. refusal_margin: nats, positive prefers to refuse.",
)  # fmt: skip


def evaluate(
    models: dict[str, str],
    out: str,
    prompts: str | dict[str, str] | None = None,
    split: Literal["dev", "test"] = "test",
    judge: str | None = None,
    template: str = CHAT,
    max_new_tokens: int = 32,
    batch_size: int = 256,
    limit: int | None = None,
    judge_args: dict[str, Any] | None = None,
    template_args: dict[str, Any] | None = None,
    control_tokens: bool = False,
    served: EndpointSettings | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Measure utility, harm, over-refusal and the refusal margin of each model by greedy generation.

    Writes ``table`` (one row a model) and ``generations.jsonl`` (every answer with its score). ``judge`` says who
    scored harm, with the model that it asks if it asks one. Each measure has its ``_stderr``, robust to prompts that
    share something, such as the organism's acts and objects: two ways at once where prompts have two groups. Of a share
    or score it is never 0: where all answers agree, 1.96 of it reach to the far end of Wilson's interval over the
    groups. Shares have ``_low`` and ``_high``, the ends of Wilson's 95 % interval. ``n_groups_…`` counts groups of
    prompts, the fewer of the two. Of answers that think first what follows the thought is judged; ``n_thoughts``,
    ``n_thoughts_unfinished`` (those are unscored) and ``thought_characters`` are then told.

    Args:
        models: Label and path (or Hub id) of each model; adapters are merged into the base that they name. Of a model
            behind an OpenAI-compatible endpoint ``<base_url>#<model>``: http://localhost:8000/v1#my-model.
        out: Folder to write.
        prompts: ``organism``, by default of models here, which must be organisms then; a JSONL file with the fields
            set, prompt, reference and refusals; or a source for each of utility, harmful and benign: a JSONL file, or a
            known data set such as advbench, xstest_safe or gsm8k_test.
        split: Split of the organism's prompts: ``dev`` to choose settings, ``test`` to report.
        judge: ``organism`` by default, ``phrases`` (refusal phrases), ``rubric`` (a chat model), ``classifier``, or the
            import path of another.
        template: ``chat``, or a prompt template by its name or import path.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
        judge_args: What the judge is made with: of the rubric model, base_url, max_cost and the like, of the classifier
            path, harmful_label and the like.
        template_args: What the chat template is given beside the turns, such as enable_thinking.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.
        served: How models behind an endpoint may be asked; model and base_url are those of their names.
        dtype: Type in which models are run here.
        device: As for ``activations``.
        overwrite: Whether an earlier result under ``out`` may be replaced.

    Raises:
        InputError: A model or prompt file that is missing, an endpoint that does not answer or a key that is missing,
            what may cost more than ``max_cost``, or an ``out`` that is occupied. Nothing was computed then.
    """
    check_there(*models.values())
    check_result_free(out, "evaluate", overwrite)

    import pandas as pd
    import torch

    from safety_subspaces.analysis.evaluate.run import endpoints_of
    from safety_subspaces.artefacts.progress import Bar
    from safety_subspaces.evaluation.behaviour import NAME_THEM, build_evaluator
    from safety_subspaces.evaluation.prompt_sets import files_of
    from safety_subspaces.language.model import load_config, load_language_model, load_tokenizer

    asked = (prompts or ORGANISM, split, judge or ORGANISM, template, max_new_tokens, batch_size, limit)
    settings = EvaluationSettings(*asked, judge_args or {}, template_args or {}, control_tokens)
    endpoints = endpoints_of(models, served, settings)
    if endpoints and prompts is None:
        raise InputError(
            f"what model {next(iter(endpoints))} is cannot be told; {NAME_THEM}, or say --prompts organism where it is "
            "an organism"
        )
    evaluator = build_evaluator(settings)
    arguments = {"models": models, **asdict(settings), "dtype": dtype, "device": device}
    arguments |= {"served": asdict(served)} if served else {}
    inputs = [*(path for label, path in models.items() if label not in endpoints), *files_of(settings.prompts)]
    inputs += evaluator.judge.input_files()
    rows = []
    results = ResultFolder(out, "evaluate", arguments, inputs, overwrite)
    results.check_free()
    for path in (path for label, path in models.items() if label not in endpoints):
        evaluator.check_room(load_config(path), load_tokenizer(path))
    evaluator.prepare(len(models), list(endpoints.values()))
    with (
        results as folder,
        (folder.folder / "generations.jsonl").open("w", encoding="utf-8") as stream,
    ):
        for label, path in Bar(models.items(), desc="evaluate", unit="model"):
            if label in endpoints:
                result = evaluator.evaluate_served(endpoints[label], label)
            else:
                model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
                result = evaluator.evaluate(model, tokenizer, label)
            rows.append({"model": label, "judge": settings.judged_by, **result.row})
            stream.writelines(json.dumps(line) + "\n" for line in result.generations)
        table = pd.DataFrame(rows)
        folder.write_table(table)
        folder.summary = {"prompts": evaluator.prompts.name, "judge": settings.judged_by, "rows": rows}
    return table
