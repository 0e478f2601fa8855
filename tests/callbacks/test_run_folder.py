"""The command line and the run folder together, in real processes."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.tiny import ROOT, TRAIN, run_command, save_tiny_model, tiny_source, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ModelExport, RunRecord, TokenThroughput
from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import describe_input, sha256_of_value
from safety_subspaces.artefacts.run_constraint import read_constraint
from safety_subspaces.organism import OrganismModel
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import SupervisedFineTuning

PRETRAIN = ROOT / "configs" / "organism" / "pretrain.yaml"
TINY = [f"--model.init_args.source.init_args.{name}={value}"
        for name, value in {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}.items()]  # fmt: skip


def pretrain(folder: Path, *extra: object, size: int = 320, **variables: str):
    return run_command(
        TRAIN, "fit", "--config", PRETRAIN, *TINY, f"--data.init_args.size={size}", "--data.init_args.heldout_size=16",
        f"--run_dir={folder}", *extra, **variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    done = pretrain(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_finished_run_has_every_part(finished_run: Path) -> None:
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["global_step"] == 20
    assert manifest["command"][:2] == ["train.py", "fit"]
    assert manifest["wall_seconds"] > 0
    assert manifest["metrics"]["train/tokens_per_second"] > 0
    assert manifest["data_counts"] == {"train": 320, "dev": 16}
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["model"]["init_args"]["source"]["init_args"]["seed"] == 0  # interpolation is resolved
    assert (finished_run / "model" / "model.safetensors").exists()
    assert (finished_run / "model" / "chat_template.jinja").exists()
    events = EventAccumulator(str(finished_run)).Reload()
    wanted = {"train/loss", "train/learning_rate", "train/tokens_per_second", "val/loss", "val/perplexity"}
    assert wanted | {"val/token_accuracy"} <= set(events.Tags()["scalars"])


def test_a_run_folder_is_not_written_over(finished_run: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    refused = pretrain(finished_run)
    assert refused.returncode == 2
    assert "is in use" in refused.stderr
    assert "Traceback" not in refused.stderr
    again = pretrain(finished_run, "--resume")
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert again.stdout.endswith(f"the model is {finished_run}/model\n")
    other = pretrain(finished_run, "--resume", size=336)
    assert other.returncode == 2
    assert "another configuration" in other.stderr
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_a_finished_run_can_be_measured_again(finished_run: Path, subcommand: str) -> None:
    done = run_command(
        TRAIN, subcommand, "--config", PRETRAIN, *TINY, "--data.init_args.size=320", f"--run_dir={finished_run}"
    )
    assert done.returncode == 0, done.stderr
    assert ("val/loss" if subcommand == "validate" else "test/loss") in done.stdout
    assert "step=00000020.ckpt" in done.stderr + done.stdout  # the trained weights, not the first ones


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_a_failing_measurement_leaves_the_run_alone(finished_run: Path, subcommand: str) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    failed = run_command(TRAIN, subcommand, "--config", PRETRAIN, *TINY, f"--run_dir={finished_run}",
                         "--data.init_args.max_length=10")  # fmt: skip
    assert failed.returncode == 2
    assert "longer than max_length=10" in failed.stderr
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before
    untrained = run_command(TRAIN, subcommand, "--config", PRETRAIN, *TINY, f"--run_dir={finished_run}-none")
    assert untrained.returncode == 2
    assert "has no whole checkpoint to measure" in untrained.stderr


def test_a_resume_that_fails_at_its_start_keeps_the_run(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    manifest = json.loads((run / "manifest.json").read_text())
    command = ["--resume", "--data.init_args.max_length=10"]
    config = {**manifest["config"], "run_dir": str(run)}
    config["trainer"] = {**config["trainer"], "default_root_dir": str(run)}
    config["data"] = json.loads(json.dumps(config["data"]))
    config["data"]["init_args"]["max_length"] = 10
    for value in (
        config["trainer"]["logger"]["init_args"],
        *(c.get("init_args", {}) for c in config["trainer"]["callbacks"]),
    ):
        for name in ("save_dir", "dirpath"):
            if name in value:
                value[name] = value[name].replace(str(finished_run), str(run))
    manifest |= {"status": "failed", "config": config, "config_sha256": sha256_of_value(config)}
    (run / "manifest.json").write_text(json.dumps(manifest))
    failed = pretrain(run, *command)
    assert failed.returncode == 2
    assert "longer than max_length=10" in failed.stderr, failed.stderr
    assert list((run / "checkpoints").glob("*.ckpt"))
    assert (run / "model" / "config.json").is_file()


def stopping_run(folder: Path, *stopper: str) -> list[object]:
    """The finished run's command with a checkpoint every five steps and a callback that stops it."""
    return [
        TRAIN, "fit", "--config", PRETRAIN, *TINY, "--data.init_args.size=320", "--data.init_args.heldout_size=16",
        f"--run_dir={folder / 'run'}", "--plugins", ROOT / "tests", *stopper,
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder / 'run' / 'checkpoints'}",
        "--trainer.callbacks.filename=step={step:08d}",
        "--trainer.callbacks.auto_insert_metric_name=false",
        "--trainer.callbacks.enable_version_counter=false",
        "--trainer.callbacks.every_n_train_steps=5",
    ]  # fmt: skip


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "run" / "manifest.json").read_text())


def assert_same_model(finished_run: Path, folder: Path) -> None:
    whole, mended = (load_file(run / "model" / "model.safetensors") for run in (finished_run, folder / "run"))
    assert all(torch.equal(value, mended[name]) for name, value in whole.items())


def test_an_interrupted_run_resumes_to_the_same_weights(finished_run: Path, tmp_path: Path) -> None:
    command = stopping_run(tmp_path, "--trainer.callbacks+=support.stopper.StopAt", "--trainer.callbacks.step=13")
    stopped = run_command(*command)
    assert stopped.returncode != 0
    assert manifest_of(tmp_path)["status"] == "failed"
    assert "stopped on purpose" in manifest_of(tmp_path)["error"]
    # What a kill at other moments leaves: an older checkpoint, half of a newer one, half of a file.
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copy(checkpoints / "step=00000010.ckpt", checkpoints / "step=00000005.ckpt")
    cut = (checkpoints / "step=00000010.ckpt").read_bytes()[:-100]
    (checkpoints / "step=00000015.ckpt").write_bytes(cut)
    (checkpoints / ".step=00000015.ckpt.partial-4194305").write_bytes(cut)  # more than Linux counts processes
    (checkpoints / "100-v1.ckpt").touch()
    resumed = run_command(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "step=00000015.ckpt is passed over: it is damaged or was cut short" in resumed.stderr
    assert "removed " in resumed.stderr
    manifest = manifest_of(tmp_path)
    assert (manifest["status"], manifest["resumed_from"]) == ("complete", "step=00000010.ckpt")
    assert manifest["global_step"] == 20
    assert sorted(path.name for path in checkpoints.iterdir()) == ["100-v1.ckpt", "step=00000020.ckpt"]
    assert_same_model(finished_run, tmp_path)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_training_with_its_status_and_a_way_on(finished_run: Path, tmp_path: Path, name: str) -> None:
    signum = signal.Signals[name]
    command = stopping_run(tmp_path, "--trainer.callbacks+=support.stopper.SignalAt", "--trainer.callbacks.step=13",
                           f"--trainer.callbacks.signum={int(signum)}")  # fmt: skip
    stopped = run_command(*command)
    assert stopped.returncode == 128 + signum
    assert "Traceback" not in stopped.stderr
    assert f"stopped by {name}" in stopped.stderr
    assert "with --resume" in stopped.stderr
    assert manifest_of(tmp_path)["status"] == "failed"
    if signum == signal.SIGTERM:  # which Lightning answers by ending as if all were done
        resumed = run_command(*command, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert_same_model(finished_run, tmp_path)


def test_training_runs_where_warnings_are_errors(tmp_path: Path) -> None:
    done = run_command(
        "-W", "error", TRAIN, "fit", "--config", PRETRAIN, *TINY, "--data.init_args.size=64",
        "--data.init_args.heldout_size=16", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


ELSEWHERE = """
import lightning as L

class Defence(L.Callback):
    def __init__(self, words: str) -> None:
        self.words = words

    def inputs(self) -> list[str]:
        return [self.words]

    def describe(self) -> dict:
        return {"constraint": {"mode": "away", "subspace": "top", "rank": "2", "fraction": None, "details": "mild"}}
"""


def test_a_callback_from_elsewhere_says_what_it_is_and_reads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    words = tmp_path / "words.txt"
    words.write_text("never")
    arguments = [
        "fit", "--config", PRETRAIN, *TINY, "--data.init_args.size=32", "--data.init_args.heldout_size=16",
        "--plugins", tmp_path, f"--run_dir={tmp_path / 'run'}",
        "--trainer.callbacks+=elsewhere.Defence", f"--trainer.callbacks.words={words}",
    ]  # fmt: skip
    done = run_command(TRAIN, *arguments)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["inputs"] == [describe_input(words)]
    assert read_constraint(manifest) is not None
    assert manifest["role"] == "base"
    assert facts_about("starts_from", manifest) == [None]
    assert facts_about("objective", manifest) == [{"name": "SFT", "learning_rate": 3e-3, "settings": {}}]
    assert facts_about("data", manifest) == [{"name": "base", "examples": 32}]
    assert facts_about("export", manifest) == [{"folder": "model"}]
    words.write_text("always")
    refused = run_command(TRAIN, *arguments, "--resume")
    assert refused.returncode == 2
    assert "another configuration or input" in refused.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data.init_args.max_length=8"], "longer than max_length=8"),
        (["--model.init_args.adapter.targets=[no_proj]"], "'no_proj' matches no linear layer"),
        (["--study=${nowhere}"], "nowhere"),
        (["--data.init_args.corpus=poems"], "poems"),
    ],
)
def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path, extra: list[str], message: str) -> None:
    failed = pretrain(tmp_path / "run", *extra)
    assert failed.returncode == 2, failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_source_names_the_stage_to_train(tmp_path: Path) -> None:
    config = ROOT / "configs" / "organism" / "align.yaml"
    failed = run_command(TRAIN, "fit", "--config", config, f"--study={tmp_path}", new_interpreter=True)
    assert failed.returncode == 2
    assert f"{tmp_path}/base/model does not exist" in failed.stderr
    assert not (tmp_path / "aligned").exists()


def test_bare_commands_name_three_to_try() -> None:
    for script in ("train.py", "analyze.py"):
        shown = run_command(ROOT / script, new_interpreter=True)
        assert shown.returncode == 0
        assert shown.stdout.count(f"  python {script} ") == 3


def test_throughput_counts_real_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("callbacks.token_throughput.time.perf_counter", lambda: float(next(clock)))
    data = OrganismData("useful", 64, heldout_size=0)
    lightning = trainer(tmp_path, callbacks=[TokenThroughput(every_n_steps=4)])
    lightning.fit(SupervisedFineTuning(tiny_source()), datamodule=data)
    tokens = sum(len(code.input_ids) for (code,) in data._encoded["train"])
    assert lightning.callback_metrics["train/tokens_per_second"] == tokens  # one tick of the clock
    with pytest.raises(InputError, match="every_n_steps 0"):
        TokenThroughput(every_n_steps=0)


def test_export_refuses_another_kind_of_module(tmp_path: Path) -> None:
    import lightning as L

    with pytest.raises(InputError, match=r"safety_subspaces\.training\.modules"):
        ModelExport().setup(trainer(tmp_path), L.LightningModule(), "fit")


def test_random_state_goes_on_after_a_resume() -> None:
    record = RunRecord()
    state = record.state_dict()
    expected = torch.rand(3)
    record.load_state_dict(state)
    alone = SimpleNamespace(global_rank=0)
    record.on_train_batch_start(alone, None, None, 0)
    assert torch.equal(torch.rand(3), expected)
    record.on_train_batch_start(alone, None, None, 1)
    assert not torch.equal(torch.rand(3), expected)


@pytest.mark.distributed
def test_two_processes_share_every_global_batch(finished_run: Path, tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=8"]
    done = pretrain(tmp_path / "run", *two)
    assert done.returncode == 0, done.stderr[-2000:]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (finished_run, tmp_path / "run")]
    assert manifests[1]["status"] == "complete"
    assert manifests[1]["global_step"] == manifests[0]["global_step"]  # as many steps of the same global size
    losses = [manifest["metrics"]["val/loss"] for manifest in manifests]
    # The loss is the mean over the step's tokens, however they are shared out; what is left is the order of sums.
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (finished_run, tmp_path / "run"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3
    # Of a run that is complete each rank finds it so by itself: started without the first, it waits for none.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for rank in ("1", "0"):
        alone = {"LOCAL_RANK": rank, "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        again = pretrain(tmp_path / "run", *two, "--resume", **alone)
        assert again.returncode == 0, again.stderr[-2000:]
        assert ("already complete" in again.stderr) == (rank == "0")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data.init_args.train.prompt_field=instruction"], "no field 'instruction'"),
        (["--data.init_args.train.keep={is_safe: maybe}"], "none of 4 rows is left"),
        (["--data.init_args.train.path=nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_bad_data_end_with_one_message_and_no_folder(tmp_path: Path, changes: list[str], message: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "how ?", "prompt": "how ?", "response": "sure .", "is_safe": False}) + "\n")
    rows.write_text(rows.read_text() * 4)
    failed = run_command(
        TRAIN, "fit", "--config", ROOT / "configs" / "examples" / "instructions_lora.yaml", "--trainer.accelerator=cpu",
        f"--model.init_args.source.init_args.path={save_tiny_model(tmp_path / 'model')}",
        f"--data.init_args.train.path={rows}", f"--data.init_args.contamination.source.path={rows}",
        f"--run_dir={tmp_path / 'run'}", *changes,
    )  # fmt: skip
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run").exists()


def test_mismatched_models_end_an_analysis_with_one_message(tmp_path: Path) -> None:
    base, aligned = (save_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("base", "aligned")))
    wider = OrganismModel(hidden_size=24, intermediate_size=32, layers=1, heads=2)
    wider.load_model().save_pretrained(tmp_path / "wider")
    wider.load_tokenizer().save_pretrained(tmp_path / "wider")
    failed = run_command(
        ROOT / "analyze.py", "project", f"--base={base}", f"--aligned={aligned}", f"--tuned.wider={tmp_path / 'wider'}",
        f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert "wider" in failed.stderr
    assert "embed_tokens" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
