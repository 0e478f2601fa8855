"""Where a study stood when something in it was recorded, and which of its stages a recorded path means.

A manifest and the result of an analysis name models by the paths that these had then. A study may have been renamed,
moved, linked or copied since, and so may a stage: what a path means is told by the folder that the record itself was
written to, and never by what the study is called now.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from safety_subspaces.artefacts.description import facts_about

ANALYSIS = "analysis"  # the folder of a study that holds the results
HOME = "~"  # what a bundle has for a home folder; a path that begins with it is whole
# What `analyze.py compare` was asked for and has done, in a study that it made.
COMPARISON_FILE = "compare.json"
MODEL = "model"  # the folder of a stage that holds the exported model, where the run does not say another


@dataclass(frozen=True)
class Place:
    """Where a study stood.

    Args:
        root: The study's folder as the record has it, absolute or relative.
        directory: The working directory, which relative paths start from; empty where the record does not say.
    """

    root: str
    directory: str = ""

    def inside(self, path: str) -> tuple[str, ...] | None:
        """Return the parts of a path below the study's folder, ``None`` where it lies elsewhere.

        Nothing is looked up on this disk. Where one of the two paths is absolute and the other relative, and the
        working directory is not known, the relative one is taken for the end of the absolute one.
        """
        inner, root = (_parts(name, self.directory) for name in (path, self.root))
        if _is_absolute(inner) and not _is_absolute(root):
            starts = [n for n in range(len(inner) + 1 - len(root)) if inner[n : n + len(root)] == root]
            return inner[starts[-1] + len(root) :] if root and starts else None
        if _is_absolute(root) and not _is_absolute(inner):
            shared = (n for n in range(len(inner), 0, -1) if inner[:n] == root[-n:])
            return next((inner[n:] for n in shared), None)
        return inner[len(root) :] if inner[: len(root)] == root and inner[len(root) :][:1] != ("..",) else None


@dataclass(frozen=True)
class StagePlaces:
    """The stages of a study by the names that they have, and had when they were trained.

    Args:
        root: The study's folder as it is given now.
        manifests: What each stage's manifest says, empty for a model without one.
    """

    root: Path
    manifests: Mapping[str, Mapping[str, Any]]

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the study stood when its stages were trained; here, where none of them says."""
        recorded = [place_of_run(manifest) for manifest in self.manifests.values()]
        here = [Place(str(self.root)), Place(str(self.root.resolve()))]
        return tuple(dict.fromkeys(place for place in recorded if place is not None)) or tuple(here)

    def run_at(self, path: Any, place: Place | None, folders: Iterable[str] = ()) -> str:
        """Return the stage whose run folder, or one of the ``folders`` in it, a recorded path names; else nothing."""
        name, rest = self._split(path, place)
        return name if rest in {(), *((folder,) for folder in folders)} else ""

    def model_at(self, path: Any, place: Place | None) -> str:
        """Return the stage whose exported model a recorded path names; else nothing."""
        name, rest = self._split(path, place)
        exports = facts_about("export", self.manifests.get(name, {}))
        folders = [str(export["folder"]) for export in exports if isinstance(export, dict) and "folder" in export]
        return name if rest in {(folder,) for folder in (folders or [MODEL])} else ""

    def _split(self, path: Any, place: Place | None) -> tuple[str, tuple[str, ...]]:
        """Return the stage that a path lies in, and its parts below; one that was renamed goes by its former name."""
        if not isinstance(path, str):
            return "", ()
        for parts in (*(where.inside(path) for where in ((place,) if place else self.places)), self._here(path)):
            name = self._renamed.get(parts[0], parts[0]) if parts else ""
            if parts and name in self.manifests:
                return name, parts[1:]
        return "", ()

    @property
    def _renamed(self) -> dict[str, str]:
        """Map the name that a stage was trained under to the one that it has now."""
        names: dict[str, str] = {}
        for name, manifest in self.manifests.items():
            former = PurePath(os.path.normpath(run_folder_of(manifest) or name)).name
            names[former] = former if former in self.manifests and former != name else name
        return names

    def _here(self, path: str) -> tuple[str, ...] | None:
        """Return the parts of a path that leads into the study as it stands now, for one that went by a link."""
        try:
            there = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # it is gone, a loop of links, or no path of this system
            return None
        return Place(str(self.root.resolve())).inside(str(there))


def run_folder_of(manifest: Mapping[str, Any]) -> str | None:
    """Return the folder that a run was trained in, as its manifest has it."""
    folder = manifest.get("run_dir") or (manifest.get("config") or {}).get("run_dir")
    return folder if isinstance(folder, str) else None


def place_of_run(manifest: Mapping[str, Any]) -> Place | None:
    """Return where the study of a run stood when it was trained; ``None`` where its manifest does not say."""
    folder = run_folder_of(manifest)
    return None if folder is None else Place(str(PurePath(os.path.normpath(folder)).parent), _directory_of(manifest))


def place_of_result(result: Mapping[str, Any]) -> Place | None:
    """Return where the study of a result stood when it was written; ``None`` where its record does not say.

    Args:
        result: The ``result.json``. One of an earlier version says where it was written in its command alone.
    """
    provenance = result.get("provenance") or {}
    out = result.get("out") or _option("--out", provenance.get("command") or ())
    if not isinstance(out, str):
        return None
    folder = PurePath(os.path.normpath(out))
    is_in_study = len(folder.parts) >= 3 and folder.parts[-3] == ANALYSIS
    return Place(str(folder.parent.parent.parent), _directory_of(provenance)) if is_in_study else None


def _directory_of(provenance: Mapping[str, Any]) -> str:
    directory = provenance.get("directory")
    return directory if isinstance(directory, str) else ""


def _option(name: str, command: Iterable[Any]) -> str | None:
    """Return the value of a command's last option of a name."""
    words = [str(word) for word in command]
    values = [word for before, word in pairwise(words) if before == name]
    values += [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return values[-1] if values else None


def _parts(path: str, directory: str) -> tuple[str, ...]:
    start = "" if _is_absolute(PurePath(path).parts) else directory
    return PurePath(os.path.normpath(PurePath(start) / path)).parts


def _is_absolute(parts: tuple[str, ...]) -> bool:
    return PurePath(*parts).is_absolute() or parts[:1] == (HOME,)
