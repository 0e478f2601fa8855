"""``analyze.py bundle``: a study in one archive for others to read and check, and the check itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra


@dataclass(frozen=True)
class Bundle:
    """An archive, and what was written of it or found in it."""

    path: Path
    said: str

    def __str__(self) -> str:
        return self.said


def bundle(
    study: list[str] | str | None = None,
    out: str | None = None,
    verify: str | None = None,
    answers: bool = False,
    sections: Sequence[str] = (),
    topics: Sequence[str] = (),
    overwrite: bool = False,
) -> Bundle:
    """Write what a study says into one archive, or check such an archive with --verify.

    In it are the configurations, records and tables of every stage and analysis, the table of findings, the page, what
    describes each exported model, and bundle.json: the hash and size of each file, seeds, commits and versions. No
    weights, no checkpoints, no secrets; home folders are ~. The same study and program give the same bytes. Unpacked,
    its studies/<name> is a study that report and findings read.

    Args:
        study: The study folder, such as runs/organism-0, or a list of them; with verify the folders to compare the
            bundle with, whose models are then hashed.
        out: The archive to write, .zip or .tar.gz; by default the study's name with .zip, beside its folder.
        verify: A bundle to check instead: every hash; findings and page made anew from its tables; with study also its
            records and models. Nothing of it is run, and it is unpacked into a temporary folder alone.
        answers: Take in what models said, and the prompts: they may be harmful, or not yours to pass on.
        sections: As those of report.
        topics: As those of findings.
        overwrite: Whether an earlier bundle may be replaced.

    Returns:
        The archive, and what was written, or what the check found.

    Raises:
        InputError: A folder is no study; something is in the way of out; a file cannot be read; no bundle, or a
            mismatch in one.
    """
    folders = [Path(folder) for folder in ([study] if isinstance(study, str) else study or [])]
    if verify is not None and (out is not None or answers or overwrite):
        raise InputError("--verify checks a bundle and writes nothing: leave out --out, --answers and --overwrite")
    if verify is None and not folders:
        raise InputError("name the study by --study runs/organism-0, or a bundle to check by --verify FILE.zip")

    check_extra("plotly", "a page with figures")
    # The help and these refusals are there at once: what follows imports pandas and what draws the page.
    from safety_subspaces.bundle.contents import Plugged
    from safety_subspaces.bundle.pack import check_target, pack
    from safety_subspaces.bundle.verify import verify as check

    plugged = Plugged(tuple(sections), tuple(topics))
    if verify is not None:
        found = check(Path(verify), folders, plugged)
        if not found.is_sound:
            raise InputError(str(found))
        return Bundle(Path(verify), str(found))
    first = folders[0] if folders[0].name not in ("", "..") else folders[0].resolve()
    usual = first.parent / (f"{first.name}.zip" if len(folders) == 1 else "study.zip")
    target = usual if out is None else Path(out)
    check_target(target, overwrite)
    return Bundle(target, pack(folders, target, plugged, answers))
