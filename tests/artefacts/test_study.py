import inspect
import json
import math
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support.synthetic_study import STAGES, write_study

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.next_step import command_for, command_for_own
from safety_subspaces.artefacts.places import COMPARISON_FILE
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.artefacts.study_files import MEASURES
from safety_subspaces.command_line import ANALYSES
from safety_subspaces.findings.comparisons import (
    in_blocks,
    overlap_by,
    selectivity_by_draw,
)


def test_reads_every_stage_with_its_scalars_and_every_table(tmp_path):
    study = read_study(write_study(tmp_path / "organism-0"))
    assert study.name == "organism-0"
    assert {stage.name for stage in study.stages} == set(STAGES)
    assert [stage.name for stage in study.stages][:3] == ["base", "aligned", "useful"]
    base = study.stages[0]
    assert len(base.scalars["train/loss"]) == 120
    assert base.scalars["train/loss"]["step"].tolist() == list(range(0, 1200, 10))
    assert {result.command for result in study.results} == {"evaluate", "project", "overlap"}
    assert len(study.of("evaluate")[0].generations) == 8 * 3 * 5
    assert study.missing() == {}


def test_seeds_leave_out_repeats_of_a_stage(tmp_path):
    assert read_study(write_study(tmp_path / "one")).seeds == (0,)


def test_a_study_with_stages_alone_names_a_command_for_each_missing_analysis(tmp_path):
    study = read_study(write_study(tmp_path / "half", analyses=()))
    assert set(study.missing()) == {"evaluate", "project", "overlap"}
    for name, command in study.missing().items():
        assert command.startswith(f"python analyze.py {name} ")
        assert str(tmp_path / "half" / "aligned" / "model") in command
    assert study.models.empty
    assert not study.has_evaluated_projections


def test_the_next_command_for_models_of_ones_own_has_options_that_there_are(tmp_path):
    given = [{"base": "b", "aligned": "a", "tuned": {"x": "t"}}]
    for name in ("evaluate", "project", "overlap", "compare"):
        if name == "compare":
            (tmp_path / COMPARISON_FILE).touch()
        _, script, called, *options = shlex.split(
            command_for_own(tmp_path, "overlap" if name == "compare" else name, given)
        )
        assert (script, called) == ("analyze.py", name)
        known = inspect.signature(ANALYSES.load(name)).parameters
        assert {option[2:].partition(".")[0] for option in options[::2]} <= set(known)


def test_results_recorded_by_earlier_names_of_arguments_are_read_as_the_present_ones(tmp_path):
    folder = write_study(tmp_path / "s")
    present = read_study(folder)
    (result,) = present.of("overlap")
    config = result.folder / "config.yaml"
    for earlier, name in (("reference", "aligned"), ("updates", "tuned")):
        assert f"{name}:" in config.read_text()
        config.write_text(config.read_text().replace(f"{name}:", f"{earlier}:"))
    before = read_study(folder)
    assert before.of("overlap")[0].arguments == result.arguments
    pd.testing.assert_frame_equal(before.overlaps, present.overlaps)


def test_projections_without_evaluation_have_nan_measures_and_are_not_missing(tmp_path):
    study = read_study(write_study(tmp_path / "bare", evaluated=False))
    assert "project" not in study.missing()
    assert study.projections[list(MEASURES)].isna().all(axis=None)
    assert study.projections["energy_kept"].notna().all()


def test_csv_alone_reads_as_parquet_does(tmp_path):
    folder = write_study(tmp_path / "both")
    parquet = read_study(folder)
    for path in folder.glob("analysis/*/*/*.parquet"):
        path.unlink()
    csv = read_study(folder)
    assert csv.overlaps["floor"].tolist() == parquet.overlaps["floor"].tolist()
    assert csv.models["harm_score"].tolist() == pytest.approx(parquet.models["harm_score"].tolist())


def test_two_project_runs_keep_their_groups_apart_and_their_reference_models(tmp_path):
    folder = write_study(tmp_path / "two")
    shutil.copytree(folder / "analysis/project/main", folder / "analysis/project/dpo")
    study = read_study(folder)
    assert set(study.projections["group"]) == {
        f"{tuned} ({run})" for tuned in ("useful", "harmful", "contaminated") for run in ("main", "dpo")
    }
    assert set(study.projections["aligned_model"]) == {"aligned"}
    assert set(study.projections["tuned_model"]) == {"useful", "harmful", "contaminated"}


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_that_is_no_study_is_one_error_with_a_command(tmp_path, kind):
    folder = tmp_path / "nothing"
    if kind == "empty":
        (folder / "notes").mkdir(parents=True)
    with pytest.raises(InputError, match="make demo"):
        read_study(folder)


def test_the_folder_above_studies_names_them(tmp_path):
    write_study(tmp_path / "runs" / "organism-0", analyses=())
    with pytest.raises(InputError, match="organism-0"):
        read_study(tmp_path / "runs")


def test_a_table_without_its_columns_is_an_error_that_names_them(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    (folder / "analysis/evaluate/main/table.parquet").unlink()
    (folder / "analysis/evaluate/main/table.csv").write_text("label,utility\nbase,0.5\n")
    with pytest.raises(InputError, match="no column model"):
        read_study(folder)


def test_a_broken_table_and_a_broken_line_are_errors_that_name_the_file(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    answers = folder / "analysis/evaluate/main/generations.jsonl"
    whole = answers.read_text()
    answers.write_text(whole + "{broken\n")
    with pytest.raises(InputError, match="line 121"):
        read_study(folder)
    answers.write_text(whole)
    (folder / "analysis/evaluate/main/table.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"table\.parquet"):
        read_study(folder)


def test_unfinished_result_folders_are_not_read(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    (folder / "analysis/evaluate/.later.partial-1").mkdir()
    (folder / "analysis/project/empty").mkdir(parents=True)
    study = read_study(folder)
    assert [result.label for result in study.results] == ["main"]
    assert "project" in study.missing()


@pytest.mark.parametrize(
    ("stages", "analysis", "config"),
    [
        ((), "evaluate", "pretrain"),
        ((), "project", "pretrain"),
        (("aligned", "useful"), "project", "pretrain"),
        (("base", "useful"), "project", "align"),
        (("base", "aligned", "aligned_dpo"), "project", "useful"),
        (("base", "useful", "harmful"), "overlap", "align"),
        (("base", "aligned", "aligned_dpo", "useful"), "overlap", "harmful"),
        (("aligned", "harmful"), "overlap", "useful"),
    ],
)
def test_an_analysis_that_cannot_run_yet_names_the_training_of_the_missing_stage(tmp_path, stages, analysis, config):
    (tmp_path / "s").mkdir()
    folder = write_study(tmp_path / "s", analyses=(), stages=stages)
    command = command_for(folder, analysis)
    assert command == f"python train.py fit --config configs/organism/{config}.yaml --study {folder}"


def test_the_study_that_configs_write_to_needs_no_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_study(Path("runs/organism-0"), analyses=(), stages=("base",))
    assert command_for(folder, "project") == "python train.py fit --config configs/organism/align.yaml"


def test_stages_that_fine_tunes_start_from_are_no_fine_tunes(tmp_path):
    stages = ("base", "base_large", "aligned", "aligned_dpo", "useful", "harmful_lora")
    folder = write_study(tmp_path / "s", analyses=(), stages=stages)
    for analysis in ("project", "overlap"):
        words = shlex.split(command_for(folder, analysis))
        assert set(json.loads(words[words.index("--tuned") + 1])) == {"useful", "harmful_lora"}
    words = shlex.split(command_for(folder, "evaluate"))
    assert set(json.loads(words[words.index("--models") + 1])) == set(stages)


def retell(folder, stage, **changed):
    manifest = json.loads((folder / stage / "manifest.json").read_text())
    (folder / stage / "manifest.json").write_text(json.dumps(manifest | changed))


def test_stages_are_known_by_their_role_and_not_by_their_name(tmp_path):
    names = {"base": "start", "aligned": "kind", "useful": "aligned_sums", "harmful": "base_facts"}
    folder = write_study(tmp_path / "s", analyses=(), stages=tuple(names))
    for stage, name in names.items():
        (folder / stage).rename(folder / name)
    study = read_study(folder)
    assert {stage.name: stage.role for stage in study.stages} == {
        "start": "base", "kind": "aligned", "aligned_sums": "tuned", "base_facts": "tuned"
    }  # fmt: skip
    assert [stage.name for stage in study.stages][:2] == ["start", "kind"]
    words = shlex.split(command_for(folder, "project"))
    assert [words[words.index(flag) + 1] for flag in ("--base", "--aligned")] == [
        str(folder / "start" / "model"), str(folder / "kind" / "model")
    ]  # fmt: skip
    assert set(json.loads(words[words.index("--tuned") + 1])) == {"aligned_sums", "base_facts"}


def test_a_model_without_a_manifest_is_the_base_where_alignment_started_from_it(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("aligned",))
    for name in ("hub_model", "other"):
        (folder / name / "model").mkdir(parents=True)
    retell(
        folder, "aligned", run_dir="elsewhere/then/aligned", parts=[{"starts_from": "elsewhere/then/hub_model/model"}]
    )
    assert {stage.name: stage.role for stage in read_study(folder).stages} == {
        "hub_model": "base", "aligned": "aligned", "other": ""
    }  # fmt: skip


def test_the_aligned_model_is_the_stage_of_that_role_or_what_fine_tunes_start_from(tmp_path):
    stages = ("base", "aligned", "useful")
    folder = write_study(tmp_path / "s", analyses=("evaluate",), stages=stages)
    assert read_study(folder).aligned["model"] == "aligned"
    retell(folder, "aligned", role="tuned", parts=[])
    retell(folder, "useful", parts=[])
    assert read_study(folder).aligned is None
    retell(folder, "useful", parts=[{"starts_from": str(folder / "base" / "model")}])
    assert read_study(folder).aligned["model"] == "base"


def test_commands_quote_paths_with_spaces(tmp_path):
    folder = write_study(tmp_path / "a b", analyses=(), stages=("base", "aligned", "useful"))
    assert f"'{folder / 'base' / 'model'}'" in command_for(folder, "project")


def test_selectivity_is_top_minus_each_evaluated_draw_of_its_own_energy(tmp_path):
    projections = read_study(write_study(tmp_path / "s")).projections
    cell = (projections["group"] == "harmful") & (projections["method"] == "away") & (projections["fraction"] == 0.25)
    drawn = projections[cell & (projections["subspace"] == "random-energy")]
    assert len(drawn) == 4
    missed, unscored, *kept = drawn.index
    top = projections[cell & (projections["subspace"] == "top")].iloc[0]
    projections.loc[drawn.index, "energy_kept"] = top["energy_kept"]
    projections.loc[missed, "energy_kept"] += 0.03
    projections.loc[unscored, ["utility", "harm_score", "refusal_margin"]] = math.nan
    rows = selectivity_by_draw(projections)
    rows = rows[(rows["group"] == "harmful") & (rows["method"] == "away") & (rows["fraction"] == 0.25)]
    assert rows["draw"].tolist() == projections.loc[kept, "draw"].tolist()
    expected = top["refusal_margin"] - projections.loc[kept, "refusal_margin"].astype(float)
    assert rows["refusal_margin"].tolist() == pytest.approx(expected.tolist())


def test_overlap_averages_count_tensors_and_undefined_ones(tmp_path):
    overlaps = read_study(write_study(tmp_path / "s")).overlaps
    blocks = in_blocks(overlaps)
    assert set(blocks["type"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert (overlap_by(blocks)["n"] == 28).all()
    norms = overlap_by(overlaps, "type").query("type == 'norm'")
    assert (norms["n"] == 3).all()
    assert (norms["n_undefined"] == 1).all()


def test_models_trained_elsewhere_have_the_analysis_or_the_comparison_as_next_step(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("project",), stages=())
    command = read_study(folder).missing()["overlap"]
    assert command.startswith(f"python analyze.py overlap --aligned {folder / 'aligned' / 'model'} --tuned ")
    (folder / "compare.json").write_text("{}")
    command = read_study(folder).missing()["evaluate"]
    assert command.startswith(f"python analyze.py compare --base {folder / 'base' / 'model'} --aligned ")
    assert f"--tuned.harmful {folder / 'harmful' / 'model'}" in command
    assert command.endswith(f"--prompts PROMPTS.jsonl --out {folder}")
    assert "train.py" not in "".join(read_study(folder).missing().values())
