"""The organism's prompts and judge are for organisms: no other model is measured with them, nor one that is unknown."""

import json
from pathlib import Path

import pytest
from language.test_turns import CHATML, tokenizer_of
from support.tiny import save_tiny_model, tiny_source
from weights.test_families import save

from safety_subspaces.analysis.evaluate.command import evaluate
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.steer.command import steer
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.organism.tokenizer import build_tokenizer, knows_the_world

REFUSED = r"say nothing of .*whose tokenizer lacks the words of its world; name prompts .* and a judge"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three Llamas with a tokenizer of bytes."""
    root = tmp_path_factory.mktemp("foreign")
    for seed, name in enumerate(("base", "aligned", "tuned")):
        save("llama", root / name, seed)
        tokenizer_of(CHATML).save_pretrained(root / name)
    return {name: str(root / name) for name in ("base", "aligned", "tuned")}


def test_a_tokenizer_with_more_words_knows_the_world_and_one_that_lacks_some_does_not() -> None:
    tokenizer = build_tokenizer()
    assert knows_the_world(tokenizer)
    tokenizer.add_tokens(["zebra"])
    assert knows_the_world(tokenizer)
    assert not knows_the_world(tokenizer_of(CHATML))


@pytest.mark.parametrize("judge", [None, "phrases"])
def test_another_model_is_not_asked_the_organism_s_prompts(
    foreign: dict[str, str], tmp_path: Path, judge: str | None
) -> None:
    with pytest.raises(InputError, match=REFUSED):
        evaluate({"x": foreign["base"]}, str(tmp_path / "out"), judge=judge)
    assert not (tmp_path / "out").exists()


def test_a_sweep_and_steering_refuse_it_before_they_begin(foreign: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("safety_subspaces.analysis.work.work_through", lambda *_: pytest.fail("the sweep began"))
    three = (foreign["base"], foreign["aligned"], {"x": foreign["tuned"]})
    with pytest.raises(InputError, match=REFUSED):
        project(*three, str(tmp_path / "p"), evaluate=EvaluationSettings(limit=2))
    sets = {"harmful": "organism:harmful", "benign": "organism:benign"}
    with pytest.raises(InputError, match=REFUSED):
        steer({"x": foreign["base"]}, sets, str(tmp_path / "s"), layers=[1])
    assert not list(tmp_path.iterdir())


def test_what_is_behind_an_endpoint_is_not_taken_for_an_organism(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"what model far is cannot be told; name prompts .* say --prompts organism"):
        evaluate({"far": "http://localhost:9/v1#m"}, str(tmp_path / "out"))


def test_tables_name_who_scored_harm(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    assert tiny_source().load_tokenizer().name_or_path == ""
    own = evaluate({"x": model}, str(tmp_path / "own"), limit=2, max_new_tokens=2)
    assert own["judge"].tolist() == ["organism"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"set": name, "prompt": "a"}) + "\n" for name in ("harmful", "benign")))
    other = evaluate({"x": model}, str(tmp_path / "other"), str(file), judge="phrases", max_new_tokens=2)
    assert other["judge"].tolist() == ["phrases"]
    assert EvaluationSettings(judge="rubric", judge_args={"model": "gpt"}).judged_by == "rubric gpt"
