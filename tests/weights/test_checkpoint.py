import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_checkpoints import (
    VOCABULARY,
    edit,
    save_adapter,
    save_llama,
    save_perturbed,
    weights_of,
    write_checkpoint,
)
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.compatibility import check_compatible, coverage, select_tensors
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.names import layer_of, type_of
from safety_subspaces.weights.update_checkpoint import AdapterCheckpoint, open_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def llama(tmp_path):
    return save_llama(tmp_path / "llama")


def test_tensors_are_listed_and_read_by_canonical_name(llama):
    checkpoint = open_checkpoint(llama)
    expected = weights_of(llama)
    assert set(checkpoint.names) == set(expected)
    assert checkpoint.shape(Q) == (16, 16)
    for name in checkpoint.names:
        assert_close(checkpoint.read(name), expected[name])


def test_shards_are_one_checkpoint(tmp_path, llama):
    sharded = save_llama(tmp_path / "sharded", shard="20KB")
    assert len(list(Path(sharded).glob("*.safetensors"))) > 1
    checkpoint, whole = open_checkpoint(sharded), open_checkpoint(llama)
    assert set(checkpoint.names) == set(whole.names)
    check_compatible(whole, checkpoint)
    for name in whole.names:
        assert_close(checkpoint.read(name), whole.read(name))


def test_prefixes_of_wrappers_are_taken_off(tmp_path, llama):
    wrapped = tmp_path / "wrapped"
    shutil.copytree(llama, wrapped)
    weights = {f"_forward_module.language_model.{name}": value for name, value in weights_of(llama).items()}
    save_file(weights, wrapped / "model.safetensors")
    check_compatible(open_checkpoint(llama), open_checkpoint(str(wrapped)))


def test_tied_embeddings_count_once(tmp_path):
    folder = save_llama(tmp_path / "tied", tied=True)
    weights = weights_of(folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, Path(folder) / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert "lm_head.weight" not in checkpoint.names
    assert "model.embed_tokens.weight" in checkpoint.names
    assert "tied" in checkpoint.left_out["lm_head.weight"]


def test_what_is_no_weight_is_left_out_with_a_reason(llama):
    weights = weights_of(llama)
    weights |= {"steps": torch.tensor(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights, Path(llama) / "model.safetensors")
    checkpoint = open_checkpoint(llama)
    assert set(checkpoint.left_out) == {"steps", "model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert not set(checkpoint.left_out) & set(checkpoint.names)


def test_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        open_checkpoint(str(tmp_path / "nowhere"))


def test_file_in_place_of_a_folder_is_refused(llama):
    with pytest.raises(InputError, match="is a file"):
        open_checkpoint(f"{llama}/config.json")


def test_run_folder_points_to_its_model(tmp_path, llama):
    run = tmp_path / "run"
    shutil.copytree(llama, run / "model")
    with pytest.raises(InputError, match=r"Did you mean .*run/model"):
        open_checkpoint(str(run))


def test_truncated_file_is_named(llama):
    file = Path(llama) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(llama)


def test_missing_shard_is_named(tmp_path):
    folder = Path(save_llama(tmp_path / "sharded", shard="20KB"))
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"shard {lost.name}.*missing"):
        open_checkpoint(str(folder))


def test_pickled_weights_are_refused_with_the_conversion(llama):
    (Path(llama) / "model.safetensors").rename(Path(llama) / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled.*save_pretrained"):
        open_checkpoint(llama)


def test_quantised_weights_are_refused(llama):
    config = Path(llama) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match="quantised"):
        open_checkpoint(llama)


def test_unknown_tensor_is_named(llama):
    with pytest.raises(InputError, match="has no tensor lm_body"):
        open_checkpoint(llama).read("lm_body")


# --- adapters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 20}, "rank_pattern": {"q_proj": 3}},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_adapter_reads_as_the_weights_that_peft_merges(tmp_path, llama, options):
    from peft import PeftModel

    adapter = save_adapter(llama, tmp_path / "adapter", **options)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapter).merge_and_unload()
    expected = dict(merged.named_parameters())
    checkpoint = open_checkpoint(adapter)
    base = open_checkpoint(llama)
    assert isinstance(checkpoint, AdapterCheckpoint)
    assert set(checkpoint.names) == set(expected)
    for name in checkpoint.names:
        assert_close(checkpoint.read(name), expected[name].data, rtol=0, atol=1e-6)
        if not checkpoint.is_whole(name):
            difference = expected[name].data - base.read(name)
            assert_close(update_of(checkpoint, base, name), difference, rtol=0, atol=1e-6)
    assert checkpoint.update(Q).dense().abs().max() > 0


def test_adapter_finds_its_base_beside_itself(tmp_path, monkeypatch):
    save_llama(tmp_path / "study" / "llama")
    adapter = Path(save_adapter(str(tmp_path / "study" / "llama"), tmp_path / "study" / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, cwd in (("../llama", tmp_path), ("study/llama", tmp_path)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        monkeypatch.chdir(cwd)
        assert open_checkpoint(str(adapter)).full.shape(Q) == (16, 16)


def test_adapter_without_its_base_is_refused(tmp_path, llama):
    adapter = save_adapter(llama, tmp_path / "adapter")
    shutil.rmtree(llama)
    with pytest.raises(InputError, match=r"base of adapter .*does not exist"):
        open_checkpoint(adapter)


@pytest.mark.parametrize("changes", [{"use_qalora": True}, {"peft_type": "IA3"}, {"init_lora_weights": "pissa"}])
def test_other_adapters_are_refused_with_the_merge(tmp_path, llama, changes):
    adapter = Path(save_adapter(llama, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=r"merge_and_unload\(\)\.save_pretrained"):
        open_checkpoint(str(adapter))


def test_adapter_of_another_model_is_refused(tmp_path, llama):
    adapter = Path(save_adapter(llama, tmp_path / "adapter"))
    weights = {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)}
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"has no model\.layers\.9"):
        open_checkpoint(str(adapter))


# --- comparisons


def test_differences_of_names_and_shapes_are_listed(tmp_path, llama):
    other = save_perturbed(llama, tmp_path / "other", seed=1)
    edit(Path(other), lambda _, value: value[:5], only="q_proj")
    weights = weights_of(other)
    del weights["model.norm.weight"]
    save_file(weights, Path(other) / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 weights of its architecture, model\.norm\.weight first"):
        open_checkpoint(other)
    (Path(other) / "config.json").unlink()  # of no architecture, any weights are a checkpoint
    with pytest.raises(InputError) as error:
        check_compatible(open_checkpoint(llama), open_checkpoint(other))
    assert "model.norm.weight is not in" in str(error.value)
    assert f"{Q} is (16, 16) and (5, 16)" in str(error.value)


def test_only_five_differences_are_listed(tmp_path, llama):
    other = save_perturbed(llama, tmp_path / "other", seed=1)
    edit(Path(other), lambda _, value: value[:5], only="proj")
    with pytest.raises(InputError, match="and 9 more") as error:
        check_compatible(open_checkpoint(llama), open_checkpoint(other))
    assert str(error.value).count("(5, ") == 5


def test_first_differing_token_is_named(tmp_path, llama):
    other = save_perturbed(llama, tmp_path / "other", seed=1)
    for folder, words in ((llama, ["a", "b", "c"]), (other, ["a", "c", "b"])):
        vocabulary = {word: index for index, word in enumerate(words)}
        (Path(folder) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    first, second = open_checkpoint(llama), open_checkpoint(other)
    check_compatible(first, first)
    with pytest.raises(InputError, match=r"token '[bc]' is id \d and id \d"):
        check_compatible(first, second)


def test_tokens_matter_where_rows_stand_for_them_and_those_of_one_alone_are_told(tmp_path, llama, caplog):
    other = save_perturbed(llama, tmp_path / "other", seed=1)

    def write(folder, **vocabulary):
        (Path(folder) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
        return open_checkpoint(str(folder))

    first = write(llama, a=0, b=1)
    moved = write(other, a=1, b=0)
    with pytest.raises(InputError, match="the tokenizers of"):
        check_compatible(first, moved)
    check_compatible(first, moved, tensors=["*q_proj*"])
    added = write(other, a=0, b=1, c=2)
    check_compatible(first, added)
    assert "1 tokens are in" in caplog.text
    assert "'c' (id 2) first" in caplog.text
    clashing = write(other, a=0, c=1)
    with pytest.raises(InputError, match="the tokenizers of"):
        check_compatible(first, clashing)


def test_tensors_that_are_not_compared_need_not_agree(tmp_path, llama):
    other = save_perturbed(llama, tmp_path / "other", seed=1)
    edit(Path(other), lambda _, value: value[:5], only="embed")
    with pytest.raises(InputError, match="embed_tokens"):
        check_compatible(open_checkpoint(llama), open_checkpoint(other))
    check_compatible(open_checkpoint(llama), open_checkpoint(other), tensors=["*_proj*"])


def test_the_same_weights_under_other_names_are_said_to_be_so(tmp_path, llama):
    other = shutil.copytree(llama, tmp_path / "other")
    weights = {name.replace("layers", "blocks"): value for name, value in weights_of(llama).items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text('{"model_type": "of_our_own"}')
    with pytest.raises(InputError, match="the same shapes under other names"):
        check_compatible(open_checkpoint(llama), open_checkpoint(str(other)))


# --- writing


def test_written_model_loads_with_its_new_weights(tmp_path, llama):
    checkpoint = open_checkpoint(llama)
    write_checkpoint(tmp_path / "written", checkpoint, lambda name: checkpoint.read(name) * 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    for name, value in model.named_parameters():
        assert_close(value.data, checkpoint.read(name) * 2)


def test_written_shards_are_read_back(tmp_path, llama):
    checkpoint = open_checkpoint(llama)
    write_checkpoint(tmp_path / "written", checkpoint, checkpoint.read, max_shard_bytes=VOCABULARY * 16 * 4 + 1)
    assert len(list((tmp_path / "written").glob("model-*-of-*.safetensors"))) > 2
    again = open_checkpoint(str(tmp_path / "written"))
    for name in checkpoint.names:
        assert_close(again.read(name), checkpoint.read(name))
    AutoModelForCausalLM.from_pretrained(tmp_path / "written")


def test_written_model_keeps_type_and_buffers_and_drops_tied_copies(tmp_path):
    folder = save_llama(tmp_path / "tied", tied=True)
    edit(Path(folder), lambda _, value: value.bfloat16())
    weights = weights_of(folder)
    weights |= {"lm_head.weight": weights["model.embed_tokens.weight"].clone(), "steps": torch.tensor(3)}
    save_file(weights, Path(folder) / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    write_checkpoint(tmp_path / "written", checkpoint, lambda name: checkpoint.read(name).float())
    written = weights_of(tmp_path / "written")
    assert "lm_head.weight" not in written
    assert written.pop("steps") == 3
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


def test_model_written_like_an_adapter_is_whole(tmp_path, llama):
    adapter = open_checkpoint(save_adapter(llama, tmp_path / "adapter"))
    write_checkpoint(tmp_path / "written", adapter, adapter.read)
    written = open_checkpoint(str(tmp_path / "written"))
    assert not isinstance(written, AdapterCheckpoint)
    assert_close(written.read(Q), adapter.read(Q))


def tiny_configs():
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    return {
        "llama": transformers.LlamaConfig(**small, **heads),
        "qwen2": transformers.Qwen2Config(**small, num_attention_heads=2, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**small, **heads),
        "gemma2": transformers.Gemma2Config(**small, **heads),
        "gemma3": transformers.Gemma3TextConfig(**small, **heads),
        "qwen3_moe": transformers.Qwen3MoeConfig(**small, **heads, **experts, moe_intermediate_size=8),
        "gpt_oss": transformers.GptOssConfig(**small, **heads, **experts),
    }


@pytest.mark.parametrize("family", list(tiny_configs()))
def test_every_weight_of_a_family_is_named_once_and_read_as_out_in(tmp_path, family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(tiny_configs()[family]).float()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    numbers = sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names)
    assert numbers == sum(parameter.numel() for parameter in model.parameters())  # tied ones count once in both
    assert len(checkpoint.names) == len(set(checkpoint.names))
    for name in checkpoint.names:
        assert checkpoint.read(name).shape == checkpoint.shape(name)
        assert len(checkpoint.shape(name)) <= 2
    types = {type_of(name) for name in checkpoint.names}
    assert {"q", "k", "v", "o", "down", "embeddings", "norm"} <= types
    tied = getattr(model.config, "tie_word_embeddings", False)
    assert ("head" in types) is not tied
    written = tmp_path / "written"
    write_checkpoint(written, checkpoint, checkpoint.read)
    again = transformers.AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_fused_experts_are_a_matrix_each_and_stand_as_they_multiply(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(tiny_configs()["gpt_oss"]).float()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    name = "model.layers.1.mlp.experts.gate_up_proj[3]"
    stored = dict(model.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    assert checkpoint.shape(name) == (48, 16)  # out is both halves of the gated unit, in the hidden size
    assert torch.equal(checkpoint.read(name), stored[3].T)
    assert (layer_of(name), type_of(name)) == (1, "gate_up")
    assert type_of("model.layers.0.mlp.router.weight") == "router"
    assert checkpoint.slot(name).index == 3


def test_every_stored_tensor_is_used_or_listed_with_a_reason(tmp_path, llama):
    adapter = save_adapter(llama, tmp_path / "adapter")
    edit(Path(llama), lambda name, value: value)
    checkpoints = {"base": open_checkpoint(llama), "lora": open_checkpoint(adapter)}
    used = select_tensors(checkpoints["base"].names, ["q", "norm"])
    listed = coverage(checkpoints, used)
    assert all(entry["reason"] for entry in listed)
    of_base = {entry["name"].removeprefix("base: ") for entry in listed if entry["name"].startswith("base: ")}
    assert of_base | set(used) == set(weights_of(llama))
    of_adapter = {entry["name"].removeprefix("lora: ") for entry in listed if entry["name"].startswith("lora: ")}
    assert of_adapter == {name for name in checkpoints["lora"].stored_names if "down_proj" in name}


def test_tensors_are_chosen_by_pattern_type_and_place():
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
    ]
    assert select_tensors(names, []) == tuple(names)
    assert select_tensors(names, ["up", "embeddings"]) == (names[0], names[2])
    assert select_tensors(names, ["layers.10"]) == (names[2],)
    assert select_tensors(names, ["*.self_attn.*"]) == (names[1],)
    with pytest.raises(InputError, match=r"no tensor matches 'head'.*a type of embeddings, q, up"):
        select_tensors(names, ["head"])


def test_a_corrupt_header_is_named(llama):
    file = Path(llama) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:12] = b"{{{{"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(llama)


def rewrite_header(file: Path, change) -> None:
    """Change the header of a safetensors file, and leave its numbers."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_experts_without_end_take_no_time(llama):
    def empty(header):
        header["model.layers.0.mlp.experts.up_proj"] = {"dtype": "F32", "shape": [10**12, 0, 4], "data_offsets": [0, 0]}
        header["model.layers.0.empty"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    rewrite_header(Path(llama) / "model.safetensors", empty)
    checkpoint = open_checkpoint(llama)
    assert checkpoint.left_out["model.layers.0.mlp.experts.up_proj"] == "it holds no number"
    assert not any("expert" in name or "empty" in name for name in checkpoint.names)
    (Path(llama) / "config.json").write_text('{"model_type": "of_our_own"}')  # else it is no weight of its network
    save_file({"model.layers.0.mlp.experts.up_proj": torch.zeros(20_000, 1, 1)}, Path(llama) / "model.safetensors")
    with pytest.raises(InputError, match="20,000 experts; expected at most 16,384"):
        open_checkpoint(llama)


@pytest.mark.parametrize("config", [{"model_type": 3}, {"text_config": [1]}, {"text_config": {"model_type": []}}])
def test_a_configuration_of_another_shape_is_refused(llama, config):
    (Path(llama) / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json is no configuration of a model"):
        open_checkpoint(llama)


@pytest.mark.parametrize("vocabulary", [3, [3], {"a": "b"}, [["a"]], {"a": [1]}])
def test_a_tokenizer_of_another_shape_is_refused(llama, vocabulary):
    file = Path(llama) / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"content": "x"}]}))
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        open_checkpoint(llama).vocabulary()


def test_an_adapter_upon_itself_or_upon_an_adapter_is_refused(tmp_path, llama):
    adapter = Path(save_adapter(llama, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(InputError, match="which is upon it"):
        open_checkpoint(str(adapter))
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="itself an update upon another model"):
        open_checkpoint(str(other))


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(3), "expected .rank, in."),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(3, 16), "expected .rank, in."),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.other.weight", torch.zeros(2, 16), "twice"),
        ("base_model.model.model.norm.weight", torch.zeros(3), r"of shape \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_an_adapter_are_refused(tmp_path, llama, name, tensor, words):
    adapter = Path(save_adapter(llama, tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), name: tensor}, file)
    with pytest.raises(InputError, match=words):
        open_checkpoint(str(adapter))


def test_a_shard_outside_of_the_folder_is_refused_and_a_link_is_followed(tmp_path):
    folder = Path(save_llama(tmp_path / "sharded", shard="20KB"))
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")  # as in the cache of the Hub
    assert open_checkpoint(str(folder)).names
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(InputError, match=r"expected names of \.safetensors files beside it"):
        open_checkpoint(str(folder))
