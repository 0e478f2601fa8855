"""Changes what a study and its parts are called, or where they lie, and nothing that they say."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import yaml

LABELLED = ("models", "tuned", "others")
MODELS = ("model", "tuned", "first_model", "second_model")
PAIR = ("first", "second")


def rewrite(folder: Path, change: Callable[[str], str], pattern: str = "**/*") -> None:
    """Change the text of every manifest, record and configuration that matches."""
    for path in folder.glob(pattern):
        if path.suffix in (".json", ".yaml"):
            path.write_text(change(path.read_text()))


def rename_stages(folder: Path, names: Mapping[str, str], in_records: bool = True) -> None:
    """Give stages other names; with their records as if they had been trained under these."""
    if in_records:
        rewrite(folder, lambda text: _in_paths(text, names))
    for name, other in names.items():
        if (folder / name).is_dir():
            (folder / name).rename(folder / other)


def relabel(folder: Path, names: Mapping[str, str], command: str = "*", analysis: str = "*") -> None:
    """Give the models of some analyses other labels, in their arguments and tables."""
    for target in folder.glob(f"analysis/{command}/{analysis}"):
        if target.name.startswith("."):
            continue  # what is not finished yet
        arguments = yaml.safe_load((target / "config.yaml").read_text())
        for argument in LABELLED:
            if argument in arguments:
                arguments[argument] = {names.get(name, name): path for name, path in arguments[argument].items()}
        (target / "config.yaml").write_text(yaml.safe_dump(arguments, sort_keys=False))
        for path in target.glob("*.parquet"):
            frame = pd.read_parquet(path)
            # The pairs of activations are of prompt sets.
            pairs = () if target.parent.name == "activations" else PAIR
            columns = [name for name in (*MODELS, *pairs) if name in frame]
            renamed = {name: [names.get(label, label) for label in frame[name]] for name in columns}
            frame.assign(**renamed).to_parquet(path, index=False)


def without_kinds(folder: Path) -> None:
    """Leave out of the manifests what tells the kind of a run, as those of earlier versions do."""
    for path in folder.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest.pop("kind_sha256")
        path.write_text(json.dumps(manifest))


def called(text: str, names: Mapping[str, str]) -> str:
    """Put the first names in the place of the second ones."""
    first = {other: name for name, other in names.items()}
    words = sorted(first, key=len, reverse=True)
    return re.sub("|".join(rf"\b{re.escape(word)}\b" for word in words), lambda found: first[found[0]], text)


def _in_paths(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"(?<=/)[\w.-]+(?=[/\"\s])", lambda found: names.get(found[0], found[0]), text)
