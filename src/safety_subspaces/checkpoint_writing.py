"""Writing model folders in Hugging Face format, one shard in memory at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_subspaces.checkpoint import (
    ADAPTER_CONFIG,
    COMPANION_SUFFIXES,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    FullCheckpoint,
)
from safety_subspaces.files import write_json

# The Hub's own limit for a shard that transformers writes.
MAX_SHARD_BYTES = 5 * 10**9


def write_checkpoint(
    folder: Path, like: Checkpoint, read: Callable[[str], Tensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a model folder with another's names, types, configuration and tokenizer, and other weights.

    Args:
        folder: Where to; made if need be.
        like: The checkpoint that it resembles; tensors outside its ``names`` are copied, tied ones left away.
        read: Gives the new value of a tensor by canonical name; called for each once, shard by shard.
        max_shard_bytes: Size from which a shard is closed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = like.full
    for parent in like.folders:
        for file in parent.iterdir():
            if file.suffix in COMPANION_SUFFIXES and file.name not in (INDEX_FILE, ADAPTER_CONFIG):
                shutil.copyfile(file, folder / file.name)
    shards = _plan_shards(source, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {source.stored_name(name): read(name).to(source.dtype(name)).contiguous() for name in shard}
        if number == 1:
            kept = (stored for stored, reason in source.left_out.items() if not reason.startswith("tied"))
            tensors |= {stored: source.read_stored(stored) for stored in kept}
        partial = folder / f".{file_name}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / file_name)
        weight_map |= dict.fromkeys(tensors, file_name)
    if len(shards) > 1:
        total = sum(_bytes_of(source, name) for name in source.names)
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _plan_shards(source: FullCheckpoint, max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name in source.names:
        needed = _bytes_of(source, name)
        if shards[-1] and size + needed > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards


def _bytes_of(source: FullCheckpoint, name: str) -> int:
    return torch.Size(source.shape(name)).numel() * source.dtype(name).itemsize
