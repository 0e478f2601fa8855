"""Ends all ranks of a run together: at a signal, and when one of them is silent."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from safety_subspaces.artefacts import ending
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.collectives import gather_objects
from safety_subspaces.constraint.rank_watch import RankWatch
from safety_subspaces.training.run_folder import close_run, how_to_go_on

# Ranks start one after another, and each imports for a while: none is missed sooner.
LEAST_SECONDS_TO_JOIN = 180.0


@final
class RunGuard(L.Callback):
    """Ends a run whose rank is silent, and keeps Lightning from taking a signal for a normal end.

    ``train.py`` adds it to every run. Lightning answers SIGTERM by a collective out of turn and the exit status 0.

    Args:
        seconds: The longest that a rank may be silent.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        if seconds <= 0:
            raise InputError(f"collective_timeout is {seconds:g}; expected seconds above 0")
        self._seconds = seconds
        self._started = time.monotonic()
        self._watch: RankWatch | None = None
        self._joining: threading.Timer | None = None

    def expect(self, ranks: int) -> None:
        """Wait for so many ranks to join from now on, and no longer than for one that is silent.

        Without a launcher nothing else ends a rank that waits for one which has ended before they met.
        """
        if ranks > 1:
            seconds = max(self._seconds, LEAST_SECONDS_TO_JOIN)
            text = (
                f"error: not all {ranks} ranks had joined after {seconds:g} s (--collective_timeout). If one has "
                "ended, its own message says why; then start the command again"
            )
            self._joining = threading.Timer(seconds, ending.end_at_once, [text])
            self._joining.daemon = True
            self._joining.start()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to watch, once all ranks have joined.

        Raises:
            InputError: The ranks would go on from different checkpoints.
        """
        if self._joining is not None:
            self._joining.cancel()
        chosen = gather_objects(None if trainer.ckpt_path is None else str(trainer.ckpt_path))
        if len(set(chosen)) > 1:
            raise InputError(f"the ranks found different checkpoints to go on from ({chosen}); start the command again")
        self._watch = RankWatch(self._seconds, lambda ranks: self._end_without(trainer, ranks))
        self._watch.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch no more: this rank needs no other one."""
        if self._watch is not None:
            self._watch.stop()

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning, which takes them just before."""
        ending.listen_again()

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start

    def _end_without(self, trainer: L.Trainer, silent: Sequence[int]) -> None:
        """Say which rank is silent, in the manifest too, and end; in a thread, while the main one may wait for ever."""
        message = f"rank {', '.join(map(str, silent))} of this run was silent for {self._seconds:g} s"
        folder, first_left = Path(trainer.default_root_dir), min(set(range(trainer.world_size)) - set(silent))
        if trainer.state.fn != TrainerFn.FITTING:
            what = "start the command again"
        else:
            what = how_to_go_on(folder)
            if trainer.global_rank == first_left and (folder / "manifest.json").is_file():
                facts: dict[str, Any] = {"global_step": trainer.global_step, "error": message}
                close_run(folder, "failed", self._started, **facts)
        text = f"error: {message} (--collective_timeout); {what}"
        if 0 in silent:
            ending.end_obeyed(text)
        ending.end_at_once(text)
