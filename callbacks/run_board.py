"""Puts on TensorBoard what every run has once: configuration, hyperparameters, and the layout of the charts."""

from pathlib import Path
from typing import Any, final

import lightning as L
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard.summary import hparams

from safety_subspaces.artefacts.files import read_json
from safety_subspaces.training.board import RESULTS, chart_layout, config_text, hyperparameters

from .watcher import board_writers

CONFIG_TAG = "run/config"


@final
class RunBoard(L.Callback):
    """Writes the resolved configuration, the hyperparameters and the chart layout when a run starts.

    ``train.py`` adds it to every run, before all other callbacks. The HParams tab compares runs from their start, each
    with the measures that it has come to. Of a run that goes on, what was logged at the checkpoint's step or later is
    taken back, so that nothing is shown twice.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what a run has once; or tell TensorBoard where a resumed run goes on."""
        if not trainer.is_global_zero:
            return
        self._take_back(trainer)  # at the start too: readers take the first word of a restart for that of a start
        if trainer.global_step > 0:
            return
        path = Path(trainer.default_root_dir) / "manifest.json"
        if not path.is_file():
            return
        manifest = read_json(path)
        experiment, start, _ = hparams(hyperparameters(manifest), dict.fromkeys(RESULTS, 0.0))
        layout = chart_layout(trainer.callbacks)  # type: ignore[attr-defined]
        for writer in board_writers(trainer):
            assert writer.file_writer is not None
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(start)
            if layout:
                writer.add_custom_scalars(layout)
            writer.add_text(CONFIG_TAG, config_text(manifest["config"]), 0)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have on the disk what a run that is killed, and goes on from this checkpoint, will not log again."""
        if trainer.is_global_zero:
            for writer in board_writers(trainer):
                writer.flush()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the hyperparameters' session."""
        if trainer.is_global_zero and not trainer.interrupted:
            _, _, end = hparams({}, {})
            for writer in board_writers(trainer):
                assert writer.file_writer is not None
                writer.file_writer.add_summary(end)

    def _take_back(self, trainer: L.Trainer) -> None:
        """Let readers of the events drop what an earlier try has logged from this step on."""
        for writer in board_writers(trainer):
            assert writer.file_writer is not None
            writer.file_writer.add_event(Event(step=trainer.global_step, file_version="brain.Event:2"))
            restart = SessionLog(status=SessionLog.START)
            writer.file_writer.add_event(Event(step=trainer.global_step, session_log=restart))
