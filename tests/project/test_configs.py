"""Every YAML under configs/ is parsed as its header says, built, and stepped, at its smallest."""

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from support.documents import undescribed
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model, tiny_source

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.analysis.subspace.command import subspace as make_subspace
from safety_subspaces.artefacts.provenance import sha256_of_file
from safety_subspaces.artefacts.tensors import stream_tensors
from safety_subspaces.language.model import load_model
from safety_subspaces.training.export import export_model
from safety_subspaces.training.modules.adapter import LoraSettings, add_adapter
from safety_subspaces.weights.snapshots import START_FILE, SnapshotWriter, snapshot_path

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# Laid over a stage's YAML: where it runs, not what.
OVERLAYS = [path for path in CONFIGS if path.parent.name == "deepspeed"]
# Built, trained and run by test_paper_configs.py.
PAPER = [path for path in CONFIGS if path.is_relative_to(ROOT / "configs" / "paper")]
HERE = [path for path in CONFIGS if path not in OVERLAYS + PAPER]
STAGES = [path for path in HERE if "trainer" in yaml.safe_load(path.read_text())]
ANALYSES = [path for path in HERE if path not in STAGES]
names = [path.relative_to(ROOT / "configs").as_posix() for path in CONFIGS]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose every stage has an untrained model of one block."""
    folder = tmp_path_factory.mktemp("study")
    held = tuple(path.stem for path in STAGES if path.stem.startswith(("contaminated_away", "contaminated_onto")))
    real = ("useful_away", "useful_away_zero2")
    stages = ("base", "aligned", "useful", "harmful", "contaminated", "contaminated_lora", *held, *real)
    for seed, stage in enumerate((*stages, "useful_again", "harmful_again")):
        save_tiny_model(folder / stage / "model", seed)
    shutil.rmtree(folder / "contaminated_lora" / "model")
    adapted = add_adapter(load_model(str(folder / "aligned" / "model")), LoraSettings(rank=2))
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:  # zero before training: an adapter without an update is refused
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    export_model(adapted, tiny_source().load_tokenizer(), folder / "contaminated_lora" / "model")
    for kind in ("useful_lora", "harmful_lora"):
        for stage in (kind, f"{kind}_again"):
            shutil.copytree(folder / "contaminated_lora", folder / stage)
    write_snapshots(folder / "contaminated" / "deltas", str(folder / "useful" / "model"))
    pair = (str(folder / stage / "model") for stage in ("base", "aligned"))
    make_subspace(*pair, str(folder / "alignment.safetensors"), RankRule(fraction=0.25))
    return folder


def write_snapshots(folder: Path, start: str) -> None:
    """Two snapshots of a run that started from a model."""
    weights = {name: value.detach() for name, value in load_model(start).named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    stream_tensors(folder / START_FILE, shapes, weights.__getitem__)
    reference = {"path": START_FILE, "sha256": sha256_of_file(folder / START_FILE)}
    for step in (1, 2):
        with SnapshotWriter(
            snapshot_path(folder, step), shapes, torch.float32, step, {"reference": reference}
        ) as writer:
            for name, value in weights.items():
                writer.write(name, DenseUpdate(value * 0.1 * step))


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_the_header_holds_the_command_that_runs_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    command = next(line[2:] for line in lines if line.startswith("# python "))
    script, *arguments = shlex.split(command)[1:]
    assert (ROOT / script).is_file()
    named = [value for option, value in pairwise(arguments) if option == "--config"]
    assert named[-1] == path.relative_to(ROOT).as_posix()
    assert all((ROOT / config).is_file() for config in named)


def smallest_case(path: Path, study: Path, tmp_path: Path) -> list[str]:
    """Options that put tiny local things in the place of large or remote ones, and change nothing else."""
    if "organism" in path.parts:
        return [f"--study={study}", "--data.init_args.size=32", "--data.init_args.heldout_size=4"]
    if "real" in path.parts:  # its data are small, and of this repository
        return [f"--study={study}"]
    rows = tmp_path / "rows.jsonl"
    row = {"query": "how ?", "prompt": "how ?", "response": "sure .", "is_safe": False}
    rows.write_text((json.dumps(row) + "\n") * 16)
    contaminated = "contamination" in yaml.safe_load(path.read_text())["data"]["init_args"]
    return [
        f"--model.init_args.source.init_args.path={study / 'aligned' / 'model'}",
        f"--data.init_args.train.path={rows}",
        *([f"--data.init_args.contamination.source.path={rows}"] if contaminated else []),
        "--trainer.accelerator=cpu",
    ]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_every_stage_is_built_and_stepped(path: Path, study: Path, tmp_path: Path) -> None:
    small = smallest_case(path, study, tmp_path)
    done = run_command(TRAIN, "fit", "--config", path, f"--run_dir={tmp_path / 'run'}", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    exported = {file.name for file in (tmp_path / "run" / "model").iterdir()}
    adapted = "adapter" in yaml.safe_load(path.read_text())["model"]["init_args"]
    assert ("adapter_config.json" if adapted else "config.json") in exported


@pytest.mark.distributed
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_trains_or_says_what_it_lacks(path: Path, study: Path, tmp_path: Path) -> None:
    stage = ROOT / "configs" / "organism" / "harmful.yaml"
    layers = ["--config", stage, "--config", path, f"--run_dir={tmp_path / 'run'}"]
    here = []
    if path.stem.startswith("gpu8"):
        shown = run_command(TRAIN, "fit", *layers, "--print_config")
        assert shown.returncode == 0, shown.stderr[-2000:]
        trainer = yaml.safe_load(shown.stdout)["trainer"]
        assert (trainer["accelerator"], trainer["devices"], trainer["precision"]) == ("gpu", 8, "bf16-mixed")
        if path.stem != "gpu8_zero3_bf16":  # offloading compiles its optimizer for minutes; zero2 is run by cpu_zero2
            return
        # The same engine, stage and precision on two processes of the CPU.
        cpu = "safety_subspaces.training.strategies.CPUZeroStrategy"
        here = [
            "--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.strategy={cpu}",
            f"--trainer.strategy.init_args.stage={trainer['strategy']['init_args']['stage']}",
        ]  # fmt: skip
    done = run_command(TRAIN, "fit", *layers, *smallest_case(stage, study, tmp_path), *here)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_every_analysis_runs(path: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY", str(study))
    command = next(line.split()[3] for line in path.read_text().splitlines() if line.startswith("# python "))
    behaviour = ["--limit=3", "--max_new_tokens=4"]
    small = {
        "evaluate": behaviour,
        "constrained": behaviour,
        "project": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
        "constrained_energy": [],
        "overlap": ["--controls=9"],
        "utility": behaviour,
        "evaluate_adapters": behaviour,
        "evaluate_alignment": behaviour,
        "sweep": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
        "sweep_adapter": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
        "sweep_alignment": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
        "overlap_adapters": ["--controls=9"],
        "atlas": ["--bootstrap=40"],
        "trajectory": ["--draws=2"],
        "activations": ["--limit=20", "--controls=9", "--permutations=9"],
        "probe": ["--limit=40", "--folds=2", "--controls=1", "--probes=[linear]", "--learning_shares=[]"],
        "steer": [
            *("--layers=[1]", "--strengths=[1.0]", "--angles_radians=[1.0]", "--draws=1"),
            *("--evaluate.limit=2", "--evaluate.max_new_tokens=4"),
        ],
    }[path.stem]
    if "layers" in yaml.safe_load(path.read_text()):  # of a deeper model
        small = [*small, "--layers=[1]"]
    done = run_command(ANALYZE, command, "--config", path, f"--out={tmp_path / 'out'}", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "table.parquet").is_file()
    assert (tmp_path / "out" / "result.json").is_file()
    assert undescribed(tmp_path / "out", command) == {}


@pytest.mark.parametrize(
    "path", [path for path in STAGES if "FRACTION" in path.read_text()], ids=lambda path: path.stem
)
def test_a_fraction_from_the_environment_is_the_constraints_rank(
    path: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRACTION", "0.5")
    small = smallest_case(path, study, tmp_path)
    done = run_command(TRAIN, "fit", "--config", path, f"--run_dir={tmp_path / 'run'}", *small, "--print_config")
    assert done.returncode == 0, done.stderr[-2000:]
    callbacks = yaml.safe_load(done.stdout)["trainer"]["callbacks"]
    (settings,) = [entry["init_args"] for entry in callbacks if "SubspaceProjection" in entry["class_path"]]
    assert settings["rank"]["fraction"] == 0.5


def test_the_energies_of_a_fraction_are_measured_at_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STUDY": str(study), "FRACTION": "0.5", "SUFFIX": ""}.items():
        monkeypatch.setenv(name, value)
    config = ROOT / "configs" / "organism" / "analysis" / "constrained_energy.yaml"
    done = run_command(ANALYZE, "project", "--config", config, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(pd.read_csv(tmp_path / "out" / "table.csv")["fraction"]) == {0.5}
