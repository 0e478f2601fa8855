"""What pyproject.toml cannot say: what lies at the top of the repository, and what is needed beside the extras."""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def name_of(requirement: str) -> str:
    """Return the package that a line is about."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


optional = {name_of(line) for extra in ("deepspeed", "judge", "report") for line in EXTRAS[extra]}
setup(
    packages=[*find_packages("src"), "safety_subspaces.callbacks", "safety_subspaces.configs"],
    package_dir={"": "src", "safety_subspaces.callbacks": "callbacks", "safety_subspaces.configs": "configs"},
    install_requires=[line for line in LINES if line and line[0] != "#" and name_of(line) not in optional],
)
