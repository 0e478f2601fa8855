"""A model folder that brings Python along, at every entry: on a terminal that says yes, none of it runs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.refusal import refuse
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model, tiny_source
from transformers import LlamaConfig, LlamaForSequenceClassification

from safety_subspaces.evaluation.judges.classifier import ClassifierJudge
from safety_subspaces.language.examples import PromptItem
from safety_subspaces.language.model import Pretrained, load_model
from safety_subspaces.training.modules.adapter import LoraSettings, add_adapter

EVIL = """
from pathlib import Path

Path(__file__).with_name("ran").touch()
Path("CANARY").touch()


class Evil:
    pass
"""
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
CODE = {"auto_map": dict.fromkeys(CLASSES, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", None]}}


def make_hostile(folder: Path, canary: Path, architecture: str = "EvilForCausalLM", kind: str = "evil") -> str:
    """Write a tiny model that claims to need the Python beside it."""
    save_tiny_model(folder)
    (folder / "evil.py").write_text(EVIL.replace("CANARY", str(canary)))
    for name in ("config.json", "tokenizer_config.json"):
        written = json.loads((folder / name).read_text())
        claims = {"model_type": kind, "architectures": [architecture], "tokenizer_class": "EvilTokenizer"}
        (folder / name).write_text(json.dumps({**written, **claims, **CODE}))
    return str(folder)


@pytest.fixture
def yes() -> Iterator[str]:
    """A terminal on which somebody has answered every question with y."""
    master, slave = os.openpty()
    os.write(master, b"y\n" * 50)
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hostile folders of each kind beside a good one, with prompts and an adapter upon a hostile base."""
    folder = tmp_path_factory.mktemp("models")
    canary = folder / "canary"
    make_hostile(folder / "hostile", canary)
    make_hostile(folder / "classifier", canary, "EvilForSequenceClassification")
    save_tiny_model(folder / "good", 1)
    save_tiny_model(folder / "other", 2)
    tiny_source().load_tokenizer().save_pretrained(folder / "adapter")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "hostile"), "r": 1}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({**adapter, **CODE}))
    line = {"model": "x", "set": "harmful", "prompt": "p", "answer": "a", "score": 1}
    (folder / "generations.jsonl").write_text(json.dumps(line) + "\n")
    return folder


HARMFUL = ("--prompts.harmful", "organism:harmful", "--prompts.benign", "organism:benign")
JUDGE = ("--judge", "classifier", "--judge_args.path")
ENTRIES = {
    "activations": (ANALYZE, "activations", *HARMFUL, "--models.one", "hostile", "--models.two", "hostile"),
    "steer": (ANALYZE, "steer", *HARMFUL, "--models.one", "hostile"),
    "probe": (ANALYZE, "probe", *HARMFUL, "--models.one", "hostile"),
    "evaluate": (ANALYZE, "evaluate", "--models.one", "hostile"),
    "evaluate-adapter": (ANALYZE, "evaluate", "--models.one", "adapter"),
    "utility": (ANALYZE, "utility", "--models.one", "hostile"),
    "judge": (ANALYZE, "judge", "--generations", "generations.jsonl", *JUDGE, "hostile"),
    "judge-classifier": (ANALYZE, "evaluate", "--models.one", "good", *JUDGE, "classifier"),
    "project": (
        ANALYZE, "project", "--base", "good", "--aligned", "other", "--tuned.x", "good",
        "--evaluate.judge", "classifier", "--evaluate.judge_args.path", "classifier",
    ),
    "train": (
        TRAIN, "fit", "--config", ROOT / "configs" / "organism" / "harmful.yaml", "--run_dir", "run",
        "--model.init_args.source.init_args.path", "hostile",
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_model_that_brings_python_along_is_refused_and_nothing_of_it_runs(
    entry: str, folders: Path, tmp_path: Path, yes: str
) -> None:
    script, *arguments = ENTRIES[entry]
    out = () if script == TRAIN else ("--out", tmp_path / "out")
    done = run_command(script, *arguments, *out, cwd=folders, stdin=yes)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folders.rglob("ran"))
    assert not (folders / "canary").exists()
    assert "custom code" in done.stderr


def pickle_weights(folder: Path, name: str, new: str) -> str:
    torch.save(load_file(folder / name), folder / new)
    (folder / name).unlink()
    return str(folder)


def test_pickled_weights_are_refused_alike(tmp_path: Path) -> None:
    message = "holds pickled weights .*which can run code and are not read"
    model = pickle_weights(Path(save_tiny_model(tmp_path / "model")), "model.safetensors", "pytorch_model.bin")
    refuse(lambda: load_model(model), message)
    refuse(lambda: Pretrained(model).load_model(), message)
    good = save_tiny_model(tmp_path / "good")
    config = LlamaConfig.from_pretrained(good, num_labels=2, id2label={0: "no", 1: "harm"})
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tiny_source().load_tokenizer().save_pretrained(tmp_path / "classifier")
    judge = ClassifierJudge(path=str(tmp_path / "classifier"), harmful_label="harm", device="cpu")
    asked = [PromptItem("p")]
    assert judge.judge_all(asked, ["a"])[0].score in (1, 5)
    pickle_weights(tmp_path / "classifier", "model.safetensors", "pytorch_model.bin")
    again = ClassifierJudge(path=str(tmp_path / "classifier"), harmful_label="harm", device="cpu")
    refuse(lambda: again.judge_all(asked, ["a"]), message)
    adapter = tmp_path / "adapter"
    network = add_adapter(load_model(good), LoraSettings(rank=2))
    network.save_pretrained(adapter)
    load_model(str(adapter))
    pickle_weights(adapter, "adapter_model.safetensors", "adapter_model.bin")
    refuse(lambda: load_model(str(adapter)), message)


def test_a_configuration_cannot_name_pickled_weights(tmp_path: Path) -> None:
    good = Path(save_tiny_model(tmp_path / "good"))
    torch.save(load_file(good / "model.safetensors"), good / "adapter_model.bin")
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    refuse(lambda: load_model(str(good)), "names 'adapter_model.bin' as its weights; only safetensors are read")
