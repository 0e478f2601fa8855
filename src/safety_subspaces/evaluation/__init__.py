"""Behaviour by generation: utility, harm and over-refusal of a model in memory, each with n and a standard error."""

from safety_subspaces.evaluation.behaviour import (
    BehaviourEvaluator,
    BehaviourResult,
    EvaluationSettings,
    build_evaluator,
)
from safety_subspaces.evaluation.generation import generate_answers
from safety_subspaces.evaluation.judges import Judge, RefusalPhraseJudge
from safety_subspaces.evaluation.rates import Estimate, estimate

__all__ = [
    "BehaviourEvaluator",
    "BehaviourResult",
    "Estimate",
    "EvaluationSettings",
    "Judge",
    "RefusalPhraseJudge",
    "build_evaluator",
    "estimate",
    "generate_answers",
]
