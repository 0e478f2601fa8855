"""Small things that tests share: an organism of one block, a minimal trainer, a command line in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch

from safety_subspaces.organism import OrganismModel

ROOT = Path(__file__).parent.parent
TRAIN, ANALYZE = ROOT / "train.py", ROOT / "analyze.py"


def tiny_source(seed: int = 0) -> OrganismModel:
    """An untrained organism of one block: 231 words, hidden 16."""
    return OrganismModel(seed=seed, hidden_size=16, intermediate_size=32, layers=1, heads=2)


def save_tiny_model(folder: Path, seed: int = 0) -> str:
    """Write an untrained organism with its tokenizer, and return its path."""
    source = tiny_source(seed)
    source.load_model().save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    return str(folder)


def trainer(folder: Path, **options: object) -> L.Trainer:
    """A real Trainer on one CPU thread that logs nothing and saves nothing unless told."""
    torch.set_num_threads(1)
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**settings, **options})


def run_command(*arguments: object, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run Python on the arguments in a new process, offline, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
