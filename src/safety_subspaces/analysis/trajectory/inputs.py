"""What a trajectory reads: a run's snapshots, the alignment subspace, and other updates from the same reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.subspace import choose_rank, top_basis
from safety_subspaces.algebra.update import Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import sha256_of_file
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.compatibility import MAX_DIFFERENCES, check_compatible
from safety_subspaces.weights.delta import open_update, read_weight, update_of
from safety_subspaces.weights.snapshots import START_FILE, Snapshot, open_snapshots, snapshot_files
from safety_subspaces.weights.subspace_file import Subspace, read_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

FOLDER = "deltas"
FEWEST_SNAPSHOTS = 2


def open_run(run: str) -> list[Snapshot]:
    """Open the snapshots of a run, by step.

    Args:
        run: The run folder with ``deltas/``, or the folder that holds the snapshots itself.

    Raises:
        InputError: No such folder, fewer than two snapshots, or snapshots that do not belong together.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"run folder {run} does not exist; expected a folder that python train.py fit has made")
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    count = len(snapshot_files(folder))
    if count < FEWEST_SNAPSHOTS:
        raise InputError(
            f"{run} holds {count} snapshots ({FOLDER}/step=….safetensors); a trajectory needs {FEWEST_SNAPSHOTS} or "
            "more: train with --trainer.callbacks+=callbacks.WeightDeltaSnapshot and a smaller every_n_steps"
        )
    return open_snapshots(folder)


@final
@dataclass(frozen=True)
class Alignment:
    """The subspace that energies are measured in: of a file, or made tensor by tensor of two models.

    Args:
        file: The file.
        pair: The base and the aligned model.
        rank: Directions of each tensor of their difference.
    """

    file: Subspace | None
    pair: tuple[Checkpoint, Checkpoint] | None
    rank: RankRule

    def of(self, name: str) -> Subspace:
        """Return the subspace of one tensor, which has no basis where alignment did not change it."""
        if self.file is not None:
            return self.file
        assert self.pair is not None
        update = open_update(self.pair[1], self.pair[0], name)
        factors = update.factors(formed=True)
        basis = top_basis(factors, choose_rank(self.rank, factors, update.matrix_shape[1]).rank)
        return Subspace({name: basis} if basis.shape[1] else {}, {}, "left", {})


def open_alignment(
    snapshot: Snapshot, subspace: str | None, base: str | None, aligned: str | None, rank: RankRule
) -> Alignment | None:
    """Open the alignment subspace; ``None`` where none was given.

    Raises:
        InputError: Both ways of giving it, half of one, or a subspace or models that do not fit the snapshots.
    """
    if (base is None) != (aligned is None):
        raise InputError("only one of base and aligned was given; expected both, or neither")
    if subspace is not None and base is not None:
        raise InputError("both subspace and base with aligned were given; expected one of the two")
    if subspace is not None:
        file = read_subspace(subspace)
        _refuse_misfits(snapshot, file, subspace)
        return Alignment(file, None, rank)
    if base is not None and aligned is not None:
        pair = open_checkpoint(base), open_checkpoint(aligned)
        check_compatible(pair[1], pair[0])
        _refuse_other_shapes(snapshot, pair[1])
        return Alignment(None, pair, rank)
    return None


@final
class OtherUpdates:
    """Updates of other models from the reference of a run's snapshots.

    Args:
        snapshot: A snapshot of the run.
        others: Label and folder of each model.

    Raises:
        InputError: A model of another shape, or a reference that is missing, has changed, or is not known.
    """

    def __init__(self, snapshot: Snapshot, others: Mapping[str, str]) -> None:
        self.checkpoints = {label: open_checkpoint(path) for label, path in others.items()}
        for checkpoint in self.checkpoints.values():
            _refuse_other_shapes(snapshot, checkpoint)
        self.inputs: list[str] = list(others.values())
        self._start_file: TensorFile | None = None
        self._origin: Checkpoint | None = None
        if not others:
            return
        if snapshot.counts_from_start:
            self._start_file = self._open_start_file(snapshot)
        if self._start_file is None or not self._start_file.shapes.keys() >= set(snapshot.names):
            origin = snapshot.reference_folder()
            self._origin = open_checkpoint(origin)
            _refuse_other_shapes(snapshot, self._origin)
            self.inputs.append(origin)

    def update(self, label: str, name: str) -> Float[Tensor, "..."]:
        """Return the update of one tensor of one model.

        Raises:
            InputError: A weight is NaN or infinite.
        """
        checkpoint = self.checkpoints[label]
        if self._start_file is not None and name in self._start_file.shapes:
            return (read_weight(checkpoint, name) - self._start_file.read(name)).float()
        assert self._origin is not None
        return update_of(checkpoint, self._origin, name)

    def _open_start_file(self, snapshot: Snapshot) -> TensorFile:
        """Open the weights that the run started with; those of adapted modules are not among them."""
        path = snapshot.path.parent / START_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing, so the updates of others cannot be counted from it; leave others out")
        if sha256_of_file(path) != snapshot.reference["sha256"]:
            raise InputError(
                f"{path} is not the file that the snapshots count from (another sha256); put the run's own one back, "
                "or leave others out"
            )
        self.inputs.append(str(path))
        return TensorFile(path)


def read_update(snapshot: Snapshot, name: str) -> Update:
    """Read the update of one weight, dense or in factors.

    Raises:
        InputError: It is NaN or infinite somewhere.
    """
    update = snapshot.read(name)
    if not all(bool(torch.isfinite(torch.as_tensor(part)).all()) for part in update.parts.values()):
        raise InputError(
            f"the update of {name} in {snapshot.path} is NaN or infinite; see whether training diverged, and move the "
            "snapshots from there on away"
        )
    return update


def _refuse_other_shapes(snapshot: Snapshot, checkpoint: Checkpoint) -> None:
    known = set(checkpoint.names)
    problems = [f"{name} is not in it" for name in snapshot.names if name not in known]
    problems += [
        f"{name} is {snapshot.shapes[name]} in the run and {checkpoint.shape(name)} there"
        for name in snapshot.names
        if name in known and checkpoint.shape(name) != snapshot.shapes[name]
    ]
    _refuse(problems, f"{checkpoint.path} is of another shape than the run")


def _refuse_misfits(snapshot: Snapshot, file: Subspace, path: str) -> None:
    problems = []
    for name in snapshot.names:
        shape = snapshot.shapes[name]
        dim = torch.Size(shape).numel() if len(shape) != 2 else shape[1 if file.side == "right" else 0]
        if name in file.bases and file.bases[name].shape[0] != dim:
            problems.append(f"{name} has {dim} dimensions in the run and {file.bases[name].shape[0]} there")
    if not any(name in file.bases for name in snapshot.names):
        problems.append(f"it has none of the run's weights, {snapshot.names[0]} first")
    _refuse(problems, f"subspace file {path} is of another model than the run")


def _refuse(problems: Sequence[str], what: str) -> None:
    if problems:
        more = len(problems) - MAX_DIFFERENCES
        raise InputError(
            f"{what}: {'; '.join(problems[:MAX_DIFFERENCES])}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Expected models that were fine-tuned from one another"
        )
