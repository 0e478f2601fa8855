"""Puts on TensorBoard what every run has once: configuration, hyperparameters, and the layout of the charts."""

from pathlib import Path
from typing import Any, final

import lightning as L
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard.summary import hparams

from callbacks.watcher import board_writers
from safety_subspaces.board import RESULTS, chart_layout, config_text, hyperparameters
from safety_subspaces.files import read_json

CONFIG_TAG = "run/config"


@final
class RunBoard(L.Callback):
    """Writes the resolved configuration, the hyperparameters and the chart layout when a run starts.

    ``train.py`` adds it to every run. The HParams tab compares runs from their start, each with the measures that it
    has come to. Of a resumed run, what was logged at the checkpoint's step or later is taken back, so that nothing is
    shown twice.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell TensorBoard where the run goes on: it drops what an earlier try has logged from there."""
        if not trainer.training or not trainer.is_global_zero:
            return
        step = int(checkpoint["global_step"])
        for writer in board_writers(trainer):
            assert writer.file_writer is not None
            writer.file_writer.add_event(Event(step=step, file_version="brain.Event:2"))
            writer.file_writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what a run has once, unless it was written before the run was interrupted."""
        manifest = Path(trainer.default_root_dir) / "manifest.json"
        if not trainer.is_global_zero or trainer.global_step > 0 or not manifest.is_file():
            return
        config = read_json(manifest)["config"]
        experiment, start, _ = hparams(hyperparameters(config), dict.fromkeys(RESULTS, 0.0))
        for writer in board_writers(trainer):
            assert writer.file_writer is not None
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(start)
            writer.add_custom_scalars(chart_layout())
            writer.add_text(CONFIG_TAG, config_text(config), 0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the hyperparameters' session."""
        if trainer.is_global_zero and not trainer.interrupted:
            _, _, end = hparams({}, {})
            for writer in board_writers(trainer):
                assert writer.file_writer is not None
                writer.file_writer.add_summary(end)
