"""What the benchmarks share: two models to train between, a bare Trainer, and each measurement in its own process."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import lightning as L

from safety_subspaces.organism import OrganismModel


def make_pair(folder: Path, shape: dict) -> None:
    """Write two unrelated models of a shape: ``base`` and ``aligned``."""
    for seed, name in enumerate(("base", "aligned")):
        source = OrganismModel(seed=seed, **shape)
        source.load_model().save_pretrained(folder / name)
        source.load_tokenizer().save_pretrained(folder / name)


def bare_trainer(scratch: str, **options) -> L.Trainer:
    """A Trainer on one CPU that does nothing but train."""
    settings = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "default_root_dir": scratch,
    }  # fmt: skip
    return L.Trainer(**(settings | options))


def in_a_process(script: str, **options) -> dict:
    """Run a benchmark's own script with options in a new process, and return the JSON of its last line."""
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def turns(variants: list[str], rounds: int):
    """Every variant once a round, forwards and backwards in turn, so that a drift of the machine meets all alike."""
    for number in range(rounds):
        yield from variants if number % 2 == 0 else reversed(variants)
