"""What is written can be read by whom the user's mask lets read it, whichever library wrote it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny import save_tiny_model
from support.tiny_checkpoints import save_perturbed

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.language.model import load_model, load_tokenizer
from safety_subspaces.training.export import export_model
from safety_subspaces.training.modules.adapter import LoraSettings, add_adapter
from safety_subspaces.weights.snapshots import SnapshotWriter


@pytest.fixture(params=[0o022, 0o077], ids=["022", "077"])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_artefact_has_the_mode_that_the_mask_says(tmp_path: Path, mask: int) -> None:
    base = save_tiny_model(tmp_path / "in" / "base", seed=1)
    aligned = save_perturbed(base, tmp_path / "in" / "aligned", seed=2, size=0.3)
    tuned = save_perturbed(aligned, tmp_path / "in" / "tuned", seed=3, size=0.3)
    written = tmp_path / "written"
    network, tokenizer = load_model(aligned), load_tokenizer(aligned)
    export_model(network, tokenizer, written / "full")
    export_model(add_adapter(network, LoraSettings(rank=2)), tokenizer, written / "adapter")
    subspace(base, aligned, str(written / "subspace.safetensors"), RankRule(fraction=0.5))
    few = {"subspaces": ["top"], "methods": ["onto"], "fractions": [0.5], "write": True}
    project(base, aligned, {"tuned": tuned}, str(written / "project"), **few)
    with SnapshotWriter(written / "s" / "x.safetensors", {"w": (2, 2)}, torch.float32, 1, {}) as snapshot:
        snapshot.write("w", DenseUpdate(torch.eye(2)))
    with ResultFolder(written / "result", "x", {}, []) as results:
        (results.folder / "own.txt").touch(mode=0o600)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in written.rglob("*")}
    assert sum(path.suffix == ".safetensors" for path in modes) >= 5
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, path
