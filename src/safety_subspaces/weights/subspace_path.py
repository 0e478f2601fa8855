"""What can be said of the path of a subspace file before anything is imported that could open it."""

from pathlib import Path

from safety_subspaces.artefacts.errors import InputError


def check_subspace_there(path: str) -> None:
    """Refuse a subspace file that is not there.

    Raises:
        InputError: It is not.
    """
    if not Path(path).is_file():
        raise InputError(f"subspace file {path} does not exist; make it with python analyze.py subspace")
