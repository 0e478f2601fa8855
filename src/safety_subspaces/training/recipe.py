"""What makes two runs alike: the recipe of a run, and its kind, which is the recipe without seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.description import facts_about, read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.places import Place
from safety_subspaces.artefacts.provenance import sha256_of_value
from safety_subspaces.artefacts.run_constraint import FACTS

# Settings of the trainer that say where things are and what is recorded, not what is learnt.
RECORDING = ("callbacks", "logger", "default_root_dir")
SEEDS = ("seed", "seed_everything")


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration that tell runs apart; the rest says where things are and what is recorded."""
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name not in RECORDING}
    return {name: config.get(name) for name in ("seed_everything", "model", "data")} | {"trainer": trainer}


def recipe_sha256(config: Mapping[str, Any]) -> str:
    """Return a hash of the recipe: runs that share it differ in what they are held to alone."""
    return sha256_of_value(_without_none(recipe(config)))


def kind_sha256(
    config: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]], run: Path
) -> str:
    """Return a hash of the recipe and the constraint without their seeds: it is that of the same run of another study.

    Models and files of a study have other paths in each: one that a stage made goes by the stage's role, another one
    inside the study by its path from there.

    Args:
        config: The resolved configuration.
        parts: What the parts of the run say of themselves.
        inputs: The files and folders that they read.
        run: The run folder.
    """
    starts = [start for start in facts_about("starts_from", {"parts": parts}) if isinstance(start, str)]
    place = Place(str(run.parent.resolve()))
    names = {path: _name_of(path, place) for path in (*(entry["path"] for entry in inputs), *starts)}
    held = [{name: facts.get(name) for name in FACTS} for facts in facts_about("constraint", {"parts": parts})]
    return sha256_of_value(_without_none(_of_any_seed({**recipe(config), "constraints": held}, names)))


def _name_of(path: str, place: Place) -> str:
    """Return what a path is called in every study: by the role of the stage that it belongs to, or from the study."""
    manifest = Path(path).parent / "manifest.json"
    try:
        role = read_manifest(manifest).get("role") if manifest.is_file() else None
    except InputError:  # of something else, or of an earlier version: the path is what there is
        role = None
    inside = place.inside(str(Path(path).resolve()))
    return f"role {role}" if role else path if inside is None else "/".join(("study", *inside))


def _of_any_seed(value: Any, names: Mapping[str, str]) -> Any:
    """Leave out seeds at any depth, and put the names of paths in their place."""
    if isinstance(value, Mapping):
        kept = {name: inner for name, inner in value.items() if name not in SEEDS and not name.endswith("_seed")}
        return {name: _of_any_seed(inner, names) for name, inner in kept.items()}
    if isinstance(value, list):
        return [_of_any_seed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    """Drop settings that are not set: a later version may name more of them."""
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
