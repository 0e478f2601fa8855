"""A tiny random Llama as a GGUF file, under the names and in the order of rows that llama.cpp has."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Bytes 33 to 126 stand for themselves in the byte-level alphabet; a space is written as this letter.
TOKENS = [*SPECIAL, *(chr(code) for code in range(33, 127)), "\u0120", "\u010a", "he"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADS, KEY_HEADS = 4, 2
# Name in transformers -> name in GGUF.
BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"} | {
    f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight"
    for layer in range(2)
    for ours, theirs in BLOCK.items()
}


def tiny_network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=128,
            rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=True, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp rotates queries and keys: pairs side by side, not halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, kind: GGMLQuantizationType, arch: str = "llama") -> Path:
    writer = GGUFWriter(path, arch)
    writer.add_name("tiny")
    for add, value in (
        (writer.add_vocab_size, len(TOKENS)), (writer.add_context_length, 128), (writer.add_embedding_length, 64),
        (writer.add_feed_forward_length, 96), (writer.add_block_count, 2), (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KEY_HEADS), (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, 5e3),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "smollm"), (writer.add_token_list, TOKENS),
        (writer.add_token_types, [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3)),
        (writer.add_token_merges, ["h e"]), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2),
        (writer.add_unk_token_id, 0), (writer.add_pad_token_id, 2), (writer.add_chat_template, CHAT),
    ):  # fmt: skip
        add(value)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, HEADS if "q_proj" in name else KEY_HEADS)
        stored = kind if weight.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(NAMES[name], quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
