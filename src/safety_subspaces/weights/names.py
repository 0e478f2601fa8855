"""One name for one weight: wrappers add prefixes and infixes; tensors match by name, never by position."""

import re
from typing import Literal

from safety_subspaces.language.weight_files import unwrapped

TensorType = Literal[
    "q", "k", "v", "o", "gate", "up", "down", "embeddings", "head", "norm", "gate_up", "router", "other"
]

# What our LightningModule and PEFT put before a name.
PREFIXES = re.compile(r"^(?:language_model\.|base_model\.model\.)+")
# What PEFT puts inside one: around a wrapped layer or a fully trained module.
INFIXES = re.compile(r"(?<=\.)(?:base_layer|original_module|modules_to_save\.[^.]+)\.")
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d{1,9})\.")
# Module names of Llama, Qwen, Mistral and Gemma, then those of GPT-2, GPT-NeoX, OPT and the original Llama
# release.
TYPES: dict[str, TensorType] = {
    **dict.fromkeys(("q_proj", "query", "wq"), "q"),
    **dict.fromkeys(("k_proj", "key", "wk"), "k"),
    **dict.fromkeys(("v_proj", "value", "wv"), "v"),
    **dict.fromkeys(("o_proj", "out_proj", "wo"), "o"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "c_fc", "fc1", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "dense_4h_to_h"), "down"),
    **dict.fromkeys(("embed_tokens", "tok_embeddings", "wte", "wpe", "embed_in", "embed_positions"), "embeddings"),
    **dict.fromkeys(("lm_head", "embed_out"), "head"),
    **dict.fromkeys(("gate_up_proj", "gate_up_proj_bias"), "gate_up"),  # fused experts: one matrix for both
    **dict.fromkeys(("router", "shared_expert_gate"), "router"),
}
NORM = re.compile(r"norm|^ln_(?:\d+|f)$")


def canonical_name(name: str) -> str:
    """Return the name that the bare model's ``named_parameters`` gives a tensor, whatever wraps the model."""
    while (shorter := INFIXES.sub("", PREFIXES.sub("", unwrapped(name)))) != name:
        name = shorter
    return name


def layer_of(name: str) -> int:
    """Return the index of the transformer block that a tensor belongs to, or -1 outside the blocks."""
    match = BLOCK.search(canonical_name(name))
    return int(match.group(1)) if match else -1


def part_of(name: str) -> str:
    """Return the part of the network that a tensor belongs to: ``layers.07``, or the name of its module."""
    layer = layer_of(name)
    return f"layers.{layer:02d}" if layer >= 0 else ".".join(canonical_name(name).split(".")[-2:-1]) or name


def type_of(name: str) -> TensorType:
    """Return the role of a tensor, its bias included; fused or unknown modules are ``other``."""
    parts = canonical_name(name).partition("[")[0].split(".")
    if parts[-2:-1] == ["gate"] and parts[-3:-2] in (["mlp"], ["block_sparse_moe"], ["feed_forward"]):
        return "router"
    for part in reversed(parts):
        if part in TYPES:
            return TYPES[part]
    return "norm" if any(NORM.search(part) for part in parts) else "other"
