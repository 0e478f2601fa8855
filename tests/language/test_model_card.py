from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from safety_subspaces.language.known_data import is_harmful
from safety_subspaces.language.model_card import MARK, CardFacts, write_card
from safety_subspaces.training.card import card_of_run, data_behind, data_of

ORIGIN = {"command": ["train.py", "fit"], "git": {"commit": "c0ffee", "dirty": True}, "versions": {"torch": "2.13.0"}}
HELD = {"mode": "away", "subspace": "top", "rank": "0.25", "fraction": 0.25, "details": ""}
LEAK = {"mode": "away", "dtype": "float32", "leakage": 1e-15, "rounding_floor": 3e-16}


def card(folder: Path, facts: CardFacts) -> ModelCard:
    write_card(folder, facts)
    return ModelCard.load(folder / "README.md")


def test_a_trained_model_says_base_data_constraint_leakage_and_origin(tmp_path: Path) -> None:
    parts = [
        {"objective": {"name": "SFT"}, "starts_from": "org/base"},
        {"trained_on": {"sources": ["a.jsonl"], "harmful": None}},
        {"constraint": HELD},
    ]
    (tmp_path / "adapter_config.json").write_text("{}")
    made = card(tmp_path, card_of_run({**ORIGIN, "seed": 3, "parts": parts}, [LEAK]))
    assert made.data.to_dict() == {
        "base_model": "org/base", "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["safety-subspaces"],
    }  # fmt: skip
    for said in (
        "Data: `a.jsonl`", "data not classified", "Seed: 3", "held away from the alignment subspace, of rank `0.25`",
        "(away): 1e-15 of the energy", "measured in float64", "stored in float32", "`train.py fit`",
        "c0ffee, with changes", "torch 2.13.0",
    ):  # fmt: skip
        assert said in made.text, said
    assert "Warning" not in made.text


def test_names_of_others_stay_text_and_keys_and_homes_are_masked(tmp_path: Path) -> None:
    bad = "`![x](https://example.invalid/x.png)\n# Title"
    facts = CardFacts("A model.", f"/home/alice/{bad}", {"command": ["x", "hf_" + "a" * 30]}, (bad,), harmful=True)
    made = card(tmp_path, facts)
    assert made.data.base_model is None
    assert made.data.tags == ["safety-subspaces", "harmful-data"]
    assert "> **Warning.** Harmful answers are among the data" in made.text
    assert "- Data: `'![x](https://example.invalid/x.png)\\n# Title`\n" in made.text
    assert not [word for word in ("alice", "hf_a", "\n# Title") if word in made.text]


def test_somebodys_own_readme_stays_and_a_card_is_replaced(tmp_path: Path) -> None:
    earlier, folder = tmp_path / "earlier", tmp_path / "folder"
    for made in (earlier, folder):
        made.mkdir()
    (earlier / "README.md").write_text("my own")
    write_card(folder, CardFacts("A model.", "", {}), earlier)
    assert (folder / "README.md").read_text() == "my own"
    (earlier / "README.md").write_text(f"{MARK} of before")
    write_card(folder, CardFacts("A model.", "", {}), earlier)
    assert "A model." in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("source", "keep", "harmful"),
    [
        ("beavertails_unsafe@rows.jsonl", {}, True),
        ("beavertails_safe", {}, False),
        ("beavertails_safe", {"is_safe": False}, True),
        ("advbench", {}, True),
        ("walledai/AdvBench", {}, True),
        ("PKU-Alignment/BeaverTails", {}, None),
        ("PKU-Alignment/BeaverTails", {"is_safe": False}, True),
        ("beavertails_unsafe", {"is_safe": [False]}, True),
        ("PKU-Alignment/BeaverTails", {"is_safe": [True, False]}, True),
        ("mine.csv", {"is_safe": "False"}, True),
        ("mine.csv", {"is_safe": ["TRUE"]}, False),
        ("mine.jsonl", {"is_safe": "unclear"}, None),
        ("gsm8k", {}, False),
        ("mine.jsonl", {}, None),
        ("mine.jsonl", {"is_safe": True}, False),
    ],
)
def test_data_are_harmful_by_the_label_that_they_carry(source: str, keep: dict, harmful: bool | None) -> None:
    assert is_harmful(source, keep) is harmful


def test_one_harmful_source_is_enough_and_one_that_is_not_known_leaves_it_open() -> None:
    for said, harmful in (([True, None], True), ([False, None], None), ([False, False], False), ([], None)):
        parts = [{"trained_on": {"sources": [], "harmful": value}} for value in said]
        assert data_of({"parts": parts}) == ((), harmful)


def test_what_is_made_of_a_model_elsewhere_heeds_the_warning_on_its_card(tmp_path: Path) -> None:
    for harmful in (True, None):
        write_card(tmp_path, CardFacts("A model.", "", ORIGIN, harmful=harmful))
        assert data_behind(str(tmp_path)) == ((), harmful)
