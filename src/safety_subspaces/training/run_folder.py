"""The run folder: opened new or resumed, never written over; its manifest says what made it and how it ended."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from safety_subspaces.artefacts.description import describe_inputs, describe_parts, facts_about
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_partial, read_json, write_json, write_text
from safety_subspaces.artefacts.provenance import peak_memory_bytes, provenance, sha256_of_value
from safety_subspaces.artefacts.secrets import without_secrets
from safety_subspaces.training.checkpoints import flaw_of, newest_first, step_of
from safety_subspaces.training.recipe import kind_sha256, recipe_sha256

logger = logging.getLogger(__name__)

# Options that say how to start, not what to compute; they are no part of a run's identity.
START_OPTIONS = ("config", "ckpt_path", "resume", "archive", "weights_only", "collective_timeout", "plugins")
EVENTS = "events.out.tfevents."  # how the names of TensorBoard's files begin


@dataclass(frozen=True)
class RunPlan:
    """What will happen to a run folder; nothing has been written yet.

    Args:
        path: The run folder.
        config: The resolved configuration, as plain values.
        parts: What each part of the run says of itself.
        inputs: The files and folders that the parts read, with their hashes.
        checkpoint: The checkpoint to resume from, if any.
        complete: Whether the run has already ended with this configuration and these inputs.
        archive: Whether what is in the folder has to be moved aside first.
        anew: Whether it holds a run that was killed before its first checkpoint, which begins again in its place.
        found: What was in the folder, in short; a folder that has something else by then is not opened.
    """

    path: Path
    config: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Path | None = None
    complete: bool = False
    archive: bool = False
    anew: bool = False
    found: str = "free"


def plan_run(
    path: Path, config: dict[str, Any], parts: Sequence[object] = (), resume: bool = False, archive: bool = False
) -> RunPlan:
    """Decide whether a run starts, resumes, has already ended, or must not be touched.

    Args:
        path: The run folder.
        config: The resolved configuration.
        parts: What the run is made of: module, data and callbacks, none of which has loaded anything yet.
        resume: Whether a run that stopped may go on; only one of the same configuration and inputs can.
        archive: Whether a folder that can be neither resumed nor kept may be moved aside.

    Raises:
        InputError: The folder is occupied and neither option applies, or a part says what no manifest can hold.
    """
    config = _identity(config)
    if path.exists() and not path.is_dir():
        raise InputError(f"run folder {path} is a file; choose another run_dir")
    if _is_locked(path):
        raise InputError(f"another process is training in {path}; wait for it, stop it, or choose another --run_dir")
    found = _what_is_in(path)
    is_free = found == "free"
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else None
    if not (is_free or resume or archive):
        what = f"a run that is {manifest['status']}" if manifest else "files of something else"
        raise InputError(
            f"run folder {path} is in use: it holds {what}. Say --resume to go on with it, "
            "--archive to move it aside, or choose another --run_dir"
        )
    plan = RunPlan(path, config, without_secrets(describe_parts(parts)), describe_inputs(parts), found=found)
    if is_free:
        return plan
    same = manifest is not None and _is_of(manifest, config, plan.inputs)
    if resume and same and manifest is not None:
        if _has_ended(path, manifest, plan.parts):
            return replace(plan, complete=True)
        checkpoint = latest_checkpoint(path, says=True)
        if checkpoint is not None:
            return replace(plan, checkpoint=checkpoint)
        if manifest["status"] == "running" and not newest_first(path / "checkpoints"):
            return replace(plan, anew=True)
    if archive:
        return replace(plan, archive=True)
    why = "it has no whole checkpoint yet" if same else "its manifest is missing, or has another configuration or input"
    raise InputError(f"run folder {path} cannot be resumed: {why}. Say --archive to move it aside, or choose another")


def is_complete(path: Path, config: dict[str, Any], parts: Sequence[object] = ()) -> bool:
    """Tell whether a run has already ended with this configuration and these inputs.

    The ranks beside the first ask: it then ends, and none must wait for it.
    """
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    return (
        manifest.get("status") == "complete"
        and _is_of(manifest, _identity(config), describe_inputs(parts))
        and _has_ended(path, manifest, describe_parts(parts))
    )


def open_run(plan: RunPlan) -> None:
    """Make the run folder as planned, with ``config.yaml`` and a manifest that says ``running``.

    The folder is this process's own until it ends, however it ends. What killed processes left half written in one that
    is gone on with is removed; of one that begins anew also its folders and events.

    Raises:
        InputError: Another process took the folder meanwhile, or has taken it and ended.
    """
    _lock(plan.path)
    if _what_is_in(plan.path) != plan.found:
        raise InputError(f"another process has used {plan.path} since this one looked at it; start this one again")
    if plan.archive:
        plan.path.rename(_free_name(plan.path))
    plan.path.mkdir(parents=True, exist_ok=True)
    manifest = plan.path / "manifest.json"
    if plan.anew:
        logger.warning("%s was killed before its first checkpoint, and begins anew", plan.path)
        for made in [path for path in plan.path.iterdir() if path.is_dir() or path.name.startswith(EVENTS)]:
            _remove(made)
    for leaving in remove_leavings(plan.path):
        logger.warning("removed %s, which a killed process had not finished", leaving)
    earlier = read_json(manifest) if manifest.is_file() else {}
    write_json(
        manifest,
        {
            "status": "running",
            **provenance(),
            "seed": plan.config.get("seed_everything"),
            "config": plan.config,
            "config_sha256": sha256_of_value(plan.config),
            "recipe_sha256": recipe_sha256(plan.config),
            "kind_sha256": kind_sha256(plan.config, plan.parts, plan.inputs, plan.path),
            "run_dir": str(plan.path),
            "role": plan.config.get("role"),
            "parts": plan.parts,
            "inputs": plan.inputs,
            "resumed_from": None if plan.checkpoint is None else plan.checkpoint.name,
            "earlier_wall_seconds": earlier.get("wall_seconds", 0.0) + earlier.get("earlier_wall_seconds", 0.0),
        },
    )
    write_text(plan.path / "config.yaml", yaml.safe_dump(plan.config, sort_keys=False))


def close_run(path: Path, status: str, started: float, **facts: Any) -> None:
    """Record in the manifest how the run ended.

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
        **without_secrets(facts),
    }
    write_json(path / "manifest.json", manifest)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that makes a run what it is, as the manifest keeps it."""
    identity: dict[str, Any] = without_secrets({n: value for n, value in config.items() if n not in START_OPTIONS})
    return identity


def _is_of(manifest: Mapping[str, Any], config: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> bool:
    return manifest.get("config_sha256") == sha256_of_value(config) and manifest.get("inputs") == inputs


def _has_ended(path: Path, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> bool:
    exports = facts_about("export", {"parts": parts})
    return manifest["status"] == "complete" and all((path / export["folder"]).is_dir() for export in exports)


def discard_run(path: Path) -> None:
    """Remove the folder of a run that ended before its first step, so that the mended command finds it free."""
    shutil.rmtree(path, ignore_errors=True)


def how_to_go_on(path: Path) -> str:
    """Return the words for one whose run has stopped."""
    if newest_first(path / "checkpoints"):
        return f"go on from the last whole checkpoint of {path} with --resume"
    return f"{path} has no checkpoint yet; start it anew with --archive"


def latest_checkpoint(path: Path, says: bool = False) -> Path | None:
    """Return the whole checkpoint with the most steps in a run's own ``checkpoints/``, if there is any.

    Args:
        path: The run folder.
        says: Whether those that are passed over are named in the log.
    """
    for checkpoint in newest_first(path / "checkpoints"):
        flaw = flaw_of(checkpoint)
        if flaw is None:
            return checkpoint
        if says:
            logger.warning("%s is passed over: %s", checkpoint, flaw)
    return None


def remove_leavings(path: Path) -> list[Path]:
    """Remove what killed processes left half written in a run folder that is this process's own, and return it.

    What has the name of a process that lives is left alone: an analysis may be writing into the folder.
    """
    leavings = [found for found in path.rglob(".*") if is_partial(found) and not _is_alive(found)]
    for leaving in leavings:
        _remove(leaving)
    return leavings


def trained_checkpoint(path: Path) -> Path:
    """Return the checkpoint that holds a run's trained weights.

    Raises:
        InputError: The run has none, or has ended at a later step than its newest one.
    """
    checkpoint = latest_checkpoint(path, says=True)
    if checkpoint is None:
        raise InputError(f"{path} has no whole checkpoint to measure; train it first, or name one by --ckpt_path")
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    last = manifest.get("global_step")
    step, _ = step_of(checkpoint) or (last, 0)
    if manifest.get("status") == "complete" and last != step:
        raise InputError(
            f"the newest checkpoint of {path} is of step {step}, but the run ended at step {last}; "
            "add a ModelCheckpoint with save_on_train_epoch_end: true, or name one by --ckpt_path"
        )
    return checkpoint


@cache  # a lock is released when its object is deleted: the cache keeps them as long as the process lives
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _what_is_in(path: Path) -> str:
    """Name what a folder holds so that a run which came and went meanwhile is seen.

    One whose first file a killed process had only begun holds nothing.
    """
    if not path.is_dir() or all(map(is_partial, path.iterdir())):
        return "free"
    manifest = path / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else "something else"


def _is_alive(partial: Path) -> bool:
    """Tell whether the process lives whose number a partial file has; this one has not yet written any."""
    pid = int(partial.name.rpartition("-")[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()


def _free_name(path: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    candidate, number = path.with_name(f"{path.name}.archived-{stamp}"), 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.archived-{stamp}-{number}"), number + 1
    return candidate
