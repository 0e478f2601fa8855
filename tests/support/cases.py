"""What the distributed tests train: a model of odd shapes, the same in the worker and in the plain loop beside it."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from transformers import LlamaConfig, LlamaForCausalLM

from callbacks import SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.language.model import Pretrained
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import LoraSettings, SupervisedFineTuning
from safety_subspaces.training.modules.base import CosineSchedule
from safety_subspaces.training.strategies import CPUZeroStrategy
from support.tiny import tiny_source

STEPS = 20
GLOBAL_BATCH = 8
LORA = LoraSettings(rank=3, alpha=6.0, targets=["q_proj", "down_proj"])
CONSTANT = CosineSchedule(warmup_fraction=0.0, final_fraction=1.0)


def save_odd_model(folder: Path, seed: int) -> str:
    """Write a Llama whose matrices and vectors have odd numbers of elements: they do not divide by two ranks."""
    tokenizer = tiny_source().load_tokenizer()
    shape = {"hidden_size": 15, "head_dim": 6, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=33, num_hidden_layers=2, initializer_range=0.1,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def optimizer_of(name: str):
    """The two optimizers that the issue of exactness turns on."""
    if name == "plain_sgd":
        return partial(torch.optim.SGD, lr=0.1)
    if name == "sgd":
        return partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)


def module_of(case: dict, aligned: str) -> SupervisedFineTuning:
    """The module of a case."""
    adapter = LORA if case["lora"] else None
    checkpointing = case.get("checkpointing", False)
    return SupervisedFineTuning(Pretrained(aligned), adapter, optimizer_of(case["optimizer"]), CONSTANT, checkpointing)


def data_of(batch_size: int, steps: int = STEPS) -> OrganismData:
    """Enough for the steps, in global batches of one size."""
    return OrganismData("harmful", GLOBAL_BATCH * steps, heldout_size=0, batch_size=batch_size)


def constraint_of(case: dict, base: str, aligned: str) -> SubspaceProjection:
    """The constraint of a case."""
    rank, side = RankRule(fraction=case.get("fraction", 0.25)), case.get("side", "left")
    schedule = case.get("schedule", {})
    return SubspaceProjection(base=base, aligned=aligned, rank=rank, mode=case["mode"], side=side, **schedule)


def strategy_of(kind: str):
    """DDP, or ZeRO of a stage."""
    return DDPStrategy(process_group_backend="gloo") if kind == "ddp" else CPUZeroStrategy(int(kind[-1]))
