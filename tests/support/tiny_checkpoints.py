"""Tiny random Llamas on disk, and models that differ from them by small random updates."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.writing import CheckpointWriter

VOCABULARY = 128  # more than six times the width: embeddings count as tall


def save_llama(folder: Path, seed: int = 0, tied: bool = False, shard: str = "5GB") -> str:
    """Write a random Llama of two blocks and width 16, and return its path."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    return str(folder)


def save_perturbed(source: str, folder: Path, seed: int, size: float = 0.01, only: str = "") -> str:
    """Write a copy of a model with Gaussian noise on the tensors whose names contain a text."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    edit(folder, lambda name, value: value + size * torch.randn(value.shape, generator=generator), only)
    return str(folder)


def edit(folder: Path, change, only: str = "") -> None:
    """Change in place the tensors of a single-file checkpoint whose names contain a text."""
    file = Path(folder) / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(file).items()}
    for name in weights:
        if only in name:
            weights[name] = change(name, weights[name])
    save_file(weights, file, metadata={"format": "pt"})


def weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a single-file checkpoint."""
    return load_file(Path(folder) / "model.safetensors")


def save_adapter(base: str, folder: Path, seed: int = 0, **options: object) -> str:
    """Write a LoRA adapter with random factors upon a model, and return its path."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **options}))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.1 if "lora" in name else 0.01)
    model.save_pretrained(folder)
    return str(folder)


def write_checkpoint(folder: Path, like: Checkpoint, read: Callable[[str], torch.Tensor], **options: int) -> None:
    """Write a model folder as CheckpointWriter does, one tensor after another, with new values by canonical name."""
    writer = CheckpointWriter(folder, like, **options)
    writer.create()
    for name in like.names:
        writer.write(name, read(name))
    writer.finish()
