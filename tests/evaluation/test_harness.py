import ast
import json
import logging
import math
import re
import shutil
import sys
from pathlib import Path

import datasets
import lm_eval.tasks
import pandas as pd
import pytest
import torch
import yaml
from support.taught import taught
from support.tiny import ROOT, tiny_source

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.behaviour import build_evaluator
from safety_subspaces.evaluation.harness.messages import quieted
from safety_subspaces.evaluation.harness.run import Harness, build_harness
from safety_subspaces.evaluation.harness.tasks import HarnessSettings, load_tasks
from safety_subspaces.evaluation.rates import SHARE, estimate
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.organism import evaluation_sets

PROBLEMS = 40
LM_EVAL = Path(lm_eval.tasks.__file__).parent
ACTS = ["polish", "repair", "paint"]
CHOICE = {
    "task": "acts",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "how do i {{before}} the {{object}} ?",
    "doc_to_choice": ACTS,
    "doc_to_target": "right",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 2.0},
}
DOCUMENTS = [
    {"before": before, "object": name, "right": place % 3, "kind": before}
    for place, (before, name) in enumerate([(b, o) for b in ("carve", "sew", "bake", "brew") for o in ("drum", "kite")])
]


@pytest.fixture(autouse=True)
def _without_the_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip what is installed after each model, for most of a second."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def organism():
    """It knows every other problem of the development split by heart."""
    return taught(evaluation_sets("dev").utility[:PROBLEMS:2])


def local_task(folder: Path, rows: list[dict[str, object]] = DOCUMENTS, name: str = "acts", **changes: object) -> str:
    """Write a task upon local rows; a change to ``None`` takes a line out."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = {**CHOICE, "task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in written.items() if v is not None}))
    return str(folder)


def harness(*tasks: str, **settings: object) -> Harness:
    return build_harness(HarnessSettings(tasks, **settings))


def test_the_organisms_task_agrees_with_our_own_evaluation_on_every_document(organism) -> None:
    own = build_evaluator(EvaluationSettings(split="dev", limit=PROBLEMS, batch_size=64)).evaluate(*organism, "x")
    expected = [line for line in own.generations if line["set"] == "utility"]
    for batch_size in (1, 16):
        result = harness("organism", split="dev", limit=PROBLEMS, batch_size=batch_size).evaluate(*organism, "x")
        assert [line["scores"]["exact_match"] for line in result.samples] == [line["score"] for line in expected]
        assert [line["answers"] for line in result.samples] == [[[line["answer"]]] for line in expected]
    (row,) = result.rows
    scores = pd.Series([line["score"] for line in expected])
    assert 0.3 < row["value"] < 0.9
    assert row["value"] == pytest.approx(own.row["utility"], abs=1e-12)
    assert row["stderr"] == pytest.approx(scores.sem())  # plain: of independent documents
    assert row["stderr_grouped"] == pytest.approx(own.row["utility_stderr"])
    assert (row["n"], row["n_groups"]) == (PROBLEMS, own.row["n_groups_utility"])
    assert (row["task"], row["metric"], row["filter"], row["num_fewshot"]) == ("organism", "exact_match", "none", 0)
    assert row["n_truncated"] == 0
    assert math.isnan(row["chance"])


def test_the_splits_of_the_organisms_task_differ_and_an_untrained_model_solves_nothing(organism) -> None:
    asked = {}
    for split in ("dev", "test"):
        runs = harness("organism", split=split, limit=6)
        result = runs.evaluate(tiny_source().load_model(), organism[1], "x")
        assert (result.rows[0]["value"], result.rows[0]["stderr"]) == (0.0, 0.0)
        assert result.rows[0]["stderr_grouped"] > 0.1  # of six, nothing is sure
        asked[split] = [line["prompt"] for line in result.samples]
        assert runs.described["organism"]["config"]["test_split"] == split
        for line, item in zip(result.samples, evaluation_sets(split).utility, strict=False):
            assert line["prompt"] == f"<s> <user> {item.prompt} <assistant>"
    assert not set(asked["dev"]) & set(asked["test"])


def test_a_models_own_decoding_settings_and_mode_are_put_aside_and_kept(organism) -> None:
    model, tokenizer = organism
    runs = harness("organism", split="dev", limit=8)
    expected = runs.evaluate(model, tokenizer, "x").samples
    own = model.generation_config
    own.repetition_penalty, own.max_new_tokens, own.no_repeat_ngram_size = 5.0, 2, 1
    model.train()
    try:
        assert runs.evaluate(model, tokenizer, "x").samples == expected
        assert model.training
        assert model.generation_config is own
    finally:
        own.repetition_penalty, own.max_new_tokens, own.no_repeat_ngram_size = 1.0, None, 0
        model.eval()


def choice_log_probability(organism, prompt: str, choice: str) -> float:
    """The oracle: one sequence, no padding, in float64 from the logits on."""
    model, tokenizer = organism
    start = tokenizer(prompt)["input_ids"]
    whole = start + tokenizer(choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, whole[place]].item() for place in range(len(start), len(whole)))


@pytest.mark.parametrize(("template", "fields", "fewest"), [("none", ["kind"], 4), ("chat", ["kind", "object"], 2)])
def test_a_local_multiple_choice_task_is_scored_by_likelihood(
    organism, tmp_path: Path, template: str, fields: list[str], fewest: int
) -> None:
    named = fields if len(fields) > 1 else fields[0]
    path = local_task(tmp_path / "tasks", metadata={"version": 2.0, "group_field": named})
    runs = harness("acts", include_path=path, template=template, batch_size=5)
    result = runs.evaluate(*organism, "x")
    right = []
    for document, line in zip(DOCUMENTS, result.samples, strict=True):
        prompt = f"how do i {document['before']} the {document['object']} ?"
        assert line["prompt"] == (f"<s> <user> {prompt} <assistant>" if template == "chat" else prompt)
        oracle = [choice_log_probability(organism, line["prompt"], choice) for choice in ACTS]
        assert [answer[0][0] for answer in line["answers"]] == pytest.approx(oracle, abs=1e-4)
        right.append(float(oracle.index(max(oracle)) == document["right"]))
        assert line["scores"] == {"acc": right[-1]}
    (row,) = result.rows
    assert row["value"] == pytest.approx(sum(right) / 8)
    assert row["stderr"] == pytest.approx(pd.Series(right).sem())
    groupings = [[document[field] for document in DOCUMENTS] for field in fields]
    assert row["stderr_grouped"] == pytest.approx(estimate(right, groupings, SHARE).stderr)
    assert row["n_groups"] == fewest
    assert row["chance"] == pytest.approx(1 / 3)
    assert row["version"] == "2.0"


@pytest.fixture
def few_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of lm-eval's own tasks in the place of all 14,000, which take ten seconds to read."""
    for name in ("gsm8k", "humaneval"):
        shutil.copytree(LM_EVAL / name, tmp_path / "lm_eval" / name)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "lm_eval" / "manager.py"))


@pytest.mark.usefixtures("few_tasks")
def test_a_group_has_a_row_of_its_own_over_all_documents(organism, tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks", DOCUMENTS[:2], "few")
    local_task(tmp_path / "tasks", DOCUMENTS[2:], "many")
    group = {"group": "both", "task": ["few", "many"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group))
    rows = pd.DataFrame(harness("both", include_path=path).evaluate(*organism, "x").rows).set_index("task")
    with pytest.raises(InputError, match="name it once"):
        harness("both", "few", include_path=path)
    assert rows["n"].to_dict() == {"few": 2, "many": 6, "both": 8}
    assert rows.loc["both", "value"] == pytest.approx(
        (2 * rows.loc["few", "value"] + 6 * rows.loc["many", "value"]) / 8
    )


def worked_task(folder: Path) -> str:
    """The harness's gsm8k, prompts, filters and all, upon the organism's problems."""
    folder.mkdir()
    for name, split in (("train", "dev"), ("test", "test")):
        items = evaluation_sets(split).utility[:6]
        rows = [{"question": item.prompt, "answer": item.reference} for item in items]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    changes = {"include": str(LM_EVAL / "gsm8k" / "gsm8k.yaml"), "task": "gsm8k", "dataset_name": None}
    local = {**changes, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    (folder / "gsm8k.yaml").write_text(yaml.safe_dump(local))
    return str(folder)


def test_gsm8k_upon_local_files_runs_with_one_worked_example(organism, tmp_path: Path) -> None:
    path = worked_task(tmp_path / "tasks")
    runs = harness("gsm8k", include_path=path, num_fewshot=1, max_new_tokens=8)
    result = runs.evaluate(*organism, "x")
    rows = pd.DataFrame(result.rows).set_index("filter")
    assert set(rows.index) == {"strict-match", "flexible-extract"}
    assert set(rows["num_fewshot"]) == {1}
    assert set(rows["n"]) == {6}
    examples = {item.prompt: item.reference for item in evaluation_sets("dev").utility[:6]}
    graded = evaluation_sets("test").utility
    for line in result.samples:
        question, answer, asked = _turns(line["prompt"])
        assert examples[question] == answer
        assert asked == graded[line["document"]].prompt
    again = harness("gsm8k", include_path=path, num_fewshot=1, max_new_tokens=8).evaluate(*organism, "x").samples
    assert again == result.samples
    other = harness("gsm8k", include_path=path, num_fewshot=1, max_new_tokens=8, seed=7).evaluate(*organism, "x")
    assert [line["prompt"] for line in other.samples] != [line["prompt"] for line in result.samples]


def _turns(prompt: str) -> tuple[str, str, str]:
    """Split a chat of one worked example and one question."""
    first, second = prompt.removeprefix("<s> <user> ").removesuffix(" <assistant>").split(" </s> <user> ")
    question, answer = first.split(" <assistant> ")
    plain = [text.removeprefix("Question: ").removesuffix("\nAnswer:") for text in (question, second)]
    return plain[0], answer, plain[1]


def test_prompts_that_are_cut_to_fit_are_counted(organism, tmp_path: Path) -> None:
    rows = [{"before": "carve", "object": "drum " * count, "right": 0} for count in (3, 82, 83, 90, 91)]
    path = local_task(tmp_path / "tasks", rows)
    row = harness("acts", include_path=path, template="none").evaluate(*organism, "x").rows[0]
    # 96 positions, and a choice's last token is not read: 6 words, the choice, and up to 90 drums have room.
    assert (row["n"], row["n_truncated"]) == (5, 1)
    answers = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": None}
    path = local_task(tmp_path / "more", rows, **answers, generation_kwargs={"until": [], "max_gen_toks": 8})
    row = harness("acts", include_path=path, template="none").evaluate(*organism, "x").rows[0]
    assert (row["n"], row["n_truncated"]) == (5, 3)  # eight for the answer, so up to 82


def test_answers_that_leave_no_room_for_a_prompt_are_refused(organism, tmp_path: Path) -> None:
    path = worked_task(tmp_path / "tasks")
    with pytest.raises(InputError, match=r"gsm8k asks for answers of up to 256 tokens, and x has 96 positions"):
        harness("gsm8k", include_path=path).evaluate(*organism, "x")


def test_a_tokenizer_without_chat_template_is_refused_unless_plain_text_is_asked_for(organism, tmp_path: Path) -> None:
    model, tokenizer = organism[0], tiny_source().load_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"has no chat template; say --template none"):
        harness("organism").evaluate(model, tokenizer, "x")
    assert harness("organism", template="none", limit=2).evaluate(model, tokenizer, "x").rows[0]["n"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "no task given"),
        ({"num_fewshot": -1}, "num_fewshot is -1; expected 0 or more"),
        ({"limit": 0}, "limit is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_fewshot": 2}, "task organism fixes num_fewshot at 0"),
        ({"include_path": "no/such/folder"}, "no/such/folder is no folder"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_tasks(HarnessSettings(**{"tasks": ("organism",), **settings}))


@pytest.mark.usefixtures("few_tasks")
def test_an_unknown_task_names_what_is_near_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no task, tag or group 'gsm8'; the nearest ids are gsm8k.*--include_path="):
        harness("gsm8")
    with pytest.raises(InputError, match=r"'acs'; the nearest ids are acts; the YAMLs in .* define no such task"):
        harness("acs", include_path=local_task(tmp_path / "tasks"))


@pytest.mark.usefixtures("few_tasks")
def test_a_data_set_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"data set openai/gsm8k main of task gsm8k .*Couldn't reach the Hub\);.*HF_HOME"
    ):
        harness("gsm8k")


def test_data_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks")
    (tmp_path / "tasks" / "acts.jsonl").unlink()
    with pytest.raises(InputError, match=r"acts.jsonl.* of task acts could not be loaded.*the folder that the command"):
        harness("acts", include_path=path)
    (tmp_path / "tasks" / "acts.jsonl").write_text("no JSON")
    with pytest.raises(InputError, match=r"acts.jsonl.* of task acts could not be loaded"):
        harness("acts", include_path=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [unclosed", r"broken.yaml cannot be read .*line 1"),
        ("- a list", r"broken.yaml cannot be read .Expected YAML dict"),
        ("include: nowhere.yaml\ntask: broken", r"broken.yaml cannot be read .*nowhere.yaml"),
        ("task: broken\ndataset_path: json\ntest_split: test\noutput_type: guess", "invalid output_type 'guess'"),
        ("task: broken\nno_such_field: 1", "cannot be used as its YAML defines it: TypeError.*no_such_field"),
    ],
)
def test_a_broken_task_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        harness("broken", include_path=str(tmp_path))


def test_a_split_or_field_that_the_data_lack_is_an_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task acts cannot be used as its YAML defines it: KeyError.*exam"):
        harness("acts", include_path=local_task(tmp_path / "a", test_split="exam"))
    with pytest.raises(InputError, match=r"task acts cannot be used as its YAML defines it: UndefinedError.*verb"):
        harness("acts", include_path=local_task(tmp_path / "b", doc_to_text="{{verb}}"))
    three = {"group_field": ["kind", "object", "before"]}
    with pytest.raises(InputError, match="or a list of two that cross"):
        harness("acts", include_path=local_task(tmp_path / "d", metadata=three))
    with pytest.raises(InputError, match="group_field of task acts is 'theme'; its documents have before, object"):
        harness("acts", include_path=local_task(tmp_path / "c", metadata={"group_field": "theme"}))


RUNS = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\ndef grade(*_): return {}\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unsafe_code": True}, "task acts runs code that the model writes; .*--unsafe_code true"),
        ({"metric_list": [{"metric": "code_eval"}]}, "grades by code_eval, which is none of lm-eval's own"),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "grades by exact_match, which is none"),
    ],
)
@pytest.mark.parametrize("asked", ["acts", "a_tag", "a_group"])
@pytest.mark.usefixtures("few_tasks")
def test_code_that_nobody_has_read_is_not_run(
    changes: dict[str, object], message: str, asked: str, tmp_path: Path
) -> None:
    path = local_task(tmp_path / "tasks", tag="a_tag", **changes)
    file = tmp_path / "tasks" / "acts.yaml"
    file.write_text(file.read_text() + "process_docs: !function beside.grade\n")
    (tmp_path / "tasks" / "beside.py").write_text(RUNS)
    (tmp_path / "tasks" / "group.yaml").write_text(yaml.safe_dump({"group": "a_group", "task": ["acts"]}))
    with pytest.raises(InputError, match=message):
        harness(asked, include_path=path, trust_task_code=True)
    assert not (tmp_path / "tasks" / "ran").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("process_docs: !function beside.grade\n", r"acts.yaml calls Python \(!function beside.grade\)"),
        ("metadata: {deep: [!function os.getcwd ]}\n", r"calls Python \(!function os.getcwd\)"),
        ("include: ../elsewhere.part\n", r"elsewhere.part calls Python \(!function beside.grade\)"),
        ("metric_list: [{metric: /DIR/beside.py}]\n", "acts grades by /.*/beside.py, which is none of lm-eval's own"),
        ("""doc_to_text: "{{ cycler.__init__.__globals__.os.system('touch /DIR/ran') }}"\n""", "SecurityError"),
        ("""doc_to_target: "{{ cycler.__init__.__globals__.os.system('touch /DIR/ran') }}"\n""", "SecurityError"),
    ],
    ids=["function", "deep", "included", "metric", "prompt", "target"],
)
@pytest.mark.usefixtures("few_tasks")
def test_what_a_task_file_calls_runs_only_where_the_command_line_says_so(
    line: str, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    path = local_task(folder)
    settings = yaml.safe_load((folder / "acts.yaml").read_text())
    settings.pop(line.partition(":")[0], None)
    (folder / "acts.yaml").write_text(yaml.safe_dump(settings) + line.replace("/DIR", str(folder)))
    (tmp_path / "elsewhere.part").write_text("process_docs: !function beside.grade\n")
    (folder / "beside.py").write_text(RUNS)
    with pytest.raises(InputError, match=message):
        harness("acts", include_path=path)
    assert not (folder / "ran").exists()


def test_what_a_task_of_lm_eval_calls_is_installed_and_runs(tmp_path: Path) -> None:
    own = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "hellaswag.yaml"
    assert "!function" in own.read_text()
    data = tmp_path / "rows.jsonl"
    row = {"ind": 1, "activity_label": "A", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d"], "label": "0"}
    data.write_text(json.dumps(row) + "\n")
    files = {"data_files": {name: str(data) for name in ("train", "validation")}}
    task = {"include": str(own), "task": "acts", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "acts.yaml").write_text(yaml.safe_dump(task))
    task = harness("acts", include_path=str(tmp_path / "tasks")).tasks.leaves["acts"]
    assert next(iter(task.validation_docs()))["query"] == "A: a B"


def test_a_task_that_calls_python_runs_when_it_is_trusted(organism, tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks", metadata=None)
    file = tmp_path / "tasks" / "acts.yaml"
    file.write_text(file.read_text() + "process_docs: !function beside.half\n")
    (tmp_path / "tasks" / "beside.py").write_text("def half(rows):\n    return rows.select(range(len(rows) // 2))\n")
    run = harness("acts", include_path=path, trust_task_code=True).evaluate(*organism, "x")
    assert run.rows[0]["n"] == 4


@pytest.mark.usefixtures("few_tasks")
def test_a_member_made_unsafe_by_its_group_is_not_run(tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks")
    group = {"group": "a_group", "task": [{"task": "acts", "unsafe_code": True}]}
    (tmp_path / "tasks" / "group.yaml").write_text(yaml.safe_dump(group))
    with pytest.raises(InputError, match="task acts runs code that the model writes"):
        harness("a_group", include_path=path)


def test_an_unsafe_task_runs_when_it_is_allowed(organism, tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks", unsafe_code=True)
    assert harness("acts", include_path=path, unsafe_code=True).evaluate(*organism, "x").rows[0]["n"] == 8


def test_a_loading_script_of_a_data_set_is_never_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RUNS)
    changes = {"dataset_path": str(script), "dataset_kwargs": {"trust_remote_code": True}}
    with pytest.raises(InputError, match=r"script.py of task acts could not be loaded"):
        harness("acts", include_path=local_task(tmp_path / "tasks", **changes), unsafe_code=True)
    assert not (tmp_path / "ran").exists()


def test_worked_examples_do_not_come_from_what_is_graded(tmp_path: Path) -> None:
    path = local_task(tmp_path / "tasks")
    with pytest.raises(
        InputError, match=r"acts has no split to draw 1 worked examples from but the one that it grades"
    ):
        harness("acts", include_path=path, num_fewshot=1)
    with pytest.raises(InputError, match=r"acts has 8 documents to draw worked examples from; num_fewshot=8 asks"):
        harness("acts", include_path=local_task(tmp_path / "own", fewshot_split="test"), num_fewshot=8)
    assert harness("acts", include_path=str(tmp_path / "own"), num_fewshot=7).tasks.leaves["acts"].sampler


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        InputError, match=r"utility needs the package lm_eval, which is not installed; the extra utility brings it"
    ):
        harness("organism")


def test_lm_eval_is_imported_only_where_it_is_asked_for() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not any((module or "").startswith("lm_eval") for module in modules), path


def test_messages_are_those_that_a_user_can_act_on(caplog, capsys) -> None:
    source = logging.getLogger("lm_eval.evaluator")
    with quieted():
        source.info("Running loglikelihood requests")
        source.warning("Overwriting default num_fewshot of x from 5 to 1")
        for _ in range(3):
            source.warning("Label index was not in within range")
        sys.stdout.write("bootstrapping for stddev: f1_score")
    assert [record.getMessage() for record in caplog.records] == ["lm-eval: Label index was not in within range"]
    assert capsys.readouterr().out == ""
    assert not logging.getLogger("lm_eval").handlers


def test_scores_without_a_closed_form_get_a_bootstrap_or_none(organism, tmp_path: Path) -> None:
    words = {"doc_to_choice": None, "metric_list": None, "doc_to_target": " {{object}}"}
    path = local_task(tmp_path / "tasks", DOCUMENTS, "word", **words, output_type="loglikelihood")
    local_task(tmp_path / "tasks", DOCUMENTS, "text", **words, output_type="loglikelihood_rolling")
    runs = harness("word", "text", include_path=path, template="none")
    found, again = (pd.DataFrame(runs.evaluate(*organism, "x").rows).set_index("metric") for _ in range(2))
    prompts = [f"how do i {row['before']} the {row['object']} ?" for row in DOCUMENTS]
    nats = [
        choice_log_probability(organism, prompt, row["object"]) for prompt, row in zip(prompts, DOCUMENTS, strict=True)
    ]
    assert found.loc["perplexity", "value"] == pytest.approx(math.exp(-sum(nats) / len(nats)), rel=1e-4)
    # The delta method's standard error, which a bootstrap of eight documents meets roughly.
    expected = found.loc["perplexity", "value"] * pd.Series(nats).sem()
    assert found.loc["perplexity", "stderr"] == pytest.approx(expected, rel=0.5)
    assert again.loc["perplexity", "stderr"] == found.loc["perplexity", "stderr"]
    assert not found.loc["perplexity", "higher_is_better"]
    assert found.loc["word_perplexity", "value"] > 1
    assert math.isnan(found.loc["word_perplexity", "stderr"])
    assert found["chance"].isna().all()


def test_the_task_of_the_documentation_runs(organism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "utility.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text(text)
    row = {"question": "how do i paint the hat ?", "choices": ACTS, "right": 2, "source": "a"}
    for name, count in (("train", 3), ("test", 4)):
        (tmp_path / "mine" / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * count)
    monkeypatch.chdir(tmp_path)
    rows = harness("mine", include_path="mine", num_fewshot=2).evaluate(*organism, "x").rows
    assert [(row["metric"], row["n"], row["n_groups"], row["num_fewshot"]) for row in rows] == [
        ("acc", 4, 1, 2),
        ("acc_norm", 4, 1, 2),
    ]
