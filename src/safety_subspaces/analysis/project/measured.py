"""Projected models measured one after another in memory, in the parameters of one loaded model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safety_subspaces.algebra.factors import Factors, as_matrix
from safety_subspaces.algebra.projection import TensorProjections
from safety_subspaces.analysis.project.tables import Sweep
from safety_subspaces.analysis.project.tensors import ModelRow, spilled_file
from safety_subspaces.analysis.project.written import scale_of
from safety_subspaces.analysis.work import opened
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.progress import Bar
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.evaluation.behaviour import BehaviourEvaluator
from safety_subspaces.language.adapters import untie
from safety_subspaces.language.architecture import transposed_weights
from safety_subspaces.language.model import load_language_model
from safety_subspaces.weights.compatibility import compared_names
from safety_subspaces.weights.delta import read_weight, update_of


@dataclass(frozen=True)
class MeasuredModels:
    """Makes projected models in memory from the factors that a sweep left in a folder.

    Args:
        aligned: Path of the model that updates are added to.
        tuned: Path of each fine-tune by label.
        sweep: What the sweep found.
        spilled: Where it left each tensor's factors.
        seed: The sweep's seed: the same draws are made again.
    """

    aligned: str
    tuned: Mapping[str, str]
    sweep: Sweep
    spilled: Path
    seed: int

    def evaluate_all(
        self, rows: Sequence[ModelRow], evaluator: BehaviourEvaluator, generations: Path
    ) -> list[dict[str, str | float | int]]:
        """Measure each model's behaviour, one after another in the parameters of one loaded model."""
        model, tokenizer = load_language_model(self.aligned, device="auto")
        aligned = opened(self.aligned)
        names = compared_names(aligned, *map(opened, self.tuned.values()))
        untie(model, [name for name in names if name in aligned.full.ties])
        parameters = {aligned.full.name_of(name): parameter for name, parameter in model.named_parameters()}
        turned = transposed_weights(model)
        unknown = [name for name in names if name not in parameters]
        if unknown:
            raise InputError(
                f"{self.aligned} stores {unknown[0]}, which is no parameter of the {type(model).__name__} that it "
                "loads as: its models cannot be made in memory. Write them with --write true, and evaluate them with "
                "analyze.py evaluate"
            )
        measured: list[dict[str, str | float | int]] = []
        with generations.open("w", encoding="utf-8") as lines:
            for row in Bar(rows, desc="evaluating models", unit="model"):
                with torch.no_grad():
                    for name in names:
                        weight = self._weight(row, name)
                        parameters[name].copy_(weight.T if name in turned else weight)
                result = evaluator.evaluate(model, tokenizer, row.folder)
                measured.append({"judge": evaluator.settings.judged_by, **result.row})
                lines.writelines(json.dumps(line) + "\n" for line in result.generations)
        return measured

    def _weight(self, row: ModelRow, name: str) -> Tensor:
        """Return ``W_A`` plus the projected update of one model."""
        aligned = opened(self.aligned)
        update = update_of(opened(self.tuned[row.tuned]), aligned, name)
        factors = Factors(**TensorFile(spilled_file(self.spilled, name)).read_all())  # type: ignore[arg-type]
        projections = TensorProjections(name, factors, as_matrix(update).shape[1], self.seed)
        scale = scale_of(self.sweep, row)
        return read_weight(aligned, name) + projections.updated(update, row.projection, row.method, scale)
