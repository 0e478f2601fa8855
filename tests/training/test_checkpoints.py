"""A checkpoint has its name only when it is whole, and what is not whole is known."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from safety_subspaces.artefacts import files
from safety_subspaces.training import checkpoints
from safety_subspaces.training.checkpoints import COMPLETE, flaw_of, name_folder, partial_folder, remove
from safety_subspaces.training.strategies import RunCheckpointIO

STATE = {"global_step": 5, "state_dict": {"w": torch.arange(3000.0)}}


class Unwritable:
    """Something that cannot be pickled: the write fails when half of it is done."""

    def __reduce__(self) -> None:
        raise OSError("disk full")


def written(path: Path) -> Path:
    RunCheckpointIO().save_checkpoint(STATE, path)
    return path


def shards(path: Path, value: float = 0.0) -> Path:
    """A folder as DeepSpeed writes it on two ranks, under its temporary name."""
    partial = partial_folder(path)
    (partial / "checkpoint").mkdir(parents=True)
    (partial / "latest").write_text("checkpoint")
    for rank in range(2):
        torch.save({"w": torch.full((500,), value)}, partial / "checkpoint" / f"zero_pp_rank_{rank}_optim_states.pt")
    return partial


def named(path: Path) -> Path:
    name_folder(shards(path), path)
    return path


def test_lightning_reads_what_is_written_and_the_temporary_folder_stays_empty(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    path = written(tmp_path / "checkpoints" / "step=5.ckpt")
    assert torch.equal(TorchCheckpointIO().load_checkpoint(path, weights_only=True)["state_dict"]["w"],
                       STATE["state_dict"]["w"])  # fmt: skip
    assert flaw_of(path) is None
    assert [each.name for each in path.parent.iterdir()] == ["step=5.ckpt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    path = written(tmp_path / "last.ckpt")
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        RunCheckpointIO().save_checkpoint({**STATE, "more": Unwritable()}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_is_not_whole(tmp_path: Path, keep: float) -> None:
    path = written(tmp_path / "step=5.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "cut short" in flaw_of(path)


def test_a_file_with_a_changed_number_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "step=5.ckpt")
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(3000.0).numpy().tobytes()[400:440])] ^= 1
    path.write_bytes(content)
    assert "damaged" in flaw_of(path)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], STATE["state_dict"]["w"])


def test_a_folder_is_whole_when_all_ranks_have_written(tmp_path: Path) -> None:
    path = tmp_path / "step=5.ckpt"
    partial = shards(path)
    assert COMPLETE in flaw_of(partial)  # `latest` is there, which says nothing of the ranks
    assert not path.exists()
    name_folder(partial, path)
    assert flaw_of(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["step=5.ckpt"]


def test_a_folder_that_lacks_or_changed_a_part_is_not_whole(tmp_path: Path) -> None:
    whole, part = named(tmp_path / "step=1.ckpt"), Path("checkpoint") / "zero_pp_rank_1_optim_states.pt"
    for number, damage in enumerate((
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: shutil.rmtree(file.parent),
    )):  # fmt: skip
        path = Path(shutil.copytree(whole, tmp_path / f"{number}.ckpt"))
        damage(path / part)
        assert "zero_pp_rank" in flaw_of(path)
    for text in ("", "[]", '{"latest": null}', '{"latest'):
        (whole / COMPLETE).write_text(text)
        assert COMPLETE in flaw_of(whole), text


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname"])
def test_the_mark_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    whole = named(tmp_path / "step=1.ckpt")
    (whole / COMPLETE).write_text(json.dumps({name: 7}))
    assert flaw_of(whole) == f"its {COMPLETE} names files that lie elsewhere"


def test_a_folder_in_the_way_is_exchanged_and_never_missing(tmp_path: Path, monkeypatch) -> None:
    path = named(tmp_path / "last.ckpt")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        name_folder(shards(path, value=1.0), path)
    assert flaw_of(path) is None
    assert float(torch.load(path / "checkpoint" / "zero_pp_rank_0_optim_states.pt")["w"][0]) == 1.0


def test_a_folder_in_the_way_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch) -> None:
    path = named(tmp_path / "last.ckpt")
    monkeypatch.setattr(files, "_renamed_in_one_step", lambda *_: False)
    name_folder(shards(path, value=1.0), path)
    assert flaw_of(path) is None
    assert float(torch.load(path / "checkpoint" / "zero_pp_rank_0_optim_states.pt")["w"][0]) == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_half_removed_has_no_name(tmp_path: Path, monkeypatch) -> None:
    path = named(tmp_path / "step=5.ckpt")

    def killed(folder: Path) -> None:
        (folder / "latest").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        RunCheckpointIO().remove_checkpoint(str(path))
    monkeypatch.undo()
    assert [each.name for each in tmp_path.iterdir()] == [f".step=5.ckpt.removed.partial-{os.getpid()}"]
    remove(written(tmp_path / "step=6.ckpt"))
    RunCheckpointIO().remove_checkpoint(tmp_path / "step=6.ckpt")  # it is gone: nothing to do
    assert not (tmp_path / "step=6.ckpt").exists()


def test_the_mark_names_every_file(tmp_path: Path) -> None:
    path = named(tmp_path / "step=5.ckpt")
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert set(json.loads((path / COMPLETE).read_text())) == files - {COMPLETE}
