"""The model that a snapshot counts from: the one it names, or the one that its run started from."""

from collections.abc import Mapping
from typing import Any

import yaml

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.provenance import describe_input
from safety_subspaces.weights.snapshots import START_FILE, Snapshot


def reference_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a snapshot says about its reference: a path and hashes."""
    reference = snapshot.facts.get("reference")
    return reference if isinstance(reference, dict) else {"path": reference, "sha256": None}


def counts_from_start(snapshot: Snapshot) -> bool:
    """Tell whether the update counts from the start of its own run, so that it was zero at step 0."""
    return reference_of(snapshot)["path"] == START_FILE


def reference_folder(snapshot: Snapshot) -> str:
    """Return the model folder that snapshots count from: the one they name, or the one that their run started from.

    Raises:
        InputError: It is not known, or has changed since.
    """
    reference, run = reference_of(snapshot), snapshot.path.parent.parent
    if counts_from_start(snapshot):
        config, manifest = run / "config.yaml", run / "manifest.json"
        value = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
        for key in ("model", "init_args", "source", "init_args", "path"):
            value = value.get(key) if isinstance(value, Mapping) else None
        recorded = read_json(manifest).get("inputs") or [] if manifest.is_file() else []
        reference = next((entry for entry in recorded if entry["path"] == value), {"path": value, "sha256": None})
    if not isinstance(reference["path"], str):
        raise InputError(
            f"the model that {run} started from is not known (no model.init_args.source.init_args.path in its "
            "config.yaml), so neither are its weights; give a model folder, or leave others out"
        )
    if reference["sha256"] is not None and describe_input(reference["path"])["sha256"] != reference["sha256"]:
        raise InputError(
            f"{reference['path']} is missing or has changed since the run counted from it (another sha256), so the "
            "update would not be from the same weights; put it back"
        )
    return reference["path"]
