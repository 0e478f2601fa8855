"""Logs how many tokens a second the run trains on."""

import time
from typing import Any, final

import lightning as L

from safety_subspaces.artefacts.errors import InputError


@final
class TokenThroughput(L.Callback):
    """Logs ``train/tokens_per_second``: real tokens (no padding) of all ranks, over the last ``every_n_steps`` steps.

    Args:
        every_n_steps: Optimizer steps between two figures.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise InputError(f"TokenThroughput.every_n_steps {every_n_steps}: expected at least 1")
        self.every_n_steps = every_n_steps
        self._tokens = 0
        self._since = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._tokens, self._since, self._last_step = 0, time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens, and log at the interval and at the last step."""
        self._tokens += batch["token_count"]
        step = trainer.global_step
        last = step == trainer.estimated_stepping_batches
        if step > self._last_step and (step - self._last_step >= self.every_n_steps or last):
            rate = self._tokens / (time.perf_counter() - self._since)
            pl_module.log("train/tokens_per_second", rate, reduce_fx="sum", sync_dist=trainer.world_size > 1)
            self._tokens, self._since, self._last_step = 0, time.perf_counter(), step
