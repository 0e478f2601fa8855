"""A training checkpoint, exported, is the model that the run itself exported; nothing else is unpickled."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import oracle
from support.refusal import refuse
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model

from safety_subspaces.analysis.export.command import export
from safety_subspaces.constraint.matrix import rounding_floor
from safety_subspaces.language.model import load_language_model
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
    assert made.leakage[0]["leakage"] <= 10 * made.leakage[0]["rounding_floor"]
    load_language_model(str(tmp_path / "out"))
    if "lora" in stage:
        return
    # The leak beside the weights is that of the weights: a float64 oracle on the two folders.
    half = export(str(run), str(tmp_path / "half"), dtype="bfloat16").leakage[0]
    start, rounded = load_file(Path(aligned) / file), load_file(tmp_path / "half" / file)
    bases = read_subspace(str(run / "constraint" / "subspace.safetensors")).bases
    assert all(rounded[name].dtype == torch.bfloat16 for name in bases)
    updates = {name: rounded[name].double() - start[name].double() for name in bases}
    forbidden, whole = oracle.forbidden_energy(updates, bases, "away")
    weights = sum(oracle.energy(rounded[name]) for name in bases)
    assert half["dtype"] == "bfloat16"
    assert half["leakage"] == pytest.approx(forbidden / whole, rel=1e-6)
    assert half["rounding_floor"] == pytest.approx(rounding_floor(weights**0.5, whole**0.5), rel=1e-6)
    assert half["leakage"] > 1e3 * made.leakage[0]["leakage"]  # the positive control: bf16 does not hold it


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
