"""Adapters upon many families: applied whole or refused, and read as PEFT runs them."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from language.test_turns import CHATML, tokenizer_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from weights.test_families import IDS, TIED, save

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import load_model, load_tokenizer
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.update_checkpoint import open_checkpoint

TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "llama_tied": ["q_proj"], "neox": ["dense"]}


def adapt(base: Path, folder: Path, **options) -> Path:
    """Save an adapter of random numbers, and return its folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options}))
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def unmerged(base: Path, adapter: Path) -> torch.Tensor:
    """What PEFT makes of both, without merging anything."""
    model = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    return model.eval()(IDS).logits


def renamed(adapter: Path, change) -> Path:
    """Copy an adapter whose tensors have other names, or are not all there."""
    folder = Path(shutil.copytree(adapter, adapter.with_name("renamed")))
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {change(name): value for name, value in weights.items() if change(name)}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", TARGETS)
def test_an_adapter_is_run_and_read_as_peft_runs_it(tmp_path, family):
    base = save(family, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=TARGETS[family])
    expected = unmerged(base, adapter)
    network = load_model(str(adapter)).eval()
    torch.testing.assert_close(network(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    checkpoint, parameters = open_checkpoint(str(adapter)), dict(network.named_parameters())
    changed = 0
    for name in checkpoint.names:
        owner = network.get_submodule(name.rpartition(".")[0])
        weight = (
            parameters[name].T if type(owner).__name__ == "Conv1D" and name.endswith("weight") else parameters[name]
        )
        torch.testing.assert_close(checkpoint.read(name), weight.detach(), rtol=1e-5, atol=1e-6)
        changed += bool(update_of(checkpoint, checkpoint.full, name).any())
    assert changed == 2 * len(TARGETS[family]) * (2 if family == "gpt2" else 1) - (2 if family == "gpt2" else 0)


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "gemma"])
@pytest.mark.parametrize("part", ["head", "embeddings"])
def test_an_adapter_upon_one_of_two_tied_weights_unties_them(tmp_path, family, part):
    copy, source = TIED[family]
    base = save(family, tmp_path / "base")
    target = (copy if part == "head" else source).split(".")[-2]
    adapter = adapt(base, tmp_path / "adapter", target_modules=[target])
    network = load_model(str(adapter)).eval()
    torch.testing.assert_close(network(IDS).logits, unmerged(base, adapter), rtol=1e-4, atol=1e-4)
    assert not network.config.tie_word_embeddings
    checkpoint = open_checkpoint(str(adapter))
    moved = [name for name in checkpoint.names if update_of(checkpoint, checkpoint.full, name).any()]
    assert moved == [copy if part == "head" else source]
    assert {copy, source} <= set(checkpoint.names)
    torch.testing.assert_close(
        checkpoint.read(copy), network.get_output_embeddings().weight.detach(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        checkpoint.read(source), network.get_input_embeddings().weight.detach(), atol=1e-5, rtol=0
    )
    # Written and loaded again it is the same model.
    network.save_pretrained(tmp_path / "written")
    torch.testing.assert_close(load_model(str(tmp_path / "written")).eval()(IDS).logits, network(IDS).logits)


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_a_head_that_is_saved_whole_is_no_longer_the_embeddings(tmp_path, family):
    copy, source = TIED[family]
    base = save(family, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=TARGETS[family], modules_to_save=["lm_head"])
    network = load_model(str(adapter)).eval()
    torch.testing.assert_close(network(IDS).logits, unmerged(base, adapter), rtol=1e-4, atol=1e-4)
    checkpoint = open_checkpoint(str(adapter))
    assert update_of(checkpoint, checkpoint.full, copy).any()
    assert not update_of(checkpoint, checkpoint.full, source).any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: f"_forward_module.{name}",
        lambda name: f"module.{name}",
    ],
)
def test_an_adapter_that_was_saved_with_a_wrapper_is_applied(tmp_path, family, wrapped):
    base = save(family, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=TARGETS[family])
    other = renamed(adapter, wrapped)
    logits = load_model(str(other)).eval()(IDS).logits
    torch.testing.assert_close(logits, unmerged(base, adapter), rtol=1e-4, atol=1e-4)
    read, expected = open_checkpoint(str(other)), open_checkpoint(str(adapter))
    assert all(torch.equal(read.read(name), expected.read(name)) for name in expected.names)


@pytest.mark.parametrize("reader", [load_model, open_checkpoint])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_of_which_a_part_is_missing_or_fits_nothing_is_refused(tmp_path, family, reader):
    base = save(family, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=TARGETS[family])
    half = renamed(adapter, lambda name: name if ".0." in name else "")
    with pytest.raises(InputError, match=r"lacks .* tensors of layers that its configuration names"):
        reader(str(half))
    shutil.rmtree(half)
    foreign = renamed(adapter, lambda name: name.replace("base_model.model.", "base_model.model.tower."))
    with pytest.raises(InputError, match=r"belong to no layer of its base|has no tower"):
        reader(str(foreign))


@pytest.mark.parametrize("options", [{"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}])
def test_ties_that_an_adapter_was_trained_with_are_kept(tmp_path, options):
    base = save("llama_tied", tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=["q_proj"], ensure_weight_tying=True, **options)
    network = load_model(str(adapter)).eval()
    torch.testing.assert_close(network(IDS).logits, unmerged(base, adapter), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.get_output_embeddings().weight, network.get_input_embeddings().weight)
    checkpoint = open_checkpoint(str(adapter))
    assert "lm_head.weight" not in checkpoint.names
    source = checkpoint.read("model.embed_tokens.weight")
    torch.testing.assert_close(source, network.get_input_embeddings().weight.detach())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kept", [True, "auto"])
def test_an_embedding_that_is_kept_whole_with_its_copies_is_read_once(tmp_path, family, kept):
    base, embedding = save(family, tmp_path / "base"), {"gpt2": "wte", "llama": "embed_tokens"}[family]
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    options = {"target_modules": TARGETS[family], "modules_to_save": [embedding], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=kept)
    expected = adapted.eval()(IDS).logits
    network = load_model(str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(network(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    checkpoint = open_checkpoint(str(tmp_path / "adapter"))
    name = next(name for name in checkpoint.names if name.endswith(f"{embedding}.weight"))
    torch.testing.assert_close(checkpoint.read(name), network.get_input_embeddings().weight.detach())


@pytest.mark.parametrize("reader", [load_model, open_checkpoint])
def test_a_resized_vocabulary_is_refused_with_the_way_out(tmp_path, reader):
    base = save("llama", tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    rows = model.get_input_embeddings().weight.shape[0] + 9
    model.resize_token_embeddings(rows)
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "task_type": "CAUSAL_LM"}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=rf"was resized.*resize_token_embeddings\({rows}\).*merge_and_unload"):
        reader(str(tmp_path / "adapter"))


def test_an_adapter_without_a_tokenizer_takes_its_base_s(tmp_path):
    base = save("llama", tmp_path / "base")
    tokenizer_of(CHATML).save_pretrained(base)
    adapter = adapt(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert load_tokenizer(str(adapter)).get_vocab() == load_tokenizer(str(base)).get_vocab()


@pytest.mark.parametrize("family", TARGETS)
def test_rows_that_dora_scales_are_read_as_peft_merges_them(tmp_path, family):
    base = save(family, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=TARGETS[family], use_dora=True, use_rslora=True)
    expected = unmerged(base, adapter)
    network = load_model(str(adapter)).eval()
    torch.testing.assert_close(network(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    checkpoint, parameters = open_checkpoint(str(adapter)), dict(network.named_parameters())
    scaled = [name for name in checkpoint.names if any("magnitude" in stored for stored in checkpoint.stored_of(name))]
    assert len(scaled) >= 2
    for name in checkpoint.names:
        weight = parameters[name].detach()
        turned = checkpoint.full.slot(name).transposed
        torch.testing.assert_close(checkpoint.read(name), weight.T if turned else weight, rtol=1e-5, atol=1e-6)
        difference = checkpoint.read(name) - open_checkpoint(str(base)).read(name)
        torch.testing.assert_close(update_of(checkpoint, checkpoint.full, name), difference, rtol=0, atol=0)
        assert (name in scaled) == bool(difference.any())


def test_magnitudes_that_fit_no_layer_are_refused(tmp_path):
    adapter = adapt(save("llama", tmp_path / "base"), tmp_path / "a", target_modules=["q_proj"], use_dora=True)
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(each for each in weights if "magnitude" in each)
    save_file(weights | {name: weights[name][:-1]}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"one magnitude for each output of a linear layer"):
        open_checkpoint(str(adapter))
    whole = adapt(tmp_path / "base", tmp_path / "b", target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(InputError, match=r"one magnitude for each output of a linear layer"):
        open_checkpoint(str(whole))
