"""The mistakes that people make: each ends in a few lines that name the thing and what to do, and writes nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

MOST_LINES = 5
CONFIG = ROOT / "configs" / "organism" / "contaminated_onto.yaml"
OVERLAY = ROOT / "configs" / "deepspeed" / "gpu8_zero2_bf16.yaml"
PROJECT = (ANALYZE, "project", "--base=base", "--aligned=aligned", "--out=out")
EVALUATE = (ANALYZE, "evaluate", "--models.one=base", "--judge=phrases", "--out=out")
FIT = (TRAIN, "fit", f"--config={CONFIG}", "--model.init_args.source.init_args.path=aligned", "--run_dir=run")
# What Lightning says before a run is refused.
CHATTER = re.compile(r"(Seed set to|GPU available|TPU available|\[transformers\]|\U0001f4a1)")
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
FILES = {
    "tunned.yaml": "base: base\naligned: aligned\ntunned: {x: tuned}\nout: out\n",
    "batchsize.yaml": "data: {init_args: {batchsize: 3}}\n",
    "top.yaml": "batchsize: 3\n",
    "callback.yaml": "trainer: {callbacks: [{class_path: callbacks.SubspaceProjectoin, init_args: {mode: onto}}]}\n",
    "bare.yaml": "trainer: {callbacks: [{class_path: SubspaceProjectoin}]}\n",
    "rank.yaml": "base: base\naligned: aligned\nout: out.safetensors\nrank: {fracton: 0.25}\n",
    "held.yaml": """
trainer:
  callbacks:
    - class_path: callbacks.SubspaceProjection
      init_args: {base: base, aligned: aligned, mode: onto, rank: {fracton: 0.25}}
""",
    "gone.yaml": """
trainer:
  callbacks:
    - class_path: callbacks.SubspaceProjection
      init_args: {subspace: gone.safetensors, mode: onto}
""",
    "no_set.jsonl": '{"prompt": "May I sing?"}\n',
    "prompts.csv": "set,prompt\nharmful,May I sing?\n",
    "used/notes.txt": "mine\n",
    "missing/adapter_config.json": json.dumps(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "/no/base"}
    ),
    "relative/adapter_config.json": json.dumps(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "../no/base"}
    ),
    "nameless/adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}),
}
# What was done, and the words that name the thing and what to do.
MISTAKES = {
    "a model that is not there": ((*PROJECT, "--tuned.x=nowhere"), ("nowhere does not exist", "train the stage")),
    "none to evaluate": ((ANALYZE, "evaluate", "--models.one=nowhere", "--out=out"), ("nowhere does not exist",)),
    "none to train": (
        (*FIT, "--model.init_args.source.init_args.path=nowhere"),
        ("nowhere does not exist", "train the stage"),
    ),
    "an adapter without its base": ((*PROJECT, "--tuned.x=missing"), ("adapter missing", "/no/base does not exist")),
    "one whose base is relative": ((*PROJECT, "--tuned.x=relative"), ("adapter relative", "no/base does not exist")),
    "one that names none": ((*PROJECT, "--tuned.x=nameless"), ("nameless names no base_model_name_or_path", "add")),
    "an adapter to evaluate": (
        (ANALYZE, "evaluate", "--models.one=missing", "--out=out"),
        ("adapter missing", "/no/base does not exist"),
    ),
    "a percentage": ((*PROJECT, "--tuned.x=tuned", "--fractions=[25]"), ("strictly between 0 and 1, got 25",)),
    "a number for a list": (
        (*PROJECT, "--tuned.x=tuned", "--fractions", 0.5),
        ("--fractions 0.5: expected a list, --fractions [0.5]",),
    ),
    "a fine-tune without a label": ((*PROJECT, "--tuned", "tuned"), ("--tuned tuned", "--tuned.<label> tuned")),
    "base and aligned the same": (
        (ANALYZE, "project", "--base=base", "--aligned=base", "--tuned.x=tuned", "--out=out"),
        ("base and aligned are both base", "expected a model and one that was trained from it"),
    ),
    "another architecture": ((*PROJECT, "--tuned.x=gpt2"), ("aligned and gpt2 are not of one shape", "xpected models")),
    "an out that is in use": ((*EVALUATE, "--out=used"), ("used holds something else", "choose another folder")),
    "a run_dir that is in use": ((*FIT, "--run_dir=used"), ("run folder used is in use", "choose another --run_dir")),
    "tunned": ((ANALYZE, "project", "--config=tunned.yaml"), ("takes no tunned.x", "did you mean tuned?", "--help")),
    "batchsize": ((*FIT, "--config=batchsize.yaml"), ("OrganismData takes no batchsize", "did you mean batch_size?")),
    "batchsize at the top": ((*FIT, "--config=top.yaml"), ("fit takes no batchsize", "train.py fit --help")),
    "an option": ((ANALYZE, "project", "--bsae=base"), ("takes no --bsae", "did you mean --base?", "project --help")),
    "options that lack": ((ANALYZE, "project", "--base=base"), ("needs --aligned, --tuned and --out", "--help")),
    "a callback": ((*FIT, "--config=callback.yaml"), ("SubspaceProjectoin", "did you mean callbacks.SubspaceP")),
    "one without its path": (
        (*FIT, "--config=bare.yaml"),
        ("SubspaceProjectoin", "did you mean callbacks.SubspaceP"),
    ),
    "a rank": ((ANALYZE, "subspace", "--config=rank.yaml"), ("rank.fracton", "did you mean rank.fraction?", "--help")),
    "a callback's rank": (
        (*FIT, "--config=held.yaml"),
        ("rank: RankRule takes no fracton", "did you mean fraction?", "help callbacks.SubspaceProjection"),
    ),
    "a subspace file that is not there": (
        (*PROJECT, "--tuned.x=tuned", "--subspace=gone.safetensors"),
        ("subspace file gone.safetensors does not exist", "make it with python analyze.py subspace"),
    ),
    "none to be held to": (
        (*FIT, "--config=gone.yaml"),
        ("gone.safetensors does not exist", "make it with python analyze.py subspace"),
    ),
    "prompts without a set": (
        (*EVALUATE, "--prompts=no_set.jsonl"),
        ("no_set.jsonl, line 1", "expected one of utility, harmful, benign"),
    ),
    "a CSV of prompts": ((*EVALUATE, "--prompts=prompts.csv"), ("prompts.csv", "JSONL")),
    "a subcommand": ((ANALYZE, "projet", "--out=out"), ("unknown subcommand 'projet'", "did you mean project?")),
    "one of training": ((TRAIN, "fitt"), ("unknown subcommand 'fitt'", "did you mean fit?", "train.py --help")),
}
ON_GPUS = {
    "eight GPUs": (
        (*FIT, f"--config={OVERLAY}"),
        ("accelerator is gpu, for 8 GPUs", "say --trainer.accelerator cpu"),
    ),
    "a GPU": ((*FIT, "--trainer.accelerator=gpu"), ("this machine has none", "say --trainer.accelerator cpu")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the files of the mistakes; the commands run in it."""
    folder = tmp_path_factory.mktemp("mistakes")
    for seed, name in enumerate(("base", "aligned", "tuned")):
        save_tiny_model(folder / name, seed)
    other = GPT2Config(vocab_size=231, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(other).save_pretrained(folder / "gpt2")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_a_few_lines_that_say_what_to_do(folder: Path, mistake: str) -> None:
    check_refused(folder, *MISTAKES[mistake])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the mistake is to ask for")
@pytest.mark.parametrize("mistake", ON_GPUS)
def test_gpus_that_a_machine_does_not_have_are_refused_by_number(folder: Path, mistake: str) -> None:
    check_refused(folder, *ON_GPUS[mistake])


def check_refused(folder: Path, command: tuple[object, ...], words: tuple[str, ...]) -> None:
    before = sorted(folder.rglob("*"))
    done = run_command(*command, cwd=folder)
    said = [line for line in done.stderr.splitlines() if line and not CHATTER.match(line)]
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert len(said) <= MOST_LINES, done.stderr
    assert said[0].startswith("error: "), done.stderr
    for word in words:
        assert word in "\n".join(said)
    assert sorted(folder.rglob("*")) == before
