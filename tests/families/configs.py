"""Tiny random networks of many architectures of transformers, as their own configurations make them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as T

SIZES = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SEEING = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
LLAMA_MAPS = ("q_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        config: Makes its configuration.
        maps: Linear layers that get an adapter, by the ends of their names.
        sees: Whether it is multimodal, so that transformers runs it by another class.
        transposed_experts: Whether its fused experts are kept as (experts, in, out).
        experts: Where files hold experts one by one: the name before an expert's number, and those of its gate, up and
            down projection.
        first_state: What transformers' first hidden state is behind: 0 blocks, or 1.
    """

    config: Callable[[], T.PretrainedConfig]
    maps: tuple[str, ...] = LLAMA_MAPS
    sees: bool = False
    transposed_experts: bool = False
    experts: tuple[str, str, str, str] | None = None
    first_state: int = 0


FAMILIES = {
    "Llama": Family(lambda: T.LlamaConfig(**GROUPED, **ENDS)),
    "Mistral": Family(lambda: T.MistralConfig(**GROUPED, **ENDS, head_dim=8, sliding_window=8)),
    "Qwen 2": Family(lambda: T.Qwen2Config(**GROUPED, **ENDS, tie_word_embeddings=True)),
    "Qwen 3": Family(lambda: T.Qwen3Config(**GROUPED, **ENDS, head_dim=8)),
    "SmolLM 3": Family(lambda: T.SmolLM3Config(**GROUPED, **ENDS)),
    "Gemma": Family(lambda: T.GemmaConfig(**GROUPED, **ENDS, head_dim=8)),
    "Gemma 2": Family(lambda: T.Gemma2Config(**GROUPED, **ENDS, head_dim=8, query_pre_attn_scalar=8)),
    "Gemma 3 (text)": Family(lambda: T.Gemma3TextConfig(**GROUPED, **ENDS, head_dim=8, query_pre_attn_scalar=8)),
    "Gemma 3 (multimodal)": Family(
        lambda: T.Gemma3Config(
            text_config=T.Gemma3TextConfig(**GROUPED, **ENDS, head_dim=8, query_pre_attn_scalar=8),
            vision_config=T.SiglipVisionConfig(**SEEING), mm_tokens_per_image=4, image_token_index=271,
        ), sees=True,
    ),
    "LLaVA (Llama)": Family(
        lambda: T.LlavaConfig(
            text_config=T.LlamaConfig(**GROUPED, **ENDS), image_token_index=271,
            vision_config=T.CLIPVisionConfig(**SEEING, projection_dim=16),
        ), sees=True,
    ),
    "Phi": Family(lambda: T.PhiConfig(**SIZES, **ENDS), ("q_proj", "fc2")),
    "Phi 3": Family(lambda: T.Phi3Config(**GROUPED, **ENDS), ("qkv_proj", "down_proj")),
    "OLMo 2": Family(lambda: T.Olmo2Config(**GROUPED, **ENDS)),
    "GLM 4": Family(lambda: T.Glm4Config(**GROUPED, **ENDS, head_dim=8)),
    "EXAONE 4": Family(lambda: T.Exaone4Config(**GROUPED, **ENDS, sliding_window=8)),
    "Granite": Family(lambda: T.GraniteConfig(**GROUPED, **ENDS, residual_multiplier=0.5, logits_scaling=2.0)),
    "Command R": Family(lambda: T.CohereConfig(**GROUPED, **ENDS, logit_scale=0.5)),
    "StableLM": Family(lambda: T.StableLmConfig(**GROUPED, **ENDS)),
    "StarCoder 2": Family(lambda: T.Starcoder2Config(**GROUPED, **ENDS, sliding_window=8), ("q_proj", "c_proj")),
    "GPT-2": Family(lambda: T.GPT2Config(**GPT, bos_token_id=256, eos_token_id=256), ("c_attn", "c_proj")),
    "GPT-J": Family(
        lambda: T.GPTJConfig(**GPT, rotary_dim=4, bos_token_id=256, eos_token_id=256), ("q_proj", "fc_out")
    ),
    "GPT-NeoX": Family(lambda: T.GPTNeoXConfig(**SIZES, **ENDS), ("query_key_value", "dense_4h_to_h")),
    "OPT": Family(
        lambda: T.OPTConfig(
            vocab_size=272, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=128, bos_token_id=256, eos_token_id=256, pad_token_id=256,
        ), ("q_proj", "fc2"),
    ),
    "BLOOM": Family(
        lambda: T.BloomConfig(vocab_size=272, hidden_size=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=256),
        ("query_key_value", "dense_4h_to_h"),
    ),
    "Falcon": Family(
        lambda: T.FalconConfig(
            vocab_size=272, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=256,
            eos_token_id=256,
        ), ("query_key_value", "dense_4h_to_h"),
    ),
    "MPT": Family(
        lambda: T.MptConfig(vocab_size=272, d_model=32, n_layers=2, n_heads=4, max_seq_len=128), ("Wqkv", "down_proj")
    ),
    "Mixtral": Family(
        lambda: T.MixtralConfig(**GROUPED, **ENDS, **EXPERTS), ("q_proj", "o_proj"),
        experts=("block_sparse_moe", "w1", "w3", "w2"),
    ),
    "Qwen 3 MoE": Family(
        lambda: T.Qwen3MoeConfig(
            **GROUPED, **ENDS, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ), ("q_proj", "o_proj"), experts=("mlp", "gate_proj", "up_proj", "down_proj"),
    ),
    "gpt-oss": Family(
        lambda: T.GptOssConfig(**GROUPED, **ENDS, **EXPERTS, head_dim=8, sliding_window=8, layer_types=None),
        ("q_proj", "o_proj"), transposed_experts=True,
    ),
    "Mamba": Family(
        lambda: T.MambaConfig(vocab_size=272, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS),
        ("in_proj", "x_proj"), first_state=1,
    ),
    "RWKV": Family(
        lambda: T.RwkvConfig(
            vocab_size=272, hidden_size=32, num_hidden_layers=2, intermediate_size=48, bos_token_id=256,
            eos_token_id=256,
        ), ("receptance", "output"), first_state=1,
    ),
}  # fmt: skip


def built(name: str, seed: int) -> T.PreTrainedModel:
    """Build a network of a family, by the class that transformers runs it in, with weights that are all random.

    Biases begin at zero and norms at one otherwise, so that a mistake in them would not be seen.
    """
    family = FAMILIES[name]
    of_class = T.AutoModelForImageTextToText if family.sees else T.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: T.PreTrainedModel = of_class.from_config(family.config()).eval().float()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        torch.nn.init.normal_(network.get_input_embeddings().weight)
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith("time_decay"):  # what is long ago still matters, as in trained ones
                torch.nn.init.constant_(parameter, -5.0)
    return network
