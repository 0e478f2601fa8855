"""What a run says of itself: each of its parts (module, data, callbacks) writes what it is and reads into the manifest.

Whoever reads a manifest looks for a topic, such as ``constraint``, and never for the name of a class. So a part from
anywhere is known by what it says; nothing is guessed of a part that says nothing, and none of its files is hashed.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.provenance import describe_input

# What a manifest or the record of a result has, where it has it, and which of it are lists of maps.
RECORD_FIELDS = {
    **dict.fromkeys(("parts", "inputs", "left_out", "command"), list),
    **dict.fromkeys(("config", "metrics", "summary", "provenance", "git", "versions"), dict),
    **dict.fromkeys(
        ("status", "role", "recipe_sha256", "kind_sha256", "run_dir", "directory", "out", "commit", "started"), str
    ),
}
OF_MAPS = ("parts", "inputs", "left_out")
# What a run makes of the model in its study: the start of all, the safe model, or a fine-tune of that.
Role = Literal["base", "aligned", "tuned"]
# How what another stage leaves comes about.
MAKE = "train the stage that makes it (python train.py fit --config ...)"
MADE = {".safetensors": "make it with python analyze.py subspace"}
FILES = (".safetensors", ".json", ".jsonl", ".csv", ".parquet")  # how names of files end that parts read


@runtime_checkable
class Described(Protocol):
    """A part that says what it is."""

    def describe(self) -> dict[str, Any]:
        """Return facts by topic, as values that JSON has; asked before anything is loaded."""


@runtime_checkable
class Reading(Protocol):
    """A part that reads files."""

    def inputs(self) -> list[str]:
        """Return the files and folders that what it computes depends on; what is not on this disk is passed over."""


def describe_parts(parts: Iterable[object]) -> list[dict[str, Any]]:
    """Return what each part says of itself, under the name of its class.

    Raises:
        InputError: A part says what JSON does not have.
    """
    described = []
    for part in parts:
        name = f"{type(part).__module__}.{type(part).__qualname__}"
        facts = part.describe() if isinstance(part, Described) else {}
        try:
            described.append({"part": name, **json.loads(json.dumps(facts, allow_nan=False))})
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}.describe() returned {facts}: {error}; expected plain, finite values") from error
    return described


def describe_inputs(parts: Iterable[object]) -> list[dict[str, Any]]:
    """Return the inputs of all parts that are on this disk, each once, with their hashes."""
    paths = dict.fromkeys(path for part in parts if isinstance(part, Reading) for path in part.inputs())
    return [describe_input(path) for path in paths if Path(path).exists()]


def check_inputs(parts: Iterable[object]) -> None:
    """Refuse inputs that look like files of this disk and are not there, before anything is made or loaded.

    Raises:
        InputError: Names the first, and the part that reads it.
    """
    for part in parts:
        for path in part.inputs() if isinstance(part, Reading) else ():
            if is_local(path) and not Path(path).expanduser().exists():
                made = MADE.get(Path(path).suffix, "" if Path(path).suffix in FILES else MAKE)
                remedy = f"{made}, or give another path" if made else "give another path"
                raise InputError(f"{path} does not exist, which {type(part).__name__} reads; {remedy}")


def is_local(path: str) -> bool:
    """Tell whether a path is one of this disk, there or not; a name, or two with a slash, may be an id on the Hub."""
    is_id = "://" in path or (path.count("/") < 2 and Path(path).suffix not in FILES)
    return path.startswith((".", "/", "~")) or not is_id


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        InputError: It cannot be read, or does not say what the run is made of.
    """
    manifest = read_json(path)
    if "parts" not in manifest:
        raise InputError(
            f"{path} has no `parts`, so what the run was held to or watched by is not known; an earlier version made "
            "it: train the run again"
        )
    check_record(manifest, path)
    return manifest


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """Check the kinds of what a manifest, or the record of a result, has to be read by.

    Raises:
        InputError: Names the field.
    """
    for name in RECORD_FIELDS.keys() & record.keys():
        value, kind = record[name], RECORD_FIELDS[name]
        is_empty = value is None and name != "parts"
        fits = isinstance(value, kind) and (name not in OF_MAPS or all(isinstance(entry, dict) for entry in value))
        if not (fits or is_empty):
            raise InputError(f"{path}: {name} is {str(value)[:80]!r}; restore the file, or make it again")
    for name in ("provenance", "git"):
        if record.get(name):
            check_record(record[name], path)


def facts_about(topic: str, manifest: Mapping[str, Any]) -> list[Any]:
    """Return what the parts of a run say about a topic, one entry for each that does; nothing without a manifest."""
    return [part[topic] for part in manifest.get("parts", ()) if topic in part]
