"""``analyze.py judge``: answers that were kept, scored by another judge, and how far the two agree."""

import json
from typing import TYPE_CHECKING, Any

from safety_subspaces.artefacts.results import ResultFolder, check_result_free

if TYPE_CHECKING:
    import pandas as pd


def judge(
    generations: str,
    out: str,
    judge: str = "rubric",
    judge_args: dict[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Score the answers of an earlier evaluation by another judge, and say how far it agrees with the one before.

    Writes table (one row a model and prompt set: rates and the mean score), agreement (Cohen's kappa with the scores in
    the file, by model, set and over all) and generations.jsonl (every answer with both scores). Asked again after a
    break, an endpoint is sent nothing that it has answered.

    Args:
        generations: A generations.jsonl of evaluate, project or steer: JSON lines with set, prompt and answer, and if
            they like model, score and group (a list of two where prompts share two things that cross).
        out: Folder to write.
        judge: rubric (a chat model), classifier, phrases (refusal phrases), organism (for the organism's prompts), or
            the import path of another.
        judge_args: What the judge is made with: of the rubric model, base_url, max_cost and the like, of the classifier
            path, harmful_label and the like.
        limit: At most so many answers of each model (of steering, of each dose) and set, the first ones.
        seed: Of the bootstrap over groups of prompts.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each model (of steering, each dose) and prompt set.

    Raises:
        InputError: A file that is missing or lacks a field, a judge that cannot be reached or might cost more than
            max_cost, an out that is occupied. Nothing was sent then.
    """
    check_result_free(out, "judge", overwrite)

    import pandas as pd

    from safety_subspaces.analysis.judge.run import agreements, cells_of, item_of, judge_all, read_answers, row_of
    from safety_subspaces.evaluation.behaviour import named_judge

    lines, left_out = read_answers(generations, limit)
    arguments: dict[str, Any] = {"generations": generations, "judge": judge, "judge_args": judge_args or {}}
    arguments |= {"limit": limit, "seed": seed}
    judging = named_judge(judge, judge_args)
    results = ResultFolder(out, "judge", arguments, [generations, *judging.input_files()], overwrite)
    results.check_free()
    judging.prepare([item_of(line) for line in lines], [line["answer"] for line in lines])
    verdicts = judge_all(judging, lines)
    table = pd.DataFrame(row_of(identity, part) for identity, part in cells_of(lines, verdicts))
    compared = [line for line in lines if "score" in line]
    with results as folder:
        folder.write_table(table)
        if compared:
            folder.write_table(pd.DataFrame(agreements(lines, verdicts, seed)), "agreement")
        else:
            folder.leave_out("agreement", "the file holds no earlier scores")
        for name, reason in left_out:
            folder.leave_out(name, reason)
        scored = [
            {**line, "score": verdict.score, "reason": verdict.reason, "earlier_score": line.get("score")}
            for line, verdict in zip(lines, verdicts, strict=True)
        ]
        text = "".join(json.dumps(line) + "\n" for line in scored)
        (folder.folder / "generations.jsonl").write_text(text, encoding="utf-8")
        folder.summary = {"judge": judge, "rows": table.to_dict("records")}
    return table
