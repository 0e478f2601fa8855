"""A sharded run is validated as it was trained."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.canary import poison
from support.tiny import ROOT, TRAIN, run_command, save_tiny_model


def trained(folder: Path, stage: int, size: int) -> list[object]:
    """Train a sharded run; return its options."""
    options = [
        "--config", ROOT / "configs" / "organism" / "align.yaml",
        "--config", ROOT / "configs" / "deepspeed" / f"cpu_zero{stage}.yaml", f"--run_dir={folder / 'run'}",
        f"--model.init_args.source.init_args.path={save_tiny_model(folder / 'base')}",
        "--data.init_args.batch_size=8", f"--data.init_args.size={size}", "--data.init_args.heldout_size=16",
    ]  # fmt: skip
    done = run_command(TRAIN, "fit", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    return options


@pytest.mark.distributed
def test_validate_measures_the_weights_of_the_last_checkpoint(tmp_path: Path) -> None:
    options = trained(tmp_path, stage=3, size=160)
    at_the_end = json.loads((tmp_path / "run" / "manifest.json").read_text())["metrics"]["val/loss"]
    done = run_command(TRAIN, "validate", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    (shown,) = re.findall(r"val/loss\W+([\d.]+)", done.stdout)
    assert float(shown) == pytest.approx(at_the_end, abs=1e-5)


@pytest.mark.distributed
def test_what_another_made_is_validated_without_running_its_code(tmp_path: Path) -> None:
    options = trained(tmp_path, stage=2, size=32)
    assert run_command(TRAIN, "validate", *options).returncode == 0
    (shard,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt/checkpoint/*_model_states.pt")
    poison(shard, tmp_path / "canary", torch.load(shard, weights_only=True))
    done = run_command(TRAIN, "validate", *options)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "holds more than tensors and plain values" in done.stderr
    assert not (tmp_path / "canary").exists()
