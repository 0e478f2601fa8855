"""Where the base of an adapter is: ``adapter_config.json`` names it as it was named in training, and studies move."""

import json
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"


def adapter_base(folder: Path) -> str:
    """Return the path or Hub id of the model that an adapter was trained upon.

    A relative path that does not exist from here is looked for beside the adapter, and then in the adapter's own study
    (``<study>/<stage>/model``), so that a study can be moved or read from another folder.

    Raises:
        InputError: The adapter names no base.
    """
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"adapter {folder} names no base_model_name_or_path in {ADAPTER_CONFIG}; add the model's path")
    if Path(base).expanduser().is_dir():
        return base
    study = folder.resolve().parents[1]
    for candidate in (folder / base, study.joinpath(*Path(base).parts[-2:])):
        if candidate.is_dir():
            return str(candidate)
    return base
