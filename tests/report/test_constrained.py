import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.synthetic_constrained import (
    A_TRADE,
    KEEPS_SAFETY,
    KINDS,
    LESS_SELECTIVE,
    MORE_SELECTIVE,
    NOTHING_HOLDS,
    ConstrainedRuns,
    write_constrained_study,
)
from support.synthetic_study import STAGES, write_study

from callbacks import ModelExport, SubspaceProjection
from safety_subspaces.algebra.subspace import RankRule
from safety_subspaces.artefacts.description import describe_parts
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.run_constraint import Constraint, read_constraint
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.constrained import compare_runs, constrained_runs
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.report.command import report, summary_text
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.sections.constraint.figures import constraint_figure
from safety_subspaces.report.sections.constraint.reading import control_verdict, read_constrained, safety_verdict
from safety_subspaces.report.sections.constraint.tables import comparison_table, constrained_table

SEVERAL = replace(NOTHING_HOLDS, fractions=(0.1, 0.25, 0.5))


def make(path, world=NOTHING_HOLDS, **options):
    return read_study(write_constrained_study(path / "organism-0", world, **options))


def verdicts(study, topic):
    return [finding.verdict for finding in read_constrained(study) if finding.topic == topic]


def edit(study, stage, change):
    path = study.folder / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return read_study(study.folder)


def test_constrained_runs_stand_apart_from_models_and_projections(tmp_path):
    study = make(tmp_path)
    assert set(study.constrained["stage"]) == set(KINDS)
    assert set(study.models["model"]) == set(STAGES)
    assert "constrained" not in set(study.projections["analysis"])
    assert not set(KINDS) & set(study.projections["tuned"])
    without = read_study(write_study(tmp_path / "plain" / "organism-0"))
    plain, beside = ([f.sentence for f in read(s) if "onstrain" not in f.topic] for s in (without, study))
    assert plain == beside


def test_a_study_that_was_moved_still_knows_its_runs(tmp_path):
    write_constrained_study(tmp_path / "organism-0")
    shutil.move(tmp_path / "organism-0", tmp_path / "elsewhere" / "organism-0")
    assert set(read_study(tmp_path / "elsewhere" / "organism-0").constrained["stage"]) == set(KINDS)


def test_each_run_is_read_with_what_held_it_and_beside_the_same_training_without_it(tmp_path):
    runs = constrained_runs(make(tmp_path, SEVERAL)).set_index(["constraint", "subspace", "rank"])
    assert len(runs) == 3 * (len(KINDS) + 1)
    assert set(runs["fine_tune"]) == {"contaminated"}
    assert runs.loc[("away", "random-energy", "0.1"), "stage"] == "contaminated_away_random_energy-r0.1"
    assert runs.loc[("away", "top", "0.5"), "leakage"] == 5e-15
    assert runs.loc[("onto", "top", "0.25"), "energy_inside"] == 1.0
    assert runs.loc[("none", "", "0.25"), "energy_inside"] == 0.6
    assert runs.loc[("none", "", "0.25"), "refusal_margin"] == pytest.approx(-10)


def test_another_recipe_is_no_twin(tmp_path):
    study = make(tmp_path)

    def other_rate(manifest):
        manifest["recipe_sha256"] = "another"

    for kind in KINDS:
        study = edit(study, kind, other_rate)
    runs = constrained_runs(study)
    assert set(runs["fine_tune"]) == {""}
    assert "none" not in set(runs["constraint"])
    assert set(verdicts(study, "constraint")) == {"unknown", "one run each"}
    assert "cannot be compared with a run without a constraint" in read_constrained(study)[0].sentence


def test_a_recipe_that_is_not_known_has_no_twin(tmp_path):
    study = make(tmp_path)
    for kind in ("contaminated", *KINDS):
        study = edit(study, kind, lambda manifest: manifest.pop("recipe_sha256"))
    assert set(constrained_runs(study)["fine_tune"]) == {""}


def constraint_of(*parts):
    return read_constraint({"parts": describe_parts(parts)})


def test_observing_and_several_constraints_are_no_constraint_of_the_experiment():
    projection = SubspaceProjection("a/s.safetensors")
    assert constraint_of(projection).rank == "of s.safetensors"
    assert constraint_of(projection, projection) is None
    assert constraint_of(SubspaceProjection("a/s.safetensors", mode="observe")) is None
    assert constraint_of(projection, SubspaceProjection("a/s.safetensors", mode="observe")).mode == "away"
    for manifest in ({}, {"parts": []}, {"parts": [{"part": "callbacks.SubspaceProjection"}]}):
        assert read_constraint(manifest) is None


def test_a_constraint_is_known_by_what_it_says_and_not_by_its_name():
    class Defence(SubspaceProjection):
        """Of another name, with settings and defaults of its own."""

        def __init__(self, keep: float = 0.75) -> None:
            super().__init__(base="b", aligned="a", rank=RankRule(fraction=1 - keep), mode="onto", side="right")

    class Elsewhere:
        def describe(self):
            facts = {"mode": "away", "subspace": "random", "rank": "3 neurons", "fraction": None, "details": ""}
            return {"constraint": facts}

    constraint = constraint_of(ModelExport(), Defence())
    assert constraint == Constraint("onto", "top", "0.25", 0.25, "side right")
    other = constraint_of(Elsewhere())
    assert (other.subspace, other.rank) == ("random", "3 neurons")
    assert math.isnan(other.fraction)


def test_a_constraint_that_leaves_out_a_fact_is_refused():
    with pytest.raises(InputError, match="expected mode, subspace, rank, fraction, details"):
        read_constraint({"parts": [{"constraint": {"mode": "away"}}]})


def test_every_setting_that_weakens_a_constraint_is_said_and_no_default_is():
    rank = RankRule(energy=0.9)
    changed = {"constrain": "gradient", "side": "right", "types": ["q"], "layers": [1], "patterns": ["*.mlp.*"]}
    changed |= {"strength": 0.5, "start_step": 3, "ramp_steps": 7}
    constraint = constraint_of(SubspaceProjection(base="b", aligned="a", rank=rank, seed=4, every_n_steps=9, **changed))
    assert constraint.rank == "energy 0.9"
    assert constraint.details == (
        "constrain gradient, side right, types ['q'], layers [1], patterns ['*.mlp.*'], strength 0.5, start_step 3, "
        "ramp_steps 7"
    )


def test_a_manifest_that_says_nothing_of_its_parts_is_refused(tmp_path):
    study = make(tmp_path)
    with pytest.raises(InputError, match=r"contaminated_away/manifest\.json has no `parts`.*train the run again"):
        edit(study, "contaminated_away", lambda manifest: manifest.pop("parts"))


def test_a_weaker_constraint_is_told_apart_and_compared_with_its_own_controls(tmp_path):
    study = make(tmp_path)

    def weaken(manifest):
        manifest["parts"][-1]["constraint"]["details"] = "constrain gradient, strength 0.5"

    study = edit(study, "contaminated_away", weaken)
    run = constrained_runs(study).set_index("stage").loc["contaminated_away"]
    assert run["details"] == "constrain gradient, strength 0.5"
    compared = compare_runs(study)
    assert set(compared[compared["constraint"] == "away"]["other"]) == {"aligned", "none"}
    assert "away, constrain gradient, strength 0.5" in constrained_table(study).to_text(200)


def test_differences_and_their_errors_are_those_of_the_two_rows(tmp_path):
    study = make(tmp_path, MORE_SELECTIVE)
    row = compare_runs(study).set_index(["constraint", "other"]).loc[("away", "random")]
    runs = constrained_runs(study).set_index("stage")
    top, other = runs.loc["contaminated_away"], runs.loc["contaminated_away_random"]
    assert row["refusal_margin_difference"] == pytest.approx(3.0)
    assert row["utility_error"] == pytest.approx(math.hypot(top["utility_stderr"], other["utility_stderr"]))


@pytest.mark.parametrize(
    ("world", "safety", "controls"),
    [
        (NOTHING_HOLDS, "not kept", "no difference"),
        (KEEPS_SAFETY, "kept", "no difference"),
        (ConstrainedRuns(margin=0.3), "kept in part", "no difference"),
        (MORE_SELECTIVE, "not kept", "more selective"),
        (LESS_SELECTIVE, "not kept", "less selective"),
        (A_TRADE, "not kept", "trade"),
        (ConstrainedRuns(learnt_more=-0.4), "not kept", "less selective"),
    ],
)
def test_each_outcome_of_the_experiment_can_come_out(tmp_path, world, safety, controls):
    study = make(tmp_path, world)
    assert verdicts(study, "constraint") == [safety, safety, "one run each"]
    assert verdicts(study, "constraint controls") == [controls, controls]


def test_the_answer_names_the_cost_and_that_one_run_is_no_error_bar(tmp_path):
    study = make(tmp_path, replace(KEEPS_SAFETY, utility=0.35))
    said = answer(read(study))
    assert "Held away from the alignment subspace, fine-tuning kept safety, with 0 % of the gain in utility." in said
    assert "one run each" in said
    sentence = next(f.sentence for f in read_constrained(study) if f.verdict == "one run each")
    assert "over prompts" in sentence
    assert "none is an error bar over seeds" in sentence


def test_several_fractions_are_counted_and_all_their_numbers_said(tmp_path):
    study = make(tmp_path, SEVERAL)
    away = read_constrained(study)[0]
    assert "(fraction 0.1, 0.25, 0.5)" in away.sentence
    assert away.sentence.count("-6.00 ± 0.20") == 3
    study.constrained.loc[study.constrained["stage"] == "contaminated_away-r0.5", "harm_score"] = 1.0
    finding = read_constrained(study)[0]
    assert finding.verdict == "mixed"
    assert "did not keep safety in 2 of 3, kept safety in 1 of 3" in finding.headline


def test_unscored_measures_are_unknown_and_never_a_number(tmp_path):
    study = make(tmp_path)
    study.constrained[["harm_score", "refusal_margin", "utility"]] = math.nan
    findings = read_constrained(study)
    assert [finding.verdict for finding in findings[:-1]] == ["unknown"] * 4
    assert "nan" not in " ".join(finding.sentence for finding in findings)
    assert "nan" not in constrained_table(study).to_text() + comparison_table(study).to_text()


def test_where_fine_tuning_lost_nothing_there_is_nothing_to_keep():
    assert safety_verdict(harm=1.0, aligned=1.0, unconstrained=1.5) == "nothing to keep"
    assert safety_verdict(harm=1.0, aligned=1.0, unconstrained=5.0) == "kept"
    assert safety_verdict(harm=4.9, aligned=1.0, unconstrained=5.0) == "not kept"
    assert safety_verdict(harm=math.nan, aligned=1.0, unconstrained=5.0) == "unknown"


def test_a_spared_margin_that_costs_utility_is_a_trade():
    up, down, none = Interval(1.0, 0.5, 1.5, 3), Interval(-1.0, -1.5, -0.5, 3), Interval(0.0, -1.0, 1.0, 3)
    assert control_verdict(up, none) == control_verdict(none, up) == control_verdict(up, up) == "more selective"
    assert control_verdict(down, none) == "less selective"
    assert control_verdict(up, down) == control_verdict(down, up) == "trade"
    assert control_verdict(none, none) == "no difference"
    one_prompt = Interval(-1 / 256, -1 / 256, -1 / 256, 2)
    assert control_verdict(none, one_prompt) == "no difference"
    assert control_verdict(Interval(1.0, math.nan, math.nan, 1), up) == "unknown"


def test_the_chart_has_every_run_once_a_panel_with_its_bars(tmp_path):
    study = make(tmp_path, SEVERAL)
    runs = constrained_runs(study)
    for axis, measure in (("y", "harm_score"), ("y2", "refusal_margin")):
        traces = [t for t in constraint_figure(study).data if t.yaxis in (axis, None) and t.customdata is not None]
        traces = [t for t in traces if (t.yaxis or "y") == axis]
        assert sum(len(t.x) for t in traces) == 3 * len(KINDS) + 1  # the unconstrained run once
        away = next(t for t in traces if t.name == "away, random, equal energy")
        rows = runs[runs["subspace"] == "random-energy"].sort_values("fraction")
        np.testing.assert_allclose(np.asarray(away.y, float), rows[measure])
        np.testing.assert_allclose(np.asarray(away.error_y.array, float), rows[f"{measure}_stderr"])
        np.testing.assert_allclose(np.asarray(away.error_x.array, float), rows["utility_stderr"])
        assert list(away.marker.size) == sorted(away.marker.size)


def test_an_aligned_model_far_from_the_runs_is_named_and_does_not_press_them_flat(tmp_path):
    figure = constraint_figure(make(tmp_path))
    assert figure.layout.yaxis2.range[1] < 0
    assert any(note.text == "aligned at 10.00, above" for note in figure.layout.annotations)
    near = constraint_figure(make(tmp_path / "near", ConstrainedRuns(margin=12.0)))
    assert [note.text for note in near.layout.annotations] == ["aligned", "aligned"]


def test_page_and_terminal_show_the_experiment(tmp_path):
    study = make(tmp_path, SEVERAL)
    text = report(str(study.folder)).path.read_text()
    assert 'id="chart-constraint"' in text
    assert "Beside random subspaces" in text
    assert "No run under a constraint was evaluated" not in text
    terminal = summary_text(study)
    assert "Training under a constraint" in terminal
    assert max(map(len, terminal.splitlines())) <= 110
    assert "random (energy)" in terminal


def test_answers_of_one_label_in_several_analyses_are_kept_apart(tmp_path):
    study = make(tmp_path, SEVERAL)
    line = json.dumps({"model": "contaminated_away", "set": "utility", "prompt": "p", "answer": "a", "score": 1.0})
    for label in ("constrained", "constrained-r0.1"):
        (study.folder / "analysis" / "evaluate" / label / "generations.jsonl").write_text(line)
    text = report(str(study.folder)).path.read_text()
    assert "contaminated_away (constrained-r0.1)</summary>" in text


def test_a_study_without_constrained_runs_names_the_next_step(tmp_path):
    folder = write_study(tmp_path / "s")
    assert "--config configs/organism/contaminated_away.yaml" in report(str(folder)).path.read_text()
    folder = write_constrained_study(tmp_path / "organism-0")
    shutil.rmtree(folder / "analysis" / "evaluate" / "constrained")
    assert "analyze.py evaluate --models" in report(str(folder)).path.read_text()
