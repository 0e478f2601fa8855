"""Snapshots on disk are whole or absent, and give back exactly what was written."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import ROOT

from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensors import TensorStream, stream_tensors
from safety_subspaces.weights.snapshots import Snapshot, SnapshotWriter, open_snapshots, snapshot_files, snapshot_path

SHAPES = {"model.layers.0.mlp.up_proj.weight": (5, 3), "model.norm.weight": (4,), "lm_head.weight": (7, 2)}


def numbers(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write(folder: Path, step: int, updates: dict, reference: str = "start", **lost: float) -> Path:
    path = snapshot_path(folder, step)
    with SnapshotWriter(path, SHAPES, torch.float32, step, {"reference": reference}) as writer:
        for name, update in updates.items():
            made = update if isinstance(update, Update) else DenseUpdate(update)
            writer.write(name, made, lost.get(name.split(".")[-2], 0.0))
    assert writer.failure is None
    return path


def test_a_snapshot_gives_back_what_was_written(tmp_path: Path) -> None:
    dense = numbers()
    factors = FactorUpdate(torch.randn(7, 3), torch.randn(3, 2), 0.5)
    path = write(tmp_path, 12, dense | {"lm_head.weight": factors}, up_proj=0.25)
    snapshot = Snapshot(path)
    assert (snapshot.step, snapshot.facts["reference"]) == (12, "start")
    assert set(snapshot.names) == set(SHAPES)
    assert snapshot.shapes == SHAPES
    assert snapshot.lost_energy == {"model.layers.0.mlp.up_proj.weight": 0.25}
    for name in list(SHAPES)[:2]:
        assert torch.equal(snapshot.read(name).dense(), dense[name])
    read = snapshot.read("lm_head.weight")
    assert (read.scale, read.shape) == (0.5, (7, 2))
    assert torch.equal(read.left, factors.left)
    assert torch.equal(read.right, factors.right)
    assert list(tmp_path.iterdir()) == [path]


def test_the_stream_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    values = numbers()
    stream_tensors(tmp_path / "a.safetensors", SHAPES, values.__getitem__, header={"mode": "away"})
    assert {name: value.tolist() for name, value in load_file(tmp_path / "a.safetensors").items()} == {
        name: value.tolist() for name, value in values.items()
    }
    raw = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0  # numbers are aligned
    assert json.loads(raw[8 : 8 + length])["__metadata__"] == {"mode": "away"}


def fail(context, made) -> None:
    with context as stream:
        stream.write("model.norm.weight", made)
        raise RuntimeError("in the middle")


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(RuntimeError, match="in the middle"):
        fail(TensorStream(path, SHAPES, torch.float32, {}), torch.ones(4))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match="in the middle"):
        fail(SnapshotWriter(path, SHAPES, torch.float32, 1, {}), DenseUpdate(torch.ones(4)))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]


def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A limit on the size of files refuses a write in the middle, as a disk that fills does."""
    script = f"""
import resource, signal, sys, torch
sys.path[:0] = [{str(ROOT / "src")!r}]
from pathlib import Path
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.weights.snapshots import SnapshotWriter, snapshot_path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shapes = {{f"layers.{{i}}.weight": (256, 256) for i in range(6)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
with SnapshotWriter(snapshot_path(Path({str(tmp_path)!r}), 3), shapes, torch.float32, 3, {{}}) as writer:
    for name in shapes:
        writer.write(name, DenseUpdate(torch.ones(256, 256)))
print(type(writer.failure).__name__, writer.failure)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OSError")
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with SnapshotWriter(tmp_path / "file" / "step=00000001.safetensors", SHAPES, torch.float32, 1, {}) as writer:
        writer.write("model.norm.weight", DenseUpdate(torch.ones(4)))
    assert isinstance(writer.failure, OSError)


def test_snapshots_of_a_run_are_opened_by_step_and_must_belong_together(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        write(tmp_path, step, numbers(step))
    (tmp_path / "reference.safetensors").write_bytes(b"")  # no snapshot, and not looked at
    assert [snapshot.step for snapshot in open_snapshots(tmp_path)] == [3, 20, 100]
    assert snapshot_files(tmp_path)[0].name == "step=00000003.safetensors"
    write(tmp_path, 200, numbers(), reference="another")
    with pytest.raises(InputError, match="count from different references"):
        open_snapshots(tmp_path)
    snapshot_path(tmp_path, 200).unlink()
    write(tmp_path, 200, {"lm_head.weight": torch.ones(7, 2)})
    with pytest.raises(InputError, match="not of the same weights"):
        open_snapshots(tmp_path)


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no snapshot"):
        open_snapshots(tmp_path)
    stream_tensors(snapshot_path(tmp_path, 1), SHAPES, numbers().__getitem__)
    with pytest.raises(InputError, match="is no snapshot of a weight update"):
        open_snapshots(tmp_path)
    whole = write(tmp_path, 2, numbers())
    whole.write_bytes(whole.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        Snapshot(whole)


@pytest.mark.parametrize(
    "facts",
    [{"step": "x"}, {"step": 1.5}, {"scales": []}, {"scales": {"no.such": 1.0}}, {"scales": {"lm_head.weight": "x"}},
     {"lost_energy": {"a": None}}, {"lost_energy": 3}, {"reference": {"path": [1]}}, {"reference": {}}],
)  # fmt: skip
def test_a_header_of_another_shape_is_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    header = {"kind": "weight update", "step": 1, "scales": {}, "lost_energy": {}, **facts}
    path = tmp_path / "step=00000001.safetensors"
    stream_tensors(path, SHAPES, numbers().__getitem__, header={"snapshot": header})
    with pytest.raises(InputError, match=r"step=00000001\.safetensors cannot be read"):
        Snapshot(path)
