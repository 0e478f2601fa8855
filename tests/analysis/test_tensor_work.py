import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_checkpoints import save_llama, save_perturbed

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.atlas.command import atlas
from safety_subspaces.analysis.overlap.command import overlap
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.analysis.work import UnfinishedWork, Workers, unfinished_work, work_through
from safety_subspaces.artefacts import provenance
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import holding
from safety_subspaces.artefacts.provenance import code_state
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.weights.writing import CheckpointWriter

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
    with unfinished_work(out, "test", arguments or {}, [], Workers(workers)) as unfinished:
        return work_through(task, COSTS, unfinished, Workers(workers), "testing")


def stop_with(error: BaseException, out: Path, inputs: list[str], expected: int = 0) -> None:
    with unfinished_work(out, "test", {}, inputs, Workers()) as unfinished:
        assert unfinished.done_before == expected
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


def test_kept_work_is_forgotten_also_where_a_kill_has_begun_to(tmp_path):
    with unfinished_work(tmp_path / "o", "test", {}, [], Workers()) as unfinished:
        unfinished.path("a").write_text("{}")
        shutil.rmtree(unfinished.folder / "tensors")  # where the kill came
        unfinished.forget()
        assert list((unfinished.folder / "tensors").iterdir()) == []


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
        unfinished_work(tmp_path / "o", "test", {}, [], Workers()),
    ):
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_an_interruption_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", [])
    with unfinished_work(tmp_path / "o", "test", {}, [], Workers()) as again:
        assert isinstance(again, UnfinishedWork)
        assert again.done_before == 1


def test_a_changed_model_starts_anew_though_its_size_and_time_are_the_same(study, tmp_path):
    model = shutil.copytree(study["aligned"], tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", [str(model)])
    weights = model / "model.safetensors"
    os.utime(weights)
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", [str(model)], expected=1)  # the same bytes at another time
    status, numbers = weights.stat(), bytearray(weights.read_bytes())
    numbers[-1] ^= 1
    weights.write_bytes(numbers)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    with unfinished_work(tmp_path / "o", "test", {}, [str(model)], Workers()) as again:
        assert again.done_before == 0


def test_changed_code_starts_anew(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        stop_with(KeyboardInterrupt(), tmp_path / "o", [])
    monkeypatch.setattr("safety_subspaces.analysis.work.code_state", lambda: {"code_sha256": "edited"})
    with unfinished_work(tmp_path / "o", "test", {}, [], Workers()) as again:
        assert again.done_before == 0


def test_a_changed_task_of_a_plug_in_starts_anew(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="was killed"):
        run(Note(tmp_path / "dying", dies="c"), tmp_path / "o", workers=2)
    edited = tmp_path / "edited.py"
    edited.write_text("# the task's file after an edit")
    monkeypatch.setattr("safety_subspaces.analysis.work.inspect.getsourcefile", lambda _: str(edited))
    task = Note(tmp_path / "log")
    run(task, tmp_path / "o")
    assert {name for name, _ in task.lines()} == set(COSTS)


def test_the_code_is_known_by_the_bytes_of_every_file(tmp_path, monkeypatch):
    package = shutil.copytree(ROOT / "src" / "safety_subspaces", tmp_path / "safety_subspaces")
    monkeypatch.setattr(provenance, "__file__", str(package / "artefacts" / "provenance.py"))
    found = set()
    for edited in (None, "algebra/overlap.py", "analysis/project/tensors.py"):
        if edited:
            (package / edited).write_text((package / edited).read_text() + "\n# edited\n")
        found.add(code_state.__wrapped__()["code_sha256"])
    assert len(found) == 3
    assert code_state()["code_sha256"] in {code_state.__wrapped__()["code_sha256"], *found}


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"])
def test_what_a_batch_job_left_in_the_environment_makes_no_other_rank_of_the_only_one(
    study, tmp_path, monkeypatch, variable
):
    out, updates = tmp_path / "o", {"a": study["aligned"], "t": study["tuned"]["t"]}
    kept = {"energies": [0.5], "controls": 19}
    with monkeypatch.context() as patched:
        patched.setattr("safety_subspaces.analysis.overlap.tables.overlap_table", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            overlap(study["base"], updates, str(out), **kept, workers=1)
    assert (tmp_path / ".o.unfinished").is_dir()
    monkeypatch.setenv(variable, "1")
    other = save_perturbed(study["base"], tmp_path / "other", seed=5)
    found = overlap(study["base"], updates | {"t": other}, str(out), **kept, workers=1)
    monkeypatch.delenv(variable)
    expected = overlap(study["base"], updates | {"t": other}, str(tmp_path / "again"), **kept, workers=1)
    pd.testing.assert_frame_equal(found, expected)
    assert not (tmp_path / ".o.unfinished").exists()


def stop(*_):
    raise RuntimeError("stopped")


def test_models_that_were_written_before_a_kill_are_not_empty_after_it(study, tmp_path, monkeypatch):
    """Killed at each step of the end: the models are those of an undisturbed sweep, whatever had to be done again."""
    kinds = {"subspaces": ["top", "scaled"], "fractions": [0.5], "write": True, "workers": 1}
    project(**study, **kinds, out=str(tmp_path / "whole"))
    steps = {
        "writing a table": (ResultFolder, "write_table"),
        "finishing a model": (CheckpointWriter, "finish"),
        "after the models were moved": (ResultFolder, "_write_record"),
        "publishing": (Path, "rename"),
    }
    for label, (owner, name) in steps.items():
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stop)
            with pytest.raises(RuntimeError, match="stopped"):
                project(**study, **kinds, out=str(tmp_path / "o"))
        project(**study, **kinds, out=str(tmp_path / "o"))
        files = sorted((tmp_path / "whole" / "models").rglob("*"))
        assert [f.relative_to(tmp_path / "whole") for f in files] == [
            f.relative_to(tmp_path / "o") for f in sorted((tmp_path / "o" / "models").rglob("*"))
        ], label
        for file in filter(Path.is_file, files):
            assert file.read_bytes() == (tmp_path / "o" / file.relative_to(tmp_path / "whole")).read_bytes(), label
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], label
        shutil.rmtree(tmp_path / "o")


def hostile_pair(folder: Path, name: str) -> tuple[str, str]:
    """Two checkpoints that hold a matrix of this name beside one of an ordinary one."""
    torch.manual_seed(0)
    for model in ("base", "aligned"):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text("{}")
        tensors = {name: torch.randn(6, 4), "model.layers.0.self_attn.q_proj.weight": torch.randn(6, 4)}
        save_file(tensors, folder / model / "model.safetensors")
    return str(folder / "base"), str(folder / "aligned")


@pytest.mark.parametrize(
    "name", ["{folder}/victim", "../../../victim", "../" * 8 + "{folder}/victim", "a/b/c", "\u202e"]
)
def test_names_of_tensors_are_no_paths(tmp_path, name):
    base, aligned = hostile_pair(tmp_path / "models", name.format(folder=tmp_path))
    for victim in ("victim.json", "victim.safetensors"):
        (tmp_path / victim).write_text("the user's own")
    before = {path for path in tmp_path.rglob("*") if "models" in path.parts}
    out = tmp_path / "deep" / "down"
    rank = RankRule(count=2)
    subspace(base, aligned, str(out / "s.safetensors"), rank)
    overlap(base, {"a": aligned, "s": str(out / "s.safetensors")}, str(out / "overlap"), energies=[0.5], controls=19)
    tuned = hostile_pair(tmp_path / "more", name.format(folder=tmp_path))[1]
    (numbers := load_file(Path(tuned) / "model.safetensors")).update({k: 2 * v for k, v in numbers.items()})
    save_file(numbers, Path(tuned) / "model.safetensors")
    project(base, aligned, {"t": tuned}, str(out / "project"), fractions=[0.5], draws=1, write=True)
    atlas(base, aligned, {"t": tuned}, str(out / "atlas"), fractions=[0.5], energies=[], counts=[])
    assert {path for path in tmp_path.rglob("*") if "models" in path.parts[len(tmp_path.parts) :][:1]} == before
    assert (tmp_path / "victim.json").read_text() == (tmp_path / "victim.safetensors").read_text() == "the user's own"
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "models", "more", "victim.json", "victim.safetensors"}
    assert {path.name for path in out.iterdir()} == {"s.safetensors", "overlap", "project", "atlas"}


def test_a_second_command_on_the_same_results_is_refused_by_name(study, tmp_path):
    with (
        holding(tmp_path / "o") as _,
        subprocess.Popen(
            [sys.executable, "-c", SECOND.format(src=str(ROOT / "src"), **study, out=str(tmp_path / "o"))],
            stdout=subprocess.PIPE,
            text=True,
        ) as second,
    ):
        said = second.communicate()[0]
    assert "another process is writing" in said, said
    assert list(tmp_path.iterdir()) == []


SECOND = """
import sys
sys.path[:0] = [{src!r}]
from safety_subspaces.analysis.project.command import project
try:
    project({base!r}, {aligned!r}, {tuned!r}, {out!r}, fractions=[0.5])
except ValueError as error:
    print(error)
"""


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
