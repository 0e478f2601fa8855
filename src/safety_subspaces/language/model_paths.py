"""What can be said of the path of a model before anything is imported that could open it."""

from collections.abc import Mapping
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG, adapter_base


def check_there(*paths: str) -> None:
    """Refuse a path that looks local and is not there, before it is mistaken for a Hub id; the base of an adapter too.

    Args:
        *paths: Paths of models, or Hub ids; addresses of endpoints are passed over.

    Raises:
        InputError: The first that is missing, or an adapter whose base is; the message says what to do.
    """
    for path in paths:
        is_id = not path.startswith((".", "/", "~")) and path.count("/") == 1
        if not (is_id or "://" in path or Path(path).expanduser().exists()):
            raise InputError(
                f"model folder {path} does not exist; train the stage that makes it "
                "(python train.py fit --config ...), or give a Hub id such as org/name"
            )
        if (Path(path) / ADAPTER_CONFIG).is_file():
            base = adapter_base(Path(path))
            try:
                check_there(base)
            except InputError as error:
                raise InputError(f"the base of adapter {path} cannot be opened: {error}") from error


def check_model_path(path: str) -> None:
    """Refuse a path that looks local and holds no model.

    Raises:
        InputError: The folder is missing, is a file, or holds no model; or an adapter whose base is missing.
    """
    location = Path(path)
    if location.is_dir():
        if not any((location / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise InputError(
                f"{path} holds neither config.json nor adapter_config.json; "
                "expected a model folder in Hugging Face format, such as runs/<study>/<stage>/model"
            )
    elif location.exists():
        raise InputError(f"{path} is a file; expected a model folder in Hugging Face format, or a Hub id")
    check_there(path)


def check_distinct(base: str, aligned: str, tuned: Mapping[str, str]) -> None:
    """Check that no model is given in the place of two.

    Raises:
        InputError: Base and aligned, or aligned and a fine-tune, are one folder or file.
    """
    pairs = [("base", base, "aligned", aligned)]
    pairs += [("aligned", aligned, f"tuned.{label}", path) for label, path in tuned.items()]
    for first, one, second, other in pairs:
        if Path(one).expanduser().resolve() == Path(other).expanduser().resolve():
            raise InputError(
                f"{first} and {second} are both {other}: there is no update between a model and itself; expected "
                "a model and one that was trained from it"
            )
