"""Of a multimodal checkpoint the text part is read, run, projected and adapted, as a text model of its own."""

import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from language.test_turns import CHATML, tokenizer_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from safety_subspaces.analysis.project.command import project
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import load_model
from safety_subspaces.training.export import export_model
from safety_subspaces.weights.update_checkpoint import open_checkpoint

SMALL = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
SEEING = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
IDS = torch.arange(3, 15).reshape(2, 6)


def configs() -> dict[str, transformers.PretrainedConfig]:
    """Multimodal families: one that transformers also takes for a language model, and others that it does not."""
    llama = transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)
    images = {"image_token_index": 299, "image_token_id": 299}
    return {
        "gemma3": transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**SMALL, sliding_window=4, query_pre_attn_scalar=8),
            vision_config=transformers.SiglipVisionConfig(**SEEING), mm_tokens_per_image=4,
        ),
        "llava": transformers.LlavaConfig(
            text_config=llama, vision_config=transformers.CLIPVisionConfig(**SEEING, projection_dim=8), **images
        ),
        "mistral3": transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**SMALL, tie_word_embeddings=True),
            vision_config=transformers.PixtralVisionConfig(**SEEING, head_dim=8), spatial_merge_size=2,
        ),
        "smolvlm": transformers.SmolVLMConfig(text_config=llama, vision_config={**SEEING}, image_token_id=299),
    }  # fmt: skip


FAMILIES = list(configs())


def save(family: str, folder: Path, change: float = 0.0) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(configs()[family]).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += change * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer_of(CHATML).save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_and_run_is_the_text_part_of_what_was_saved(tmp_path, family, caplog):
    whole = save(family, tmp_path / "whole")
    with caplog.at_level(logging.INFO):
        text = load_model(str(tmp_path / "whole")).eval()
    assert "its text part is read" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(text(IDS).logits, whole(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert type(text).__name__.endswith("ForCausalLM")
    checkpoint = open_checkpoint(str(tmp_path / "whole"))
    assert set(checkpoint.names) == set(dict(text.named_parameters()))
    for name, parameter in text.named_parameters():
        torch.testing.assert_close(checkpoint.read(name), parameter.detach())
    seen = [name for name in load_file(tmp_path / "whole" / "model.safetensors") if "vision" in name]
    assert seen
    assert {checkpoint.left_out[name] for name in seen} == {"no weight of the model's text part, which alone is read"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_projected_model_keeps_its_other_parts_and_opens_as_it_did(tmp_path, family):
    for label, change in (("base", 0.0), ("aligned", 0.05), ("tuned", 0.1)):
        save(family, tmp_path / label, change)
    folders = {label: str(tmp_path / label) for label in ("base", "aligned", "tuned")}
    project(
        folders["base"], folders["aligned"], {"tuned": folders["tuned"]}, out=str(tmp_path / "out"), fractions=[0.5],
        methods=["onto"], subspaces=["top"], write=True, workers=1,
    )  # fmt: skip
    written = next((tmp_path / "out").rglob("model.safetensors"))
    kept, aligned = load_file(written), load_file(tmp_path / "aligned" / "model.safetensors")
    assert kept.keys() >= aligned.keys()
    assert all(torch.equal(kept[name], aligned[name]) for name in aligned if "vision" in name)
    model = transformers.AutoModelForImageTextToText.from_pretrained(written.parent).eval()
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(written.parent)).eval()(IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("upon", ["text", "whole"])
def test_an_adapter_of_either_is_applied_to_the_text_part(tmp_path, family, upon):
    whole = save(family, tmp_path / "base")
    network = load_model(str(tmp_path / "base")) if upon == "text" else whole
    found = (
        name for name, _ in network.named_modules() if re.search(r"layers\.\d+\.(self_attn\.q|mlp\.down)_proj$", name)
    )
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=[name for name in found if "vision" not in name]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    adapted.peft_config["default"].target_modules = {"q_proj", "down_proj"}  # as most are configured
    adapted.save_pretrained(tmp_path / "adapter")
    text = load_model(str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = adapted.eval()(input_ids=IDS).logits
        assert not torch.allclose(expected, load_model(str(tmp_path / "base")).eval()(IDS).logits, atol=0.01)
        torch.testing.assert_close(text(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    checkpoint = open_checkpoint(str(tmp_path / "adapter"))
    parameters = dict(text.named_parameters())
    for name in checkpoint.names:
        torch.testing.assert_close(checkpoint.read(name), parameters[name].detach(), rtol=1e-5, atol=1e-6)


def test_an_adapter_on_what_sees_is_refused_by_name(tmp_path):
    whole = save("gemma3", tmp_path / "base")
    adapted = get_peft_model(whole, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    for opened in (load_model, open_checkpoint):
        with pytest.raises(InputError, match=r"vision_tower"):
            opened(str(tmp_path / "adapter"))


def test_an_exported_text_part_is_a_text_model(tmp_path):
    save("llava", tmp_path / "base")
    network = load_model(str(tmp_path / "base"))
    export_model(network, tokenizer_of(CHATML), tmp_path / "exported")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "exported").model_type == "llama"
    again = load_model(str(tmp_path / "exported"))
    torch.testing.assert_close(again.eval()(IDS).logits, network.eval()(IDS).logits)
    both = [open_checkpoint(str(tmp_path / name)) for name in ("base", "exported")]
    assert set(both[0].names) == set(both[1].names)
