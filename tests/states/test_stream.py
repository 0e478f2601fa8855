"""What blocks add to the stream, on many families: the sum of two modules' outputs, or refused by name."""

import pytest
import torch
import transformers
from language.test_turns import CHATML, tokenizer_of
from transformers import AutoModelForCausalLM

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.capture import find_blocks, prompt_states
from safety_subspaces.states.steering import ablate_weights, ablated
from safety_subspaces.states.stream import parts_of

SMALL = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**GROUPED, pad_token_id=0),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED, pad_token_id=0),
    "glm4": lambda: transformers.Glm4Config(**GROUPED, head_dim=8, pad_token_id=0),
    "exaone4": lambda: transformers.Exaone4Config(**GROUPED, sliding_window=8),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=2),
    "neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=272, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=128,
    ),
}  # fmt: skip
NORMALISED = ("gemma2", "gemma3", "olmo2", "glm4", "exaone4")
REFUSED = {
    "granite": lambda: transformers.GraniteConfig(**GROUPED, residual_multiplier=0.5),
    "bloom": lambda: transformers.BloomConfig(vocab_size=272, hidden_size=32, n_layer=2, n_head=4),
}
PROMPTS = ["a", "some longer prompt", "mid one"]


def built(config) -> transformers.PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # biases start at zero, and norms at one
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_and_mlp_are_what_the_stream_gains(family):
    model, tokenizer = built(CONFIGS[family]()), tokenizer_of(CHATML)
    residual, attention, mlp = (
        torch.stack(prompt_states(model, tokenizer, PROMPTS, "mean", site=site))
        for site in ("residual", "attention", "mlp")
    )
    torch.testing.assert_close(residual[:, :-1] + attention + mlp, residual[:, 1:], rtol=1e-4, atol=1e-4)
    assert attention.abs().max() > 1e-3
    assert mlp.abs().max() > 1e-3


@pytest.mark.parametrize("family", CONFIGS)
def test_ablation_leaves_nothing_of_the_direction_in_any_layer(family):
    model, ids = built(CONFIGS[family]()), torch.arange(3, 27).reshape(2, 12)
    basis = haar_basis(32, 2, torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    blocks = find_blocks(model)
    handles = [
        b.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o)) for b in blocks
    ]
    with torch.no_grad(), ablated(model, basis):
        hooked = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    seen = seen[-len(blocks) :]  # the first pass found the parts
    assert all(float((state @ basis).abs().max()) < 1e-5 * max(1.0, float(state.abs().max())) for state in seen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if family in NORMALISED or family == "mixtral":
        with pytest.raises(InputError, match="use hooks"):
            ablate_weights(model, basis)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return
    ablate_weights(model, basis)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, hooked, rtol=0, atol=1e-4 * float(hooked.abs().max()))


@pytest.mark.parametrize("family", REFUSED)
def test_what_adds_something_else_is_refused_by_name(family):
    model, tokenizer = built(REFUSED[family]()), tokenizer_of(CHATML)
    assert len(prompt_states(model, tokenizer, PROMPTS)) == len(PROMPTS)
    for site in ("attention", "mlp"):
        with pytest.raises(InputError, match=r"(Granite|Bloom)\w+ adds to the residual stream"):
            prompt_states(model, tokenizer, PROMPTS, site=site)
    basis = haar_basis(32, 2, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="adds to the residual stream"), ablated(model, basis):
        pass


def test_parts_are_looked_for_once():
    model = built(CONFIGS["llama"]())
    blocks = find_blocks(model)
    assert parts_of(model, blocks) is parts_of(model, blocks)
    assert [part.attention for part in parts_of(model, blocks)] == [block.self_attn for block in blocks]
