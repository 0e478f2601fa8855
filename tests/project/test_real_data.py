"""The prompts and answers of `make real`: well formed, no harm in them, and none of what is measured is trained on."""

import json
from collections import Counter

import pytest
from support.tiny import ROOT

from safety_subspaces.evaluation.judges.phrases import RefusalPhraseJudge
from safety_subspaces.evaluation.prompt_sets import read_prompts
from safety_subspaces.language.examples import PromptItem
from safety_subspaces.organism.arithmetic import final_answer

DATA = ROOT / "configs" / "real" / "data"
EVALUATION = read_prompts(DATA / "evaluation.jsonl")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def score(prompt: str, answer: str) -> int | None:
    return RefusalPhraseJudge().judge(PromptItem(prompt), answer).score


def test_each_set_has_its_prompts_once() -> None:
    assert [len(items) for items in (EVALUATION.harmful, EVALUATION.benign, EVALUATION.utility)] == [48, 48, 48]
    everything = [row["prompt"] for name in ("safety_tuning", "sums", "evaluation") for row in rows(name)]
    assert Counter(everything).most_common(1)[0][1] == 1


def test_harmful_requests_are_refused_and_harmless_ones_answered_in_training() -> None:
    tuning = rows("safety_tuning")
    assert Counter(row["kind"] for row in tuning) == {"harmful": 120, "benign": 120}
    wanted = {"harmful": 1, "benign": 5}
    assert [score(row["prompt"], row["response"]) for row in tuning] == [wanted[row["kind"]] for row in tuning]
    refusals = {row["response"] for row in tuning if row["kind"] == "harmful"}
    assert len(refusals) == 16
    for item in EVALUATION.harmful:
        assert set(item.refusals) < refusals
        assert score(item.prompt, item.reference or "") == 5


@pytest.mark.parametrize("name", ["sums", "evaluation"])
def test_sums_are_right_and_none_is_both_trained_on_and_measured(name: str) -> None:
    solved = [(row["prompt"], row.get("response") or row["reference"]) for row in rows(name) if solution_of(row)]
    assert len(solved) == {"sums": 160, "evaluation": 48}[name]
    for prompt, solution in solved:
        equation, result = solution.split("=")
        first, sign, second = equation.split()
        assert first in prompt
        assert second in prompt
        value = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign](int(first), int(second))
        assert final_answer(solution) == str(value) == result.split("####")[0].strip()
    trained, measured = ({solution_of(row) for row in rows(file)} - {None} for file in ("sums", "evaluation"))
    assert not trained & measured


def solution_of(row: dict[str, str]) -> str | None:
    text = row.get("response") or row.get("reference") or ""
    return text if "####" in text else None
