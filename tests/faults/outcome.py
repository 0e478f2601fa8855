"""What a command made, as one value for each file: equal values mean the same result.

A file is its bytes, with these exceptions, and no other. JSON and YAML, also in the head of a safetensors file, are
their values without those that :func:`is_compared` leaves out; a file of TensorBoard's is the scalars and texts that a
reader shows, without times; a checkpoint is what it holds, as pickles of equal values differ; a cache of replies is its
rows.
"""

import hashlib
import json
import re
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

# Keys of what two runs of one command may differ in: when, how long, how much memory, whether it went on, and whether
# files of this tree that no command runs were edited meanwhile.
NOT_COMPARED = {
    "git",
    "started",
    "wall_seconds",
    "earlier_wall_seconds",
    "peak_memory_bytes",
    "resumed_from",
    "made_sha256",  # of files that say when they were made
}
# A file of a subspace says in its head when it was made, so that the hash of one as an input is another each time.
DATED_INPUT = "alignment.safetensors"
TIMES = ("time/", "train/tokens_per_second", "_hparams_/session")
# When a page and what it shows were made, from which commit, how long it took, at how many tokens a second, in how much
# memory; and the hash of a subspace file, which says when it was made.
STAMP = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?\+00:00, [^<]*"
    rb"|<td class=\"number\">[\d.]+ (s|min|h)</td><td class=\"number\">[\d,.]+</td>|[\d.]+ [MG]iB"
    rb"|(?<=alignment\.safetensors</bdi> )<code>\w+</code>"
)
# What a library keeps of this machine, with the time.
OF_MACHINE = re.compile(r"\.cache/matplotlib/fontlist-.+")
# An empty folder that PyTorch makes in TMPDIR where DeepSpeed imports its compiler, and the file by which Python tries
# whether it may write there.
TRIED = b"blat"
OF_LIBRARIES = re.compile(r"torchinductor_\w+|[a-z0-9_]{8}")
EVENTS = re.compile(r"events\.out\.tfevents\.")


def outcome(folder: Path) -> dict[str, str]:
    """Describe every file and every empty folder under a folder, hidden ones too."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if OF_LIBRARIES.fullmatch(name) and (is_empty(path) or (path.is_file() and path.read_bytes() == TRIED)):
            continue
        if OF_MACHINE.fullmatch(name):
            continue
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            if is_empty(path):
                found[name] = "empty folder"
        elif EVENTS.match(path.name):
            found[str(Path(name).parent / "events")] = digest(shown(path.parent))
        else:
            found[name] = digest(content(path))
    return found


def is_empty(path: Path) -> bool:
    """Tell whether a file or folder holds nothing."""
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def content(path: Path) -> Any:
    """Return what is compared of a file; of one that is torn, its bytes."""
    data = path.read_bytes()
    try:
        return meaning(path, data)
    except (ValueError, RuntimeError, struct.error, sqlite3.Error, yaml.YAMLError):
        return data


def meaning(path: Path, data: bytes) -> Any:
    """Return what a whole file says, without what is not compared.

    Raises:
        ValueError: The file is not what its name says; also ``struct.error`` and those of SQLite and YAML.
    """
    if path.suffix == ".json":
        return without(json.loads(data))
    if path.suffix == ".yaml":
        return without(yaml.safe_load(data))
    if path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        return [without(json.loads(data[8 : 8 + size])), digest(data[8 + size :])]
    if path.name == "README.md":  # a model card
        return [line for line in data.splitlines() if not line.startswith(b"- Commit: ")]
    if path.suffix == ".html":
        return STAMP.sub(b"", data)
    if path.suffix in (".ckpt", ".pt"):
        import torch

        return without(plain(torch.load(path, map_location="cpu", weights_only=False)))
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as replies:
            return sorted(replies.execute("SELECT key, reply FROM replies"))
    return data


def without(value: Any) -> Any:
    """Return a value without what is not compared, at any depth, also inside a text of JSON."""
    if isinstance(value, dict):
        is_dated = str(value.get("path")).endswith(DATED_INPUT)
        kept = {key: inner for key, inner in value.items() if is_compared(key) and not (is_dated and key == "sha256")}
        return {key: without(inner) for key, inner in kept.items()}
    if isinstance(value, str) and value.startswith("{"):
        try:
            return without(json.loads(value))
        except json.JSONDecodeError:
            return value
    return [without(inner) for inner in value] if isinstance(value, list) else value


def is_compared(key: object) -> bool:
    """Tell whether two runs of one command have to agree in a value, by its key."""
    return key not in NOT_COMPARED and not str(key).startswith(TIMES)


def shown(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Return what TensorBoard shows of a run: by tag each step with its value."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, digest(event.tensor_proto.SerializeToString())) for event in read.Tensors(tag)]
        for tag in read.Tags()["tensors"]
        if is_compared(tag)
    }


def plain(value: Any) -> Any:
    """Return what a checkpoint holds as plain values: of a tensor its type, shape and a hash of its numbers."""
    import torch

    if isinstance(value, torch.Tensor):
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), digest(numbers)]
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return plain(vars(value)) if hasattr(value, "__dict__") and not callable(value) else str(value)


def digest(value: Any) -> str:
    """Return a hash of bytes, or of a plain value."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(data).hexdigest()


def differences(wanted: dict[str, str], got: dict[str, str]) -> list[str]:
    """Say what is missing, left over or other than it should be."""
    missing = [f"missing {name}" for name in wanted if name not in got]
    left = dict.fromkeys(f"left {_leaving(name)}" for name in got if name not in wanted)
    return missing + list(left) + [f"other {name}" for name in wanted if name in got and wanted[name] != got[name]]


def _leaving(name: str) -> str:
    """Name a hidden folder for all that is in it."""
    hidden = next((place for place, part in enumerate(Path(name).parts, 1) if part.startswith(".")), None)
    return str(Path(*Path(name).parts[:hidden]))
