"""Lists the packages that the suite was tested with: ``requirements.lock`` (versions) and ``docs/licences.md``.

``python docs/list_packages.py`` reads what is installed of ``requirements.txt``, of the extras in ``pyproject.toml``
(but for ``docs``, which has an environment of its own), and of what these need in turn. Builds for one kind of machine
(``torch 2.13.0+cpu``) are listed by their version alone, so that the lock holds on machines with a GPU too.
"""

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LISTED, PROJECT = ROOT / "requirements.txt", ROOT / "pyproject.toml"
LOCK, LICENCES = ROOT / "requirements.lock", ROOT / "docs" / "licences.md"
HEAD = """\
# What the suite was tested with, on Python 3.11: the packages of requirements.txt and of the extras, and their needs.
# pip install -r requirements.txt -c requirements.lock
# Written by `make lock` from what is installed.
"""
PAGE = """\
# Licences

The packages of `requirements.lock` and the licence that each states in its own metadata; `make lock` writes this page.
The suite itself is under Apache-2.0 (`LICENSE`). It ships none of these packages; pages of the report hold a copy of
plotly.js (MIT), which comes with plotly.

| package | version | licence |
| --- | --- | --- |
"""
# Extras that are installed apart from all others: see their targets in the Makefile.
APART = ("docs",)
# A field of the metadata may hold the whole text of a licence: its name stands in the first line.
LONGEST_NAME = 100


def wanted() -> list[Requirement]:
    """Return what the suite asks for itself: the run-time list and the extras that are installed beside it."""
    lines = [line.split("#")[0].strip() for line in LISTED.read_text(encoding="utf-8").splitlines()]
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    beside = [line for name, extra in extras.items() if name not in APART for line in extra]
    return [Requirement(line) for line in [*filter(None, lines), *beside]]


def oldest() -> list[str]:
    """Return the lowest version that the run-time list allows of each package, as pip takes it."""
    pinned = []
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            asked = Requirement(line)
            lowest = next(part.version for part in asked.specifier if part.operator in (">=", "=="))
            extras = f"[{','.join(asked.extras)}]" if asked.extras else ""
            pinned.append(f"{asked.name}{extras}=={lowest}")
    return pinned


def installed(requirements: list[Requirement]) -> dict[str, Distribution]:
    """Return the installed packages that some requirements ask for, and those that these need, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    ahead = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while ahead:
        requirement, extra = ahead.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            print(f"{name} is not installed here, and is left out")
            continue
        ahead += [(needed, further) for needed in needs_of(found[name], extra) for further in ("", *needed.extras)]
    return dict(sorted(found.items()))


def needs_of(package: Distribution, extra: str) -> list[Requirement]:
    """Return what a package needs on this machine, for itself (``""``) or for one of its extras."""
    needs = map(Requirement, package.requires or [])
    return [needed for needed in needs if needed.marker is None or needed.marker.evaluate({"extra": extra})]


def licence_of(package: Distribution) -> str:
    """Return the licence that a package states: its expression, else its classifiers, else its field, else nothing."""
    about = package.metadata
    classified = [
        entry.split(" :: ")[-1] for entry in about.get_all("Classifier") or [] if entry.startswith("License ::")
    ]
    stated = (about.get("License") or "").strip().splitlines()
    named = stated[0].strip()[:LONGEST_NAME] if stated else "not stated"
    return re.sub(r"[|\s]+", " ", about.get("License-Expression") or ", ".join(classified) or named)


def main() -> None:
    """Write both files; or, with ``--oldest``, print the lowest versions."""
    if "--oldest" in sys.argv:
        print("\n".join(oldest()))
        return
    packages = installed(wanted())
    versions = {name: Version(package.version).public for name, package in packages.items()}
    lock = HEAD + "".join(f"{name}=={version}\n" for name, version in versions.items())
    rows = [f"| {name} | {versions[name]} | {licence_of(package)} |\n" for name, package in packages.items()]
    LOCK.write_text(lock, encoding="utf-8")
    LICENCES.write_text(PAGE + "".join(rows), encoding="utf-8")
    print(f"{len(packages)} packages in {LOCK.name} and {LICENCES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
