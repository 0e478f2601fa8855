"""Behaviour by generation: utility, harm and over-refusal of a model in memory, each with n and a standard error.

What generates is imported when it is first asked for: an analysis of weights takes the settings alone, and need not
wait for Transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from safety_subspaces.evaluation.judges.rules import Judge, RefusalPhraseJudge
from safety_subspaces.evaluation.rates import Estimate, estimate
from safety_subspaces.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from safety_subspaces.evaluation.behaviour import BehaviourEvaluator, BehaviourResult, build_evaluator
    from safety_subspaces.evaluation.generation import generate_answers

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


def __getattr__(name: str) -> Any:
    """Import what was not imported at the start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "generation" if name == "generate_answers" else "behaviour"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
