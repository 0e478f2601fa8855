"""The steps of ``analyze.py judge``: answers read and checked, judged, and put into rows by model and set."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import parse_json, reading
from safety_subspaces.artefacts.text import encodable_value
from safety_subspaces.evaluation.agreement import judge_agreement
from safety_subspaces.evaluation.behaviour import HARMFUL_FROM, REFUSED, verdicts_of
from safety_subspaces.evaluation.judges import Judge
from safety_subspaces.evaluation.rates import SCORE, SHARE, estimate
from safety_subspaces.language.examples import PromptItem, Verdict, groupings

# Utility is compared with its reference, and needs no judge.
JUDGED = ("harmful", "benign")


ALL = "all"


# Judges score from 1 to 5; agreement counts every pair of scores up to the largest.
LARGEST_SCORE = 100


# Fields of a line that are of one answer; the others say which model it is of, and under what dose of steering.
OF_AN_ANSWER = ("set", "prompt", "answer", "reference", "refusals", "score", "reason", "group", "earlier_score")


def read_answers(path: str, limit: int | None) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read the lines that are judged, and say what is left out."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; expected the generations.jsonl of an evaluation")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: expected at least 1")
    lines: list[dict[str, Any]] = []
    others = 0
    counts: dict[str, int] = {}
    with reading(path, "the generations.jsonl of an evaluation"):
        texts = Path(path).read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line = _checked(text, f"{path}, line {number}")
        cell = _cell(line)
        counts[cell] = counts.get(cell, 0) + 1
        if line["set"] not in JUDGED or (limit is not None and counts[cell] > limit):
            others += 1
        else:
            lines.append(line)
    for name in {name for line in lines for name in line} - set(OF_AN_ANSWER):
        if len({isinstance(line[name], str) for line in lines if line.get(name) is not None}) > 1:
            raise InputError(f"{path}: {name} is a text in some lines and a number in others; expected one kind")
    if not lines:
        raise InputError(f"{path} holds no answer to a harmful or benign request")
    reason = "utility needs no judge" + ("" if limit is None else f", or beyond the limit of {limit}")
    return lines, [(f"{others} of {others + len(lines)} answers", reason)] if others else []


def _checked(text: str, where: str) -> dict[str, Any]:
    try:
        line = encodable_value(parse_json(text))
    except ValueError as error:
        raise InputError(f"{where}: expected one JSON object a line ({error})") from error
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in ("set", "prompt", "answer")):
        raise InputError(f"{where}: expected the fields set, prompt and answer, each a text")
    for name, value in line.items():
        if name in ("reference", "reason") and not isinstance(value, str | None):
            raise InputError(f"{where}: {name} {str(value)[:80]!r}; expected a text, or null")
        crossed = name == "group" and isinstance(value, list) and len(value) == 2 and all(map(_is_plain, value))
        if (name not in OF_AN_ANSWER or name == "group") and not _is_plain(value) and not crossed:
            raise InputError(f"{where}: {name[:80]} {str(value)[:80]!r}; expected a text, a number, or null")
    score = line.get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and abs(score) <= LARGEST_SCORE and score % 1 == 0):
        raise InputError(f"{where}: score {score!r}; expected a whole number, or null")
    return line


def _is_plain(value: Any) -> bool:
    """Tell whether a value can stand in a column of a table and tell answers apart."""
    return isinstance(value, str | bool | float | None) or (isinstance(value, int) and abs(value) < 2**53)


def item_of(line: dict[str, Any]) -> PromptItem:
    """Return the prompt of a line, with its reference."""
    return PromptItem(line["prompt"], line.get("reference"))


def judge_all(judging: Judge, lines: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Return the verdict on each line."""
    verdicts: dict[int, Verdict] = {}
    for name in JUDGED:
        indices = [index for index, line in enumerate(lines) if line["set"] == name]
        items = [item_of(lines[index]) for index in indices]
        answers = [lines[index]["answer"] for index in indices]
        if indices:
            verdicts |= dict(zip(indices, verdicts_of(judging, name, items, answers), strict=True))
    return [verdicts[index] for index in range(len(lines))]


def cells_of(
    lines: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]
) -> list[tuple[dict[str, Any], list[tuple[dict[str, Any], Verdict]]]]:
    """Deal answers and verdicts to models (of steering, to doses) and sets."""
    cells: dict[str, list[tuple[dict[str, Any], Verdict]]] = {}
    for line, verdict in zip(lines, verdicts, strict=True):
        cells.setdefault(_cell(line), []).append((line, verdict))
    return [(_identity(part[0][0]), part) for part in cells.values()]


def _identity(line: dict[str, Any]) -> dict[str, Any]:
    """What an answer is of: the model, whatever else is not of the one answer, and the set."""
    named = {name: value for name, value in line.items() if name not in OF_AN_ANSWER}
    return {"model": "", **named, "set": line["set"]}


def _cell(line: dict[str, Any]) -> str:
    return json.dumps(_identity(line), sort_keys=True)


def _group(line: dict[str, Any]) -> Hashable:
    """What answers that stand and fall together share: one thing or two; ``None`` where it is the prompt itself."""
    group: Hashable = tuple(line["group"]) if isinstance(line.get("group"), list) else line.get("group")
    return group


def row_of(identity: dict[str, Any], part: Sequence[tuple[dict[str, Any], Verdict]]) -> dict[str, Any]:
    """Return the row of a model and set: rates and the mean score, each with its error."""
    scores = [None if verdict.score is None else float(verdict.score) for _, verdict in part]
    groups = groupings([_group(line) for line, _ in part], [line["prompt"] for line, _ in part])
    shares = {
        "answered_rate": [None if s is None else float(s >= HARMFUL_FROM) for s in scores],
        "refused_rate": [None if s is None else float(s == REFUSED) for s in scores],
    }
    mean = estimate(scores, groups, SCORE)
    row: dict[str, Any] = {**identity, "score": mean.mean, "score_stderr": mean.stderr}
    for measure, values in shares.items():
        result = estimate(values, groups, SHARE)
        row |= {measure: result.mean, f"{measure}_stderr": result.stderr}
    return row | {"n": mean.n, "n_groups": mean.n_groups, "n_unscored": mean.n_unscored}


def agreements(lines: Sequence[dict[str, Any]], verdicts: Sequence[Verdict], seed: int) -> list[dict[str, Any]]:
    """Return how far earlier scores and verdicts agree, by model and set and over all."""
    everything = ({"model": ALL, "set": ALL}, list(zip(lines, verdicts, strict=True)))
    rows = []
    for identity, part in [*cells_of(lines, verdicts), everything]:
        compared = [line for line, _ in part]
        scores = [None if verdict.score is None else float(verdict.score) for _, verdict in part]
        earlier = [None if line.get("score") is None else float(line["score"]) for line in compared]
        groups = [line["prompt"] if _group(line) is None else _group(line) for line in compared]
        result = judge_agreement(earlier, scores, groups, HARMFUL_FROM, seed)
        rows.append({**identity, **asdict(result)})
    return rows
