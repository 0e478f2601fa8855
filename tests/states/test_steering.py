"""A planted direction is found, ablated at every write, and steered; nothing is left behind."""

import pytest
import torch
from support.tiny import save_tiny_model
from transformers import Gemma2Config, GemmaConfig, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.generation import generate_answers
from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.language.model import load_language_model
from safety_subspaces.states.capture import find_blocks, prompt_states
from safety_subspaces.states.steering import Ablation, Addition, Rotation, ablate_weights, ablated, steered

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32),
    "llama tied": LlamaConfig(**SMALL, intermediate_size=32, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=1, intermediate_size=32),
    "gemma": GemmaConfig(**SMALL, head_dim=8, num_key_value_heads=1, intermediate_size=32),
    "gpt2": GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=300),
}
PROMPTS = [*read_prompt_list("organism:harmful", limit=6), *read_prompt_list("organism:utility", limit=5)]


def built(name: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():  # biases start at zero, and norms at one
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory):
    return load_language_model(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def basis() -> torch.Tensor:
    return haar_basis(16, 2, torch.Generator().manual_seed(0))


IDS = torch.arange(3, 27).reshape(2, 12)


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_ablated_weights_have_the_logits_of_the_hooks_also_when_saved(name, basis, tmp_path) -> None:
    model = built(name)
    plain = logits(model)
    with ablated(model, basis):
        hooked = logits(model)
    assert (hooked - plain).abs().max() > 0.01
    ablate_weights(model, basis)
    torch.testing.assert_close(logits(model), hooked, rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(logits(saved), hooked, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_direction_is_gone_at_every_layer(name, organism, basis) -> None:
    model = built(name)
    ids = IDS
    seen = []
    handles = [block.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
               for block in find_blocks(model)]  # fmt: skip
    with ablated(model, basis):
        seen.clear()  # what each block adds was looked for
        logits(model, ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    for state in seen:
        assert (state @ basis).abs().max() < 1e-5
        assert state.abs().max() > 0.1


def test_norms_behind_a_part_and_unknown_parts_are_refused(basis) -> None:
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=1))
    with pytest.raises(InputError, match=r"what is added to the stream is normalised \(Gemma2RMSNorm\)"):
        ablate_weights(gemma, basis)
    mixture = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2))
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    with pytest.raises(InputError, match="no single linear map"):
        ablate_weights(mixture, basis)
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_intervention_does_what_it_says_at_its_layer(layer, basis) -> None:
    model = built("llama")
    blocks = find_blocks(model)
    plain, changed = [], []
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def after(store):
        hooks = [blocks[0].register_forward_pre_hook(lambda m, i: store.append(i[0]))]
        return hooks + [b.register_forward_hook(lambda m, i, o: store.append(o)) for b in blocks]

    for intervention, expected in (
        (Addition(basis[:, 0], 3.0), lambda h: h + 3 * basis[:, 0]),
        (Ablation(basis), lambda h: h - h @ basis @ basis.T),
        (Rotation(basis, torch.pi / 2), lambda h: h - h @ basis @ basis.T + h @ basis @ quarter.T @ basis.T),
    ):
        plain.clear()
        changed.clear()
        handles = after(plain)
        logits(model)
        for handle in handles:
            handle.remove()
        with steered(model, intervention, [layer]):
            handles = after(changed)  # behind the intervention's own hook
            logits(model)
            for handle in handles:
                handle.remove()
        for place in range(layer):
            assert torch.equal(plain[place], changed[place])
        torch.testing.assert_close(changed[layer], expected(plain[layer]), rtol=1e-4, atol=1e-5)
        if isinstance(intervention, Rotation):
            torch.testing.assert_close(changed[layer].norm(dim=-1), plain[layer].norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_changed_by_a_strength_or_an_angle_of_zero(organism, basis, dtype) -> None:
    model = built("llama").to(dtype)
    plain = logits(model)
    for nothing in (Addition(basis[:, 0], 0.0), Rotation(basis, 0.0)):
        with steered(model, nothing, [0, 1, 2]):
            assert torch.equal(logits(model), plain)


def test_hooks_are_taken_off_after_an_error(basis) -> None:
    model = built("llama")
    plain = logits(model)
    with pytest.raises(ValueError, match="stop"), steered(model, Ablation(basis), [1]):
        raise ValueError("stop")
    with pytest.raises(ValueError, match="stop"), ablated(model, basis):
        raise ValueError("stop")
    assert torch.equal(logits(model), plain)
    with pytest.raises(InputError, match="expected different ones of 0 to 2"), steered(model, Ablation(basis), [3]):
        pass


@pytest.mark.parametrize("intervention", ["addition", "ablation", "rotation"])
def test_steered_states_do_not_depend_on_batch_or_padding(organism, intervention) -> None:
    model, tokenizer = organism
    basis = haar_basis(16, 2, torch.Generator().manual_seed(1))
    made = {"addition": Addition(basis[:, 0], 2.0), "ablation": Ablation(basis), "rotation": Rotation(basis, 1.0)}
    with steered(model, made[intervention], [0, 1]):
        found = [torch.stack(prompt_states(model, tokenizer, PROMPTS, batch_size=size, padding=side))
                 for size, side in ((1, "right"), (64, "right"), (64, "left"))]  # fmt: skip
    for states in found[1:]:
        torch.testing.assert_close(states, found[0], rtol=0, atol=1e-5)


def test_generation_with_a_cache_is_steered_as_without(organism) -> None:
    model, tokenizer = organism
    basis = haar_basis(16, 2, torch.Generator().manual_seed(1))
    with steered(model, Addition(basis[:, 0], 4.0), [1]):
        together = generate_answers(model, tokenizer, PROMPTS, 6, 64)
        alone = [generate_answers(model, tokenizer, [prompt], 6, 1)[0] for prompt in PROMPTS]
        model.generation_config.use_cache = False
        plain = generate_answers(model, tokenizer, PROMPTS, 6, 64)
        model.generation_config.use_cache = True
    assert together == alone == plain
    assert together != generate_answers(model, tokenizer, PROMPTS, 6, 64)


def test_a_planted_direction_steers_a_logit_monotonically_and_a_random_one_less(basis) -> None:
    """The head reads token 7 off one direction, as a behaviour that hangs on it would be."""
    model = built("llama")
    planted = basis[:, 0]
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[7] = 5 * planted
    reads = {}
    for name, vector in (("planted", planted), ("random", basis[:, 1])):
        reads[name] = []
        for strength in (-4.0, -1.0, 0.0, 1.0, 4.0):
            with steered(model, Addition(vector, strength), [2]):
                reads[name].append(float(logits(model)[..., 7].mean()))
    assert reads["planted"] == sorted(reads["planted"])
    spans = {name: max(values) - min(values) for name, values in reads.items()}
    assert spans["planted"] > 5 * spans["random"]
    with ablated(model, planted[:, None]):
        assert logits(model)[..., 7].abs().max() < 1e-4
