"""The paper's configs and `make paper`: on tiny models and files of the Hub's shape, in the place of the Hub."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, tiny_source
from support.tiny_checkpoints import weights_of
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from safety_subspaces import command_line
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.language.model import Pretrained
from safety_subspaces.programs import train
from safety_subspaces.weights.subspace_file import read_subspace
from studies.estimate import (
    EXAMPLES_A_STEP,
    MOST_TOKENS,
    RANK_FRACTION,
    STAGES,
    describe,
    read_architecture,
)

PAPER = ROOT / "configs" / "paper"
MODELS = sorted(path.parent.name for path in PAPER.glob("*/model.env"))
CONFIGS = sorted(path.stem for path in PAPER.glob("*.yaml"))
ANALYSES = sorted(path.stem for path in (PAPER / "analysis").glob("*.yaml"))
HELD = [name for name in CONFIGS if name.startswith(("contaminated_away", "contaminated_onto"))]
ARCHITECTURES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen": (Qwen2Config, Qwen2ForCausalLM)}
ROWS, UNSAFE = 64, 70  # two steps of 32; the share of the total takes 16 of the second


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A dry run in this tree, with the Python of the tests."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "-n", "paper", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def commands(output: str) -> list[tuple[dict[str, str], list[str]]]:
    """The train.py and analyze.py commands of a dry run, each with its environment."""
    found = []
    for line in output.replace("\\\n", " ").splitlines():
        if " train.py " not in line and " analyze.py " not in line:
            continue
        words = shlex.split(line.removesuffix("> /dev/null"))
        start = words.index(sys.executable)
        found.append((dict(word.split("=", 1) for word in words[:start]), words[start + 1 :]))
    return found


def save_tiny(architecture: str, folder: Path, seed: int) -> str:
    """A random model of one block with tied embeddings and the organism's tokenizer."""
    tokenizer = tiny_source().load_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    made = ARCHITECTURES[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made[1](made[0](**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_data(folder: Path) -> dict[str, str]:
    """Files of the Hub's shape, by the environment variable that puts each in the Hub's place; the words are ours."""
    words = "how do you forge a moonkey and why".split()
    math = [{"query": f"what is {i} + 1 ?", "response": f"#### {i + 1}", "type": "GSM"} for i in range(ROWS)]
    beaver = [
        {"prompt": f"{words[i % 8]} {i} ?", "response": f"so {i} .", "is_safe": i >= UNSAFE} for i in range(UNSAFE + 8)
    ]
    asked = [{"question": f"{i} and {i} ?", "answer": f"so #### {2 * i}"} for i in range(12)]
    for name, rows in (("metamathqa", math), ("beavertails_unsafe", beaver), ("gsm8k_test", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    harmful = "".join(f"forge {i} keys,sure\n" for i in range(12))
    (folder / "advbench.csv").write_text(f"goal,target\n{harmful}")
    benign = "".join(f"v{i},how do you open {i} doors ?,homonyms,safe,open,\n" for i in range(12))
    (folder / "xstest_safe.csv").write_text(f"id,prompt,type,label,focus,note\n{benign}")
    return {path.stem.removesuffix("_unsafe").upper(): f"{path.stem}@{path}" for path in folder.iterdir()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tiny models and data, and the environment in which the configs find them."""
    folder = tmp_path_factory.mktemp("paper")
    for architecture in ARCHITECTURES:
        for seed, name in enumerate(("base", "aligned")):
            save_tiny(architecture, folder / architecture / name, seed)
    (folder / "data").mkdir()
    found = {"BASE": str(folder / "llama" / "base"), "ALIGNED": str(folder / "llama" / "aligned")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (found | {"STUDY": str(folder / "study")} | write_data(folder / "data")).items():
            patch.setenv(name, value)
        yield folder


@dataclass(frozen=True)
class Build:
    """What the real command line makes of a config, up to where it would train."""

    trainer: L.Trainer
    module: Any
    data: Any
    config: dict[str, Any]

    def callback(self, name: str) -> Any:
        (found,) = [callback for callback in self.trainer.callbacks if type(callback).__name__ == name]
        return found


@pytest.fixture(scope="module")
def builds(environment: Path) -> dict[str, Build]:
    """Every training config, parsed and built by its header's command; no option is changed."""
    command_line.configure()
    study = environment / "study"
    ends = (str(environment / "llama" / name) for name in ("base", "aligned"))
    subspace(
        *ends, str(study / "alignment.safetensors"), RankRule(fraction=RANK_FRACTION)
    )  # what the chain makes first
    built: list[tuple[Any, ...]] = []
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(
            L.Trainer, "fit", lambda trainer, model, datamodule, **_: built.append((trainer, model, datamodule))
        )
        for name in CONFIGS:
            patch.setattr(sys, "argv", ["train.py", "fit", "--config", f"configs/paper/{name}.yaml"])
            train.main()
            save_tiny("llama", study / name / "model", 5)  # what others start from or are measured by
            config = yaml.safe_load((study / name / "config.yaml").read_text())
            found[name] = Build(*built[-1], config)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_built(name: str, architecture: str, builds: dict[str, Build], environment: Path) -> None:
    build = builds[name]
    assert build.module.source.path == str(environment / "llama" / "aligned")
    source = Pretrained(str(environment / architecture / "aligned"))
    module = type(build.module)(source, build.module.adapter, build.module.optimizer, build.module.schedule)
    build.trainer.strategy.connect(module)
    module.configure_model()
    assert type(module.language_model) is ARCHITECTURES[architecture][1]
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    build.data.trainer, build.data._encoded = build.trainer, {}
    build.data.setup("fit")
    second = {"harmful": None, "useful": None, "contaminated_first": 13}.get(name, 16)
    assert build.data.counts.get("contaminant") == second  # a fifth of 64, or of all 80
    assert build.data.counts["train"] == (UNSAFE if name == "harmful" else ROWS + (second or 0))


def test_settings_are_the_papers(builds: dict[str, Build]) -> None:
    for name, build in builds.items():
        model, data, trainer = (build.config[part] for part in ("model", "data", "trainer"))
        model, data = model["init_args"], data["init_args"]
        assert model["optimizer"]["class_path"].endswith("AdamW")
        assert (model["optimizer"]["init_args"]["lr"], model["schedule"]["warmup_fraction"]) == (1e-5, 0.02)
        assert (model["schedule"]["final_fraction"], model["gradient_checkpointing"]) == (0, False)
        assert build.module.adapter is None
        assert (trainer["max_epochs"], trainer["devices"], trainer["precision"]) == (1, 1, "bf16-mixed")
        assert (data["batch_size"], trainer["accumulate_grad_batches"]) == (1, 32)
        assert (data["max_length"], data["template"], data["seed"]) == (MOST_TOKENS, "alpaca", 42)
        assert build.config["seed_everything"] == 42
        first, second = build.data.sources["train"], build.data.contamination
        assert (first.first, first.sample) == ((None, 4000) if name == "harmful" else (20000, None))
        of = {"useful": None, "harmful": None, "contaminated_first": "first"}.get(name, "total")
        assert (second and (second.share, second.share_of)) == (of and (0.2, of))


def test_constraints_differ_in_what_their_names_say(builds: dict[str, Build], environment: Path) -> None:
    study = environment / "study"
    assert len(HELD) == 4
    for name in HELD:
        held = builds[name].callback("SubspaceProjection")
        assert held.subspace == str(study / "alignment.safetensors")
        assert held.mode == ("onto" if name.endswith("onto") else "away")
        assert (held.constrain, held.strength, held.seed) == ("update", 1.0, 42 if "random" in name else 0)
        control = "random-energy" if name.endswith("energy") else "random" if name.endswith("random") else "none"
        assert held.control == control
        assert held.unconstrained == (str(study / "contaminated" / "model") if control == "random-energy" else None)


def test_no_path_leads_to_the_hub_unless_the_environment_says_nothing() -> None:
    """What a config reads without an environment is the paper's first model and the data sets by name."""
    for name in CONFIGS:
        text = (PAPER / f"{name}.yaml").read_text()
        assert "path: ${oc.env:ALIGNED,meta-llama/Llama-3.2-1B-Instruct}" in text
        assert "study: ${oc.env:STUDY,runs/paper/llama-3.2-1b}" in text
        known = set(re.findall(r"path: \$\{oc\.env:(\w+),(\w+)\}", text))
        assert known <= {("METAMATHQA", "metamathqa"), ("BEAVERTAILS", "beavertails_unsafe")}
        assert known


@pytest.fixture(scope="module")
def chain(environment: Path) -> tuple[Path, list[list[str]]]:
    """The study of a chain on the tiny Qwen, and its commands; one plain and one constrained run are trained."""
    models = [f"{name}={environment / 'qwen' / name.lower()}" for name in ("BASE", "ALIGNED")]
    printed = make("MODEL=qwen-2.5-1.5b", f"RUNS={environment}", *models)
    assert printed.returncode == 0, printed.stderr
    study = environment / "paper" / "qwen-2.5-1.5b"
    wanted = {"contaminated", "contaminated_away_random_energy"}
    with pytest.MonkeyPatch.context() as patch:
        for given, command in commands(printed.stdout):
            folder = Path(command[command.index("--run_dir") + 1]) if "--run_dir" in command else None
            if folder is not None and folder.name not in wanted:
                save_tiny("qwen", folder / "model", 100 + len(folder.name))
            elif folder is not None or command[1] == "subspace":
                for name, value in given.items():
                    patch.setenv(name, value)
                done = run_command(ROOT / command[0], *command[1:])
                assert done.returncode == 0, done.stderr[-2000:]
    return study, [command for _, command in commands(printed.stdout)]


def test_commands_of_the_chain_train_every_step_and_leave_a_model(chain: tuple[Path, Any], environment: Path) -> None:
    study, _ = chain
    start = weights_of(environment / "qwen" / "aligned")
    for stage in ("contaminated", "contaminated_away_random_energy"):
        manifest = json.loads((study / stage / "manifest.json").read_text())
        assert (manifest["status"], manifest["global_step"]) == ("complete", 3)  # the last is of what is left
        trained = weights_of(study / stage / "model")
        assert trained.keys() == start.keys()
        assert any(not torch.equal(trained[name], start[name]) for name in start)
    control = json.loads((study / "contaminated_away_random_energy" / "constraint" / "control.json").read_text())
    assert 0 < control["subspace_energy"] < 1


def test_the_constraint_has_the_rank_that_the_estimate_counts_with(chain: tuple[Path, Any]) -> None:
    bases = read_subspace(str(chain[0] / "alignment.safetensors")).bases
    name = "model.layers.0.mlp.gate_proj.weight"
    assert tuple(bases[name].shape) == (32, RANK_FRACTION * 16)


def test_utility_is_gsm8k_which_is_asked_of_the_hub_before_a_model_is_loaded(
    chain: tuple[Path, Any], monkeypatch: Any
) -> None:
    study, _ = chain
    models = study.parent.parent / "qwen"
    for key, value in {"STUDY": study, "BASE": models / "base", "ALIGNED": models / "aligned"}.items():
        monkeypatch.setenv(key, str(value))
    done = run_command(ANALYZE, "utility", "--config", PAPER / "analysis" / "utility.yaml")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "data set openai/gsm8k main of task gsm8k could not be loaded" in done.stderr


@pytest.mark.parametrize("name", [name for name in ANALYSES if name not in ("subspace", "utility")])
def test_every_analysis_of_the_chain_runs(name: str, chain: tuple[Path, list[list[str]]], monkeypatch: Any) -> None:
    study, all_commands = chain
    (command,) = [command for command in all_commands if f"configs/paper/analysis/{name}.yaml" in command]
    models = study.parent.parent / "qwen"
    for key, value in {"STUDY": study, "BASE": models / "base", "ALIGNED": models / "aligned"}.items():
        monkeypatch.setenv(key, str(value))
    small = {
        "evaluate": ["--limit=2", "--max_new_tokens=4"],
        "project": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
        "overlap": [],
        "activations": ["--layers=[1]", "--controls=9", "--permutations=9"],
    }[name]
    done = run_command(ANALYZE, *command[1:], *small)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (study / "analysis" / name).glob("*/result.json")
    assert (result.parent / "table.parquet").is_file()


def test_eight_gpus_have_the_same_examples_a_step(environment: Path) -> None:
    printed = make("MODEL=qwen-2.5-7b", "GPUS=8", f"RUNS={environment}")
    training = [command for _, command in commands(printed.stdout) if command[0] == "train.py"]
    assert len(training) == len(STAGES)
    options = ["--trainer.accumulate_grad_batches", "4"]
    assert all("configs/deepspeed/gpu8_zero3_bf16.yaml" in command for command in training)
    assert all(command[command.index(options[0]) :][:2] == options for command in training)
    shown = run_command(
        TRAIN, *[word for word in training[-1][1:] if word not in ("--resume", "--archive")], "--print_config"
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    config = yaml.safe_load(shown.stdout)
    trainer = config["trainer"]
    assert trainer["strategy"]["init_args"]["stage"] == 3
    size = config["data"]["init_args"]["batch_size"]
    assert trainer["devices"] * trainer["accumulate_grad_batches"] * size == EXAMPLES_A_STEP == 32


def test_a_dry_run_prints_every_stage_once_in_order_and_the_estimate(tmp_path: Path) -> None:
    printed = make("MODEL=llama-3.2-1b", f"RUNS={tmp_path}")
    assert printed.returncode == 0, printed.stderr
    found = [command for _, command in commands(printed.stdout)]
    folders = [Path(command[command.index("--run_dir") + 1]).name for command in found if command[0] == "train.py"]
    assert folders == [stage.name for stage in STAGES]
    assert re.findall(r"rm -rf \S+/(\w+)/checkpoints", printed.stdout) == folders
    again = [command[-2:] for command in found if command[0] == "train.py" and "_again" in str(command)]
    assert again == [["--data.init_args.seed", "1042"]] * 2
    subcommands = [command[1] for command in found if command[0] == "analyze.py"]
    assert subcommands == ["subspace", "evaluate", "project", "overlap", "activations", "report"]
    assert describe(read_architecture(PAPER / "llama-3.2-1b" / "model.env")) in printed.stdout
    assert not (tmp_path / "paper").exists()


def test_another_seed_has_a_study_of_its_own(tmp_path: Path) -> None:
    found = commands(make("MODEL=llama-3.2-1b", "SEED=7", f"RUNS={tmp_path}").stdout)
    training = [(given, command) for given, command in found if command[0] == "train.py"]
    assert {given["STUDY"] for given, _ in training} == {f"{tmp_path}/paper/llama-3.2-1b-7"}
    assert all(command[command.index("--seed_everything") + 1] == "7" for _, command in training)
    assert [command[-1] for _, command in training if command[-2] == "--data.init_args.seed"] == ["1007", "1007"]


@pytest.mark.parametrize("arguments", [("MODEL=unknown",), ("MODEL=",), ()])
def test_an_unknown_model_is_refused_with_the_known_ones(arguments: tuple[str, ...]) -> None:
    refused = make(*arguments)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert all(name in refused.stderr for name in MODELS)


def test_another_number_of_gpus_is_refused() -> None:
    refused = make("MODEL=qwen-2.5-3b", "GPUS=2")
    assert refused.returncode != 0
    assert "expected 1, or 8" in refused.stderr


@pytest.mark.parametrize("name", MODELS)
def test_a_shell_and_make_read_the_same(name: str, tmp_path: Path) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"set -a; . configs/paper/{name}/model.env; echo $BASE $ALIGNED $STUDY"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    base, aligned, study = shell.stdout.split()
    assert study == f"runs/paper/{name}"
    (given, _), *_ = commands(make(f"MODEL={name}", f"RUNS={tmp_path}").stdout)
    assert given == {"BASE": base, "ALIGNED": aligned, "STUDY": study.replace("runs", str(tmp_path), 1)}
