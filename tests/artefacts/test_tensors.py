"""Files of tensors are whole or not there, and say why they cannot be read."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.tiny import ROOT

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_partial, replacing, write_text
from safety_subspaces.artefacts.tensors import (
    TYPES,
    StoredTensors,
    TensorFile,
    TensorStream,
    encoded_header,
    stream_tensors,
    write_tensors,
)

HEADER = {
    "side": "left",
    "provenance": {"seed": 3, "models": ["a", "b"], "note": "größer"},
    "rank": None,
    "share": 0.25,
}


def numbers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return {"b.matrix": matrix, "a.vector": matrix[:, 0].float(), "c.half": matrix[:2].half(), "d.empty": matrix[:0]}


def written(path: Path) -> TensorFile:
    write_tensors(path, numbers(), HEADER)
    return TensorFile(path)


# --- reading


def test_a_file_gives_back_what_was_written_and_names_it_unread(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors")
    values = numbers()
    assert file.header == HEADER
    assert file.shapes == {name: tuple(value.shape) for name, value in values.items()}
    assert {name: TYPES[kind] for name, kind in file.types.items()} == {name: v.dtype for name, v in values.items()}
    assert {name: file.size(name) for name in values} == {name: v.nbytes for name, v in values.items()}
    for name, value in values.items():
        assert torch.equal(file.read(name), value)
        assert torch.equal(file.read_all()[name], value)
    assert torch.equal(file.read("b.matrix", index=2), values["b.matrix"][2])
    assert torch.equal(file.open_slice("b.matrix")[1:4], values["b.matrix"][1:4])


def test_files_of_the_library_and_ours_are_read_by_each_other(tmp_path: Path) -> None:
    values = numbers()
    save_file(values, tmp_path / "theirs.safetensors", metadata={"format": "pt", "transposed": '["x"]'})
    theirs = TensorFile(tmp_path / "theirs.safetensors")
    assert theirs.header == {"format": "pt", "transposed": ["x"]}
    written(tmp_path / "ours.safetensors")
    for read in (theirs.read_all(), load_file(tmp_path / "ours.safetensors")):
        assert read.keys() == values.keys()
        assert all(torch.equal(read[name], value) for name, value in values.items())


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_the_size_of_every_type_is_that_of_its_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.zeros(6, dtype=torch.uint8).to(dtype) if dtype != torch.bool else torch.zeros(6, dtype=dtype)
    save_file({"x": values}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    (length,) = struct.unpack("<Q", (tmp_path / "a.safetensors").read_bytes()[:8])
    assert file.size("x") == (tmp_path / "a.safetensors").stat().st_size - 8 - length


@pytest.mark.parametrize("left", [0, 4, 60, -1])
def test_a_cut_file_is_named_with_what_to_do(tmp_path: Path, left: int) -> None:
    file = tmp_path / "a.safetensors"
    written(file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InputError, match=r"a\.safetensors cannot be read .*expected a whole .*: make it again"):
        TensorFile(file, remedy="make it again")


def test_a_file_of_something_else_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors at all, but a text that is longer than eight bytes")
    with pytest.raises(InputError, match=r"text\.safetensors cannot be read .*: copy or download it again"):
        TensorFile(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match=r"none\.safetensors cannot be read .*No such file"):
        TensorFile(tmp_path / "none.safetensors")
    file = written(tmp_path / "a.safetensors")
    for read in (file.read, file.open_slice):
        with pytest.raises(InputError, match=r"has no tensor z; it has a\.vector, b\.matrix"):
            read("z")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(InputError, match="No such file"):
        file.read("b.matrix")


def test_stored_tensors_are_read_when_they_are_taken(tmp_path: Path) -> None:
    stored = StoredTensors({"m": (written(tmp_path / "a.safetensors"), "b.matrix")})
    assert list(stored) == ["m"]
    assert torch.equal(stored["m"], numbers()["b.matrix"])
    assert "b.matrix" not in stored
    changed = numbers() | {"b.matrix": torch.ones(5, 3, dtype=torch.float64)}
    write_tensors(tmp_path / "a.safetensors", changed, HEADER)
    assert torch.equal(stored["m"], changed["b.matrix"])


MEMORY = """
import sys, torch
sys.path[:0] = [{src!r}]
from pathlib import Path
from safety_subspaces.artefacts.tensors import TensorFile
mapped = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssFile")).split()[1]) // 1024
file = TensorFile(Path({path!r}))
before = mapped()
for name in file.shapes:
    float(file.read(name).sum())
    for start in range(0, file.shapes[name][0], 64):
        float(file.open_slice(name)[start : start + 64].sum())
    assert mapped() - before < 24, mapped() - before
kept = [file.read(name) for name in file.shapes]  # the control: pages of tensors that are held stay
assert sum(float(value.sum()) for value in kept) == 0 and mapped() - before > 24, mapped() - before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of mapped pages")
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    """Eight tensors of 8 MB: each look maps the file anew, and lets it go."""
    write_tensors(tmp_path / "a.safetensors", {f"w{i}": torch.zeros(1024, 2048) for i in range(8)})
    script = MEMORY.format(src=str(ROOT / "src"), path=str(tmp_path / "a.safetensors"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the header

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(facts=PLAIN.filter(lambda value: not isinstance(value, str)))
def test_any_plain_value_comes_back_from_a_header(tmp_path_factory: pytest.TempPathFactory, facts: object) -> None:
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    write_tensors(path, {"x": torch.ones(1)}, {"side": "left", "facts": facts})
    assert TensorFile(path).header == {"side": "left", "facts": facts}


def test_a_header_keeps_texts_as_they_are_and_all_else_as_json(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    stored = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert stored["side"] == "left"
    assert json.loads(stored["provenance"]) == HEADER["provenance"]
    assert length % 8 == 0


@pytest.mark.parametrize("text", ["3", "null", '{"a": 1}', '"quoted"'])
def test_a_text_that_would_be_read_as_another_value_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="would be read as"):
        write_tensors(tmp_path / "a.safetensors", numbers(), {"side": text})
    assert list(tmp_path.iterdir()) == []


@given(room=st.integers(0, 200), names=st.lists(st.text(max_size=5), max_size=4))
def test_numbers_start_at_a_multiple_of_eight(room: int, names: list[str]) -> None:
    header = {name: {"shape": []} for name in names}
    start = encoded_header(header, room)
    assert len(start) % 8 == 0
    assert len(start) >= 8 + room
    assert struct.unpack("<Q", start[:8]) == (len(start) - 8,)
    assert json.loads(start[8:]) == header


# --- writing


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.safetensors"
    values = numbers()
    types = {name: value.dtype for name, value in values.items()}
    shapes = {name: value.shape for name, value in values.items()}
    with TensorStream(path, shapes, types, {}, spare=40) as stream:
        for name, value in values.items():
            stream.write(name, value)
            assert not path.exists()
        stream.header = {"loss": 0.5}
    assert list(path.parent.iterdir()) == [path]
    assert TensorFile(path).header == {"loss": 0.5}


def test_an_error_while_tensors_are_read_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written(path)
    before = path.read_bytes()

    def read(name: str) -> torch.Tensor:
        if name == "second":
            raise InputError("no such tensor")
        return torch.ones(2)

    with pytest.raises(InputError, match="no such tensor"):
        stream_tensors(path, {"first": (2,), "second": (2,)}, read)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_rank_that_does_not_write_reads_every_tensor(tmp_path: Path) -> None:
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.ones(2)

    stream_tensors(None, {"first": (2,), "second": (2,)}, read)
    assert asked == ["first", "second"]


def test_a_header_that_outgrows_its_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def outgrow() -> None:
        with TensorStream(tmp_path / "a.safetensors", {"x": (1,)}, torch.float32, {}) as stream:
            stream.write("x", torch.ones(1))
            stream.header = {"long": "word " * 40}

    with pytest.raises(AssertionError, match="room was kept for"):
        outgrow()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
sys.path[:0] = [{src!r}]
from pathlib import Path
from safety_subspaces.artefacts.files import replacing, write_text
with replacing(Path({path!r})) as partial:
    partial.write_text("half of the se")
    print("in the middle", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_the_earlier_file_and_a_name_that_tells(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "whole")
    script = KILLED.format(src=str(ROOT / "src"), path=str(path))
    writer = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "in the middle\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "whole"
    left = [file for file in tmp_path.iterdir() if file != path]
    assert [is_partial(file) for file in left] == [True]
    assert not is_partial(path)
    write_text(path, "the next one")
    assert path.read_text() == "the next one"


def test_replacing_makes_the_folder_and_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "note.txt"
    with replacing(path) as partial:
        assert partial.parent == path.parent
        partial.write_text("whole")
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
