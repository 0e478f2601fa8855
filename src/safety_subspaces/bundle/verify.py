"""Checks a bundle: its hashes, its findings and page from its tables, and the models of a study by their hashes.

Nothing of the archive is run or imported, and it is unpacked into a temporary folder alone.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from safety_subspaces.artefacts.archive import unpack
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.places import Place, StagePlaces, place_of_result, place_of_run
from safety_subspaces.artefacts.provenance import code_state, describe_input
from safety_subspaces.artefacts.results import write_table
from safety_subspaces.artefacts.secrets import passed_on
from safety_subspaces.artefacts.study import Study, read_study
from safety_subspaces.artefacts.text import one_line
from safety_subspaces.bundle.alike import alike, same_page
from safety_subspaces.bundle.contents import (
    FINDINGS,
    PAGE,
    STUDIES,
    Plugged,
    derive,
    hashes_of,
    read_manifest,
)
from safety_subspaces.bundle.gather import gather

# Cells of one table; a Parquet file of a few kilobytes can say that it has a million times as many.
MOST_CELLS = 50_000_000
SHOWN = 5  # names in one line


@dataclass
class Verification:
    """What a check of a bundle found, a line for each of its parts."""

    archive: Path
    lines: list[str] = field(default_factory=list)
    is_sound: bool = True

    def say(self, line: str, agrees: bool = True) -> None:
        """Add what was found of one part."""
        self.lines.append(line if agrees else f"MISMATCH {line}")
        self.is_sound &= agrees

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.archive}: {'all that was checked agrees' if self.is_sound else 'a mismatch'}", *self.lines]
        )


def verify(archive: Path, studies: Sequence[Path], plugged: Plugged) -> Verification:
    """Check a bundle.

    Args:
        archive: The bundle.
        studies: Folders that it is said to be of, in its order; none where only the bundle itself is checked.
        plugged: Sections and findings of other packages that it was made with.

    Raises:
        InputError: It is no bundle, or one of its files cannot be read.
    """
    found = Verification(archive)
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        unpack(archive, Path(temporary))
        (root, *others) = Path(temporary).iterdir()
        if others:
            raise InputError(f"{archive} holds more than one folder; expected one that `analyze.py bundle` wrote")
        manifest = read_manifest(root)
        _check_hashes(found, root, manifest)
        if found.is_sound:
            _check_derived(found, root, manifest, plugged)
            _check_studies(found, root, manifest, studies)
    return found


def _check_hashes(found: Verification, root: Path, manifest: Mapping[str, Any]) -> None:
    said, held = manifest["files"], hashes_of(root)
    unlike = sorted(name for name in said.keys() | held.keys() if said.get(name) != held.get(name))
    if unlike:
        found.say(f"files: {_listed(unlike)} {'is' if len(unlike) == 1 else 'are'} not as the manifest has it", False)
        found.say("the rest was not checked", False)
    else:
        found.say(f"files: all {len(held)} have the hash and the size that the manifest says")


def _check_derived(found: Verification, root: Path, manifest: Mapping[str, Any], plugged: Plugged) -> None:
    used = (list(plugged.sections), list(plugged.topics))
    if used != (manifest.get("sections"), manifest.get("topics")):
        raise InputError(
            f"the bundle was made with sections {manifest.get('sections')} and topics {manifest.get('topics')}: say "
            "the same --sections and --topics, and the --plugins folder where they lie"
        )
    for path in root.rglob("*.parquet"):
        _check_size(path, path.relative_to(root).as_posix())
    names = [str(study["name"]) for study in manifest["studies"]]
    derived = derive(root, names, str(manifest["made"]), plugged)
    same_code = manifest["code_sha256"] == code_state()["code_sha256"]
    why = "" if same_code else f"; another version of the program made it ({_commit(manifest)}): check with that one"
    _check_findings(found, root, derived.findings, why)
    kept = (root / PAGE).read_bytes() if (root / PAGE).is_file() else b""
    if kept == derived.page.encode():
        found.say("page: the same bytes as made anew from the tables")
    elif same_page(kept.decode(errors="replace"), derived.page):
        found.say(
            "page: what it says follows from the tables; its charts are not the same bytes, and were not compared"
        )
    else:
        found.say(f"page: it does not say what follows from the tables{why}", False)


def _check_findings(found: Verification, root: Path, made: pd.DataFrame, why: str) -> None:
    """Compare the table of findings, as Parquet and as CSV, with what follows from the studies."""
    folder = root / FINDINGS
    with reading(f"{FINDINGS}/{FINDINGS}.parquet", "the table of findings"):
        kept = pd.read_parquet(folder / f"{FINDINGS}.parquet")
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        write_table(Path(temporary), kept, FINDINGS)
        csv = [path / f"{FINDINGS}.csv" for path in (Path(temporary), folder)]
        same_csv = csv[1].is_file() and csv[0].read_bytes() == csv[1].read_bytes()
        write_table(Path(temporary), made, FINDINGS)
        made = pd.read_parquet(Path(temporary) / f"{FINDINGS}.parquet")
    if [*kept.columns] != [*made.columns] or len(kept) != len(made):
        found.say(f"findings: {len(kept)} rows, where {len(made)} follow from the tables{why}", False)
        return
    rows = zip(kept.itertuples(), made.itertuples(), strict=True)
    unlike = [number for number, pair in enumerate(rows) if not alike(*pair)]
    if unlike:
        questions = dict.fromkeys(f"{kept['question'].iloc[row]} of {kept['subject'].iloc[row]}" for row in unlike)
        found.say(
            f"findings: {len(unlike)} of {len(kept)} do not follow from the tables: {_listed([*questions])}{why}", False
        )
    else:
        found.say(f"findings: all {len(kept)} follow from the tables")
    if not same_csv:
        found.say("findings: the CSV is not the Parquet table", False)


def _check_studies(found: Verification, root: Path, manifest: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Compare the bundle with study folders: record by record, and the models' files by their hashes."""
    names = [str(study["name"]) for study in manifest["studies"]]
    if folders and len(folders) != len(names):
        raise InputError(f"{len(folders)} studies were given, and the bundle is of {len(names)}: {_listed(names)}")
    for name, folder in zip(names, folders, strict=False):
        study = read_study(folder)
        with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
            gather(study, Path(temporary), manifest.get("answers") is True)
            now, then = hashes_of(Path(temporary)), hashes_of(root / STUDIES / name)
        unlike = sorted(file for file in now.keys() | then.keys() if now.get(file) != then.get(file))
        if unlike:
            found.say(
                f"study {folder}: {_listed(unlike)} not as in the bundle ({len(unlike)} of {len(now)} files)", False
            )
        else:
            found.say(f"study {folder}: all {len(now)} records and tables are those of the bundle")
        _check_models(found, study)


def _check_models(found: Verification, study: Study) -> None:
    """Compare the models and files that the records of a study name with the hashes that stand there."""
    unlike, same, gone = set(), set(), set()
    for path, digest, place in _recorded_inputs(study):
        here = _found_again(study, path, place)
        if here is None:
            gone.add(path)
        elif describe_input(here)["sha256"] == digest:
            same.add(path)
        else:
            unlike.add(passed_on(path))
    if unlike:
        found.say(f"inputs: {_listed(sorted(unlike))}: another hash than the records have", False)
    further = f"; {len(gone)} are not found, and were not looked at" if gone else ""
    found.say(f"inputs: {len(same)} models and files have the hashes that the records have{further}")


def _recorded_inputs(study: Study) -> list[tuple[str, Any, Place | None]]:
    records = [(stage.manifest, place_of_run(stage.manifest)) for stage in study.stages]
    records += [(result.result, place_of_result(result.result)) for result in study.results]
    return [
        (entry["path"], entry["sha256"], place)
        for record, place in records
        for entry in record.get("inputs") or ()
        if isinstance(entry.get("path"), str) and entry.get("sha256")
    ]


def _found_again(study: Study, path: str, place: Place | None) -> Path | None:
    """Return where a recorded input lies now, in the study or where it lay then; ``None`` where it is gone."""
    places = StagePlaces(study.folder, {stage.name: stage.manifest for stage in study.stages})
    stage, inside = places.model_at(path, place), (place or Place(str(study.folder))).inside(path)
    found = [study.folder / stage / Path(path).name] if stage else []
    found += [study.folder.joinpath(*inside)] if inside else []
    found += [Path(place.directory if place else "") / path]
    return next((candidate for candidate in found if candidate.exists()), None)


def _check_size(path: Path, name: str) -> None:
    with reading(name, "a table"):
        about = pyarrow.parquet.read_metadata(path)
        if about.num_rows * about.num_columns > MOST_CELLS:
            raise ValueError(f"{about.num_rows:,} rows of {about.num_columns:,} columns")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(one_line(name, 100) for name in names[:SHOWN]) + more


def _commit(manifest: Mapping[str, Any]) -> str:
    git = manifest.get("git")
    return f"commit {str(git.get('commit'))[:12]}" if isinstance(git, dict) else f"version {manifest.get('version')}"
