import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from support.tiny import ROOT

from callbacks import ActivationOverlap, BehaviourProbe, SubspaceProjection, WeightDeltaSnapshot
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.artefacts.description import Reading
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import replacing_folder, write_text
from safety_subspaces.artefacts.provenance import describe_input, sha256_of_value
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.language.model import Pretrained
from safety_subspaces.organism import OrganismModel
from safety_subspaces.training.board import config_text, hyperparameters
from safety_subspaces.training.data import DatasetSource, InstructionData, SourceContamination
from safety_subspaces.training.modules import FrozenBasisSettings, PreferenceOptimization, SupervisedFineTuning
from safety_subspaces.training.run_folder import (
    RunPlan,
    _lock_of,
    close_run,
    latest_checkpoint,
    open_run,
    plan_run,
    remove_leavings,
    trained_checkpoint,
)

CONFIG = {"seed_everything": 3, "model": {"lr": 1e-3}}


def opened(path: Path, config: dict = CONFIG, parts: Sequence[object] = ()) -> Path:
    open_run(plan_run(path, config, parts))
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
    close_run(run, "failed", started=0.0)
    before = (run / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"in use.*--resume.*--archive"):
        plan_run(run, CONFIG)
    with pytest.raises(InputError, match="no whole checkpoint yet"):
        plan_run(run, CONFIG, resume=True)
    with pytest.raises(InputError, match="another configuration"):
        plan_run(run, {**CONFIG, "seed_everything": 4}, resume=True)
    assert (run / "manifest.json").read_bytes() == before


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="files of something else"):
        plan_run(tmp_path / "run", CONFIG)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again_in_its_place(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (run / "note.txt").write_text("kept")
    (run / "events.out.tfevents.1.host.2.3").touch()
    (run / "deltas").mkdir()
    plan = plan_run(run, CONFIG, resume=True, archive=True)
    assert (plan.checkpoint, plan.archive, plan.complete, plan.anew) == (None, False, False, True)
    assert (run / "deltas").is_dir()
    open_run(plan)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "manifest.json", "note.txt"]
    assert list(tmp_path.glob("run.archived-*")) == []
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step=00000004.ckpt").write_text("torn")
    assert plan_run(run, CONFIG, resume=True, archive=True).archive  # what it had come to is not whole, and kept
    close_run(opened(tmp_path / "other"), "failed", started=0.0)
    assert plan_run(tmp_path / "other", CONFIG, resume=True, archive=True).archive


def test_a_folder_that_a_kill_left_without_a_manifest_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / f".manifest.json.partial-{2**22 + 1}").write_text("{")  # more than any process id
    open_run(plan_run(run, CONFIG))
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "manifest.json"]


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
    for name in ("step=00000200", "step=00001000", "step=00000400", "step=1000-v2", "step=00001000-v1", "step=7-v10"):
        torch.save({}, run / "checkpoints" / f"{name}.ckpt")
    for name in ("100-v1.ckpt", "step=.ckpt", "step=9999x.ckpt", "step=9999.txt", "epoch=9-step=9999.ckpt"):
        (run / "checkpoints" / name).touch()
    assert latest_checkpoint(run).name == "step=1000-v2.ckpt"
    plan = plan_run(run, {**CONFIG, "resume": True}, resume=True)
    assert plan.checkpoint == latest_checkpoint(run)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, CONFIG, resume=True).complete


class Part:
    """A part from anywhere: it says what it exports and what it reads, under whatever name."""

    def __init__(self, *paths: Path | str, **facts: object) -> None:
        self.paths, self.facts = paths, facts

    def inputs(self) -> list[str]:
        return list(map(str, self.paths))

    def describe(self) -> dict:
        return self.facts


def test_a_complete_run_that_lost_its_model_is_not_complete(tmp_path: Path) -> None:
    parts = [Part(export={"folder": "model"}), object()]
    run = opened(tmp_path / "run", parts=parts)
    close_run(run, "complete", started=0.0)
    assert plan_run(run, CONFIG, parts, resume=True, archive=True).archive
    (run / "model").mkdir()
    assert plan_run(run, CONFIG, parts, resume=True, archive=True).complete


def test_what_no_manifest_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for value in (object(), float("nan")):
        with pytest.raises(InputError, match=r"Part\.describe\(\) returned .*expected plain, finite values"):
            plan_run(tmp_path / "run", CONFIG, [Part(size=value)])
    assert not list(tmp_path.iterdir())


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


def test_a_run_that_came_and_went_since_the_plan_is_left_alone(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    plans = [plan_run(run, CONFIG), plan_run(other, CONFIG)]
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    opened(run)
    close_run(run, "complete", started=0.0)
    plans += [plan_run(run, {**CONFIG, "other": 1}, archive=True)]
    close_run(run, "failed", started=0.0)
    before = (run / "manifest.json").read_bytes()
    for plan in plans:
        with pytest.raises(InputError, match=r"another process has used .* start this one again"):
            open_run(plan)
    assert (run / "manifest.json").read_bytes() == before
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run", "other"}


RACE = """
import sys
sys.path.insert(0, {source!r})
from pathlib import Path
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.training.run_folder import close_run, open_run, plan_run
print("ready", flush=True)
sys.stdin.readline()
try:
    open_run(plan_run(Path({run!r}), {config!r}, resume={resume}, archive={archive}))
except InputError:
    print("refused", flush=True)
else:
    print("won", flush=True)
    sys.stdin.readline()
    close_run(Path({run!r}), "complete", started=0.0)
"""


@pytest.mark.parametrize("option", ["", "resume", "archive"])
def test_of_processes_that_start_at_once_one_wins(tmp_path: Path, option: str) -> None:
    run = tmp_path / "run"
    if option:
        opened(run)
        (run / "checkpoints").mkdir()
        torch.save({}, run / "checkpoints" / "step=1.ckpt")
        _lock_of.cache_clear()  # lets go of the folder
    options = {"resume": option == "resume", "archive": option == "archive"}
    code = RACE.format(source=str(ROOT / "src"), run=str(run), config=CONFIG, **options)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    racing = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(3)]
    assert [each.stdout.readline() for each in racing] == ["ready\n"] * 3
    for each in racing:
        each.stdin.write("go\n")
    heard = [each.stdout.readline().strip() for each in racing]
    for each in racing:
        each.communicate("", timeout=60)
    assert sorted(heard) == ["refused", "refused", "won"]
    assert len(list(tmp_path.glob("run.archived-*"))) == (option == "archive")
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"


def test_what_killed_processes_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for folder in ("checkpoints", "deltas"):
        (run / folder).mkdir()
    (run / f".model.partial-{ended.pid}").mkdir()
    (run / f".model.partial-{ended.pid}" / "model.safetensors").touch()
    (run / "deltas" / f".step=4.safetensors.partial-{ended.pid}").touch()
    (run / "checkpoints" / f".step=4.ckpt.partial-{os.getpid()}").touch()  # of a process before, of the same number
    (run / f".bf16.partial-{os.getppid()}").mkdir()
    assert len(remove_leavings(run)) == 3
    assert [path.name for path in run.rglob("*partial*")] == [f".bf16.partial-{os.getppid()}"]


def test_planning_a_run_writes_nothing(tmp_path: Path) -> None:
    plan_run(tmp_path / "runs" / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_only_a_checkpoint_of_the_last_step_is_measured(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with pytest.raises(InputError, match="has no whole checkpoint to measure"):
        trained_checkpoint(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "100-v1.ckpt").touch()
    torch.save({}, run / "checkpoints" / "step=00000500-v1.ckpt")
    close_run(run, "complete", started=0.0, global_step=512)
    with pytest.raises(InputError, match="of step 500, but the run ended at step 512"):
        trained_checkpoint(run)
    torch.save({}, run / "checkpoints" / "step=00000512.ckpt")
    assert trained_checkpoint(run).name == "step=00000512.ckpt"


def test_a_run_whose_input_changed_is_not_taken_for_complete(tmp_path: Path) -> None:
    source, unnamed = tmp_path / "model", tmp_path / "other"
    for folder in (source, unnamed):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    config = {**CONFIG, "callbacks": [{"init_args": {"path": str(unnamed)}}]}
    parts = [Part(source, "org/name", tmp_path / "nowhere"), Part(source)]
    run = opened(tmp_path / "run", config, parts)
    close_run(run, "complete", started=0.0)
    (named,) = json.loads((run / "manifest.json").read_text())["inputs"]
    assert named == describe_input(source)
    (unnamed / "config.json").write_text('{"changed": 1}')  # no part says that it reads this one
    assert plan_run(run, config, parts, resume=True).complete
    (source / "config.json").write_text('{"changed": 1}')
    with pytest.raises(InputError, match="input"):
        plan_run(run, config, parts, resume=True)


def test_a_recipe_is_what_is_learnt_and_how_and_not_what_watches_it(tmp_path: Path) -> None:
    def recipe_of(name: str, **changed: object) -> str:
        trainer = {"max_epochs": 1, "callbacks": ["a.C"], "logger": None, "default_root_dir": name}
        config = {**CONFIG, "run_dir": name, "data": {"size": 3}, "trainer": trainer, **changed}
        return json.loads((opened(tmp_path / name, config) / "manifest.json").read_text())["recipe_sha256"]

    assert recipe_of("a") == recipe_of("b", trainer={"max_epochs": 1, "max_time": None})
    others = [recipe_of("c", seed_everything=4), recipe_of("d", data={"size": 4}), recipe_of("e", trainer={})]
    assert len({recipe_of("f"), *others}) == 4


def test_every_shipped_part_names_its_inputs(tmp_path: Path) -> None:
    prompts, rows = f"{tmp_path}/p.jsonl", f"{tmp_path}/rows.csv"
    Path(prompts).touch()
    pair = {"base": "b", "aligned": "a", "rank": RankRule(count=1)}
    first, second = DatasetSource("org/rows"), SourceContamination(DatasetSource(rows), 0.5, "total")
    for part, paths in {
        SubspaceProjection("s"): ["s"],
        SubspaceProjection(**pair, control="random-energy", unconstrained="u"): ["b", "a", "u"],
        WeightDeltaSnapshot(reference="r", subspace="s", other="o"): ["r", "s", "o"],
        WeightDeltaSnapshot(**pair): ["b", "a"],
        ActivationOverlap(f"{prompts}:harmful", "organism:utility"): [prompts],
        BehaviourProbe({"harmful": f"advbench@{prompts}"}): [prompts],
        SupervisedFineTuning(Pretrained("m")): ["m"],
        SupervisedFineTuning(OrganismModel()): [],
        PreferenceOptimization(Pretrained("m"), adapter=FrozenBasisSettings("s")): ["m", "s"],
        InstructionData(first, DatasetSource("metamathqa"), contamination=second): ["org/rows", rows],
        InstructionData(DatasetSource(f"metamathqa@{rows}")): [rows],
    }.items():
        assert isinstance(part, Reading)
        assert part.inputs() == paths, part


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


def test_a_run_folder_and_its_board_hold_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "zz-Very7Secret9Key-of-42"
    monkeypatch.setenv("MY_API_KEY", key)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--trainer.logger.init_args.api_key={key}"])
    logger = {"class_path": "some.Logger", "init_args": {"api_key": key, "note": f"of {key}", "token": "short"}}
    config = CONFIG | {"trainer": {"logger": logger, "note": key}}
    run = opened(tmp_path / "run", config)
    close_run(run, "failed", 0.0, error=f"ValueError: {key}")
    manifest = json.loads((run / "manifest.json").read_text())
    shown = config_text(manifest["config"]) + str(hyperparameters(manifest))
    for text in ((run / "config.yaml").read_text(), (run / "manifest.json").read_text(), shown):
        assert key not in text
        assert "short" not in text
    assert manifest["config"]["trainer"]["note"] == "***MY_API_KEY***"
    assert manifest["config_sha256"] == sha256_of_value(yaml.safe_load((run / "config.yaml").read_text()))
    (run / "checkpoints").mkdir()
    torch.save({}, run / "checkpoints" / "step=00000001.ckpt")
    monkeypatch.setenv("MY_API_KEY", "another-key-of-the-same-run")
    other = json.loads(json.dumps(config).replace(key, "another-key-of-the-same-run"))
    assert plan_run(run, other, resume=True).checkpoint is not None  # a new key makes no other run of it
