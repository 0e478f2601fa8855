"""Projected models: measured one after another in memory, or finished on disk after the sweep has written them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from safety_subspaces.analysis.projection_sweep import KEYS, Sweep, energy_share
from safety_subspaces.analysis.projection_tensors import ModelRow, write_rows
from safety_subspaces.analysis.projections import Projection, TensorProjections
from safety_subspaces.analysis.tensor_work import Record, opened
from safety_subspaces.checkpoint_writing import CheckpointWriter
from safety_subspaces.delta import open_update, read_weight, update_of
from safety_subspaces.errors import InputError
from safety_subspaces.evaluation import BehaviourEvaluator
from safety_subspaces.language_model import load_language_model
from safety_subspaces.linalg import LeftFactors, as_matrix
from safety_subspaces.names import canonical_name
from safety_subspaces.streamed import BLOCK
from safety_subspaces.update_algebra import matrix_of, row_blocks


@dataclass(frozen=True)
class ScaleTensor:
    """The task of one tensor of the models of *scaled*: the aligned weight plus the whole update times a factor.

    Args:
        aligned: Path of the aligned model.
        tuned: Path of each fine-tune by label.
        written: The models.
        scales: Factor of each, negative for *opposite*.
        models: Folder of the models that are written.
    """

    aligned: str
    tuned: Mapping[str, str]
    written: tuple[ModelRow, ...]
    scales: tuple[float, ...]
    models: Path

    def __call__(self, name: str, device: torch.device) -> Record:
        """Write its part of each model; return the rows of ``written``."""
        rows = []
        for label in dict.fromkeys(row.tuned for row in self.written):
            chosen = [(row, scale) for row, scale in zip(self.written, self.scales, strict=True) if row.tuned == label]
            update = matrix_of(open_update(opened(self.tuned[label]), opened(self.aligned), name))
            columns = update.shape[1]
            step = max(1, BLOCK // max(1, columns))
            blocks = ([scale * block for _, scale in chosen] for block in row_blocks(update, step))
            models = [row for row, _ in chosen]
            rows += write_rows(self.models, self.aligned, name, models, blocks, step * columns)
        return {"written": rows}


@dataclass(frozen=True)
class ProjectedModels:
    """Makes projected models in memory from the factors that a sweep left in a folder.

    Args:
        aligned: Path of the model that updates are added to.
        tuned: Path of each fine-tune by label.
        sweep: What the sweep found.
        spilled: Where it left each tensor's factors, numbered in the aligned model's order.
        seed: The sweep's seed: the same draws are made again.
    """

    aligned: str
    tuned: Mapping[str, str]
    sweep: Sweep
    spilled: Path
    seed: int

    def evaluate_all(
        self, rows: Sequence[ModelRow], evaluator: BehaviourEvaluator, generations: Path
    ) -> list[dict[str, float | int]]:
        """Measure each model's behaviour, one after another in the parameters of one loaded model."""
        model, tokenizer = load_language_model(self.aligned)
        parameters = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
        names = opened(self.aligned).names
        unknown = [name for name in names if name not in parameters]
        if unknown:
            raise InputError(
                f"{self.aligned} stores {unknown[0]}, which is no parameter of the {type(model).__name__} that it "
                "loads as: its models cannot be made in memory. Write them with --write true, and evaluate them with "
                "analyze.py evaluate"
            )
        measured = []
        with generations.open("w", encoding="utf-8") as lines:
            for row in tqdm(rows, desc="evaluating models", unit="model"):
                with torch.no_grad():
                    for place, name in enumerate(names):
                        parameters[name].copy_(self._weight(row, place, name))
                result = evaluator.evaluate(model, tokenizer, row.folder)
                measured.append(result.row)
                lines.writelines(json.dumps(line) + "\n" for line in result.generations)
        return measured

    def _weight(self, row: ModelRow, place: int, name: str) -> Tensor:
        """Return ``W_A`` plus the projected update of one model."""
        aligned = opened(self.aligned)
        update = update_of(opened(self.tuned[row.tuned]), aligned, name)
        factors = LeftFactors(**load_file(self.spilled / f"{place}.safetensors"))
        projections = TensorProjections(name, factors, as_matrix(update).shape[1], self.seed)
        scale = scale_of(self.sweep, row)
        return read_weight(aligned, name) + projections.updated(update, row.projection, row.method, scale)


def scale_of(sweep: Sweep, row: ModelRow) -> float:
    """Return the factor, not negative, at which *scaled* has the energy of *top*."""
    share = energy_share(sweep.top_share(row.tuned, row.projection.fraction), row.method)
    # Of an update that is zero everywhere there is no share, and the factor does not matter.
    return share**0.5 if share == share else 0.0


def model_rows(table: pd.DataFrame) -> list[ModelRow]:
    """Return the model of each row of a pooled table."""
    return [
        ModelRow(tuned, Projection(subspace, fraction, None if pd.isna(draw) else int(draw)), method)
        for tuned, subspace, method, fraction, draw in table[KEYS].itertuples(index=False)
    ]


def create_models(rows: Sequence[ModelRow], aligned: str, folder: Path) -> None:
    """Make the folder of each model, with room for its weights; one that is there already is kept.

    Raises:
        OSError: There is no room on the disk.
    """
    for row in rows:
        target = folder / row.folder
        if not (target / ".created").is_file():
            CheckpointWriter(target, opened(aligned)).create()
            (target / ".created").touch()


def finish_models(rows: Sequence[ModelRow], aligned: str, folder: Path) -> None:
    """Give the files of each model their names."""
    for row in rows:
        CheckpointWriter(folder / row.folder, opened(aligned)).finish()
        (folder / row.folder / ".created").unlink()


def written_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Pool what each written model's weights lost by their type.

    Columns beside those that name the model: ``energy_stored``, the squared norm of the update that is on disk, as a
    share of the one that was meant; and ``rounding_share``, that of their difference.
    """
    frame = pd.DataFrame(rows).astype({"draw": "Int64"})
    kinds = ["energy_meant", "energy_stored", "energy_rounding"]
    table = frame.groupby(KEYS, sort=False)[kinds].sum().reset_index()
    meant = table["energy_meant"].where(table["energy_meant"] > 0)
    shares = {"energy_stored": table["energy_stored"] / meant, "rounding_share": table["energy_rounding"] / meant}
    return table[KEYS].assign(**shares)
