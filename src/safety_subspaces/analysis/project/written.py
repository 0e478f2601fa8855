"""Projected models on disk: made before the sweep writes into them, and finished after it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from safety_subspaces.algebra.blocks import rows_in_block
from safety_subspaces.analysis.project.tables import (
    KEYS,
    Sweep,
    energy_share,
)
from safety_subspaces.analysis.project.tensors import ModelRow, ProjectTensor, write_rows
from safety_subspaces.analysis.work import Record, UnfinishedWork, opened
from safety_subspaces.artefacts.provenance import provenance
from safety_subspaces.language.model_card import CardFacts, as_inline_code, write_card
from safety_subspaces.training.card import data_behind
from safety_subspaces.weights.delta import open_update
from safety_subspaces.weights.writing import CheckpointWriter

# Says, inside the folder of all models, that each was made with room for its weights.
CREATED = ".created"


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
            update = open_update(opened(self.tuned[label]), opened(self.aligned), name)
            columns = update.matrix_shape[1]
            step = rows_in_block(columns)
            blocks = ([scale * block for _, scale in chosen] for block in update.rows(step))
            models = [row for row, _ in chosen]
            rows += write_rows(self.models, self.aligned, name, models, blocks, step * columns)
        return {"written": rows}


def scale_of(sweep: Sweep, row: ModelRow) -> float:
    """Return the factor, not negative, at which *scaled* has the energy of *top*."""
    share = energy_share(sweep.top_share(row.tuned, row.projection.fraction), row.method)
    # An update that is zero everywhere has no share (NaN), and its factor does not matter.
    return share**0.5 if share == share else 0.0


def create_models(rows: Sequence[ModelRow], aligned: str, unfinished: UnfinishedWork, apart: bool = False) -> None:
    """Make the folder of each model, with room for its weights; what an interrupted sweep wrote is kept.

    Where it is not there any more, no tensor counts as done: an empty model holds zeros.

    Raises:
        OSError: There is no room on the disk.
    """
    folder = unfinished.folder / "models"
    if not rows or (folder / CREATED).is_file():
        return
    unfinished.forget()
    shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        CheckpointWriter(folder / row.folder, opened(aligned), apart=apart).create()
    (folder / CREATED).touch()


def finish_models(rows: Sequence[ModelRow], aligned: str, tuned: Mapping[str, str], folder: Path, target: Path) -> None:
    """Give the files of each model their names, and it a card; then the folder of all of them its own."""
    origin = provenance()
    for row in rows:
        CheckpointWriter(folder / row.folder, opened(aligned)).finish()
        write_card(folder / row.folder, _card_of(row, aligned, tuned[row.tuned], origin))
    folder.rename(target)
    (target / CREATED).unlink()


def _card_of(row: ModelRow, aligned: str, tuned: str, origin: Mapping[str, Any]) -> CardFacts:
    projection = row.projection
    draw = "" if projection.draw is None else f", draw {projection.draw}"
    data, harmful = data_behind(tuned)
    return CardFacts(
        what=f"An aligned model plus a projected fine-tuning update: {as_inline_code(row.tuned)}, projected "
        f"`{row.method}` the subspace `{projection.subspace}` of rank {projection.fraction:g} of full rank{draw}.",
        base=aligned,
        origin=origin,
        data=data,
        harmful=harmful,
        constraints=("The projection above, made once and after training.",),
        further=(f"Fine-tune: {as_inline_code(tuned)}. The data are its own.",),
    )


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


def write_scaled(
    written: Sequence[ModelRow],
    sweep: Sweep,
    task: ProjectTensor,
    costs: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Write the models of *scaled*, whose factor is known only after all tensors were measured."""
    rows = [row for row in written if row.projection.subspace == "scaled"]
    scales = tuple(scale_of(sweep, row) * (-1 if row.method == "opposite" else 1) for row in rows)
    scaling = ScaleTensor(task.aligned, task.tuned, tuple(rows), scales, task.models)
    return [row for name in costs for row in scaling(name, torch.device("cpu"))["written"]] if rows else []
