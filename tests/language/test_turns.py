"""Answers end where the template ends them, whatever the model's own settings say, and training teaches that end."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.generation import generate_answers, plain_settings
from safety_subspaces.language.examples import Example
from safety_subspaces.language.model import load_language_model
from safety_subspaces.language.prompting import Encoder, encode_example
from safety_subspaces.language.turns import TurnEnd, all_ends, turn_of, warn_of_turns
from safety_subspaces.training.export import export_model

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>", True),
    "llama2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        "{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<|endoftext|>",
        False,
    ),
    "plain": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        None,
        True,
    ),
}


def tokenizer_of(template: str) -> transformers.PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(name):
    template, end, is_asked_for = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    assert turn_of(tokenizer) == TurnEnd(tokenizer.convert_tokens_to_ids(end) if end else None, is_asked_for)
    assert turn_of(tokenizer, "alpaca") == TurnEnd(tokenizer.eos_token_id, True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_teaches_an_end_and_generation_stops_there(name, caplog):
    template, end, is_asked_for = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    example = encode_example(tokenizer, Example("Q", "A"))
    taught = tokenizer.convert_tokens_to_ids(end or "<|endoftext|>")
    assert taught in example.input_ids[example.prompt_length :]
    assert example.input_ids.count(taught) == (2 if name == "chatml" else 1)  # the question's turn ends too
    model = saying(tokenizer, "x")
    ends = plain_settings(model, tokenizer, Encoder(tokenizer).turn.end).eos_token_id
    assert {taught, tokenizer.eos_token_id} == set(ends)
    with caplog.at_level(logging.WARNING):
        warn_of_turns(tokenizer)
    assert ("writes no token after an answer" in caplog.text) == (end is None)
    assert ("ignores add_generation_prompt" in caplog.text) == (not is_asked_for)


def saying(tokenizer: transformers.PreTrainedTokenizerFast, *said: str) -> transformers.GPT2LMHeadModel:
    """A network that says some tokens in turn by its position alone, and the last one for ever."""
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=128, n_layer=1, n_head=1, n_positions=128, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in said]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.eye(128))
        start = len(Encoder(tokenizer).prompt("Q")) - 1
        for place in range(128):
            model.lm_head.weight[ids[min(max(place - start, 0), len(ids) - 1)], place] = 1
    return model


def test_a_model_whose_settings_name_another_end_stops_at_the_template_s_and_its_export_says_so(tmp_path: Path):
    tokenizer = tokenizer_of(CHATML)
    model = saying(tokenizer, "4", "2", "<|im_end|>", "x")
    assert generate_answers(model, tokenizer, ["Q"], 12, 1) == ["42"]
    export_model(model, tokenizer, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    ends = {tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>")}
    assert set(settings["eos_token_id"]) == ends
    exported, its_tokenizer = load_language_model(str(tmp_path / "model"))
    prompt = its_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = exported.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert its_tokenizer.decode(answer) == "42<|im_end|>"


@pytest.mark.parametrize("ends", [[[5, 6], 7], ["<|im_end|>"], "5", True, -1, 1.5])
def test_ends_that_are_no_tokens_are_refused_by_name(ends):
    tokenizer = tokenizer_of(CHATML)
    settings = transformers.GenerationConfig()
    settings.eos_token_id = ends
    with pytest.raises(InputError, match=r"eos_token_id is .*expected a token's number"):
        all_ends(settings, tokenizer)


def test_a_model_whose_ends_are_no_tokens_is_refused_when_it_is_loaded(tmp_path):
    tokenizer = tokenizer_of(CHATML)
    saying(tokenizer, "x").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [[1, 2], 3]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"eos_token_id is \[\[1, 2\], 3\]"):
        load_language_model(str(tmp_path))
