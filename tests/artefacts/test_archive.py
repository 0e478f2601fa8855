import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from safety_subspaces.artefacts import archive
from safety_subspaces.artefacts.archive import unpack, write_archive
from safety_subspaces.artefacts.errors import InputError

KINDS = [".zip", ".tar.gz"]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "study"
    for name, text in {"b/é.json": "{}", "a.csv": "x\n1\n", "b/empty.md": ""}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_give_the_same_bytes_and_come_back(folder, tmp_path, kind):
    write_archive(folder, tmp_path / f"one{kind}")
    (folder / "a.csv").touch()
    (folder / "b").chmod(0o700)
    write_archive(folder, tmp_path / f"another{kind}")
    assert (tmp_path / f"one{kind}").read_bytes() == (tmp_path / f"another{kind}").read_bytes()
    unpack(tmp_path / f"one{kind}", tmp_path / "out")
    assert content(tmp_path / "out" / "study") == content(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"one{kind}", f"another{kind}", "out", "study"])


def make(path: Path, kind: str, members: list[tuple[str, bytes, int]]) -> Path:
    """Write an archive with members of any name and kind (``stat.S_IFLNK`` and such)."""
    target = path / f"made{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(target, "w") as packed:
            for name, data, mode in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                packed.writestr(info, data)
        return target
    types = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFDIR: tarfile.DIRTYPE}
    with tarfile.open(target, "w:gz") as tar:
        for name, data, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = types[mode], data.decode() if mode == stat.S_IFLNK else ""
            info.size = len(data) if mode == stat.S_IFREG else 0
            tar.addfile(info, io.BytesIO(data))
    return target


FILE = stat.S_IFREG
HOSTILE = {
    "upwards": [("s/../../out.json", b"{}", FILE)],
    "absolute": [("/tmp/out.json", b"{}", FILE)],
    "backslashes": [("s\\..\\out.json", b"{}", FILE)],
    "hidden": [("s/.bashrc.json", b"{}", FILE)],
    "control": [("s/\x1b[2Jx.json", b"{}", FILE)],
    "code": [("s/pandas.py", b"raise SystemExit", FILE)],
    "weights": [("s/model.safetensors", b"x", FILE)],
    "link": [("s/x.json", b"/etc/passwd", stat.S_IFLNK)],
    "folder": [("s/x.json", b"", stat.S_IFDIR)],
    "twice": [("s/x.json", b"{}", FILE), ("s/x.json", b"[]", FILE)],
    "through": [("s/x.json", b"{}", FILE), ("s/x.json/y.json", b"[]", FILE)],
    "long": [(f"s/{'x' * 300}.json", b"{}", FILE)],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trick", HOSTILE)
def test_a_hostile_archive_writes_nothing_outside(tmp_path, monkeypatch, kind, trick):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    target = make(tmp_path, kind, HOSTILE[trick])
    with pytest.raises(InputError):
        unpack(target, tmp_path / "out" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, "out"]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert {path.name for path in (tmp_path / "out").rglob("*")} <= {"deep", "s", "x.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_are_refused_before_they_are_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    for members in ([("s/x.csv", b"0" * 10**6, FILE)], [(f"s/{n}.csv", b"", FILE) for n in range(5)]):
        with pytest.raises(InputError, match="this one has more"):
            unpack(make(tmp_path, kind, members), tmp_path / f"out{len(members)}")
        written = content(tmp_path / f"out{len(members)}") if (tmp_path / f"out{len(members)}").exists() else {}
        assert sum(map(len, written.values())) <= 1000
        assert len(written) <= 3


def test_a_header_of_any_length_is_not_followed(tmp_path):
    info = tarfile.TarInfo("s/x.json")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(InputError, match="no plain file"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused(folder, tmp_path, kind):
    target = tmp_path / f"x{kind}"
    write_archive(folder, target)
    whole = target.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK", b"something else"):
        target.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read|holds"):
            unpack(target, tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_what_no_archive_could_give_back_is_not_packed(folder, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.zip or \.tar\.gz"):
        write_archive(folder, tmp_path / "x.rar")
    (folder / ".hidden.json").write_text("{}")
    with pytest.raises(InputError, match="no name for a file"):
        write_archive(folder, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
