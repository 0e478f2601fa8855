"""Projected models made from a sweep's factors: written to disk, or measured one after another in memory."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from safety_subspaces.analysis.projection_sweep import Sweep, energy_share
from safety_subspaces.analysis.projections import Projection, TensorProjections
from safety_subspaces.checkpoint import Checkpoint
from safety_subspaces.checkpoint_writing import write_checkpoint
from safety_subspaces.delta import read_weight, update_of
from safety_subspaces.errors import InputError
from safety_subspaces.evaluation import BehaviourEvaluator
from safety_subspaces.language_model import load_language_model
from safety_subspaces.linalg import LeftFactors, as_matrix
from safety_subspaces.names import canonical_name
from safety_subspaces.projector import Method


class ProjectedModels:
    """Makes projected models from the factors that a sweep left in a folder.

    Args:
        aligned: The model that updates are added to.
        tuned: The fine-tunes by label.
        sweep: What the sweep found.
        scratch: Where it left each tensor's factors, numbered in the aligned model's order.
        seed: The sweep's seed: the same draws are made again.
    """

    def __init__(
        self, aligned: Checkpoint, tuned: Mapping[str, Checkpoint], sweep: Sweep, scratch: Path, seed: int
    ) -> None:
        self.aligned = aligned
        self.tuned = tuned
        self.sweep = sweep
        self.scratch = scratch
        self.seed = seed
        self._places = {name: place for place, name in enumerate(aligned.names)}

    def write_all(self, table: pd.DataFrame, folder: Path) -> None:
        """Save the model of every row."""
        for row in tqdm(_rows_of(table), desc="writing models", unit="model"):
            write_checkpoint(folder / _label_of(row), self.aligned, partial(self._weight, row))

    def evaluate_all(
        self, table: pd.DataFrame, aligned_path: str, evaluator: BehaviourEvaluator, generations: Path
    ) -> pd.DataFrame:
        """Measure the model of every row, one after another in the parameters of one loaded model."""
        model, tokenizer = load_language_model(aligned_path)
        parameters = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
        unknown = [name for name in self.aligned.names if name not in parameters]
        if unknown:
            raise InputError(
                f"{aligned_path} stores {unknown[0]}, which is no parameter of the {type(model).__name__} "
                "that it loads as; save the model again with save_pretrained"
            )
        measured = []
        with generations.open("w", encoding="utf-8") as lines:
            for row in tqdm(_rows_of(table), desc="evaluating models", unit="model"):
                with torch.no_grad():
                    for name in self.aligned.names:
                        parameters[name].copy_(self._weight(row, name))
                result = evaluator.evaluate(model, tokenizer, _label_of(row))
                measured.append(result.row)
                lines.writelines(json.dumps(line) + "\n" for line in result.generations)
        return pd.concat([table, pd.DataFrame(measured, index=table.index)], axis=1)

    def _weight(self, row: Mapping[str, Any], name: str) -> Tensor:
        """Return ``W_A`` plus the projected update of a row's model."""
        update = update_of(self.tuned[row["tuned"]], self.aligned, name)
        projection = Projection(row["subspace"], row["fraction"], row["draw"])
        spilled = load_file(self.scratch / f"{self._places[name]}.safetensors")
        projections = TensorProjections(name, LeftFactors(**spilled), as_matrix(update).shape[1], self.seed)
        scale = _scale_of(self.sweep.top_share(row["tuned"], row["fraction"]), row["method"])
        scale = 0.0 if scale != scale else scale  # an update that is zero everywhere, whatever the factor
        return read_weight(self.aligned, name) + projections.updated(update, projection, row["method"], scale)


def _scale_of(top_share: float, method: Method) -> float:
    """Factor at which *scaled* has the energy of *top*."""
    return energy_share(top_share, method) ** 0.5


def _rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _label_of(row: Mapping[str, Any]) -> str:
    """``<tuned>/<subspace>/<method>/<fraction>/<draw>``: in generations, and as a folder."""
    return "/".join(str(row[key]) for key in ("tuned", "subspace", "method", "fraction", "draw"))
