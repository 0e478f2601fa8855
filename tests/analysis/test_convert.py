"""A GGUF file becomes the model that it holds: the weights it stores, dequantised, under the tokens that it names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from support.refusal import refuse
from support.tiny import ANALYZE, run_command
from support.tiny_gguf import CHAT, HEADS, KEY_HEADS, NAMES, TOKENS, interleaved, tiny_network, write_gguf
from transformers import LlamaForCausalLM

from safety_subspaces.analysis.convert.command import convert
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import sha256_of_file
from safety_subspaces.language.model import load_language_model
from safety_subspaces.language.prompting import encode_prompt
from safety_subspaces.training.modules.adapter import LoraSettings, add_adapter


def test_a_file_in_float32_gives_the_network_that_it_was_written_from(tmp_path: Path) -> None:
    origin = tiny_network()
    file = write_gguf(tmp_path / "tiny.gguf", origin, GGMLQuantizationType.F32)
    made = convert(str(file), str(tmp_path / "out"))
    model, tokenizer = load_language_model(str(tmp_path / "out"))
    assert made.architecture == type(model).__name__ == "LlamaForCausalLM"
    assert made.n_parameters == sum(parameter.numel() for parameter in origin.parameters())
    wanted = origin.state_dict()
    assert wanted.keys() == model.state_dict().keys()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert (model.config.rms_norm_eps, model.config.num_key_value_heads) == (pytest.approx(1e-5), KEY_HEADS)
    ids = torch.tensor([encode_prompt(tokenizer, "hello there")])
    torch.testing.assert_close(model(input_ids=ids).logits, origin(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_a_quantised_file_gives_the_weights_that_it_stores_and_a_network_that_can_be_trained(
    tmp_path: Path, kind: str
) -> None:
    origin = tiny_network()
    file = write_gguf(tmp_path / "tiny.gguf", origin, GGMLQuantizationType[kind])
    made = convert(str(file), str(tmp_path / "out"))
    assert made.storage == {kind: 15, "F32": 5}
    model, _ = load_language_model(str(tmp_path / "out"))
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, parameter in model.named_parameters():
        tensor = stored[NAMES[name]]
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        got = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            got = interleaved(got, HEADS if "q_proj" in name else KEY_HEADS)
        np.testing.assert_array_equal(got, value.reshape(got.shape))
    assert not torch.equal(model.state_dict()["lm_head.weight"], origin.state_dict()["lm_head.weight"])
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    adapted = add_adapter(model.float(), LoraSettings(rank=2)).train()
    adapted(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss.backward()
    model.save_pretrained(tmp_path / "again")


def test_the_tokenizer_keeps_its_template_its_special_tokens_and_its_merges(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_network(), GGMLQuantizationType.F32)
    convert(str(file), str(tmp_path / "out"))
    model, tokenizer = load_language_model(str(tmp_path / "out"))
    assert tokenizer.chat_template == CHAT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 2
    ids = encode_prompt(tokenizer, "he is 7")
    assert TOKENS.index("he") in ids
    assert tokenizer.decode(ids) == "<|im_start|>user\nhe is 7<|im_end|>\n<|im_start|>assistant\n"


def test_the_record_names_the_file_by_its_hash(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_network(), GGMLQuantizationType.Q8_0)
    done = run_command(ANALYZE, "convert", "--gguf", file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "15 Q8_0, 5 F32" in done.stdout
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["source"], record["sha256"]) == ("tiny.gguf", sha256_of_file(file))
    assert record["logit_difference"] == 0
    assert record["sha256"] in (tmp_path / "out" / "README.md").read_text()


def test_what_is_no_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    good = write_gguf(tmp_path / "good.gguf", tiny_network(), GGMLQuantizationType.F32)

    def refuse_file(message: str, file: Path, out: str = "out") -> None:
        refuse(lambda: convert(str(file), str(tmp_path / out)), message)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))]

    refuse_file("is no file; expected a model in GGUF format", tmp_path / "missing.gguf")
    refuse_file("is no file", tmp_path)
    text = tmp_path / "text.gguf"
    text.write_text("weights")
    refuse_file("is no GGUF file: it begins with b'weig'", text)
    half = tmp_path / "half.gguf"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    refuse_file("expected a causal language model", half)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    refuse_file("already holds results", good, "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    refuse_file(
        "cannot be read", write_gguf(tmp_path / "odd.gguf", tiny_network(), GGMLQuantizationType.F32, arch="clip")
    )


def test_a_folder_that_is_not_the_file_does_not_get_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_network(), GGMLQuantizationType.F32)

    def with_one_weight_off(self: LlamaForCausalLM, *arguments: object, **options: object) -> None:
        with torch.no_grad():
            self.model.norm.weight[0] += 1
        whole(self, *arguments, **options)

    whole = LlamaForCausalLM.save_pretrained
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", with_one_weight_off)
    with pytest.raises(InputError, match=r"1 weights were not written as they were read, model\.norm\.weight first"):
        convert(str(file), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_python_beside_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf(tmp_path / "model.gguf", tiny_network(), GGMLQuantizationType.F32)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    for name in ("config.json", "tokenizer_config.json"):
        maps = {"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E", "AutoTokenizer": ["evil.E", None]}
        claims = {"model_type": "evil", "tokenizer_class": "EvilTokenizer", "auto_map": maps}
        (tmp_path / name).write_text(json.dumps(claims))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    refuse(lambda: convert(str(source), str(tmp_path / "out")), "custom code")
    assert not asked
    assert not (tmp_path / "ran").exists()
