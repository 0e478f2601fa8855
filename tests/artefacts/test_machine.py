import errno

import pytest

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.machine import refusal


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/out"), "no room on the disk for /disk/out"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "no room on the disk"),
        (OSError(errno.EROFS, "Read-only file system", "/disk/out"), "/disk/out may not be written"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/disk/in"), "/disk/in is not there"),
        (OSError(errno.EIO, "Input/output error", "/disk/out"), "the machine refused /disk/out"),
        (ValueError("I/O error: No space left on device (os error 28)"), "no room on the disk"),  # as Rust says it
        (OSError("Cannot save file into a non-existent directory: '/disk/out'"), "has gone while the command ran"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
            "a file of tensors could not be written",
        ),
    ],
)
def test_what_the_machine_refuses_is_told_with_what_to_do(error: Exception, words: str) -> None:
    told = refusal(error)
    assert told is not None
    assert words in told
    assert "run the same command again" in told


@pytest.mark.parametrize(
    "error", [ValueError("28"), RuntimeError("shapes do not fit"), OSError("no such model"), InputError("no such set")]
)
def test_other_errors_are_not_the_machines(error: Exception) -> None:
    assert refusal(error) is None
