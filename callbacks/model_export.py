"""Writes the trained model in Hugging Face format when the run ends, for ``analyze.py`` and for the next stage."""

from pathlib import Path
from typing import final

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from safety_subspaces.errors import InputError
from safety_subspaces.models.base import LanguageModelModule
from safety_subspaces.models.export import export_model


@final
class ModelExport(L.Callback):
    """Writes ``model/`` into the run folder: the full model, or the adapter of a LoRA run, with the tokenizer.

    Args:
        folder: Name of the folder inside ``run_dir``.
    """

    def __init__(self, folder: str = "model") -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be exported, before the first step.

        Raises:
            InputError: A module of another kind, or a strategy that shards weights over processes.
        """
        if not isinstance(pl_module, LanguageModelModule):
            raise InputError(
                f"ModelExport serves the modules of safety_subspaces.models, got {type(pl_module).__name__}"
            )
        if stage == "fit" and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                f"ModelExport needs whole weights on rank zero; {type(trainer.strategy).__name__} shards them. "
                "Train on one device or with strategy: ddp"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model, on rank zero."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, LanguageModelModule)
            target = Path(trainer.default_root_dir) / self.folder
            export_model(pl_module.language_model, pl_module.tokenizer, target)
