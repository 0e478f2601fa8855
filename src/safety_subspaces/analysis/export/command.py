"""``analyze.py export``: a training checkpoint, of one file or sharded by ZeRO, in Hugging Face format."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_occupied, read_json
from safety_subspaces.artefacts.provenance import sha256_of_value
from safety_subspaces.constraint.held import LEAKAGE_FILE
from safety_subspaces.training.export import ExportType, export_model
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.run_folder import is_whole_checkpoint, latest_checkpoint


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: The model folder.
        checkpoint: The checkpoint that it was made from.
        leakage: What the export leaks of each constraint of its run, measured on the written weights.
    """

    path: Path
    checkpoint: Path
    leakage: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        leaks = [
            f"{leak['mode']}: {leak['leakage']:.2g} of the update's energy is forbidden in {leak['dtype']} "
            f"(rounding of float32 explains {leak['rounding_floor']:.2g})"
            for leak in self.leakage
        ]
        return "\n".join([f"wrote {self.path} from {self.checkpoint}", *leaks])


def export(checkpoint: str, out: str, dtype: ExportType | None = None, overwrite: bool = False) -> Exported:
    """Write the weights of a training checkpoint as a model folder: full, or an adapter where the run trained one.

    A training checkpoint is a pickle. Only one inside a run folder of this suite, whose manifest matches its
    configuration, is read.

    Args:
        checkpoint: ``runs/<study>/<stage>/checkpoints/step=….ckpt``: a file, or the folder that ZeRO writes; or the run
            folder itself, for its newest.
        out: The folder to make.
        dtype: Type of the exported weights; by default the one they are trained in (float32 under ZeRO).
        overwrite: Whether what is in ``out`` may be replaced.

    Returns:
        What was written, with its leakage if the run had a constraint.

    Raises:
        InputError: Before anything is read: no such checkpoint, one cut short, or one outside a run folder of its own;
            or something in the way of ``out``.
    """
    source, run = _locate(Path(checkpoint))
    if is_occupied(Path(out)) and not overwrite:
        raise InputError(f"{out} exists and is not written over; choose another folder, or say --overwrite true")
    module = _module_of(read_json(run / "manifest.json")["config"]["model"])
    module.configure_model()
    module.float()
    module.load_state_dict(_state_of(source), strict=module.strict_loading)
    export_model(
        module.language_model, module.tokenizer, Path(out), dtype, constraints=run / "constraint", overwrite=overwrite
    )
    leakage = Path(out) / LEAKAGE_FILE
    return Exported(
        Path(out), source, tuple(json.loads(leakage.read_text(encoding="utf-8"))) if leakage.is_file() else ()
    )


def _locate(path: Path) -> tuple[Path, Path]:
    """Return the checkpoint and its run folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a checkpoint, runs/<study>/<stage>/checkpoints/step=….ckpt")
    if (path / "manifest.json").is_file():
        newest = latest_checkpoint(path)
        if newest is None:
            raise InputError(f"{path} has no whole checkpoint; its model/, if it has one, is already exported")
        path = newest
    run = path.resolve().parent.parent
    config, manifest = run / "config.yaml", run / "manifest.json"
    if not config.is_file() or not manifest.is_file():
        raise InputError(
            f"{path} lies in no run folder (no config.yaml and manifest.json in {run}). A training checkpoint is a "
            "pickle, which can run code: only those of this suite's own runs are read"
        )
    if read_json(manifest).get("config_sha256") != sha256_of_value(yaml.safe_load(config.read_text(encoding="utf-8"))):
        raise InputError(f"{config} is not the configuration that {manifest} names; restore it before exporting")
    if not is_whole_checkpoint(path):
        raise InputError(f"{path} was cut short while it was written; take an earlier one")
    return path, run


def _module_of(settings: dict[str, Any]) -> LanguageModelModule:
    """Build the run's LightningModule from its configuration; nothing is loaded yet."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModelModule, "model", fail_untyped=False)
    return parser.instantiate_classes(parser.parse_object({"model": settings})).model


def _state_of(checkpoint: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; those of ZeRO are put together from all ranks, in float32."""
    if checkpoint.is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="checkpoint")
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
