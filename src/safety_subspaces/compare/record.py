"""What a study folder's comparison was made of, step by step: kept where it is the same, refused where it is not.

The record stands beside the results, is written before a step begins and again when it is whole, and names a result
by the hash of its file: one that something else has replaced meanwhile is made anew.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import holding, is_occupied, read_json, remove, write_json
from safety_subspaces.artefacts.places import ANALYSIS, COMPARISON_FILE
from safety_subspaces.artefacts.provenance import code_state, describe_all, sha256_of_file
from safety_subspaces.artefacts.results import recorded
from safety_subspaces.artefacts.secrets import without_secrets
from safety_subspaces.compare.plan import COMMANDS, LABEL, Step

SHOWN_CHARACTERS = 200


class ComparisonRecord:
    """The record of the comparison in a study folder.

    Args:
        out: The folder, which need not be there.

    Raises:
        InputError: It holds something else, or a record that cannot be read.
    """

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out) / COMPARISON_FILE
        self._steps: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Read what the folder holds now."""
        folder = self.path.parent
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, expected a folder to write the study to; choose another --out")
        if self.path.is_file():
            steps = read_json(self.path).get("steps")
            if not isinstance(steps, dict) or not all(starmap(_is_entry, steps.items())):
                raise InputError(
                    f"{self.path} is no record of a comparison; remove or mend it, or choose another --out"
                )
            self._steps = steps
        elif folder.is_dir() and (found := sorted(path.name for path in folder.glob("[!.]*"))):
            raise InputError(
                f"{folder} holds {', '.join(found[:3])} and no comparison; expected a new folder, or that of the same "
                "comparison: choose another --out"
            )

    def check(self, steps: Sequence[Step], overwrite: bool) -> None:
        """Refuse a folder that holds the comparison of other models, or one with other settings.

        Args:
            steps: What is to be made.
            overwrite: Whether what differs is made anew.

        Raises:
            InputError: Names the first difference.
        """
        if overwrite:
            return
        for difference in self._differences(steps):
            raise InputError(
                f"{self.path.parent} holds another comparison: {difference}. Expected the same models and settings, to "
                "go on with it; choose another --out, or say --overwrite to make anew what differs"
            )

    def is_kept(self, step: Step) -> bool:
        """Tell whether a step is whole, and was made of the same things by the same program."""
        entry = self._steps.get(step.command)
        if entry is None or not step.made.is_file() or entry["made_sha256"] != sha256_of_file(step.made):
            return False
        return bool(entry["key"] == _key(step))

    def has_begun(self, step: Step) -> bool:
        """Tell whether a step was begun here before: what it left is this comparison's, to replace."""
        return step.command in self._steps

    def begin(self, step: Step) -> None:
        """Note that a step begins."""
        self._steps[step.command] = {"key": _key(step), "out": str(step.out), "made_sha256": None}
        self._write()

    def finish(self, step: Step) -> None:
        """Note that a step is whole."""
        self._steps[step.command]["made_sha256"] = sha256_of_file(step.made)
        self._write()

    def drop_others(self, steps: Sequence[Step]) -> list[str]:
        """Take away the results of an earlier comparison that this one does not make, so that no page mixes them.

        Returns:
            Their names.
        """
        others = [name for name in self._steps if name not in {step.command for step in steps}]
        for name in others:
            result = self.path.parent / ANALYSIS / name / LABEL
            with holding(result):
                remove(result)
            del self._steps[name]
            self._write()
        return others

    def _differences(self, steps: Sequence[Step]) -> Iterator[str]:
        own = {str(step.out) for step in steps}
        for step in steps:
            entry = self._steps.get(step.command)
            if entry is not None and entry["made_sha256"] is None:
                continue  # it broke or was stopped: there is nothing whole to lose
            if entry is not None:
                yield from _different(step, entry["key"], _key(step), own)
            elif is_occupied(step.out) or step.out.is_file():
                yield f"{step.out} was made by something else"
        for name in self._steps:
            if name not in {step.command for step in steps}:
                yield f"it has {name}, which is not asked for now"

    def _write(self) -> None:
        write_json(self.path, {"analysis": "compare", "steps": self._steps})


def _key(step: Step) -> dict[str, Any]:
    """Return what decides a step's numbers, as JSON has it."""
    arguments = without_secrets(recorded(step.arguments))
    key = {"arguments": arguments, "inputs": describe_all(step.inputs), **code_state()}
    plain: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return plain


def _is_entry(name: str, value: Any) -> bool:
    if name not in COMMANDS or not isinstance(value, dict) or not {"key", "made_sha256"} <= value.keys():
        return False
    key = value["key"]
    return isinstance(key, dict) and isinstance(key.get("arguments"), dict) and isinstance(key.get("inputs"), list)


def _different(step: Step, before: Mapping[str, Any], now: Mapping[str, Any], own: Collection[str]) -> Iterator[str]:
    """Say by what two keys differ, apart from the program and from what the comparison makes itself."""
    for name in dict.fromkeys([*before["arguments"], *now["arguments"]]):
        got, asked = (json.dumps(key["arguments"].get(name))[:SHOWN_CHARACTERS] for key in (before, now))
        if before["arguments"].get(name) != now["arguments"].get(name):
            yield f"its {step.command} has {name} {got}, asked for is {asked}"
    read = {entry.get("path"): entry for entry in before["inputs"] if isinstance(entry, dict)}
    for entry in now["inputs"]:
        if entry["path"] not in own and entry != read.get(entry["path"]):
            yield f"{entry['path']} was changed since its {step.command} was made"
