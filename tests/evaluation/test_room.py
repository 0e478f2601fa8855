"""Texts beyond a model's positions are refused before any model answers, in every analysis that reads them."""

import json
from pathlib import Path

import pytest
from language.test_turns import CHATML, tokenizer_of
from transformers import GPT2Config, GPT2LMHeadModel

from safety_subspaces.analysis.activations.command import activations
from safety_subspaces.analysis.evaluate.command import evaluate
from safety_subspaces.artefacts.errors import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Two models of one tokenizer, of which the second has fewer positions."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tokenizer_of(CHATML)
    for name, positions in (("long", 256), ("short", 64)):
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=positions)
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("long", "short")}


def written(folder: Path, length: int, **fields) -> str:
    rows = [{"set": "harmful", "prompt": f"{n} " + "x" * length, **fields} for n in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize(
    ("length", "fields"), [(60, {}), (8, {"reference": "y" * 60, "refusals": ["no"]})], ids=["prompt", "reference"]
)
def test_every_model_has_room_before_the_first_answers(tmp_path, models, length, fields):
    path = written(tmp_path, length, **fields)
    arguments = {"prompts": path, "judge": "phrases", "max_new_tokens": 4, "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=r"beyond the model's 64 positions"):
        evaluate(models, **arguments)
    assert not (tmp_path / "out").exists()
    assert len(evaluate({"long": models["long"]}, **arguments)) == 1


def test_states_are_not_read_beyond_the_positions(tmp_path, models):
    prompts = {"a": written(tmp_path, 70)}
    other = tmp_path / "other"
    other.mkdir()
    prompts["b"] = written(other, 71)
    with pytest.raises(InputError, match=r"beyond the model's 64 positions"):
        activations({"short": models["short"]}, prompts, str(tmp_path / "out"), template="plain")
