"""What a bundle holds beside its studies: the findings and the page, made of them alone, and the manifest of it all."""

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import safety_subspaces
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.provenance import code_state, git_state, sha256_of_file
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.finding import as_table
from safety_subspaces.report.pages.page import render
from safety_subspaces.report.pages.studies import read_page
from safety_subspaces.report.parts.page import versions_of

MANIFEST = "bundle.json"
FORMAT = 1
STUDIES, FINDINGS = "studies", "findings"
PAGE = "report/index.html"
# What a manifest must have, and of which kind each is.
FIELDS: dict[str, type] = {"format": int, "studies": list, "files": dict, "made": str, "code_sha256": str}


@dataclass(frozen=True)
class Plugged:
    """Sections and findings of other packages, by import path."""

    sections: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """What follows from the studies of a bundle.

    Args:
        findings: Their findings, as a table on disk has them.
        page: Their page.
    """

    findings: pd.DataFrame
    page: str


def derive(root: Path, names: Sequence[str], made: str, plugged: Plugged) -> Derived:
    """Make the findings and the page of the studies in an unpacked bundle.

    They are read from within the bundle, by paths that begin there: so the page names no place of this disk, and none
    of the paths in the records leads to a model that happens to lie here. The working directory is another meanwhile.

    Args:
        root: The bundle.
        names: Its studies, in their order.
        made: When and from what the page is made, in words.
        plugged: Sections and findings of other packages.

    Raises:
        InputError: A study cannot be read.
    """
    with contextlib.chdir(root / STUDIES):
        page = read_page(list(names), plugged.sections, plugged.topics)
        return Derived(as_table(page.findings), render(page.organisms, page.parts, made))


def moment_of(studies: Sequence[Study]) -> str:
    """Say what a page is made from without the time of day: up to when results were begun, and by which commit."""
    started = [str(stage.manifest.get("started") or "") for study in studies for stage in study.stages]
    started += [result.started for study in studies for result in study.results]
    git = git_state() or {}
    commit = f"commit {str(git['commit'])[:12]}" if git else f"version {safety_subspaces.__version__}"
    return f"of what was begun by {max(started, default='') or 'an unknown time'}, with {commit}"


def manifest_of(root: Path, studies: Sequence[Study], made: str, plugged: Plugged, **facts: Any) -> dict[str, Any]:
    """Describe a bundle: each file's hash and size, each study's seeds, commits and versions, and what packed it.

    Args:
        root: The bundle, whole but for its manifest.
        studies: The studies that it was made of.
        made: As in :func:`derive`.
        plugged: As in :func:`derive`.
        **facts: What else is said of it.
    """
    code = code_state()
    return {
        "format": FORMAT,
        "version": safety_subspaces.__version__,
        "git": git_state(),
        "code_sha256": code["code_sha256"],
        "versions": {"python": platform.python_version(), **code["versions"]},
        "made": made,
        "sections": list(plugged.sections),
        "topics": list(plugged.topics),
        **facts,
        "studies": [
            {
                "name": study.name,
                "seeds": list(study.seeds),
                "commits": sorted({commit for commit in _commits_of(study) if commit}),
                "versions": versions_of(study),
            }
            for study in studies
        ],
        "files": hashes_of(root),
    }


def hashes_of(root: Path) -> dict[str, dict[str, Any]]:
    """Return the SHA-256 and the size in bytes of each file below a folder but the manifest, by name."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {
        name: {"sha256": sha256_of_file(root / name), "bytes": (root / name).stat().st_size}
        for name in files
        if name != MANIFEST
    }


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of an unpacked bundle.

    Raises:
        InputError: It is missing, of another format, or no manifest.
    """
    if not (root / MANIFEST).is_file():
        raise InputError(f"the archive holds no {MANIFEST}; expected one that `analyze.py bundle` wrote")
    manifest = read_json(root / MANIFEST)
    flaws = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    studies = [study for study in manifest.get("studies") or () if isinstance(study, dict)] if not flaws else []
    names = [str(study.get("name")) for study in studies]
    held = {path.name for path in (root / STUDIES).iterdir()} if (root / STUDIES).is_dir() else set()
    if flaws or not names or set(names) != held or len(names) != len(held):
        raise InputError(f"{MANIFEST} lacks {', '.join(flaws) or 'the studies'} that it should name; copy it again")
    if manifest["format"] != FORMAT:
        raise InputError(f"the bundle is of format {manifest['format']}, expected {FORMAT}: use a newer version")
    return manifest


def _commits_of(study: Study) -> list[str]:
    records = [stage.manifest for stage in study.stages]
    records += [result.result.get("provenance") or {} for result in study.results]
    return [str((record.get("git") or {}).get("commit") or "") for record in records]
