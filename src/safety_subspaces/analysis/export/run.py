"""The steps of ``analyze.py export``: the checkpoint and its run, the module that it is of, and its weights."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.provenance import sha256_of_value
from safety_subspaces.artefacts.trust import SUITE
from safety_subspaces.training.checkpoints import flaw_of
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.resume_state import read_sharded_weights, read_state, restricted_pickles
from safety_subspaces.training.run_folder import latest_checkpoint

ADVICE = "Say --trust_checkpoint true to read it all the same, where you trust who made it"


def locate(path: Path) -> tuple[Path, Path]:
    """Return the checkpoint and its run folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a checkpoint, runs/<study>/<stage>/checkpoints/step=….ckpt")
    if (path / "manifest.json").is_file():
        newest = latest_checkpoint(path, says=True)
        if newest is None:
            raise InputError(f"{path} has no whole checkpoint; its model/, if it has one, is already exported")
        path = newest
    run = path.resolve().parent.parent
    config, manifest = run / "config.yaml", run / "manifest.json"
    if not config.is_file() or not manifest.is_file():
        raise InputError(
            f"{path} lies in no run folder (no config.yaml and manifest.json in {run}). A training checkpoint is a "
            "pickle: only those of this suite's own runs are read, and no code of theirs is run"
        )
    if read_json(manifest).get("config_sha256") != sha256_of_value(yaml.safe_load(config.read_text(encoding="utf-8"))):
        raise InputError(f"{config} is not the configuration that {manifest} names; restore it before exporting")
    flaw = flaw_of(path)
    if flaw is not None:
        raise InputError(f"{path} is not whole: {flaw}. Take an earlier one")
    return path, run


def module_of(manifest: Path, trust_classes: bool, trust_remote_code: bool) -> LanguageModelModule:
    """Build the run's LightningModule from its configuration; nothing is loaded yet."""
    settings = (read_json(manifest).get("config") or {}).get("model")
    if not isinstance(settings, dict) or not isinstance(settings.get("init_args"), dict):
        raise InputError(f"{manifest} names no model to build: config.model lacks a class_path and its init_args")
    # How it was optimised makes no difference to its weights, and takes classes of other packages.
    arguments = {name: value for name, value in settings["init_args"].items() if name not in ("optimizer", "schedule")}
    settings = {**settings, "init_args": arguments}
    _check_trusted(settings, manifest, trust_classes, trust_remote_code)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModelModule, "model", fail_untyped=False)
    try:
        return parser.instantiate_classes(parser.parse_object({"model": settings})).model
    except ArgumentError as error:
        raise InputError(f"{manifest} names a model that cannot be built: {error}") from error


def _check_trusted(settings: Any, manifest: Path, classes: bool, remote_code: bool, name: str = "model") -> None:
    """Refuse settings that name code from elsewhere; a parser would import it, and a loader run it."""
    if isinstance(settings, list):
        for value in settings:
            _check_trusted(value, manifest, classes, remote_code, name)
    if not isinstance(settings, dict):
        if name in ("model", "source") and settings is not None:
            raise InputError(f"{manifest}: {name} is {settings!r}; expected a class_path with its init_args")
        return
    path = settings.get("class_path")
    if path is not None and not classes and str(path).partition(".")[0] != SUITE[0]:
        raise InputError(
            f"{manifest} names the class {path}, which is not of this suite, and importing it runs its code. Say "
            "--trust_classes true where you trust it; a class of yours needs --plugins <its folder> as well"
        )
    if settings.get("trust_remote_code") not in (None, False) and not remote_code:
        raise InputError(
            f"{manifest} says trust_remote_code, for Python that lies beside the model; a file is not trusted to say "
            "so. Say --trust_remote_code true on the command line where you have read that code"
        )
    for key, value in settings.items():
        _check_trusted(value, manifest, classes, remote_code, key)


def state_of(checkpoint: Path, trusted: bool) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; those of ZeRO are put together from all ranks, in float32."""
    if checkpoint.is_dir():
        with nullcontext() if trusted else restricted_pickles(ADVICE, classes=True):
            return read_sharded_weights(checkpoint)
    return read_state(checkpoint, ADVICE, trusted)["state_dict"]
