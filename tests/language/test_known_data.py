"""Known data sets are read from local files of their authors' shape; offline, the error names the file to download."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from support.tiny import ANALYZE, run_command, save_tiny_model

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.behaviour import build_evaluator
from safety_subspaces.evaluation.prompt_sets import files_of, read_named_sets, read_prompt_items
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.examples import Example
from safety_subspaces.language.known_data import KNOWN
from safety_subspaces.training.data import DatasetSource
from safety_subspaces.training.data.instructions import read_source

# A few rows in the shape in which the authors of each set publish it; the words are ours.
SHAPES = {
    "metamathqa": ("jsonl", [{"query": "two and two ?", "response": "4", "type": "GSM", "original_question": "?"}]),
    "beavertails_unsafe": ("jsonl", [
        {"prompt": "how ?", "response": "so .", "category": {"theft": True}, "is_safe": False},
        {"prompt": "why ?", "response": "no .", "category": {"theft": False}, "is_safe": True},
    ]),
    "advbench": (
        "csv", 'goal,target\n"Write a ""note"", slowly\nthen fold it","Sure, here is, line\ntwo"\nplain,Sure\n'
    ),
    "toxigen": ("jsonl", [{"prompt": "- a\\n- b", "generation": "c", "group": "x", "prompt_label": 1}]),
    "math": ("jsonl", [{"problem": "p", "solution": "s", "level": "Level 1", "type": "Algebra"}]),
    "gsm8k": ("jsonl", [{"question": "q", "answer": "a #### 1"}]),
    "xstest_safe": ("csv", "id,prompt,type,label,focus,note\nv1,How do I kill a process?,homonyms,safe,kill,\n"
                           "v2,How do I hurt him?,contrast_homonyms,unsafe,hurt,\n"),
    "harmbench": ("csv", "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
                         '"Do this, then that",standard,illegal,,,a\nIn this context,contextual,illegal,,text,b\n'),
    "strongreject": ("csv", "category,source,forbidden_prompt\nHate,custom,Say it\n"),
}  # fmt: skip
SHAPES |= {"beavertails_safe": SHAPES["beavertails_unsafe"], "math_test": SHAPES["math"]}
SHAPES |= {"gsm8k_test": SHAPES["gsm8k"], "xstest_unsafe": SHAPES["xstest_safe"]}


def local(name: str, folder: Path) -> str:
    ending, content = SHAPES[name]
    path = folder / f"{name}.{ending}"
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return f"{name}@{path}"


def test_every_known_set_has_a_shape_here() -> None:
    assert set(SHAPES) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_prompts_are_read_from_a_file_of_the_same_shape(name: str, tmp_path: Path) -> None:
    items = read_prompt_items(local(name, tmp_path))
    assert len(items) == (2 if name == "advbench" else 1)
    assert all(item.prompt.strip() for item in items)
    assert (items[0].reference is None) == (KNOWN[name].response_field is None)
    assert (items[0].source is None) == (KNOWN[name].source_field is None)


def test_quoted_text_with_commas_and_newlines_is_read_whole(tmp_path: Path) -> None:
    first, second = read_prompt_items(local("advbench", tmp_path))
    assert first.prompt == 'Write a "note", slowly\nthen fold it'
    assert first.reference == "Sure, here is, line\ntwo"
    assert second.prompt == "plain"


def test_filters_of_hub_and_of_published_files_hold(tmp_path: Path) -> None:
    assert [item.prompt for item in read_prompt_items(local("beavertails_unsafe", tmp_path))] == ["how ?"]
    assert [item.prompt for item in read_prompt_items(local("beavertails_safe", tmp_path))] == ["why ?"]
    assert [item.prompt for item in read_prompt_items(local("xstest_unsafe", tmp_path))] == ["How do I hurt him?"]
    assert [item.prompt for item in read_prompt_items(local("harmbench", tmp_path))] == ["Do this, then that"]
    hub = tmp_path / "hub.jsonl"  # what the Hub has has no functional category
    hub.write_text(json.dumps({"prompt": "p", "category": "illegal"}) + "\n")
    assert [item.source for item in read_prompt_items(f"harmbench@{hub}")] == ["illegal"]


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.response_field])
def test_known_sets_are_trained_on_by_name(name: str, tmp_path: Path) -> None:
    source = DatasetSource(local(name, tmp_path))
    items = list(read_source(source, seed=0).values())
    assert all(isinstance(item, Example) for item in items)
    assert items[0].prompt
    assert items[0].response


def test_fields_that_are_named_go_before_the_known_ones(tmp_path: Path) -> None:
    source = DatasetSource(local("metamathqa", tmp_path), prompt_field="original_question", keep={"type": "GSM"})
    assert list(read_source(source, 0).values()) == [Example("?", "4")]


@pytest.mark.parametrize("name", KNOWN)
def test_the_hub_is_asked_for_id_configuration_and_split(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(path, config=None, *, split):
        asked.append((path, config, split))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError) as raised:
        read_prompt_items(name)
    known = KNOWN[name]
    assert asked == [(known.hub, known.config, known.split)]
    message = str(raised.value)
    assert f"say {name}@<path of the file>" in message
    assert (known.file or known.hub) in message


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set 'advbanch' is not known; expected one of metamathqa"):
        read_prompt_items("advbanch@rows.csv")
    with pytest.raises(InputError, match=r"rows.csv does not exist"):
        read_prompt_items("advbench@rows.csv")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("text\nhello\n")
    with pytest.raises(InputError, match=r"has no field 'goal'; its fields are text"):
        read_prompt_items(f"advbench@{wrong}")
    with pytest.raises(InputError, match="prompts alone, no answers to train on"):
        read_source(DatasetSource(local("strongreject", tmp_path)), 0)


def test_an_evaluation_takes_a_source_for_each_set(tmp_path: Path) -> None:
    sources = {name: local(known, tmp_path) for name, known in
               (("harmful", "advbench"), ("benign", "xstest_safe"), ("utility", "gsm8k_test"))}  # fmt: skip
    settings = EvaluationSettings(sources, judge="phrases", limit=1)
    prompts = build_evaluator(settings).prompts
    assert (len(prompts.harmful), len(prompts.benign), len(prompts.utility)) == (1, 1, 1)
    assert prompts.utility[0].reference == "a #### 1"
    assert len(files_of(sources)) == 3
    with pytest.raises(InputError, match="expected one or more of utility, harmful, benign"):
        read_named_sets({"bad": sources["harmful"]})
    with pytest.raises(InputError, match="prompt 0: a utility prompt needs a reference"):
        read_named_sets({"utility": sources["benign"]})
    with pytest.raises(InputError, match="say judge: phrases"):
        build_evaluator(EvaluationSettings(sources))


def test_own_files_keep_references_and_refusals_as_sets_of_their_own(tmp_path: Path) -> None:
    lines = {
        "utility": {"prompt": "two and two ?", "reference": "2 + 2 = 4 #### 4"},
        "harmful": {"prompt": "how ?", "reference": "so .", "refusals": ["no ."], "group": "g", "source": "s"},
    }
    sources = {}
    for name, line in lines.items():
        sources[name] = str(tmp_path / f"{name}.jsonl")
        Path(sources[name]).write_text(json.dumps(line) + "\n")
    sets = read_named_sets(sources)
    assert sets.utility[0].reference == "2 + 2 = 4 #### 4"
    item = sets.harmful[0]
    assert (item.reference, item.refusals, item.group, item.source) == ("so .", ("no .",), "g", "s")
    Path(sources["utility"]).write_text(json.dumps({"prompt": "p", "reference": "####"}) + "\n")
    with pytest.raises(InputError, match="no number follows"):
        read_named_sets(sources)


def test_the_command_line_evaluates_and_steers_with_a_source_for_each_set(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    sources = {name: local(known, tmp_path) for name, known in
               (("harmful", "advbench"), ("benign", "xstest_safe"), ("utility", "gsm8k_test"))}  # fmt: skip
    named = [word for name, source in sources.items() for word in (f"--prompts.{name}", source)]
    done = run_command(
        *(ANALYZE, "evaluate", "--models.one", model, *named, "--judge", "phrases", "--out", tmp_path / "a"),
        *("--max_new_tokens", 3),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = pd.read_csv(tmp_path / "a" / "table.csv").iloc[0]
    assert (row["n_utility"], row["n_benign"]) == (1, 1)
    inputs = json.loads((tmp_path / "a" / "result.json").read_text())["inputs"]
    assert len([entry for entry in inputs if isinstance(entry["sha256"], str)]) == 3  # every file by its hash
    done = run_command(
        *(ANALYZE, "steer", "--models.one", model, "--prompts.harmful", "organism:harmful", "--prompts.benign"),
        *("organism:benign", "--evaluate.prompts", json.dumps(sources), "--evaluate.judge", "phrases"),
        *("--evaluate.max_new_tokens", 3, "--strengths", "[1.0]", "--interventions", "[addition]"),
        *("--draws", 1, "--out", tmp_path / "b"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
