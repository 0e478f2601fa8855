"""The table of docs/models.md, in a short form: some architectures of each kind, every task."""

import csv

import pytest
from families.configs import FAMILIES
from families.tasks import TASKS, Study, attempt
from support.tiny import ROOT, save_tiny_model
from transformers import GenerationConfig

from safety_subspaces.evaluation.generation import generate_answers, masks_padding
from safety_subspaces.language.model import load_language_model

with (ROOT / "docs" / "tables" / "models.csv").open(encoding="utf-8", newline="") as stream:
    ROWS = list(csv.DictReader(stream))
SHORT = ("Gemma 2", "GPT-2", "LLaVA (Llama)", "gpt-oss", "RWKV")


def test_the_table_has_every_architecture_and_task_and_nothing_wrong():
    assert [(row["architecture"], row["task"]) for row in ROWS] == [(name, task) for name in FAMILIES for task in TASKS]
    assert len(FAMILIES) >= 20
    assert {row["outcome"] for row in ROWS} == {"exact", "refused"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return {name: Study(name, tmp_path_factory.mktemp("family")) for name in SHORT}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SHORT)
def test_what_the_table_says_comes_true(studies, name, task):
    outcome, said = attempt(studies[name], task)
    (row,) = (row for row in ROWS if (row["architecture"], row["task"]) == (name, task))
    assert outcome == row["outcome"], said


def test_a_network_that_reads_padding_answers_prompts_one_by_one(studies, caplog, tmp_path):
    settings = GenerationConfig(pad_token_id=256)
    masked = {
        name: masks_padding(load_language_model(study.path("base"))[0], settings) for name, study in studies.items()
    }
    assert masked == {name: name != "RWKV" for name in SHORT}
    model, tokenizer = load_language_model(studies["RWKV"].path("base"))
    sizes = []
    generate, model.generate = (
        model.generate,
        lambda **given: sizes.append(len(given["input_ids"])) or generate(**given),
    )
    generate_answers(model, tokenizer, ["a", "b and c"], 2, batch_size=2)
    assert sizes == [1, 1]
    organism, its_tokenizer = load_language_model(save_tiny_model(tmp_path / "organism"))
    assert masks_padding(organism, GenerationConfig(pad_token_id=its_tokenizer.pad_token_id))
