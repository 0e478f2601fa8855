"""Packages that only some tasks need: an installation leaves them out until one of its extras is asked for."""

from importlib.util import find_spec

from safety_subspaces.artefacts.errors import InputError

# The extra of pyproject.toml that brings each package.
EXTRAS = {
    "accelerate": "utility",
    "deepspeed": "deepspeed",
    "gguf": "real",
    "lm_eval": "utility",
    "openai": "judge",
    "plotly": "report",
}


def check_extra(package: str, task: str) -> None:
    """Check that a package of an extra is there, before anything is done that it would be needed for.

    Args:
        package: The name that it is imported by.
        task: What needs it, for the message.

    Raises:
        InputError: It is not installed.
    """
    if find_spec(package) is None:
        extra = EXTRAS[package]
        raise InputError(
            f"{task} needs the package {package}, which is not installed; the extra {extra} brings it: "
            f"pip install 'safety-subspaces[{extra}]', in a clone pip install '.[{extra}]'"
        )
