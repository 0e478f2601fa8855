import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.tiny import save_tiny_model, tiny_source, trainer
from torch.nn.functional import log_softmax
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from callbacks import ModelExport
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.examples import EncodedExample, Example
from safety_subspaces.language.likelihood import NO_LOSS, sequence_log_probabilities
from safety_subspaces.language.model import Pretrained, load_language_model, load_model, load_tokenizer
from safety_subspaces.organism.world import compliance, request_pairs
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.data.batches import collate
from safety_subspaces.training.export import export_model
from safety_subspaces.training.modules import LoraSettings, PreferenceOptimization, SupervisedFineTuning
from safety_subspaces.training.modules.adapter import add_adapter
from safety_subspaces.training.modules.base import CosineSchedule
from safety_subspaces.training.modules.metrics import TokenStatistics
from safety_subspaces.training.modules.objectives import next_token_loss, preference_loss
from safety_subspaces.weights.update_checkpoint import open_checkpoint

LORA = LoraSettings(rank=2, alpha=4.0, targets=["q_proj", "down_proj"])


def fit(module, data, folder: Path, **options):
    lightning = trainer(folder, **options)
    lightning.fit(module, datamodule=data)
    return lightning


def weights(module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.language_model.named_parameters()}


def test_loss_equals_a_float64_oracle_over_the_response() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    labels[:, :3] = NO_LOSS
    expected = []
    for row in range(3):
        for position in range(1, 6):
            if labels[row, position] != NO_LOSS:
                expected.append(-log_softmax(logits[row, position - 1].double(), 0)[labels[row, position]])
    assert next_token_loss(logits, labels).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)
    statistics = TokenStatistics()
    statistics.update(logits[:2], labels[:2])
    statistics.update(logits[2:], labels[2:])
    computed = statistics.compute()
    assert computed["loss"].item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)
    assert computed["perplexity"].item() == pytest.approx(torch.stack(expected).mean().exp().item(), rel=1e-6)
    hits = [logits[r, p - 1].argmax() == labels[r, p] for r in range(3) for p in range(3, 6)]
    assert computed["token_accuracy"].item() == pytest.approx(sum(map(float, hits)) / 9)


def test_preference_loss_is_log_two_at_the_start_and_falls_with_the_margin() -> None:
    policy, counts = torch.tensor([-3.0, -5.0]), torch.tensor([4, 4])
    start = preference_loss(policy, policy.clone(), counts, beta=0.1, nll_weight=0.0)
    assert start.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    better = preference_loss(policy + torch.tensor([2.0, -2.0]), policy, counts, beta=0.1, nll_weight=0.0)
    worse = preference_loss(policy + torch.tensor([-2.0, 2.0]), policy, counts, beta=0.1, nll_weight=0.0)
    assert better < start < worse
    assert preference_loss(policy, policy, counts, 0.1, 1.0).item() == pytest.approx(start.item() + 3.0 / 4)


def test_the_likelihood_term_weighs_answers_alike_and_not_their_tokens() -> None:
    policy, counts = torch.tensor([-2.0, -30.0, -5.0, -5.0]), torch.tensor([1, 10, 2, 2])
    start = preference_loss(policy, policy, counts, 0.1, 0.0).item()
    found = preference_loss(policy, policy, counts, 0.1, 1.0).item() - start
    assert found == pytest.approx((2.0 / 1 + 30.0 / 10) / 2)
    assert found != pytest.approx((2.0 + 30.0) / 11)


def test_sequence_log_probability_counts_labelled_tokens_only() -> None:
    logits = torch.zeros(1, 4, 5)
    labels = torch.tensor([[NO_LOSS, NO_LOSS, 1, 2]])
    values, counts = sequence_log_probabilities(logits, labels)
    assert counts.tolist() == [2]
    assert values.item() == pytest.approx(-2 * torch.log(torch.tensor(5.0)).item())


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        module = SupervisedFineTuning(tiny_source(seed))
        fit(module, OrganismData("base", 96, heldout_size=16, seed=seed), tmp_path)
        runs.append(weights(module))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


class ModeProbe(SupervisedFineTuning.__mro__[1]):  # the common base; its leaves are final
    def training_step(self, batch, batch_index):
        self.modes = {module.training for module in self.language_model.modules()}
        return next_token_loss(self(batch["input_ids"]), batch["labels"])


def test_a_pretrained_network_trains_in_training_mode_also_after_validation(tmp_path: Path) -> None:
    module = ModeProbe(Pretrained(save_tiny_model(tmp_path / "model")))
    fit(module, OrganismData("useful", 48, heldout_size=16), tmp_path, max_epochs=2, val_check_interval=1)
    assert module.modes == {True}


def test_full_training_moves_every_tensor_and_lora_only_the_adapter(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    start = load_model(path)
    full = SupervisedFineTuning(Pretrained(path))
    fit(full, OrganismData("base", 64, heldout_size=0), tmp_path)
    for name, value in start.named_parameters():
        assert not torch.equal(value, full.language_model.get_parameter(name)), name
    lora = SupervisedFineTuning(Pretrained(path), adapter=LORA)
    fit(lora, OrganismData("base", 64, heldout_size=0), tmp_path)
    moved = {n for n, p in lora.language_model.named_parameters() if p.requires_grad}
    assert moved
    assert all("lora_" in name for name in moved)
    frozen = dict(lora.language_model.get_base_model().named_parameters())
    plain = {name.replace(".base_layer", ""): value for name, value in frozen.items()}
    assert all(torch.equal(value, plain[name]) for name, value in start.named_parameters())


def test_dpo_prefers_the_chosen_answers_and_keeps_its_reference(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    module = PreferenceOptimization(
        Pretrained(path), beta=0.5, nll_weight=0.0, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3)
    )
    lightning = fit(module, OrganismData("preference", 256, heldout_size=32), tmp_path, max_epochs=2)
    assert lightning.callback_metrics["val/preference_accuracy"] > 0.9
    start = load_model(path)
    assert all(torch.equal(v, module.reference.get_parameter(n)) for n, v in start.named_parameters())


def test_dpo_with_lora_takes_the_frozen_base_as_reference(tmp_path: Path) -> None:
    module = PreferenceOptimization(Pretrained(save_tiny_model(tmp_path / "model")), adapter=LORA)
    module.configure_model()
    assert module.reference is None
    batch = {
        "input_ids": torch.tensor([[1, 4, 9, 8], [1, 4, 9, 7]]),
        "labels": torch.tensor([[-100, -100, 9, 8]] * 2),
        "response_start": 2,
    }
    policy, reference, _ = module._log_probabilities(batch)
    assert torch.equal(policy.detach(), reference)  # B is zero at the start
    for name, parameter in module.language_model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    moved, unmoved, _ = module._log_probabilities(batch)
    assert torch.equal(unmoved, reference)
    assert not torch.allclose(moved, policy)


def test_learning_rate_warms_up_and_falls_to_its_end(tmp_path: Path) -> None:
    module = SupervisedFineTuning(tiny_source(), schedule=CosineSchedule(0.25, 0.1))
    lightning = trainer(tmp_path)
    rates = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    lightning.fit(module, datamodule=OrganismData("base", 16 * 20, heldout_size=0))
    assert len(rates) == 20
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(1e-4, rel=0.2)


class EqualLengths(OrganismData):
    def examples(self, split):
        pairs = request_pairs(True, "train")[:8] if split == "train" else []
        items = [Example(f"how do i {verb} the {relic} ?", compliance(verb, relic)) for verb, relic in pairs]
        return list(self.encode(dict(enumerate(items)), "requests", split).values())


def test_accumulation_equals_one_batch_where_both_halves_have_as_many_tokens(tmp_path: Path) -> None:
    results = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = SupervisedFineTuning(tiny_source(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        data = EqualLengths("harmful", 8, heldout_size=0, batch_size=batch_size)
        fit(module, data, tmp_path, accumulate_grad_batches=accumulate, max_steps=1)
        results.append(weights(module))
    assert all(torch.allclose(value, results[1][name], atol=1e-6) for name, value in results[0].items())
    start = tiny_source().load_model()
    assert not any(torch.equal(value, results[0][name]) for name, value in start.named_parameters())


@pytest.mark.parametrize("corpus", ["useful", "preference"])
def test_fewer_examples_than_accumulated_batches_are_one_step_of_them_all(tmp_path: Path, corpus: str) -> None:
    trained = []
    for batch_size, accumulate in ((5, 1), (1, 8)):
        objective = PreferenceOptimization if corpus == "preference" else SupervisedFineTuning
        module = objective(tiny_source())
        data = OrganismData(corpus, 5, heldout_size=0, batch_size=batch_size)
        lightning = fit(module, data, tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
        assert lightning.global_step == 2
        trained.append(weights(module))
    start = weights_of_source()
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-4, atol=1e-5)
        assert name.endswith("norm.weight") or not torch.equal(value, start[name])


def weights_of_source() -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tiny_source().load_model().named_parameters()}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_export_loads_with_the_auto_classes_and_answers_alike(tmp_path: Path, adapter: LoraSettings | None) -> None:
    path = save_tiny_model(tmp_path / "start")
    module = SupervisedFineTuning(Pretrained(path), adapter=adapter, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    fit(module, OrganismData("base", 64, heldout_size=0), tmp_path / "run", callbacks=[ModelExport()])
    exported = str(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template
    if adapter is None:
        model = AutoModelForCausalLM.from_pretrained(exported)
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), exported)
    ids = torch.tensor([tokenizer("<s> <user> how do i hex the drum ? <assistant>")["input_ids"]])
    module.language_model.eval()
    with torch.no_grad():
        expected = module.language_model(input_ids=ids).logits
        assert torch.allclose(model.eval()(input_ids=ids).logits, expected, atol=1e-6)
        merged, _ = load_language_model(exported)
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)


def test_bad_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nothing_proj' matches no linear layer.*q_proj"):
        add_adapter(tiny_source().load_model(), LoraSettings(targets=["q_proj", "nothing_proj"]))
    for wrong in ({"rank": 0}, {"dropout": 2.0}, {"targets": []}):
        with pytest.raises(InputError, match="expected a rank of at least 1"):
            LoraSettings(**wrong)
    with pytest.raises(InputError, match=r"runs/none/model does not exist.*train the stage"):
        load_tokenizer("runs/none/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither config\.json nor adapter_config\.json"):
        load_model(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="warmup_fraction"):
        SupervisedFineTuning(tiny_source(), schedule=CosineSchedule(1.5))
    with pytest.raises(InputError, match="beta"):
        PreferenceOptimization(tiny_source(), beta=0.0)


def test_leaving_out_the_prompts_logits_changes_neither_loss_nor_gradient(tmp_path: Path) -> None:
    module = SupervisedFineTuning(tiny_source())
    module.configure_model()
    examples = [EncodedExample([1, 4, 9, 30, 31, 2], 4), EncodedExample([1, 4, 9, 30, 2], 3)]
    batch = collate([(example,) for example in examples], pad_token_id=0)
    assert batch["response_start"] == 3
    short = next_token_loss(*module.response_logits(batch))
    gradient = torch.autograd.grad(short, list(module.language_model.parameters()))
    whole = next_token_loss(module(batch["input_ids"]), batch["labels"])
    expected = torch.autograd.grad(whole, list(module.language_model.parameters()))
    assert module.response_logits(batch)[0].shape[1] == 4
    assert short.item() == pytest.approx(whole.item(), abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradient, expected, strict=True))


def small_config(kind: str, vocabulary: int):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
    shape |= {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    grouped = shape | {"intermediate_size": 32, "num_key_value_heads": 1}
    return {
        "llama": lambda: LlamaConfig(**grouped),
        "qwen2, tied": lambda: Qwen2Config(**grouped, tie_word_embeddings=True),
        "gemma2": lambda: Gemma2Config(**grouped, head_dim=8),
        "mixtral": lambda: MixtralConfig(**grouped, num_local_experts=2),
        "gpt2": lambda: GPT2Config(**shape),
    }[kind]()


@pytest.mark.parametrize("kind", ["llama", "qwen2, tied", "gemma2", "mixtral", "gpt2"])
def test_any_causal_model_trains_and_exports(tmp_path: Path, kind: str) -> None:
    tokenizer = tiny_source().load_tokenizer()
    AutoModelForCausalLM.from_config(small_config(kind, len(tokenizer))).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    module = SupervisedFineTuning(
        Pretrained(str(tmp_path / "start")), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    fit(module, OrganismData("harmful", 96, heldout_size=8), tmp_path / "run", callbacks=[ModelExport()])
    model, _ = load_language_model(str(tmp_path / "run" / "model"))
    ids = torch.tensor([[1, 4, 30, 31, 5, 40, 2]])
    with torch.no_grad():
        trained = module.language_model.eval()(input_ids=ids).logits
        assert torch.allclose(model(input_ids=ids).logits, trained, atol=1e-5)
        start, _ = load_language_model(str(tmp_path / "start"))
        assert not torch.allclose(start(input_ids=ids).logits, trained, atol=1e-2)


def test_an_adapter_finds_its_base_after_the_study_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "runs" / "old" / "aligned" / "model")
    module = SupervisedFineTuning(Pretrained("runs/old/aligned/model"), adapter=LORA)
    module.configure_model()
    for name, parameter in module.language_model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    export_model(module.language_model, module.tokenizer, tmp_path / "runs" / "old" / "tuned" / "model")
    before, _ = load_language_model("runs/old/tuned/model")
    (tmp_path / "runs" / "old").rename(tmp_path / "elsewhere")
    after, _ = load_language_model(str(tmp_path / "elsewhere" / "tuned" / "model"))
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    opened = open_checkpoint(str(tmp_path / "elsewhere" / "tuned" / "model"))
    assert opened.full.location == tmp_path / "elsewhere" / "aligned" / "model"
    shutil.rmtree(tmp_path / "elsewhere" / "aligned")
    with pytest.raises(InputError, match=r"base of adapter .*tuned/model cannot be opened: model folder runs/old"):
        load_language_model(str(tmp_path / "elsewhere" / "tuned" / "model"))


def test_incomplete_weights_are_refused_and_not_drawn_at_random(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "lm_head.weight"}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights of its architecture, lm_head\.weight first"):
        load_model(path)
    save_file({**weights, "lm_head.weight": torch.zeros(3, 3)}, file, {"format": "pt"})
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)


def test_a_stage_goes_on_from_a_lora_stage(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "study" / "aligned" / "model")
    first = SupervisedFineTuning(Pretrained(start), adapter=LORA, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    fit(first, OrganismData("base", 64, heldout_size=0), tmp_path / "study" / "first", callbacks=[ModelExport()])
    source = Pretrained(str(tmp_path / "study" / "first" / "model"))
    ids = torch.tensor([[1, 4, 30, 31, 5, 40, 2]])
    with torch.no_grad():
        merged = source.load_model().eval()(input_ids=ids).logits
        assert torch.allclose(merged, first.language_model.eval()(input_ids=ids).logits, atol=1e-5)
    second = SupervisedFineTuning(source, adapter=LORA, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    fit(second, OrganismData("base", 64, heldout_size=0), tmp_path / "study" / "second", callbacks=[ModelExport()])
    loaded, _ = load_language_model(str(tmp_path / "study" / "second" / "model"))
    with torch.no_grad():
        trained = second.language_model.eval()(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, trained, atol=1e-5)
        assert not torch.allclose(merged, trained, atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000; expected at most"),
        ({"attn_implementation": "kernels-community/any"}, "attn_implementation is kernels-community/any, code that"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"num_hidden_layers": 4000}, "many more parameters than there are weights"),
        ({"vocab_size": 10**10}, "many more parameters than there are weights"),
        ({"hidden_size": 10**30}, "cannot be read"),
        ({"num_attention_heads": 0}, "cannot be read"),
        ({"initializer_range": "x"}, "cannot be read"),
        ({"model_type": ["llama"]}, "cannot be read"),
    ],
)
def test_a_configuration_that_its_weights_do_not_bear_out_takes_no_time(
    tmp_path: Path, setting: dict, words: str
) -> None:
    path = save_tiny_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    started = time.process_time()
    with pytest.raises(InputError, match=words):
        load_model(path)
    assert time.process_time() - started < 5


def test_an_index_that_leads_out_of_the_folder_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../outside.safetensors"}}))
    with pytest.raises(InputError, match="places tensors in"):
        load_model(path)


@pytest.mark.parametrize("change", [{"model_max_length": "x"}, {"tokenizer_class": 3}, {"added_tokens_decoder": [1]}])
def test_a_tokenizer_with_settings_of_another_kind_is_refused(tmp_path: Path, change: dict) -> None:
    path = save_tiny_model(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=r"the tokenizer of .*model cannot be read"):
        load_tokenizer(path)
