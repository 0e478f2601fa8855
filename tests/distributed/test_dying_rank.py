"""A rank that dies or is stopped ends the run within a minute, with an error and a manifest that says so."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.launch import ROOT, ends, start, wait
from support.tiny import TRAIN, save_tiny_model

# The longest that the other ranks may live on.
A_MINUTE = 60.0


def other_ranks_of(pid: int) -> list[int]:
    """The ranks that a first rank started; what else it starts (git, for a moment a copy of itself) has no rank."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")]


def wait_for_training(folder: Path, process, seconds: float = 240) -> None:
    """Wait until the run writes checkpoints: all ranks then are in the middle of the training."""
    began = time.monotonic()
    while not list((folder / "checkpoints").glob("*.ckpt")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() - began < seconds, "training did not start"
        time.sleep(0.1)


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the other rank in /proc")
@pytest.mark.parametrize(
    ("strategy", "signum", "message"),
    [("cpu_zero3", signal.SIGKILL, "another rank of this run has ended"),
     ("ddp", signal.SIGSTOP, "rank 1 of this run was silent for 6 s")],
)  # fmt: skip
def test_a_rank_that_is_lost_ends_the_run(tmp_path: Path, strategy: str, signum: int, message: str) -> None:
    model, run = save_tiny_model(tmp_path / "model"), tmp_path / "run"
    chosen = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    if strategy != "ddp":
        chosen = ["--config", ROOT / "configs" / "deepspeed" / f"{strategy}.yaml"]
    process = start(
        TRAIN, "fit", "--config", ROOT / "configs" / "organism" / "harmful.yaml", *chosen, f"--run_dir={run}",
        f"--model.init_args.source.init_args.path={model}", "--data.init_args.size=8000",
        "--data.init_args.heldout_size=0", "--data.init_args.batch_size=8", "--collective_timeout=6",
        # An early checkpoint tells that all ranks train; the stage's own come every 200 steps.
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={run / 'checkpoints'}", "--trainer.callbacks.every_n_train_steps=20",
        "--trainer.callbacks.filename=step={step:08d}", "--trainer.callbacks.auto_insert_metric_name=false",
    )  # fmt: skip
    try:
        wait_for_training(run, process)
        others = other_ranks_of(process.pid)
        assert len(others) == 1
        os.kill(others[0], signum)
    finally:
        done = wait(process, A_MINUTE)
    assert "without finishing" not in done.output
    assert done.returncode != 0
    assert f"error: {message}" in done.output
    assert "with --resume" in done.output
    assert ends(others[0])
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed"
