"""Where a number came from: commit, versions, input hashes, time and memory, for every artefact that is written."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import check_pattern, reading
from safety_subspaces.artefacts.secrets import masked_command, without_secrets

# The packages whose version can change a number.
PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "deepspeed", "safetensors")
# Files that determine what a model folder computes; anything else in it (README, images) does not.
MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model")
ADAPTER_CONFIG = "adapter_config.json"
# What an adapter is made by, as PEFT writes it.
LARGEST_SETTING = 1e9  # of ranks and scales: no number of theirs comes near it
ADAPTER_SETTINGS: dict[str, Any] = {
    "base_model_name_or_path": str | None,
    "peft_type": str | None,
    "r": int | None,
    "lora_alpha": int | float | None,
    "lora_dropout": int | float | None,
    "use_rslora": bool | None,
    "rank_pattern": dict | None,
    "alpha_pattern": dict | None,
    "target_modules": str | list | None,
    "exclude_modules": str | list | None,
    "modules_to_save": list | None,
    "layers_to_transform": int | list | None,
    "layers_pattern": str | list | None,
}


def provenance() -> dict[str, Any]:
    """Describe this process: command (without secrets), commit, versions, machine and folder, as JSON values."""
    return {
        "command": [Path(sys.argv[0]).name, *masked_command(sys.argv[1:])],
        "git": git_state(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "directory": without_secrets(str(Path.cwd())),  # which relative paths in the record start from
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of this source tree and whether it is dirty; ``None`` outside a git checkout."""
    source = Path(__file__).parent
    try:
        run = {"cwd": source, "capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        status = subprocess.run(["git", "status", "--porcelain"], **run).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status.strip())}


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that can change a number."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@cache
def code_state() -> dict[str, Any]:
    """Say what computes: the SHA-256 of this package's source as it lies here, and the versions below it."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n{sha256_of_file(file)}\n".encode())
    return {"code_sha256": digest.hexdigest(), "versions": package_versions()}


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes; one that did not change is read once by a process."""
    status = path.stat()
    # The time of the last change of its status cannot be set, as that of its bytes can.
    return _sha256_of_unchanged(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4096)
def _sha256_of_unchanged(path: Path, *status: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_value(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def describe_input(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name an input file or model folder with the SHA-256 of each file that determines it.

    An adapter is described with its base. A Hub id, which is no local path, is recorded by its name alone.

    Raises:
        InputError: A file cannot be read, or an adapter is upon itself or nothing.
    """
    location = Path(path)
    with reading(path, "an input file or model folder"):
        if location.is_file():
            return {"path": str(path), "sha256": sha256_of_file(location)}
        if not location.is_dir():
            return {"path": str(path), "sha256": None}
        files = sorted(f for f in location.iterdir() if f.is_file() and f.suffix in MODEL_FILE_SUFFIXES)
        described = {"path": str(path), "sha256": {f.name: sha256_of_file(f) for f in files}}
    if (location / ADAPTER_CONFIG).is_file():
        described["base"] = describe_input(adapter_base(location))
    return described


def describe_all(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Describe inputs in their order, each once."""
    return [describe_input(path) for path in dict.fromkeys(paths)]


def check_unchanged(described: Sequence[Mapping[str, Any]]) -> None:
    """Check that inputs are what they were when they were described.

    Raises:
        InputError: One was changed.
    """
    for before in described:
        if describe_input(before["path"]) != before:
            raise InputError(
                f"{before['path']} was changed while it was read, so the numbers would be of no one state of it; "
                "run the command again"
            )


def adapter_base(folder: Path) -> str:
    """Return the path or Hub id of the model that an adapter was trained upon.

    A relative path that does not exist from here is looked for beside the adapter, and then in the adapter's own study
    (``<study>/<stage>/model``), so that a study can be moved or read from another folder.

    Raises:
        InputError: The adapter names no base, or is upon itself by way of any number of others.
    """
    base = _named_base(folder)
    inner, passed = Path(base), {folder.resolve()}
    while (inner / ADAPTER_CONFIG).is_file():
        if inner.resolve() in passed:
            raise InputError(f"adapter {folder} is upon {inner}, which is upon it; expected a model at the end")
        passed.add(inner.resolve())
        inner = Path(_named_base(inner))
    return base


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter, and check the settings that decide what it is.

    Raises:
        InputError: It cannot be read, or a setting is of another kind than PEFT writes.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    with reading(path, "the configuration that PEFT writes"):
        for name, kind in ADAPTER_SETTINGS.items():
            value = config.get(name)
            if not isinstance(value, kind) or (isinstance(value, int | float) and not abs(value) < LARGEST_SETTING):
                raise ValueError(f"{name} is {str(value)[:80]!r}")
        for name in ("rank_pattern", "alpha_pattern"):
            for pattern, value in (config.get(name) or {}).items():
                check_pattern(pattern)
                if not isinstance(value, int | float) or not abs(value) < LARGEST_SETTING:
                    raise ValueError(f"{name} has {str(value)[:80]!r} for {pattern}")
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            value = config.get(name) or []
            if isinstance(value, str):
                check_pattern(value)
            elif not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{name} is {str(value)[:80]}")
    return config


def _named_base(folder: Path) -> str:
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"adapter {folder} names no base_model_name_or_path in {ADAPTER_CONFIG}; add the model's path")
    with reading(folder / ADAPTER_CONFIG, "the path of a model as base_model_name_or_path", "mend it"):
        if Path(base).expanduser().is_dir():
            return base
        beside, study = folder / base, folder.resolve().parent.parent
        for candidate in (beside, study.joinpath(*Path(base).parts[-2:])):
            if candidate.is_dir():
                return str(candidate)
        return base


def peak_memory_bytes() -> int:
    """Return the largest resident set of this program so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage's is at least that of the process that started this one
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kibibytes
