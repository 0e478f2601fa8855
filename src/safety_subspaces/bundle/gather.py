"""What of a study goes into a bundle: its records and tables, without weights, secrets and home folders.

A study that was gathered is a study again: it gives the same findings and the same page, wherever it lies.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import read_yaml
from safety_subspaces.artefacts.places import COMPARISON_FILE, MODEL
from safety_subspaces.artefacts.secrets import passed_on, without_secrets
from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.artefacts.study_files import SCALARS_FILE
from safety_subspaces.artefacts.text import map_texts

# What describes an exported model, beside its weights; and what its files are, by name and size.
MODEL_RECORDS = ("README.md", "adapter_config.json", "config.json", "conversion.json", "leakage.json")
MODEL_FILES = "files.json"
# What a look at a run's behaviour holds beside the models' answers.
LOOK_FIELDS = ("step", "prompts", "row")
TABLES = (".csv", ".parquet")
ANSWERS = ".jsonl"


def gather(study: Study, target: Path, answers: bool) -> list[dict[str, str]]:
    """Copy the records and tables of a study into a folder of the same shape.

    Of a stage: its manifest and configuration, its scalars as one table, its looks at the behaviour, and what describes
    its exported model. Of an analysis: its configuration, its record and its tables. Secrets are masked, and home
    folders are ``~``.

    Args:
        study: The study.
        target: The folder to make.
        answers: Whether what models said, and the prompts, are copied too.

    Returns:
        What was left out, with the reason.

    Raises:
        InputError: A file cannot be read.
    """
    left_out: list[dict[str, str]] = []
    for source in _files_of(study, answers):
        name = source.relative_to(study.folder)
        if source.is_symlink():
            left_out.append({"name": name.as_posix(), "reason": "it is a link to a file"})
            continue
        _copy_masked(source, target / name)
    for stage in study.stages:
        _write_scalars(stage, target / stage.name)
        for folder in _model_folders(stage):
            sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
            _write(target / folder.relative_to(study.folder) / MODEL_FILES, json.dumps(sizes, indent=2) + "\n")
        for look in sorted(stage.folder.glob("behaviour/step=*.json")):
            facts = read_json(look)
            kept = facts if answers else {name: facts[name] for name in LOOK_FIELDS if name in facts}
            _write(
                target / look.relative_to(study.folder), passed_on(json.dumps(without_secrets(kept), indent=2) + "\n")
            )
    return left_out


def _files_of(study: Study, answers: bool) -> Iterator[Path]:
    if (study.folder / COMPARISON_FILE).is_file():  # the page's next step depends on it
        yield study.folder / COMPARISON_FILE
    for stage in study.stages:
        found = [stage.folder / name for name in ("manifest.json", "config.yaml")]
        found += [folder / name for folder in _model_folders(stage) for name in MODEL_RECORDS]
        found += sorted(stage.folder.glob("constraint/*.json"))
        yield from (path for path in found if path.is_file())
    for result in study.results:
        named = ("config.yaml", "result.json")
        kinds = (*TABLES, ANSWERS) if answers else TABLES
        files = (path for path in sorted(result.folder.iterdir()) if path.name in named or path.suffix in kinds)
        yield from (path for path in files if path.is_file() and not path.name.startswith("."))


def _model_folders(stage: Stage) -> list[Path]:
    exports = [export.get("folder") for export in facts_about("export", stage.manifest) if isinstance(export, dict)]
    named = [stage.folder / str(name) for name in exports or [MODEL] if name and "/" not in str(name)]
    return [folder for folder in named if folder.is_dir()]


def _write_scalars(stage: Stage, folder: Path) -> None:
    frames = [table.assign(tag=tag) for tag, table in stage.scalars.items()]
    if frames:
        folder.mkdir(parents=True, exist_ok=True)
        pd.concat(frames, ignore_index=True)[["tag", "step", "value"]].to_parquet(folder / SCALARS_FILE, index=False)


def _copy_masked(source: Path, target: Path) -> None:
    """Copy a file, byte for byte where nothing in it has to be masked."""
    if source.suffix != ".parquet":
        text = source.read_bytes().decode("utf-8", errors="replace")
        _write(target, passed_on(_without_named_secrets(source, text)))
        return
    frame = pd.read_parquet(source)
    changed = map_texts(frame, passed_on)
    target.parent.mkdir(parents=True, exist_ok=True)
    if changed.equals(frame) and [*changed.columns] == [*frame.columns]:
        target.write_bytes(source.read_bytes())
    else:
        changed.to_parquet(target, index=False)


def _without_named_secrets(source: Path, text: str) -> str:
    """Mask the values of options that are named like a secret, as in a record that was written by hand."""
    if source.suffix not in (".json", ".yaml"):
        return text
    value: Any = read_json(source) if source.suffix == ".json" and text.lstrip().startswith("{") else None
    value = read_yaml(source) if source.suffix == ".yaml" else value
    if value is None or (safe := without_secrets(value)) == value:
        return text
    return yaml.safe_dump(safe, sort_keys=False) if source.suffix == ".yaml" else json.dumps(safe, indent=2) + "\n"


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="")
