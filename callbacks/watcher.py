"""What the callbacks that look into a run share: when they look, that they change nothing, and where it is shown."""

import logging
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_partial
from safety_subspaces.constraint.collectives import gather_objects
from safety_subspaces.training.board import heatmap
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.strategies import check_strategy

logger = logging.getLogger(__name__)
POWERS_OF_FOUR = [4**power for power in range(1, 16)]
NAME = re.compile(r"[A-Za-z0-9_-]*")
# Names of the files that a look writes.
STEP_FILE = re.compile(r"step=(\d+)\.\w+")


class Watcher(L.Callback, ABC):
    """Looks into a run at chosen optimizer steps, and leaves the training bit for bit as it is.

    It looks at the start, every ``every_n_steps`` optimizer steps, at the steps of ``log_spaced``, and at the end.
    Values are logged at the number of steps done, to every logger of the Trainer, and can be monitored by other
    callbacks. A resumed run looks again where it goes on, in place of what was logged there and later.

    Args:
        name: Tells two of a kind in one run apart: tags become ``<group>.<name>/…``, folders ``<folder>-<name>``.
        every_n_steps: Optimizer steps between two looks; ``None`` for none but those of ``log_spaced``.
        log_spaced: So many further looks, at steps that are evenly spaced on a logarithmic scale.
        per_layer: Whether each value is also logged layer by layer, as ``<tag>/layers.07``.
        figures: Whether heatmaps of layer against step go to TensorBoard: after 4, 16, 64 looks and so on, and at the
            end.
    """

    # Last part of the tag ``time/<clock>_ms``: milliseconds of one look; and the folder in the run.
    clock: str
    keeps_in: str

    def __init__(
        self,
        name: str,
        every_n_steps: int | None,
        log_spaced: int | None = None,
        per_layer: bool = False,
        figures: bool = True,
    ) -> None:
        kind = type(self).__name__
        for argument, value in (("every_n_steps", every_n_steps), ("log_spaced", log_spaced)):
            if value is not None and value < 1:
                raise InputError(f"{kind}.{argument} is {value}; expected at least 1")
        if every_n_steps is None and log_spaced is None:
            raise InputError(f"{kind} never looks; say every_n_steps or log_spaced")
        if not NAME.fullmatch(name):
            raise InputError(
                f"{kind}.name is {name!r}; expected letters, digits, - and _: it is part of tags and folders"
            )
        self.name = name
        self.every_n_steps, self.log_spaced = every_n_steps, log_spaced
        self.per_layer, self.figures = per_layer, figures
        self._key: str | None = None
        self._looked = -1
        self._history: dict[str, dict[int, dict[str, float]]] = {}
        self._loaded: dict[str, Any] = {}
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Tell several callbacks of one class apart in one run, by their settings.

        Computed once: the Trainer asks for it at its start, and DeepSpeed's ZeRO-3 adds modules to a callback later.
        """
        if self._key is None:
            settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
            self._key = f"{type(self).__qualname__}{settings}"
        return self._key

    def describe(self) -> dict[str, Any]:
        """Say where the run is looked into and when, for the manifest."""
        schedule = {"every_n_steps": self.every_n_steps, "log_spaced": self.log_spaced}
        return {"watcher": {"measures": self.clock, "name": self.name, **schedule}}

    @abstractmethod
    def begin(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Check what needs the network, and prepare; at the first step, or where a resumed run goes on."""

    @abstractmethod
    def look(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> dict[str, float]:
        """Measure on all ranks, and return the values by tag, the same on each; NaN is left out of the logs."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be watched.

        Raises:
            InputError: Another kind of module, a strategy that shards weights otherwise, or two of a kind of one name.
        """
        if stage != "fit":
            return
        kind = type(self).__name__
        if not isinstance(pl_module, LanguageModelModule):
            raise InputError(f"{kind} serves safety_subspaces.training.modules, got {type(pl_module).__name__}")
        check_strategy(trainer.strategy, kind)
        alike = [c for c in trainer.callbacks if type(c) is type(self) and c.name == self.name]  # type: ignore[attr-defined]
        if len(alike) > 1:
            raise InputError(
                f"{len(alike)} {kind} of one name ({self.name!r}) would share tags; give each its own name"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare, and look where that is due."""
        assert isinstance(pl_module, LanguageModelModule)
        (problem, *_) = gather_objects(self._prepare_folder(trainer) if trainer.is_global_zero else None)
        if problem:
            raise InputError(problem)
        self.begin(trainer, pl_module)
        self._look_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where that is due."""
        values = self._look_if_due(trainer, pl_module)
        if values:
            pl_module.log_dict(values, logger=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look a last time, unless the last step was looked at: the run may have ended early."""
        if self._looked != trainer.global_step:
            self._look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Keep the columns of the heatmaps."""
        return {"history": self._history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; ``on_train_start`` uses it."""
        self._loaded = dict(state_dict)
        self._history = state_dict["history"]

    def remember(self, tag: str, step: int, by_layer: dict[str, float]) -> None:
        """Add a column to the heatmap of a tag."""
        self._history.setdefault(tag, {})[step] = by_layer

    def layered(self, tag: str, by_layer: dict[str, float]) -> dict[str, float]:
        """Return the values by tag and layer where they are logged too, else nothing."""
        return {f"{tag}/{layer}": value for layer, value in by_layer.items()} if self.per_layer else {}

    def folder(self, trainer: L.Trainer) -> Path:
        """The folder of this callback in the run."""
        return Path(trainer.default_root_dir) / (f"{self.keeps_in}-{self.name}" if self.name else self.keeps_in)

    def count_looks(self, trainer: L.Trainer) -> int:
        """Return how many looks are still to come, the present one included."""
        last = int(trainer.estimated_stepping_batches)
        return sum(self._is_due(trainer, step) for step in range(trainer.global_step, last + 1))

    def write_or_warn(self, what: str, write: Callable[[], None]) -> None:
        """Write to disk; where that fails warn once, and let the training go on."""
        try:
            write()
        except OSError as error:
            self.warn_once(
                what, "%s could not be written (%s): the run goes on without. Free some space on its disk", what, error
            )

    def warn_once(self, key: str, message: str, *arguments: object) -> None:
        """Log a warning the first time."""
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message, *arguments)

    def _is_due(self, trainer: L.Trainer, step: int) -> bool:
        last = int(trainer.estimated_stepping_batches)
        if step in (0, last) or (self.every_n_steps is not None and step % self.every_n_steps == 0):
            return True
        return self.log_spaced is not None and step in log_spaced_steps(last, self.log_spaced)

    def _look_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        step = trainer.global_step
        if step == self._looked or not self._is_due(trainer, step):
            return {}
        return self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, LanguageModelModule)
        started, step = time.perf_counter(), trainer.global_step
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            values = self.look(trainer, pl_module, step)
        self._looked = step
        if trainer.is_global_zero:
            self._draw(trainer, step)
        values[f"time/{self.clock}_ms"] = 1e3 * (time.perf_counter() - started)
        known = {self._named(tag): value for tag, value in values.items() if value == value}
        for each in trainer.loggers:
            each.log_metrics(known, step)
        return known

    def _draw(self, trainer: L.Trainer, step: int) -> None:
        """Draw the heatmaps after 4, 16, 64 ... looks and at the end: what they cost does not grow with the run."""
        writers = board_writers(trainer)
        for tag, columns in self._history.items():
            steps = sorted(columns)
            fourfold = len(steps) in POWERS_OF_FOUR
            if not self.figures or not writers or not (fourfold or step >= trainer.estimated_stepping_batches):
                continue
            rows = list(dict.fromkeys(row for column in columns.values() for row in column))
            values = np.array([[columns[s].get(row, np.nan) for s in steps] for row in rows], dtype=float)
            if rows and np.isfinite(values).any():
                picture = heatmap(rows, steps, values, self._named(tag))
                for writer in writers:
                    writer.add_image(f"{self._named(tag)}/heatmap", picture, step, dataformats="HWC")

    def _named(self, tag: str) -> str:
        group, _, rest = tag.partition("/")
        return f"{group}.{self.name}/{rest}" if self.name else tag

    def _prepare_folder(self, trainer: L.Trainer) -> str | None:
        """Make the folder and remove what an earlier try left of later steps; or return why nothing can be written."""
        folder = self.folder(trainer)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
            for file in folder.iterdir():
                step = STEP_FILE.fullmatch(file.name)
                if is_partial(file) or (step and self._loaded and int(step[1]) > trainer.global_step):
                    file.unlink()
        except OSError as error:
            return f"{folder} cannot be written to ({error}); choose another run_dir, or mend its permissions"
        return None


def board_writers(trainer: L.Trainer) -> list[SummaryWriter]:
    """Return the writer of each TensorBoard logger; on rank zero."""
    return [each.experiment for each in trainer.loggers if isinstance(each, TensorBoardLogger)]


@cache
def log_spaced_steps(last: int, count: int) -> set[int]:
    """Return up to ``count`` different steps from 1 to ``last``, evenly spaced on a logarithmic scale."""
    return {round(step) for step in np.geomspace(1, max(1, last), count)}
