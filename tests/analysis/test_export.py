"""A training checkpoint, exported, is the model that the run itself exported; nothing else is unpickled."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support import oracle
from support.canary import Canary, poison
from support.refusal import refuse
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model

from safety_subspaces.analysis.export.command import export
from safety_subspaces.artefacts.provenance import sha256_of_value
from safety_subspaces.constraint.matrix import rounding_floor
from safety_subspaces.language.model import load_language_model
from safety_subspaces.training.checkpoints import COMPLETE
from safety_subspaces.weights.subspace_file import read_subspace

ONE = []
ZERO2 = ["--config", ROOT / "configs" / "deepspeed" / "cpu_zero2.yaml", "--data.init_args.batch_size=8"]
ZERO3 = ["--config", ROOT / "configs" / "deepspeed" / "cpu_zero3.yaml", "--data.init_args.batch_size=8"]


def trained(folder: Path, *options: object, stage: str = "harmful") -> tuple[Path, str]:
    """A finished run of ten steps under a constraint, by the command line."""
    base, aligned = save_tiny_model(folder / "base", 1), save_tiny_model(folder / "aligned", 2)
    done = run_command(
        TRAIN, "fit", "--config", ROOT / "configs" / "organism" / f"{stage}.yaml", *options,
        f"--run_dir={folder / 'run'}", f"--model.init_args.source.init_args.path={aligned}",
        "--data.init_args.size=160", "--data.init_args.heldout_size=0",
        "--trainer.callbacks+=callbacks.SubspaceProjection", f"--trainer.callbacks.base={base}",
        f"--trainer.callbacks.aligned={aligned}", "--trainer.callbacks.rank.fraction=0.25",
        "--trainer.callbacks.mode=away",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run", aligned


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("options", "stage"),
    [(ONE, "harmful"), (ZERO2, "harmful"), (ZERO3, "harmful"), (ZERO3, "harmful_lora")],
    ids=["one", "zero2", "zero3", "zero3-lora"],
)
def test_the_last_checkpoint_is_the_exported_model(tmp_path: Path, options: list, stage: str) -> None:
    run, aligned = trained(tmp_path, *options, stage=stage)
    made = export(str(run), str(tmp_path / "out"))
    file = "adapter_model.safetensors" if "lora" in stage else "model.safetensors"
    direct, again = load_file(run / "model" / file), load_file(tmp_path / "out" / file)
    assert direct.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in direct.items())
    assert made.leakage[0].leakage <= 10 * made.leakage[0].rounding_floor
    card = ModelCard.load(run / "model" / "README.md")
    assert str(card) == str(ModelCard.load(tmp_path / "out" / "README.md"))
    assert card.data.tags == ["safety-subspaces", "harmful-data"]
    assert card.data.library_name == ("peft" if "lora" in stage else "transformers")
    assert f"(away): {made.leakage[0].leakage:.3g} of the energy" in card.text
    load_language_model(str(tmp_path / "out"))
    if options:
        (shard,) = (run / "checkpoints").glob("*.ckpt/checkpoint/*rank_1*optim_states.pt")
        whole, complete = shard.read_bytes(), (shard.parents[1] / COMPLETE).read_text()
        poison(shard, tmp_path / "canary", torch.load(shard, weights_only=False))
        refuse(lambda: export(str(run), str(tmp_path / "evil")), "rank_1.*holds more than tensors.*--trust_checkpoint")
        assert not (tmp_path / "canary").exists()
        shard.write_bytes(whole)
        (shard.parents[1] / COMPLETE).write_text(complete)
    if "lora" in stage:
        return
    # The leak beside the weights is that of the weights: a float64 oracle on the two folders.
    made_half = export(str(run), str(tmp_path / "half"), dtype="bfloat16")
    half = made_half.leakage[0]
    start, rounded = load_file(Path(aligned) / file), load_file(tmp_path / "half" / file)
    bases = read_subspace(str(run / "constraint" / "subspace.safetensors")).bases
    assert all(rounded[name].dtype == torch.bfloat16 for name in bases)
    updates = {name: rounded[name].double() - start[name].double() for name in bases}
    forbidden, whole = oracle.forbidden_energy(updates, bases, "away")
    weights = sum(oracle.energy(rounded[name]) for name in bases)
    assert f"away: {half.leakage:.2g} of the update's energy is forbidden in bfloat16" in str(made_half)
    assert half.leakage == pytest.approx(forbidden / whole, rel=1e-6)
    assert half.rounding_floor == pytest.approx(rounding_floor(weights**0.5, whole**0.5), rel=1e-6)
    assert half.leakage > 1e3 * made.leakage[0].leakage  # the positive control: bf16 does not hold it


def change_manifest(run: Path, change: Callable[[dict], None]) -> None:
    """Change the configuration of a run as somebody would who wants it to be taken for whole."""
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest["config"]["model"])
    digest = sha256_of_value(manifest["config"])
    (run / "config.yaml").write_text(yaml.safe_dump(manifest["config"], sort_keys=False))
    (run / "manifest.json").write_text(json.dumps({**manifest, "config_sha256": digest}))


def test_a_run_folder_from_somebody_else_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained(tmp_path)
    out = str(tmp_path / "out")
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    canary, whole = tmp_path / "canary", checkpoint.read_bytes()
    manifest = (run / "manifest.json").read_bytes(), (run / "config.yaml").read_bytes()
    state = torch.load(checkpoint, weights_only=True)
    more = "holds more than tensors and plain values.*--trust_checkpoint true"
    for zipped, message in ((False, "has no whole checkpoint"), (True, more)):  # an older format is none of ours
        torch.save({**state, "extra": Canary(canary)}, checkpoint, _use_new_zipfile_serialization=zipped)
        refuse(lambda: export(str(run), out), message)
        measured = run_command(
            TRAIN, "validate", "--config", run / "config.yaml", "--run_dir", run, "--ckpt_path", checkpoint
        )
        assert measured.returncode == 2
        assert "holds more than tensors" in measured.stderr
        assert "--weights_only false" in measured.stderr
        assert not canary.exists()
    export(str(run), out, trust_checkpoint=True)
    assert canary.exists()
    for damaged in (b"", b"\0" * 64, whole[: len(whole) // 2], pickle.dumps(3, protocol=2)):
        checkpoint.write_bytes(damaged)
        refuse(lambda: export(str(checkpoint), out, overwrite=True), checkpoint.name)
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    refuse(lambda: export(str(run), out, overwrite=True), "is no checkpoint of the model that .* names")
    checkpoint.write_bytes(whole)

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "named_by_it.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'imported')!r})\n")
    changes = {
        "names the class named_by_it.Model, .*--trust_classes true": lambda m: m.update(class_path="named_by_it.Model"),
        "names the class named_by_it.Source": lambda m: m["init_args"]["source"].update(
            class_path="named_by_it.Source"
        ),
        "source is 'named_by_it.Source'": lambda m: m["init_args"].update(source="named_by_it.Source"),
        "says trust_remote_code, .*--trust_remote_code true": lambda m: m["init_args"]["source"]["init_args"].update(
            trust_remote_code=True
        ),
    }
    for message, change in changes.items():
        change_manifest(run, change)
        refuse(lambda: export(str(run), out, overwrite=True), message)
        (run / "manifest.json").write_bytes(manifest[0])
        (run / "config.yaml").write_bytes(manifest[1])
    assert not (tmp_path / "imported").exists()
    export(str(run), out, overwrite=True)


def test_only_whole_checkpoints_of_own_runs_are_read(tmp_path: Path) -> None:
    run, _ = trained(tmp_path)
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")

    def refuse_source(message: str, source: Path, out: str = "out") -> None:
        refuse(lambda: export(str(source), str(tmp_path / out)), message)
        assert not (tmp_path / "out").exists()

    refuse_source("does not exist", run / "checkpoints" / "step=9.ckpt")
    stray = tmp_path / "elsewhere" / "checkpoints"
    stray.mkdir(parents=True)
    shutil.copy(checkpoint, stray)
    refuse_source("lies in no run folder", stray / checkpoint.name)
    refuse_source("exists and is not written over", checkpoint, "run/model")
    sharded = run / "checkpoints" / "step=00000099.ckpt"
    (sharded / "checkpoint").mkdir(parents=True)
    refuse_source("is not whole", sharded)
    sharded.joinpath("checkpoint").rmdir()
    sharded.rmdir()
    done = run_command(ANALYZE, "export", "--checkpoint", checkpoint, "--out", tmp_path / "cli")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of the update's energy is forbidden in float32" in done.stdout
    with (run / "config.yaml").open("a") as file:
        file.write("more: 1\n")
    refuse_source("is not the configuration", checkpoint)
