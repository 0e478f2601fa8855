"""Packs studies into a bundle: gathers them, makes findings and page of what was gathered, and writes the archive."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from safety_subspaces.artefacts.archive import check_archive_name, unpack, write_archive
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import write_json
from safety_subspaces.artefacts.results import check_labels, write_table
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.bundle.contents import (
    FINDINGS,
    MANIFEST,
    PAGE,
    STUDIES,
    Plugged,
    derive,
    manifest_of,
    moment_of,
    read_manifest,
)
from safety_subspaces.bundle.gather import gather

# What the folder in a bundle of several studies is called; that of one has the study's name.
SEVERAL = "bundle"


def check_target(target: Path, overwrite: bool) -> None:
    """Check that a bundle may be written, or an earlier one replaced.

    Raises:
        InputError: ``target`` has the name of no archive, is there and ``overwrite`` is false, or is no bundle.
    """
    check_archive_name(target)
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists and is not written over; choose another --out, or say --overwrite true")
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        try:
            unpack(target, Path(temporary))
            read_manifest(next(Path(temporary).iterdir(), Path(temporary)))
        except InputError as error:
            raise InputError(
                f"{target} is no bundle, and is not written over ({error}); choose another --out"
            ) from error


def pack(folders: Sequence[Path], target: Path, plugged: Plugged, answers: bool) -> str:
    """Write a bundle of studies.

    Args:
        folders: The study folders.
        target: The archive.
        plugged: Sections and findings of other packages.
        answers: Whether what models said is in it.

    Returns:
        What was written, in a few lines.

    Raises:
        InputError: A folder is no study, two have one name, or a file cannot be read or has a name that no archive can
            hold.
    """
    studies = [read_study(folder) for folder in folders]
    names = [study.name for study in studies]
    check_labels(names)
    if len(set(names)) < len(names):
        raise InputError(f"studies {', '.join(names)}: two have one name; rename the folder of one")
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        root = Path(temporary) / (names[0] if len(names) == 1 else SEVERAL)
        left_out = [
            {**entry, "name": f"{study.name}/{entry['name']}"}
            for study in studies
            for entry in gather(study, root / STUDIES / study.name, answers)
        ]
        made = moment_of(studies)
        derived = derive(root, names, made, plugged)
        (root / FINDINGS).mkdir()
        write_table(root / FINDINGS, derived.findings, FINDINGS)
        (root / PAGE).parent.mkdir()
        (root / PAGE).write_text(derived.page, encoding="utf-8")
        manifest = manifest_of(root, studies, made, plugged, answers=answers, left_out=left_out)
        write_json(root / MANIFEST, manifest)
        write_archive(root, target)
    count, size = len(manifest["files"]), target.stat().st_size / 1e6
    said = [f"wrote {target} ({size:.1f} MB): {count} files of {', '.join(names)}, {len(derived.findings)} findings"]
    said += [f"left out {entry['name']}: {entry['reason']}" for entry in left_out]
    said += [] if answers else ["without what models said; --answers true takes it in"]
    return "\n".join([*said, f"check it: python analyze.py bundle --verify {target}"])
