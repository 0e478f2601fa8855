"""Callbacks that stop a run in the middle, for the tests of resuming."""

import os
from typing import Any

import lightning as L


class StopAt(L.Callback):
    """Raises once at a step; a resumed run goes past it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.resumed = False

    def state_dict(self) -> dict[str, Any]:
        return {"seen": True}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.resumed:
            raise RuntimeError("stopped on purpose")


class SignalAt(StopAt):
    """Sends the process a signal at a step; a resumed run goes past it."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(step)
        self.signum = signum

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.resumed:
            os.kill(os.getpid(), self.signum)
