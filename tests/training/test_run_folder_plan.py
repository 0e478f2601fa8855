import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import ROOT

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import replacing_folder, write_text
from safety_subspaces.artefacts.provenance import describe_input, sha256_of_value
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.training.run_folder import (
    RunPlan,
    close_run,
    latest_checkpoint,
    open_run,
    plan_run,
    trained_checkpoint,
)

CONFIG = {"seed_everything": 3, "model": {"lr": 1e-3}}


def opened(path: Path, config: dict = CONFIG) -> Path:
    open_run(plan_run(path, config))
    return path


def test_a_new_run_says_running_and_then_how_it_ended(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["seed"]) == ("running", 3)
    assert manifest["config"] == CONFIG
    close_run(run, "complete", started=0.0, global_step=7)
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["global_step"]) == ("complete", 7)
    assert manifest["peak_memory_bytes"] > 0


def test_a_run_folder_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    before = (run / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"in use.*--resume.*--archive"):
        plan_run(run, CONFIG)
    with pytest.raises(InputError, match="no checkpoint yet"):
        plan_run(run, CONFIG, resume=True)
    with pytest.raises(InputError, match="another configuration"):
        plan_run(run, {**CONFIG, "seed_everything": 4}, resume=True)
    assert (run / "manifest.json").read_bytes() == before


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="files of something else"):
        plan_run(tmp_path / "run", CONFIG)


def test_archiving_moves_the_old_run_aside_whole(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (run / "note.txt").write_text("kept")
    for _ in range(2):
        open_run(plan_run(run, {**CONFIG, "other": 1}, archive=True))
    archived = sorted(tmp_path.glob("run.archived-*"))
    assert len(archived) == 2
    assert any((folder / "note.txt").exists() for folder in archived)


def test_resume_takes_the_newest_checkpoint_and_knows_a_complete_run(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (run / "checkpoints").mkdir()
    for step in (200, 1000, 400):
        (run / "checkpoints" / f"step={step:08d}.ckpt").touch()
    assert latest_checkpoint(run).name == "step=00001000.ckpt"
    plan = plan_run(run, {**CONFIG, "resume": True}, resume=True)
    assert plan.checkpoint == latest_checkpoint(run)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, CONFIG, resume=True).complete


def test_a_complete_run_that_lost_its_model_is_not_complete(tmp_path: Path) -> None:
    config = {**CONFIG, "callbacks": ["callbacks.ModelExport"]}
    run = opened(tmp_path / "run", config)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, config, resume=True, archive=True).archive
    (run / "model").mkdir()
    assert plan_run(run, config, resume=True, archive=True).complete


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from pathlib import Path; from safety_subspaces.training.run_folder import open_run, plan_run\n"
        f"open_run(plan_run(Path({str(tmp_path / 'run')!r}), {{}})); print('open', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "open\n"
    for options in ({}, {"resume": True}, {"archive": True}):
        with pytest.raises(InputError, match="another process is training"):
            plan_run(tmp_path / "run", {}, **options)
    with pytest.raises(InputError, match="another process is training"):  # it was planned before the other began
        open_run(RunPlan(tmp_path / "run", {}, archive=True))
    assert not list(tmp_path.glob("run.archived-*"))
    other.kill()  # the lock goes with the process
    other.wait()
    for _ in range(2):  # and is not in the way of the process that has it
        open_run(plan_run(tmp_path / "run", {}, archive=True))
    assert len(list(tmp_path.glob("run.archived-*"))) == 2


def test_planning_a_run_writes_nothing(tmp_path: Path) -> None:
    plan_run(tmp_path / "runs" / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_only_a_checkpoint_of_the_last_step_is_measured(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with pytest.raises(InputError, match="has no checkpoint to measure"):
        trained_checkpoint(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step=00000500.ckpt").touch()
    close_run(run, "complete", started=0.0, global_step=512)
    with pytest.raises(InputError, match="of step 500, but the run ended at step 512"):
        trained_checkpoint(run)
    (run / "checkpoints" / "step=00000512.ckpt").touch()
    assert trained_checkpoint(run).name == "step=00000512.ckpt"


@pytest.mark.parametrize("name", ["path", "base", "aligned", "unconstrained", "subspace", "reference", "other"])
def test_a_run_whose_input_changed_is_not_taken_for_complete(tmp_path: Path, name: str) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    config = {**CONFIG, "callbacks": [{"init_args": {name: str(source)}}]}
    run = opened(tmp_path / "run", config)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, config, resume=True).complete
    (source / "config.json").write_text('{"changed": 1}')
    with pytest.raises(InputError, match="input"):
        plan_run(run, config, resume=True)


def test_a_file_of_prompts_is_an_input_with_or_without_its_set(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}')
    config = {**CONFIG, "callbacks": [{"init_args": {"first": f"{prompts}:harmful", "second": "organism:utility"}}]}
    run = opened(tmp_path / "run", config)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, config, resume=True).complete
    prompts.write_text('{"prompt": "b"}')
    with pytest.raises(InputError, match="input"):
        plan_run(run, config, resume=True)


def test_config_hash_ignores_the_order_of_keys_and_sees_values() -> None:
    assert sha256_of_value({"a": 1, "b": 2}) == sha256_of_value({"b": 2, "a": 1})
    assert sha256_of_value({"a": 1}) != sha256_of_value({"a": 2})


def _fail_while_replacing(target: Path) -> None:
    with replacing_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("second")
        raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_folder(tmp_path: Path) -> None:
    target = tmp_path / "results"
    with replacing_folder(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(OSError, match="full"):
        _fail_while_replacing(target)
    assert (target / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]
    write_text(tmp_path / "x.txt", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "x.txt"]


def test_a_result_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ResultFolder(tmp_path / "out", "evaluate", {}, []):
        raise RuntimeError
    assert not (tmp_path / "out").exists()
    with ResultFolder(tmp_path / "out", "evaluate", {"seed": 1}, [str(tmp_path)]) as folder:
        folder.leave_out("lm_head.weight", "tied")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["left_out"] == [{"name": "lm_head.weight", "reason": "tied"}]


def test_overwriting_replaces_an_earlier_result_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    for _ in range(2):
        with ResultFolder(tmp_path / "out", "evaluate", {}, [], overwrite=True):
            pass
    for command, out in (("evaluate", "thesis"), ("project", "out")):
        with pytest.raises(InputError, match="never replaced"), ResultFolder(tmp_path / out, command, {}, [], True):
            pass
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    with (
        pytest.raises(InputError, match="a part of its path is a file"),
        replacing_folder(tmp_path / "thesis" / "thesis.tex" / "x"),
    ):
        pass


def test_inputs_are_described_by_the_hash_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "picture.png").write_text("no part of a model")
    described = describe_input(tmp_path)
    assert list(described["sha256"]) == ["config.json"]
    assert describe_input("org/name")["sha256"] is None
