"""Writes the trained model in Hugging Face format when the run ends, for ``analyze.py`` and for the next stage."""

from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.training.choices import ExportType
from safety_subspaces.training.export import export_model
from safety_subspaces.training.modules.base import LanguageModelModule


@final
class ModelExport(L.Callback):
    """Writes ``model/`` into the run folder: the full model, or a LoRA run's adapter, with tokenizer and model card.

    The weights are the float32 masters, on one device, under DDP and under ZeRO. What a constrained run's export leaks,
    measured on the written weights, is in ``leakage.json`` beside them.

    Args:
        folder: Name of the folder inside ``run_dir``.
        dtype: Type of the exported weights; by default the one they are trained in (float32 under ZeRO). In
            ``bfloat16`` weights round at about one part in 400: a small constrained update leaks by that.
    """

    def __init__(self, folder: str = "model", dtype: ExportType | None = None) -> None:
        self.folder = folder
        self.dtype = dtype

    def describe(self) -> dict[str, Any]:
        """Say what folder the run exports to: without it a run is not complete."""
        return {"export": {"folder": self.folder}}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be exported, before the first step.

        Raises:
            InputError: A module of another kind, or a strategy that shards weights over processes.
        """
        if not isinstance(pl_module, LanguageModelModule):
            raise InputError(
                f"ModelExport serves the modules of safety_subspaces.training.modules, got {type(pl_module).__name__}"
            )
        if stage == "fit" and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                "ModelExport gathers weights on one device, under DDP and under ZeRO; "
                f"{type(trainer.strategy).__name__} shards them in another way. Use strategy: auto, ddp, or "
                "safety_subspaces.training.strategies.ZeroStrategy"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the weights on all ranks, and write them on rank zero."""
        assert isinstance(pl_module, LanguageModelModule)
        run = Path(trainer.default_root_dir)
        export_model(
            pl_module.language_model,
            pl_module.tokenizer,
            run / self.folder,
            self.dtype,
            run=run,
            writes=trainer.is_global_zero,
        )
