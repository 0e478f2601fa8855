"""Behaviour is measured where there is a GPU: answers of a real model on the CPU would take days."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny import save_tiny_model

import safety_subspaces.analysis.evaluate.command as evaluating
import safety_subspaces.analysis.project.measured as measuring
from safety_subspaces.analysis.project.command import project
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.model import load_language_model


def test_evaluate_and_project_take_a_gpu_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, *arguments: Any, device: str = "cpu") -> Any:
        asked.append(device)
        return load_language_model(path, *arguments, device=device)

    monkeypatch.setattr("safety_subspaces.language.model.load_language_model", load)
    monkeypatch.setattr(measuring, "load_language_model", load)
    base, aligned, tuned = (save_tiny_model(tmp_path / str(seed), seed) for seed in range(3))
    evaluating.evaluate({"base": base}, str(tmp_path / "evaluated"), limit=1, max_new_tokens=1)
    settings = EvaluationSettings(limit=1, max_new_tokens=1)
    project(
        base,
        aligned,
        {"tuned": tuned},
        str(tmp_path / "projected"),
        ["top"],
        ["away"],
        [0.5],
        draws=1,
        evaluate=settings,
    )
    assert asked == ["auto", "auto"]
