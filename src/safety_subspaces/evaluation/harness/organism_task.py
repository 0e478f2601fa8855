"""What definitions/organism.yaml calls: the organism's problems for lm-eval, graded as our own evaluation does."""

from typing import TYPE_CHECKING, Any, Literal

from safety_subspaces.evaluation.behaviour import exact_match
from safety_subspaces.language.examples import PromptItem
from safety_subspaces.organism.evaluation_sets import evaluation_sets

if TYPE_CHECKING:
    from datasets import Dataset


def documents(split: Literal["dev", "test"] = "test", **_: Any) -> dict[str, "Dataset"]:
    """Return the problems of a split under its name; lm-eval passes the task's metadata as well."""
    from datasets import Dataset

    items = evaluation_sets(split).utility
    rows = [{"question": item.prompt, "answer": item.reference, "group": item.group} for item in items]
    return {split: Dataset.from_list(rows)}


def grade(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Score the answer to one problem: 1 where its final number is right."""
    score, _ = exact_match(PromptItem(document["question"], document["answer"]), answers[0])
    return {"exact_match": score or 0.0}  # an answer that ends within its thought is none
