"""Small things that tests share: an organism of one block, a minimal trainer, a command line in a new process."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import lightning as L
import torch

from safety_subspaces.organism import OrganismModel

ROOT = Path(__file__).parents[2]
OFFLINE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
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


def run_command(
    *arguments: object,
    cwd: Path = ROOT,
    timeout: float = 240,
    new_interpreter: bool = False,
    stdin: str = os.devnull,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python on the arguments in a process of its own, offline, on one thread.

    This tree's entry points run in a fork of a process that has imported them, unless a new interpreter is asked for;
    those may be given a file or terminal to read from, and variables of the environment.
    """
    environment = {**os.environ, **OFFLINE, **variables}
    command = [*map(str, arguments)]
    if command[0] not in (str(TRAIN), str(ANALYZE)) or new_interpreter:
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: Path(folder) / name for name in ("stdout", "stderr")}
        for path in streams.values():
            path.touch()
        request = {"arguments": command, "cwd": str(cwd), "environment": environment, "stdin": stdin}
        code = _ask_zygote({**request, **{name: str(path) for name, path in streams.items()}}, timeout)
        output = {name: path.read_text(encoding="utf-8", errors="replace") for name, path in streams.items()}
    return subprocess.CompletedProcess(command, code, **output)


def _ask_zygote(request: dict[str, object], timeout: float) -> int:
    """Have a command run; one that takes too long is killed with all that it has started."""
    zygote = _zygote()
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    zygote.stdin.write(json.dumps(request) + "\n")
    zygote.stdin.flush()
    pid = json.loads(zygote.stdout.readline())["pid"]
    ready, _, _ = select.select([zygote.stdout], [], [], timeout)
    if not ready:
        os.killpg(pid, signal.SIGKILL)
    code = json.loads(zygote.stdout.readline())["returncode"]
    if not ready:
        raise subprocess.TimeoutExpired(str(request["arguments"]), timeout)
    return code


@cache
def _zygote() -> subprocess.Popen[str]:
    """Start the process that is forked, once in each process of the test run; it ends with its standard input."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "zygote.py")],
        env={**os.environ, **OFFLINE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end_zygote() -> None:
    """End it and wait, so that what its forks took counts among what the tests took."""
    if _zygote.cache_info().currsize:
        zygote = _zygote()
        zygote.communicate(timeout=60)
