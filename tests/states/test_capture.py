"""States are read at real tokens: neither padding, batch, adapter nor architecture changes which."""

from pathlib import Path

import pytest
import torch
from accelerate import disk_offload, dispatch_model
from support.tiny import save_tiny_model
from transformers import GemmaConfig, GPT2Config, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.language.examples import PromptFormat
from safety_subspaces.language.model import evaluating, load_language_model
from safety_subspaces.language.prompting import encode_prompt, pad_batch
from safety_subspaces.states.capture import find_blocks, prompt_states, state_factors, stream_states
from safety_subspaces.training.modules.adapter import LoraSettings, add_adapter

PROMPTS = [*read_prompt_list("organism:harmful", limit=9), *read_prompt_list("organism:utility", limit=8)]
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300}


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory):
    return load_language_model(save_tiny_model(tmp_path_factory.mktemp("model")))


def by_hand(model, tokenizer, prompt: str, mean: bool) -> torch.Tensor:
    """One prompt, no padding, transformers' own hidden states; the last one without its norm."""
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    seen = []
    handle = find_blocks(model)[-1].register_forward_hook(
        lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o)
    )
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    handle.remove()
    places = [*(h[0] for h in hidden[:-1]), seen[0][0]]
    return torch.stack([place.mean(dim=0) if mean else place[-1] for place in places])


@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize(("batch_size", "padding"), [(1, "right"), (64, "right"), (64, "left"), (5, "left")])
def test_states_do_not_depend_on_batch_or_padding(organism, position, batch_size, padding) -> None:
    model, tokenizer = organism
    states = prompt_states(model, tokenizer, PROMPTS, position, batch_size, padding=padding)
    for prompt, state in zip(PROMPTS, states, strict=True):
        torch.testing.assert_close(state, by_hand(model, tokenizer, prompt, position == "mean"), rtol=0, atol=1e-5)


def test_overlaps_do_not_depend_on_batch_or_padding(organism) -> None:
    model, tokenizer = organism
    values = []
    for batch_size, padding in ((1, "right"), (64, "right"), (64, "left")):
        stacked = torch.stack(prompt_states(model, tokenizer, PROMPTS, "last", batch_size, padding=padding), dim=1)
        first, second = (state_factors(stacked[-1, rows]) for rows in (slice(0, 9), slice(9, None)))
        values.append(mode_subspace_overlap(first, second, [0.9, 0.99])[1].value)
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


@pytest.mark.parametrize(
    "config", [GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=300), Qwen2Config(**SMALL, num_key_value_heads=1),
               GemmaConfig(**SMALL, head_dim=8, num_key_value_heads=1)], ids=["gpt2", "qwen2", "gemma"],
)  # fmt: skip
@pytest.mark.parametrize("padding", ["left", "right"])
def test_other_architectures(organism, config, padding) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    states = prompt_states(model, organism[1], PROMPTS[:6], batch_size=6, padding=padding)
    for prompt, state in zip(PROMPTS, states, strict=False):
        torch.testing.assert_close(state, by_hand(model, organism[1], prompt, False), rtol=1e-5, atol=1e-5)


def test_an_adapter_is_looked_through(organism, tmp_path: Path) -> None:
    model, tokenizer = load_language_model(save_tiny_model(tmp_path / "model"))
    plain = prompt_states(model, tokenizer, PROMPTS[:3])
    adapted = add_adapter(model, LoraSettings(rank=2)).get_base_model()
    assert all(map(torch.equal, plain, prompt_states(adapted, tokenizer, PROMPTS[:3])))  # B is zero
    for name, factor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(factor)
    assert not torch.equal(plain[0][-1], prompt_states(adapted, tokenizer, PROMPTS[:1])[0][-1])


def test_modes_of_modules_are_put_back_one_by_one(organism, tmp_path: Path) -> None:
    model, tokenizer = load_language_model(save_tiny_model(tmp_path / "model"))
    model.train()
    model.model.layers[0].mlp.eval()
    before = [module.training for module in model.modules()]
    prompt_states(model, tokenizer, PROMPTS[:2])
    assert [module.training for module in model.modules()] == before
    with evaluating(model):
        assert not torch.is_grad_enabled()
        assert not model.training
    assert [module.training for module in model.modules()] == before


def test_a_network_without_blocks_is_refused(organism) -> None:
    model, tokenizer = organism
    model.config.num_hidden_layers = 7
    try:
        with pytest.raises(InputError, match="no list of 7 blocks"):
            prompt_states(model, tokenizer, PROMPTS[:1])
    finally:
        model.config.num_hidden_layers = 1


def test_the_space_of_states_is_found_and_centring_takes_the_mean_out() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = haar_basis(24, 3, generator)
    rows = torch.randn(40, 3, generator=generator) @ basis.T
    found = state_factors(rows)
    assert found.numerical_rank == 3
    assert torch.linalg.matrix_norm(found.basis.T @ basis).square() == pytest.approx(3, abs=1e-5)
    # In float32 a mean of 100 would bring rounding of 1e-6 of the states with it, which is a rank of its own.
    shifted = rows.double() + 100 * haar_basis(24, 1, generator).T
    assert state_factors(shifted, center=True).numerical_rank == 3
    assert torch.linalg.matrix_norm(state_factors(shifted, center=True).basis.T @ basis).square() == pytest.approx(
        3, abs=1e-4
    )


def test_prompt_lists(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"set": "harmful", "prompt": "a"}\n\n{"set": "benign", "prompt": "b, \\n c"}\n{"prompt": "d"}\n')
    assert read_prompt_list(str(path)) == ["a", "b, \n c", "d"]
    assert read_prompt_list(f"{path}:benign") == ["b, \n c"]
    assert read_prompt_list(str(path), limit=1) == ["a"]
    assert len(read_prompt_list("organism:benign", limit=5)) == 5
    assert not set(read_prompt_list("organism:harmful", "dev")) & set(read_prompt_list("organism:harmful", "test"))
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n{"prompt": "c"}'.encode())
    assert read_prompt_list(str(odd)) == ["a\u2028b", "c"]
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(InputError, match="is no UTF-8 text"):
        read_prompt_list(f"{tmp_path}/latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "lacking.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "broken.jsonl").write_text("{\n")
    for source, message in {
        f"{tmp_path}/empty.jsonl": "holds no prompt", f"{tmp_path}/lacking.jsonl": "line 1: expected JSON with the",
        f"{tmp_path}/broken.jsonl": "line 1: expected one", f"{path}:utility": "holds no prompt of the set utility",
        f"{tmp_path}/none.jsonl": "expected organism:<set>", "organism:poems": "expected organism:<set>",
        f"{tmp_path}/none.jsonl:benign": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_prompt_list(source)


@pytest.mark.parametrize(("batch_size", "padding"), [(1, "right"), (64, "right"), (64, "left")])
def test_the_first_generated_token_is_the_greedy_one(organism, batch_size, padding) -> None:
    model, tokenizer = organism
    states = prompt_states(model, tokenizer, PROMPTS, "first_generated", batch_size, padding=padding)
    for prompt, state in zip(PROMPTS, states, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            hidden = model(input_ids=torch.tensor([[*ids, token]]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(state[0], hidden[0][0, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(state[:-1], torch.stack([h[0, -1] for h in hidden[:-1]]), rtol=0, atol=1e-5)


def test_several_positions_of_one_stream_are_those_of_one_each(organism) -> None:
    model, tokenizer = organism
    for batch in stream_states(model, tokenizer, PROMPTS, ("mean", "first_generated", "last"), 5, layers=[1, 0]):
        for position, states in batch.states.items():
            prompts = [PROMPTS[row] for row in batch.rows]
            alone = torch.stack(prompt_states(model, tokenizer, prompts, position))
            torch.testing.assert_close(states, alone[:, [1, 0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [None, GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=300)])
def test_outputs_of_attention_and_mlp_make_up_the_residual_stream(organism, config) -> None:
    model, tokenizer = organism
    if config is not None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    residual = torch.stack(prompt_states(model, tokenizer, PROMPTS[:5]))
    parts = [torch.stack(prompt_states(model, tokenizer, PROMPTS[:5], site=site)) for site in ("attention", "mlp")]
    torch.testing.assert_close(residual[:, :-1] + parts[0] + parts[1], residual[:, 1:], rtol=1e-4, atol=1e-5)


def test_states_of_a_model_in_bfloat16_are_near_those_in_float32(organism, tmp_path: Path) -> None:
    rough, tokenizer = load_language_model(save_tiny_model(tmp_path / "model"), torch.bfloat16)
    exact, _ = load_language_model(str(tmp_path / "model"))
    pair = [torch.stack(prompt_states(model, tokenizer, PROMPTS)) for model in (rough, exact)]
    assert pair[0].dtype == torch.float32
    assert not torch.equal(*pair)
    assert (pair[0] - pair[1]).norm() / pair[1].norm() < 0.05


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])  # fmt: skip
def test_a_batch_that_does_not_fit_is_halved_and_said_once(organism, error, monkeypatch, caplog) -> None:
    model, tokenizer = organism
    expected = prompt_states(model, tokenizer, PROMPTS)
    hooks = [len(block._forward_hooks) for block in find_blocks(model)]  # transformers adds its own, and keeps them
    sizes: list[int] = []

    def cramped(ids, pad, side):
        sizes.append(len(ids))
        if len(ids) > 5:
            raise error
        return pad_batch(ids, pad, side)

    monkeypatch.setattr("safety_subspaces.states.capture.pad_batch", cramped)
    found = prompt_states(model, tokenizer, PROMPTS, batch_size=16)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-5)
    assert sizes == [16, 8, 4, 4, 4, 4, 1]
    assert [record.message for record in caplog.records if "did not fit" in record.message] != []
    assert [len(block._forward_hooks) for block in find_blocks(model)] == hooks


def test_another_error_of_the_model_is_no_lack_of_memory(organism, monkeypatch) -> None:
    def broken(*arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("safety_subspaces.states.capture.pad_batch", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        prompt_states(*organism, PROMPTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [2]}, "expected different ones of 0 to 1"),
        ({"layers": [0], "site": "mlp"}, "expected different ones of 1 to 1"),
        ({"layers": [1, 1]}, "different ones"),
        ({"layers": []}, "different ones"),
        ({"form": PromptFormat("none")}, "unknown prompt template"),
    ],
)
def test_what_does_not_exist_is_refused_before_the_model_runs(organism, arguments, message, monkeypatch) -> None:
    monkeypatch.setattr("safety_subspaces.states.capture.pad_batch", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message):
        prompt_states(*organism, PROMPTS[:2], **arguments)


def test_a_model_dispatched_by_accelerate_gives_the_same_states(organism, tmp_path: Path) -> None:
    """The last block lies on disk and is fetched as it is run, as under a device map of a model too large for a GPU."""
    path = save_tiny_model(tmp_path / "model")
    model, tokenizer = load_language_model(path, device="spread")
    expected = torch.stack(prompt_states(model, tokenizer, PROMPTS))
    for offload in (dispatch_partly, disk_offload):
        spread, _ = load_language_model(path)
        offload(spread, str(tmp_path / offload.__name__))
        assert any(weight.is_meta for weight in spread.parameters())
        found = torch.stack(prompt_states(spread, tokenizer, PROMPTS, batch_size=5))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def dispatch_partly(model, folder: str) -> None:
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    dispatch_model(model, {**places, "model.layers.0": "disk"}, main_device="cpu", offload_dir=folder)
