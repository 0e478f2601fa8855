"""The run folder: opened new or resumed, never written over; its manifest says what made it and how it ended."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_occupied, read_json, write_json, write_text
from safety_subspaces.artefacts.provenance import describe_input, peak_memory_bytes, provenance, sha256_of_value
from safety_subspaces.evaluation.prompt_sets import split_source

# Options that say how to start, not what to compute; they are no part of a run's identity.
START_OPTIONS = ("config", "ckpt_path", "resume", "archive", "weights_only")
# Settings that name what a run reads: its source and data, what a constraint is made of, what it is watched by.
INPUT_NAMES = (
    *("path", "base", "aligned", "unconstrained", "subspace"),
    *("reference", "other", "prompts", "first", "second"),
)


@dataclass(frozen=True)
class RunPlan:
    """What will happen to a run folder; making it has written nothing.

    Args:
        path: The run folder.
        config: The resolved configuration, as plain values.
        checkpoint: The checkpoint to resume from, if any.
        complete: Whether the run has already ended with this configuration and these inputs.
        archive: Whether what is in the folder has to be moved aside first.
    """

    path: Path
    config: dict[str, Any]
    checkpoint: Path | None = None
    complete: bool = False
    archive: bool = False


def plan_run(path: Path, config: dict[str, Any], resume: bool = False, archive: bool = False) -> RunPlan:
    """Decide whether a run starts, resumes, has already ended, or must not be touched.

    Args:
        path: The run folder.
        config: The resolved configuration.
        resume: Whether a run that stopped may go on; only one of the same configuration can.
        archive: Whether a folder that can be neither resumed nor kept may be moved aside.

    Raises:
        InputError: The folder is occupied and neither option applies.
    """
    config = {name: value for name, value in config.items() if name not in START_OPTIONS}
    if path.exists() and not path.is_dir():
        raise InputError(f"run folder {path} is a file; choose another run_dir")
    if _is_locked(path):
        raise InputError(f"another process is training in {path}; wait for it, stop it, or choose another --run_dir")
    if not is_occupied(path):
        return RunPlan(path, config)
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else None
    same = (
        manifest is not None
        and manifest.get("config_sha256") == sha256_of_value(config)
        and manifest.get("inputs") == _describe_inputs(config)
    )
    if resume and same and manifest is not None:
        exported = (path / "model").is_dir() or "ModelExport" not in str(config)
        if manifest["status"] == "complete" and exported:
            return RunPlan(path, config, complete=True)
        checkpoint = latest_checkpoint(path)
        if checkpoint is not None:
            return RunPlan(path, config, checkpoint=checkpoint)
    if archive:
        return RunPlan(path, config, archive=True)
    if not resume:
        what = f"a run that is {manifest['status']}" if manifest else "files of something else"
        raise InputError(
            f"run folder {path} is in use: it holds {what}. Say --resume to go on with it, "
            "--archive to move it aside, or choose another --run_dir"
        )
    why = "it has no checkpoint yet" if same else "its manifest is missing, or has another configuration or input"
    raise InputError(f"run folder {path} cannot be resumed: {why}. Say --archive to move it aside, or choose another")


def open_run(plan: RunPlan) -> None:
    """Make the run folder as planned, with ``config.yaml`` and a manifest that says ``running``.

    The folder is this process's own until it ends, however it ends.

    Raises:
        InputError: Another process took the folder meanwhile.
    """
    _lock(plan.path)
    if plan.archive:
        plan.path.rename(_free_name(plan.path))
    plan.path.mkdir(parents=True, exist_ok=True)
    write_text(plan.path / "config.yaml", yaml.safe_dump(plan.config, sort_keys=False))
    manifest = plan.path / "manifest.json"
    earlier = read_json(manifest) if manifest.is_file() else {}
    write_json(
        manifest,
        {
            "status": "running",
            **provenance(),
            "seed": plan.config.get("seed_everything"),
            "config": plan.config,
            "config_sha256": sha256_of_value(plan.config),
            "inputs": _describe_inputs(plan.config),
            "resumed_from": None if plan.checkpoint is None else plan.checkpoint.name,
            "earlier_wall_seconds": earlier.get("wall_seconds", 0.0) + earlier.get("earlier_wall_seconds", 0.0),
        },
    )


def close_run(path: Path, status: str, started: float, **facts: Any) -> None:
    """Say in the manifest how the run ended.

    Args:
        path: The run folder.
        status: ``complete`` or ``failed``.
        started: ``time.monotonic()`` at the start.
        **facts: What else to record, for example the last metrics.
    """
    manifest = read_json(path / "manifest.json")
    manifest |= {
        "status": status,
        "wall_seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        **facts,
    }
    write_json(path / "manifest.json", manifest)


def discard_run(path: Path) -> None:
    """Remove the folder of a run that ended before its first step, so that the mended command finds it free."""
    shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(path: Path) -> Path | None:
    """Return the whole checkpoint with the most steps in a run's own ``checkpoints/``, if there is any."""
    found = sorted(filter(is_whole_checkpoint, (path / "checkpoints").glob("step=*.ckpt")))
    return found[-1] if found else None


def is_whole_checkpoint(path: Path) -> bool:
    """Tell whether a checkpoint was written to its end: a folder of DeepSpeed's then has its file ``latest``."""
    return path.is_file() or (path / "latest").is_file()


def trained_checkpoint(path: Path) -> Path:
    """Return the checkpoint that holds a run's trained weights.

    Raises:
        InputError: The run has none, or has ended at a later step than its newest one.
    """
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        raise InputError(f"{path} has no checkpoint to measure; train it first, or name one by --ckpt_path")
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    last = manifest.get("global_step")
    if manifest.get("status") == "complete" and last != (step := int(checkpoint.stem.removeprefix("step="))):
        raise InputError(
            f"the newest checkpoint of {path} is of step {step}, but the run ended at step {last}; "
            "add a ModelCheckpoint with save_on_train_epoch_end: true, or name one by --ckpt_path"
        )
    return checkpoint


@cache  # a lock is let go with its object: these live as long as the process
def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), blocking=False, thread_local=False)


def _lock(path: Path) -> None:
    """Hold the run folder until this process ends: the kernel lets go of the lock, also after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _lock_of(path.resolve()).acquire()
    except Timeout as error:
        raise InputError(f"another process is training in {path}; wait for it or choose another --run_dir") from error


def _is_locked(path: Path) -> bool:
    lock = _lock_of(path.resolve())
    if not Path(lock.lock_file).is_file():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True


def _free_name(path: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    candidate, number = path.with_name(f"{path.name}.archived-{stamp}"), 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.archived-{stamp}-{number}"), number + 1
    return candidate


def _describe_inputs(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [describe_input(path) for path in dict.fromkeys(_local_paths(config))]


def _local_paths(config: Any) -> Iterator[str]:
    """Every value under a name of ``INPUT_NAMES`` that exists on this disk: the run's inputs."""
    children = config.items() if isinstance(config, dict) else enumerate(config)
    for name, value in children:
        if isinstance(value, dict | list):
            yield from _local_paths(value)
        elif name in INPUT_NAMES and isinstance(value, str):
            path, _ = split_source(value)  # a file of prompts may come with the set that is meant
            if Path(path).exists():
                yield path
