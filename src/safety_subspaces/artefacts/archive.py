"""Archives of result files, .zip or .tar.gz: the same files give the same bytes, and no hostile one leaves its place.

Names are sorted, times and owners fixed. What is unpacked was checked before it was written: regular files of a few
kinds alone, under names that lead nowhere else, and no more of them, or of their bytes, than an archive of ours holds.
"""

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import holding, replacing
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.text import UNSHOWABLE, shown

ZIP, TAR = ".zip", ".tar.gz"
EXPECTED = f"an archive that `analyze.py bundle` wrote, {ZIP} or {TAR}"
# The largest study of this suite has 400 files and 200 MB; ten times as much is still read on any machine.
MOST_FILES, MOST_BYTES = 4_000, 2 * 2**30
# File systems hold no longer names.
MOST_NAME_BYTES = 255
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a .zip can say
MODE = 0o644
# Kinds of files: what is measured and said. No weights, no checkpoints, and nothing that could be run.
SUFFIXES = (".csv", ".html", ".json", ".jsonl", ".md", ".parquet", ".yaml")
CHUNK = 2**20
# Where a file in a .tar begins and ends.
BLOCK = tarfile.BLOCKSIZE


@runtime_checkable
class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, and none at the end."""


@runtime_checkable
class Target(Protocol):
    """What bytes are written to."""

    def write(self, piece: bytes, /) -> object:
        """Write some bytes."""


def check_archive_name(path: Path) -> None:
    """Check that a file has the name of an archive that can be written.

    Raises:
        InputError: It ends otherwise than in .zip or .tar.gz.
    """
    if not path.name.endswith((ZIP, TAR)):
        raise InputError(f"{path} is the name of no archive; expected one that ends in {ZIP} or {TAR}")


def write_archive(folder: Path, target: Path) -> None:
    """Write every file below a folder into an archive, under the folder's own name; it is whole or not there.

    Args:
        folder: What is packed.
        target: The archive, .zip or .tar.gz by its name; one that is there is replaced.

    Raises:
        InputError: The folder holds more than :func:`unpack` takes, or a name that it refuses or a .tar cannot hold.
    """
    check_archive_name(target)
    files = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    names = sorted(files)
    size = 0
    for count, name in enumerate(names, start=1):
        size += files[name].stat().st_size
        _check_member(name, count, size)
    with holding(target), replacing(target) as partial:
        if target.name.endswith(ZIP):
            with zipfile.ZipFile(partial, "w") as archive:
                for name in names:
                    _add_to_zip(archive, name, files[name])
            return
        # No name and no time in the header of the compression either.
        with (
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in names:
                _add_to_tar(tar, name, files[name])


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder; nothing is written outside of it.

    Raises:
        InputError: It is no archive of ours: damaged, cut short, or with links, folders, encrypted files, names that
            lead elsewhere or stand twice, or more than ``MOST_FILES`` files or ``MOST_BYTES`` bytes.
    """
    with reading(archive, EXPECTED):
        if not archive.is_file():
            raise InputError(f"{archive} does not exist; expected {EXPECTED}")
        with archive.open("rb") as opened:
            is_zip = opened.read(2) == b"PK"
        count = total = 0
        for count, (name, size, stream) in enumerate((_of_zip if is_zip else _of_tar)(archive), start=1):
            total += size
            _check_member(name, count, total)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as written:  # a name that stands twice is refused
                _copy(stream, written, size)
        if not count:
            raise ValueError("it is empty")


def _check_member(name: str, count: int, total: int) -> None:
    """Refuse a name that leads elsewhere or is not to be seen, and an archive that is too large."""
    parts = name.split("/")
    is_plain = not UNSHOWABLE.search(name) and "\\" not in name and name.isprintable()
    if not is_plain or any(not part or part.startswith(".") or len(part.encode()) > MOST_NAME_BYTES for part in parts):
        raise InputError(
            f"{shown(name, 200)!r} is no name for a file in an archive: hidden, empty or leading elsewhere"
        )
    if not name.endswith(SUFFIXES):
        raise InputError(f"{shown(name, 200)!r} is none of the files that an archive holds: {', '.join(SUFFIXES)}")
    if count > MOST_FILES or total > MOST_BYTES:
        raise InputError(
            f"an archive holds at most {MOST_FILES:,} files and {MOST_BYTES / 2**30:g} GiB, this one has more; "
            "leave out answers, or bundle fewer studies at once"
        )


def _add_to_zip(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    info = zipfile.ZipInfo(name, ZIP_EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, whatever this is: the mode is that of a file there
    info.external_attr = (stat.S_IFREG | MODE) << 16
    info.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(info, "w") as target:
        _copy(source, target, info.file_size)


def _add_to_tar(archive: tarfile.TarFile, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)  # owner 0, without a name, at the time 0
    info.mode, info.size = MODE, path.stat().st_size
    try:
        with path.open("rb") as source:
            archive.addfile(info, source)
    except ValueError as error:
        raise InputError(f"{name} is too long a name for a {TAR}; write a {ZIP}") from error


def _of_zip(path: Path) -> Iterator[tuple[str, int, Source]]:
    """Go through a .zip: name, size and bytes of each file."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file = kind in (0, stat.S_IFREG) and not info.is_dir() and not info.flag_bits & 1
            if not is_file or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{shown(info.filename, 200)!r} is no plain file")
            with archive.open(info) as stream:
                yield info.filename, info.file_size, stream


def _of_tar(path: Path) -> Iterator[tuple[str, int, Source]]:
    """Go through a .tar.gz block by block: further headers, which may have any length, are refused, not followed."""
    with gzip.open(path) as stream:
        while (block := stream.read(BLOCK)).strip(b"\0"):
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
                raise ValueError(f"{shown(info.name, 200)!r} is no plain file")
            yield info.name, info.size, stream
            stream.read(-info.size % BLOCK)


def _copy(source: Source, target: Target, size: int) -> None:
    """Copy so many bytes; what a header promised and the file does not hold is an error."""
    while size:
        piece = source.read(min(size, CHUNK))
        if not piece:
            raise ValueError("a file in it is cut short")
        target.write(piece)
        size -= len(piece)
