import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.taught import taught
from support.tiny import ANALYZE, run_command, save_tiny_model

from safety_subspaces.analysis.evaluate.command import evaluate
from safety_subspaces.analysis.utility.command import utility
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.organism import evaluation_sets

PROBLEMS = 24
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "how do i paint the {{thing}} ?"
doc_to_choice: [sure, sorry, psst]
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One that has learnt half of the problems, and one that has learnt nothing."""
    folder = tmp_path_factory.mktemp("models")
    for part in taught(evaluation_sets("test").utility[:PROBLEMS:2]):
        part.save_pretrained(folder / "half")
    return {"half": str(folder / "half"), "nothing": save_tiny_model(folder / "nothing")}


@pytest.fixture
def include_path(tmp_path: Path) -> str:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"thing": thing, "right": place % 3} for place, thing in enumerate(("drum", "kite", "hat", "rug"))]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(TASK.replace("DATA", str(folder / "colours.jsonl")))
    return str(folder)


def test_utility_of_the_organism_is_that_of_evaluate(models: dict[str, str], tmp_path: Path) -> None:
    table = utility(models, str(tmp_path / "u"), limit=PROBLEMS).set_index("model")
    own = evaluate(models, str(tmp_path / "e"), limit=PROBLEMS).set_index("model")
    assert table["value"].tolist() == pytest.approx(own["utility"].tolist())
    assert table["stderr_grouped"].tolist() == pytest.approx(own["utility_stderr"].tolist())
    assert 0.3 < table.loc["half", "value"] < 0.9
    assert table.loc["nothing", "value"] == 0
    lines = [json.loads(line) for line in (tmp_path / "u" / "samples.jsonl").read_text().splitlines()]
    generations = [json.loads(line) for line in (tmp_path / "e" / "generations.jsonl").read_text().splitlines()]
    expected = [(line["model"], line["answer"], line["score"]) for line in generations if line["set"] == "utility"]
    assert [(line["model"], line["answers"][0][0], line["scores"]["exact_match"]) for line in lines] == expected


def test_a_result_names_tasks_versions_and_inputs(models: dict[str, str], include_path: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = utility(models, str(out), ["colours", "organism"], include_path, limit=3)
    assert table[["model", "task"]].values.tolist() == [[m, t] for m in models for t in ("colours", "organism")]
    assert pd.read_parquet(out / "table.parquet").equals(table)
    result = json.loads((out / "result.json").read_text())
    assert result["summary"]["lm_eval"] == "0.4.13"
    colours = result["summary"]["tasks"]["colours"]
    assert colours["documents"] == {"original": 4, "effective": 3}
    assert colours["config"]["doc_to_choice"] == ["sure", "sorry", "psst"]
    assert [Path(entry["path"]).name for entry in result["inputs"]] == ["half", "nothing", "colours.yaml"]
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["tasks"], settings["limit"], settings["seed"]) == (["colours", "organism"], 3, 0)
    with pytest.raises(InputError, match="already holds results"):
        utility(models, str(out))
    assert len(utility(models, str(out), limit=1, overwrite=True)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "no model given"),
        ({"models": {"a": "./nowhere"}}, "model folder ./nowhere does not exist"),
        ({"include_path": "nowhere"}, "nowhere is no folder"),
        ({"tasks": []}, "no task given"),
        ({"limit": 0}, "limit is 0"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    arguments: dict[str, object],
    message: str,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safety_subspaces.language.model.load_language_model", None)
    with pytest.raises(InputError, match=message):
        utility(**{"models": models, "out": str(tmp_path / "out"), **arguments})
    assert not (tmp_path / "out").exists()


def test_a_missing_chat_template_or_an_occupied_folder_is_refused_before_a_model_is_loaded(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Path(save_tiny_model(tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    monkeypatch.setattr("safety_subspaces.language.model.load_language_model", None)
    with pytest.raises(InputError, match=r"bare has no chat template; say --template none"):
        utility({**models, "bare": str(bare)}, str(tmp_path / "out"))
    with pytest.raises(InputError, match="holds something else"):
        utility(models, str(tmp_path / "full"))


def test_the_command_prints_the_table_and_little_else(
    models: dict[str, str], include_path: str, tmp_path: Path
) -> None:
    options = [f"--models.{label}={path}" for label, path in models.items()]
    local = [f"--include_path={include_path}", "--tasks=[organism,colours]", "--limit=4", "--device=cpu"]
    done = run_command(ANALYZE, "utility", *options, *local, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr[-2000:]
    header, _, *rows = done.stdout.splitlines()
    assert header.split()[:5] == ["model", "task", "metric", "filter", "value"]
    assert [row.split()[:2] for row in rows[:4]] == [[m, t] for m in models for t in ("organism", "colours")]
    assert rows[-1] == f"result: {tmp_path / 'out'}"
    lines = done.stderr.replace("\r", "\n").splitlines()
    said = [line for line in lines if line.strip() and not line.endswith(("it/s]", "examples/s]"))]  # but for bars
    assert said == ["lm-eval of half (1 of 2)", "lm-eval of nothing (2 of 2)"]
    one = run_command(ANALYZE, "utility", options[0], "--tasks=organism", "--limit=0", f"--out={tmp_path / 'no'}")
    assert (one.returncode, one.stderr) == (2, "error: limit is 0; expected at least 1\n")
