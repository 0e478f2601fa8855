"""Weights of many families: what is read is what transformers runs, under its names and the right way round."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from language.test_turns import CHATML, tokenizer_of
from safetensors.torch import load_file, save_file

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import load_model
from safety_subspaces.training.export import export_model
from safety_subspaces.weights.compatibility import check_compatible
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.update_checkpoint import open_checkpoint

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama_tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "bloom": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
}  # fmt: skip
TIED = {
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "gemma": ("lm_head.weight", "model.embed_tokens.weight"),
    "llama_tied": ("lm_head.weight", "model.embed_tokens.weight"),
    "bloom": ("lm_head.weight", "transformer.word_embeddings.weight"),
    "opt": ("lm_head.weight", "model.decoder.embed_tokens.weight"),
}
IDS = torch.arange(12)[None]


def save(family: str, folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})


def run(folder: Path) -> torch.Tensor:
    """What transformers itself makes of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_the_network_s_own_under_its_names_the_right_way_round(tmp_path, family):
    checkpoint = open_checkpoint(str(save(family, tmp_path / "m")))
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    parameters = dict(network.named_parameters())
    assert set(checkpoint.names) == set(parameters)
    for name, parameter in parameters.items():
        owner = network.get_submodule(name.rpartition(".")[0])
        is_conv = type(owner).__name__ == "Conv1D" and parameter.ndim == 2
        expected = parameter.T if is_conv else parameter
        torch.testing.assert_close(checkpoint.read(name), expected.detach(), rtol=0, atol=0)
        assert checkpoint.shape(name) == tuple(expected.shape)
        if is_conv:  # (out, in): it acts on a vector from the left
            states = torch.randn(3, expected.shape[1])
            torch.testing.assert_close(owner(states), states @ checkpoint.read(name).T + owner.bias)


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("says_so", [True, False])
def test_a_stored_copy_of_tied_weights_counts_once_whatever_the_configuration_says_of_it(tmp_path, family, says_so):
    copy, source = TIED[family]
    folder = save(family, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    if not says_so:
        if family == "llama_tied":
            pytest.skip("Llama's own default is not to tie")
        config.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(config))
    stored = next(name for name in load_file(folder / "model.safetensors") if source.endswith(name) or name == source)
    rewrite(folder, lambda weights: weights.update({copy: weights[stored].clone()}))
    checkpoint = open_checkpoint(str(folder))
    assert copy not in checkpoint.names
    assert checkpoint.left_out[copy] == f"tied to {source}, which counts once"
    # A copy with numbers of its own is what transformers runs, untied.
    rewrite(folder, lambda weights: weights.update({copy: weights[stored] + 1}))
    assert copy in open_checkpoint(str(folder)).names
    network = load_model(str(folder))
    torch.testing.assert_close(network.get_output_embeddings().weight, open_checkpoint(str(folder)).read(copy))


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_a_head_that_is_stored_alone_is_the_embeddings(tmp_path, family):
    copy, source = TIED[family]
    folder = save(family, tmp_path / "m")
    expected = run(folder)
    rewrite(folder, lambda weights: weights.update({copy: weights.pop(source)}))
    torch.testing.assert_close(run(folder), expected)
    checkpoint = open_checkpoint(str(folder))
    assert source in checkpoint.names
    assert copy not in checkpoint.names


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer."), ("llama", "model."), ("neox", "gpt_neox.")])
def test_a_bare_model_s_names_and_stored_constants_are_those_of_the_whole(tmp_path, family, prefix):
    folder = save(family, tmp_path / "m")
    whole = open_checkpoint(str(folder))
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))

    def strip(weights):
        for name in list(weights):
            weights[name.removeprefix(prefix)] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 8, 8))
        weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(bare, strip)
    stripped = open_checkpoint(str(bare))
    assert set(stripped.names) == set(whole.names)
    assert set(stripped.left_out) >= {"h.0.attn.bias", "layers.0.self_attn.rotary_emb.inv_freq"}
    check_compatible(whole, stripped)
    assert all(not update_of(stripped, whole, name).any() for name in whole.names)
    torch.testing.assert_close(load_model(str(bare)).eval()(IDS).logits, run(folder))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_forward_module.", "inside"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_that_was_saved_with_its_wrapper_is_run_as_it_is_read_and_exported_without_it(
    tmp_path, family, wrapper
):
    folder = save(family, tmp_path / "m")
    plain = open_checkpoint(str(shutil.copytree(folder, tmp_path / "plain")))
    expected = run(folder)

    def wrapped(name: str) -> str:
        inside = re.sub(r"^(model|transformer)\.", r"\1._orig_mod.", name)  # compiled within what holds the head
        return inside if wrapper == "inside" else wrapper + name

    rewrite(folder, lambda weights: [weights.update({wrapped(name): weights.pop(name)}) for name in list(weights)])
    network = load_model(str(folder)).eval()
    torch.testing.assert_close(network(IDS).logits, expected)
    read = open_checkpoint(str(folder))
    assert set(read.names) == set(plain.names)
    assert not read.left_out.keys() - plain.left_out.keys()
    export_model(network, tokenizer_of(CHATML), tmp_path / "exported")
    assert set(load_file(tmp_path / "exported" / "model.safetensors")) == set(plain.stored_names)
    torch.testing.assert_close(run(tmp_path / "exported"), expected)


READERS = [pytest.param(load_model, id="run"), pytest.param(open_checkpoint, id="read")]


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = save("llama", tmp_path / "m")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "s", max_shard_size="20KB")
    return tmp_path / "s"


@pytest.mark.parametrize("reader", READERS)
def test_two_files_for_one_tensor_are_both_named(tmp_path, sharded, reader):
    single = tmp_path / "m" / "model.safetensors"
    index = sharded / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    shards = sorted(set(whole["weight_map"].values()))
    reader(str(sharded))

    mixed = Path(shutil.copytree(sharded, tmp_path / "mixed"))
    shutil.copy(single, mixed)
    with pytest.raises(InputError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        reader(str(mixed))
    (mixed / index.name).unlink()
    with pytest.raises(InputError, match=rf"holds both model\.safetensors and {shards[0]}, a shard"):
        reader(str(mixed))
    (mixed / single.name).unlink()
    with pytest.raises(InputError, match=f"holds {shards[0]} without the index of its shards"):
        reader(str(mixed))

    name, where = next(iter(whole["weight_map"].items()))
    other = next(shard for shard in shards if shard != where)
    twice = load_file(sharded / other) | {name: torch.zeros(1)}
    save_file(twice, sharded / other, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{other} holds {name}, but .* places it in {where}"):
        reader(str(sharded))
    del whole["weight_map"][name]
    index.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=rf"holds {name}, but .* does not list it"):
        reader(str(sharded))
