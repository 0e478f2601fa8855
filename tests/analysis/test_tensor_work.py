import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.tiny_checkpoints import save_llama, save_perturbed

from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.work import UnfinishedWork, Workers, unfinished_work, work_through
from safety_subspaces.artefacts.errors import InputError

ROOT = Path(__file__).parents[2]
COSTS = {"a": 1.0, "b": 4.0, "c": 2.0}


@dataclass(frozen=True)
class Note:
    """Says who did a tensor, and fails or dies where it is told to."""

    log: Path
    fails: str = ""
    dies: str = ""

    def __call__(self, name: str, device: torch.device) -> dict:
        with self.log.open("a") as lines:
            lines.write(f"{name} {os.getpid()}\n")
        if name == self.fails:
            raise InputError(f"tensor {name} is broken")
        if name == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # long enough for another worker to take the next one
        return {"rows": [{"name": name, "nan": float("nan"), "device": device.type}]}

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []


def run(task: Note, out: Path, workers: int | None = 1, arguments: dict | None = None) -> dict:
    with unfinished_work(out, "test", arguments or {}, []) as unfinished:
        return work_through(task, COSTS, unfinished, Workers(workers), "testing")


def stop_with(error: BaseException, out: Path, inputs: list[str]) -> None:
    with unfinished_work(out, "test", {}, inputs) as unfinished:
        unfinished.path("a").write_text("{}")
        raise error


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    base = save_llama(folder / "base")
    aligned = save_perturbed(base, folder / "aligned", seed=1)
    return {"base": base, "aligned": aligned, "tuned": {"t": save_perturbed(aligned, folder / "t", seed=2)}}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_tensor_is_done_once_the_largest_first_and_told_in_its_order(tmp_path, workers):
    task = Note(tmp_path / "log")
    found = run(task, tmp_path / "o", workers)
    assert list(found) == list(COSTS)
    assert found["b"]["rows"][0]["name"] == "b"
    assert found["b"]["rows"][0]["nan"] != found["b"]["rows"][0]["nan"]
    names = [name for name, _ in task.lines()]
    assert sorted(names) == ["a", "b", "c"]
    assert names[0] == "b" or workers == 2
    pids = {pid for _, pid in task.lines()}
    assert pids == {str(os.getpid())} if workers == 1 else len(pids) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_small_work_starts_no_process_and_large_work_one_a_core():
    assert Workers().processes({"a": 1e6}) == 1
    assert Workers().processes({"a": 1e12, "b": 1e12}) == min(2, len(os.sched_getaffinity(0)))
    assert Workers(3).processes({"a": 1.0}) == 3


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"devices": 0}, {"num_nodes": -1}])
def test_numbers_of_workers_are_at_least_one(numbers):
    with pytest.raises(InputError, match="must be at least 1"):
        Workers(**numbers)


def test_what_was_done_before_a_kill_is_not_done_again(tmp_path):
    dying, task = Note(tmp_path / "dying", dies="c"), Note(tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"a worker process was killed.*the same command goes on from there"):
        run(dying, tmp_path / "o", workers=2)
    done = {path.stem for path in (tmp_path / ".o.unfinished" / "tensors").glob("*.json")}
    assert done < set(COSTS)
    assert set(run(task, tmp_path / "o")) == set(COSTS)
    assert {name for name, _ in task.lines()} == set(COSTS) - done
    assert not (tmp_path / ".o.unfinished").exists()


def test_other_arguments_start_anew(tmp_path):
    with pytest.raises(RuntimeError, match="was killed"):
        run(Note(tmp_path / "dying", dies="c"), tmp_path / "o", workers=2)
    task = Note(tmp_path / "log")
    run(task, tmp_path / "o", arguments={"seed": 1})
    assert {name for name, _ in task.lines()} == set(COSTS)


def test_bad_input_and_a_full_disk_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="tensor c is broken"):
        run(Note(tmp_path / "log", fails="c"), tmp_path / "o", workers=2)
    with (
        pytest.raises(InputError, match=r"there is no room on the disk for .*nothing is left of it"),
        unfinished_work(tmp_path / "o", "test", {}, []),
    ):
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_an_interruption_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", [])
    with unfinished_work(tmp_path / "o", "test", {}, []) as again:
        assert isinstance(again, UnfinishedWork)
        assert again.done_before == 1


def test_a_changed_model_starts_anew(study, tmp_path):
    inputs = [study["aligned"]]
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", inputs)
    os.utime(Path(study["aligned"]) / "model.safetensors")
    with unfinished_work(tmp_path / "o", "test", {}, inputs) as again:
        assert again.done_before == 0


def test_two_workers_give_the_table_and_the_models_of_one(study, tmp_path):
    kinds = {"subspaces": ["top", "random", "scaled"], "fractions": [0.5], "draws": 2, "write": True}
    one = project(**study, **kinds, out=str(tmp_path / "one"), workers=1)
    two = project(**study, **kinds, out=str(tmp_path / "two"), workers=2)
    pd.testing.assert_frame_equal(one, two)
    for file in (tmp_path / "one" / "models").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.distributed
def test_two_ranks_share_the_tensors(study, tmp_path):
    command = [
        *(sys.executable, "analyze.py", "project", "--base", study["base"], "--aligned", study["aligned"]),
        *("--tuned.t", study["tuned"]["t"], "--fractions", "[0.5]", "--draws", "2", "--write", "true"),
        *("--devices", "2", "--out", str(tmp_path / "ranks")),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, start_new_session=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stderr + done.stdout  # what Lightning says of the group
    one = project(**study, fractions=[0.5], draws=2, write=True, out=str(tmp_path / "one"))
    found = pd.read_parquet(tmp_path / "ranks" / "table.parquet")
    pd.testing.assert_frame_equal(one, found)
    for file in (tmp_path / "one" / "models").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "ranks" / file.relative_to(tmp_path / "one")).read_bytes()
    assert json.loads((tmp_path / "ranks" / "result.json").read_text())["summary"]["tensors"] == 21
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
