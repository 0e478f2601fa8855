"""Keeps the run folder's manifest true, and the random state in every checkpoint."""

import random
import time
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from safety_subspaces.constraint.collectives import gather_objects
from safety_subspaces.training.checkpoints import newest_first
from safety_subspaces.training.run_folder import RunPlan, close_run, discard_run, how_to_go_on, open_run

METRICS = "metrics_so_far"  # where they stand in a checkpoint


@final
class RunRecord(L.Callback):
    """Ends the manifest as ``complete`` or ``failed`` and lets a resumed run draw the same random numbers.

    ``train.py`` adds it to every run. A run that fails before its first step leaves no folder behind.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._begun = False
        self._fresh = False
        self._random_states: list[dict[str, Any]] | None = None
        self._metrics: dict[str, float] = {}  # of the steps before those that this process trains

    def begin(self, plan: RunPlan) -> None:
        """Open a run folder as planned and take charge of it; without this nothing in it is touched.

        One that was new, or moved aside, is taken away again by a run that fails before its first step.
        """
        open_run(plan)
        self._begun, self._fresh = True, plan.checkpoint is None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the checkpoints that a killed run had no time to remove."""
        self._remove_superseded(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record how the run ended."""
        self._remove_superseded(trainer)  # Lightning spares the one that the run went on from
        if trainer.is_global_zero and self._begun:
            metrics = self._metrics | _metrics_of(trainer)
            counts = getattr(trainer.datamodule, "counts", {})  # type: ignore[attr-defined]
            status = "failed" if trainer.interrupted else "complete"
            self._close(trainer, status, metrics=metrics, data_counts=counts)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record what ended the run, or remove the folder if nothing was trained yet."""
        if not trainer.is_global_zero or not self._begun:
            return
        folder = Path(trainer.default_root_dir)
        if trainer.global_step == 0 and self._fresh:
            discard_run(folder)
        else:
            self._close(trainer, "failed", error=f"{type(exception).__name__}: {exception}")
            exception.add_note(how_to_go_on(folder))

    def state_dict(self) -> dict[str, Any]:
        """Keep the state of PyTorch's and Python's generators, of every rank; all ranks save together."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"ranks": gather_objects({"cpu": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; it is restored before the first batch."""
        self._random_states = state_dict["ranks"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics so far: a run that goes on from its last checkpoint measures none of them again."""
        checkpoint[METRICS] = self._metrics | _metrics_of(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the metrics of a checkpoint."""
        self._metrics = checkpoint.get(METRICS, {})

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore this rank's random state once, after everything that draws from it at the start.

        A rank that the interrupted run did not have keeps the state it starts with.
        """
        if self._random_states is None:
            return
        if trainer.global_rank < len(self._random_states):
            state = self._random_states[trainer.global_rank]
            torch.set_rng_state(state["cpu"].cpu())
            random.setstate(state["python"])
            if torch.cuda.is_available() and state["cuda"]:
                torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])
        self._random_states = None

    def _remove_superseded(self, trainer: L.Trainer) -> None:
        """Remove checkpoints that none of the callbacks knows, older than the newest that one does.

        Each has its place in the state that it resumes from; where one keeps all (``save_top_k: -1``) all stay.
        """
        if not (trainer.is_global_zero and self._begun):
            return
        folder = (Path(trainer.default_root_dir) / "checkpoints").resolve()
        saving = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        saving = [each for each in saving if each.dirpath and Path(each.dirpath).resolve() == folder]
        if any(each.save_top_k == -1 for each in saving):
            return
        known = {Path(path).name for each in saving for path in (each.best_model_path, each.last_model_path) if path}
        known |= {Path(path).name for each in saving for path in each.best_k_models}
        checkpoints = newest_first(folder)
        newest = next((place for place, path in enumerate(checkpoints) if path.name in known), len(checkpoints))
        for path in checkpoints[newest + 1 :]:
            if path.name not in known:
                trainer.strategy.remove_checkpoint(path)

    def _close(self, trainer: L.Trainer, status: str, **facts: Any) -> None:
        folder = Path(trainer.default_root_dir)
        if (folder / "manifest.json").is_file():
            close_run(folder, status, self._started, global_step=trainer.global_step, **facts)


def _metrics_of(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
