"""A progress bar that names its stage, so that several runs can share a terminal."""

from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


@final
class StageProgress(TQDMProgressBar):
    """Lightning's tqdm bar, with the name of the run folder before the epoch.

    Args:
        refresh_rate: Batches between two updates.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._stage = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn the stage's name."""
        super().setup(trainer, pl_module, stage)
        self._stage = Path(trainer.default_root_dir).name

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of the training batches."""
        bar = super().init_train_tqdm()
        bar.set_description(self._stage, refresh=False)
        return bar

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Say the stage's name, and the epoch where there are several."""
        super().on_train_epoch_start(trainer)
        epochs = f" epoch {trainer.current_epoch + 1}/{trainer.max_epochs}" if trainer.max_epochs != 1 else ""
        self.train_progress_bar.set_description(f"{self._stage}{epochs}")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Leave out the logger's version number."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
