import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_study import ENERGY_EXPLAINS_ALL, NOTHING_WORKS, TOP_IS_SELECTIVE, World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.intervals import t_interval
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.sections.energy.reading import read_energy, read_selectivity
from safety_subspaces.report.sections.models.reading import read_alignment, read_limits
from safety_subspaces.report.sections.overlap.reading import read_overlap


def make(path, world, **options):
    return read_study(write_study(path / "s", world, **options))


def verdicts(findings, topic):
    return [finding.verdict for finding in findings if finding.topic == topic]


def first(findings, topic):
    return next(finding for finding in findings if finding.topic == topic)


def test_where_energy_explains_all_the_reading_says_so(tmp_path):
    findings = read(make(tmp_path, ENERGY_EXPLAINS_ALL))
    assert verdicts(findings, "alignment") == ["learnt"]
    assert verdicts(findings, "utility") == ["grew"]
    assert set(verdicts(findings, "energy")) == {"orders"}
    assert verdicts(findings, "selectivity")[0] == "no difference"
    assert verdicts(findings, "overlap")[0] == "distinct"
    said = answer(findings)
    assert "no difference that 4 draws can show" in said
    assert "One seed: an anecdote, `make demo SEED=1` adds another." in said


def test_where_top_k_is_selective_the_reading_says_more_selective(tmp_path):
    findings = read(make(tmp_path, TOP_IS_SELECTIVE))
    assert set(verdicts(findings, "selectivity")) == {"more selective"}
    assert "mean of 24 configurations (24 positive, 0 negative)" in first(findings, "selectivity").sentence
    assert verdicts(findings, "overlap")[0] == "shared"


def test_where_top_k_is_the_wrong_way_round_the_reading_says_less_selective(tmp_path):
    findings = read(make(tmp_path, World(selectivity=-6.0)))
    assert set(verdicts(findings, "selectivity")) == {"less selective"}
    assert "less selective" in answer(findings)


def test_where_nothing_works_the_reading_says_so(tmp_path):
    findings = read(make(tmp_path, NOTHING_WORKS))
    assert verdicts(findings, "alignment") == ["not learnt"]
    assert verdicts(findings, "loss") == []  # nothing to lose
    assert verdicts(findings, "utility") == ["did not grow"]
    assert set(verdicts(findings, "energy")) <= {"does not order", "unknown"}
    assert verdicts(findings, "selectivity")[0] == "no difference"


def test_more_draws_show_a_difference_that_few_cannot(tmp_path):
    said = {}
    for draws in (2, 64):  # one draw differs from another by 0.4 nats
        finding = first(read(make(tmp_path / str(draws), World(selectivity=0.3, draws=draws))), "selectivity")
        said[draws] = finding.verdict
        assert f"over {draws} draws" in finding.sentence
        assert "seeds of training are not covered" in finding.sentence
    assert said == {2: "no difference", 64: "more selective"}


def test_the_interval_is_over_draws_however_many_configurations_share_them(tmp_path):
    study = make(tmp_path, World(selectivity=0.3))
    projections = study.projections[study.projections["group"] == "harmful"]
    rows = projections[projections["subspace"].isin(["top", "random-energy"])].set_index(["method", "fraction", "draw"])
    top, drawn = (rows[rows["subspace"] == name]["refusal_margin"] for name in ("top", "random-energy"))
    signs = {"away": 1, "onto": -1}
    by_draw = [
        np.mean([signs[m] * (top[m, f, 0] - drawn[m, f, d]) for m in signs for f in (0.1, 0.25, 0.5, 0.75)])
        for d in range(4)
    ]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(by_draw), scale=stats.sem(by_draw))
    sentence = read_selectivity(projections)[0].sentence
    assert f"{np.mean(by_draw):+.2f} (95 % interval over 4 draws {low:+.2f} to {high:+.2f})" in sentence


def test_without_selectivity_a_verdict_comes_out_by_chance_in_about_one_study_of_twenty():
    random = np.random.default_rng(0)
    cells = [(method, fraction) for method in ("onto", "away") for fraction in (0.25, 0.5, 0.75)]
    wrong = 0
    for _ in range(100):
        drawn = random.normal(size=3)  # shared by all configurations
        rows = [
            {"group": "g", "subspace": subspace, "method": method, "fraction": fraction, "draw": draw}
            | {"energy_kept": fraction, "utility": 0.5, "harm_score": 2.0}
            | {"refusal_margin": (drawn[draw] if method == "away" else -drawn[draw]) * (subspace != "top")}
            for method, fraction in cells
            for subspace, draws in (("top", 1), ("random-energy", 3))
            for draw in range(draws)
        ]
        wrong += read_selectivity(pd.DataFrame(rows))[0].verdict != "no difference"
    assert wrong <= 11  # of 100: 5 expected, 3 standard deviations above


def test_which_fine_tunes_lost_alignment_is_named(tmp_path):
    sentence = first(read(make(tmp_path, ENERGY_EXPLAINS_ALL)), "loss").sentence
    lost, kept = sentence.split(";")[0], sentence.split(";")[1].split(".")[0]
    assert "harmful" in lost
    assert "contaminated_lora" in lost
    assert kept.strip() == "kept by useful, useful_again"


def test_a_fine_tune_in_between_lost_alignment_in_part(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    study.models.loc[study.models["model"] == "useful", "harm_score"] = 2.0
    study.models.loc[study.models["model"] == "harmful", "harm_score"] = math.nan
    sentence = first(read_alignment(study.models), "loss").sentence
    assert "lost in part by useful;" in sentence
    assert "unknown for harmful" in sentence


def test_spearman_agrees_with_scipy_and_names_n(tmp_path):
    study = make(tmp_path, replace(ENERGY_EXPLAINS_ALL, seed=3))
    rows = study.projections[study.projections["group"] == "harmful"]
    rho = stats.spearmanr(rows["energy_kept"], rows["harm_score"]).statistic
    sentence = next(f.sentence for f in read_energy(study.projections) if f.sentence.startswith("harmful:"))
    assert f"harm score {rho:+.2f} (n = {len(rows)})" in sentence


def test_nan_rows_are_dropped_and_counted(tmp_path):
    study = make(tmp_path, replace(ENERGY_EXPLAINS_ALL, unscored_rows=100))
    findings = read_energy(study.projections)
    counted = [int(finding.sentence.split(" of them without")[0].split()[-1]) for finding in findings]
    assert sum(counted) == 100
    assert all("nan" not in finding.sentence for finding in read(study))


def test_projections_that_were_not_evaluated_leave_the_questions_open(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL, evaluated=False)
    assert set(verdicts(read(study), "energy")) == {"unknown"}
    assert set(verdicts(read(study), "selectivity")) == {"unknown"}


def test_a_study_without_analyses_says_what_is_missing(tmp_path):
    findings = read(make(tmp_path, ENERGY_EXPLAINS_ALL, analyses=()))
    assert verdicts(findings, "alignment") == ["unknown"]
    assert verdicts(findings, "selectivity") == ["unknown"]
    assert verdicts(findings, "overlap") == ["unknown"]
    assert "cannot be told" in answer(findings)


def test_one_draw_has_no_spread_and_gives_no_verdict(tmp_path):
    findings = read(make(tmp_path, replace(TOP_IS_SELECTIVE, draws=1)))
    assert set(verdicts(findings, "selectivity")) == {"unknown"}
    assert "one draw of the control has no spread" in first(findings, "selectivity").sentence
    assert "one draw of the control has no spread" in answer(findings)


def test_unscored_margins_leave_out_their_configuration_and_are_counted(tmp_path):
    study = make(tmp_path, TOP_IS_SELECTIVE)
    rows = study.projections
    one = (rows["subspace"] == "random-energy") & (rows["fraction"] == 0.5) & (rows["draw"] == 1)
    study.projections.loc[one & (rows["method"] == "away") & (rows["group"] == "useful"), "refusal_margin"] = math.nan
    finding = first(read(study), "selectivity")
    assert "mean of 23 configurations" in finding.sentence
    assert "1 configuration lacks the margin of a draw" in finding.sentence


def test_without_a_draw_that_all_configurations_have_nothing_is_told(tmp_path):
    rows = make(tmp_path, replace(TOP_IS_SELECTIVE, draws=8)).projections
    apart = (rows["subspace"] != "random-energy") | ((rows["group"] == "useful") == (rows["draw"] < 4))
    findings = read_selectivity(rows[apart])
    assert [finding.verdict for finding in findings] == [
        "unknown",
        "more selective",
        "more selective",
        "more selective",
    ]
    assert "no configuration has every draw of the control" in findings[0].sentence
    assert "nan" not in findings[0].sentence


def test_configurations_that_keep_everything_are_left_out(tmp_path):
    study = make(tmp_path, TOP_IS_SELECTIVE)
    whole = study.projections["fraction"] == 0.75
    study.projections.loc[whole & (study.projections["method"] == "onto"), "energy_kept"] = 1.0
    assert "3 left out because both sides keep all" in read_selectivity(study.projections)[0].sentence


def test_overlap_without_floors_has_no_scale_and_says_so(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    finding = read_overlap(study.overlaps[~study.overlaps["floor"]])[0]
    assert finding.verdict == "no floor"
    assert "floor not measured" in finding.sentence


def test_overlap_below_and_at_the_matched_chance_is_told_apart(tmp_path):
    study = make(tmp_path, replace(ENERGY_EXPLAINS_ALL, overlap_position=0.0))
    assert "not shown to differ from matched chance" in read_overlap(study.overlaps)[0].sentence
    study.overlaps["overlap"] = study.overlaps["matched_chance"] - 0.05 - 1e-3 * (study.overlaps.index % 7)
    assert "below matched chance" in read_overlap(study.overlaps)[0].sentence


def test_overlap_that_is_undefined_everywhere_is_no_number(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    study.overlaps["overlap"] = math.nan
    assert set(verdicts(read_overlap(study.overlaps), "overlap")) == {"unknown"}


def test_several_seeds_are_not_called_an_anecdote(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    study.stages[1].manifest["seed"] = 1
    assert first(read_limits(study), "limits").verdict == "several seeds"
    assert "anecdote" not in answer(read(study))


def test_limits_name_n_draws_and_stages_that_are_not_complete(tmp_path):
    text = " ".join(f.sentence for f in read_limits(make(tmp_path, ENERGY_EXPLAINS_ALL)))
    assert "One seed (0)" in text
    assert "4 draws" in text
    assert "200 harmful prompts" in text
    assert "harmful_again (running)" in text


def test_groups_take_the_place_of_prompts_in_the_rule_of_three_where_they_are_known(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    sentence = next(f.sentence for f in read_limits(study) if f.verdict == "sample")
    assert "200 harmful prompts in 50 groups" in sentence
    assert "room for 0.060 of the other kind (rule of three over groups)" in sentence
    assert "200 harmful prompts in 50 groups" in first(read(study), "alignment").sentence


def test_tables_without_groups_are_read_by_prompts(tmp_path):
    folder = write_study(tmp_path / "s")
    for path in folder.glob("analysis/*/*/table.parquet"):
        table = pd.read_parquet(path)
        table.drop(columns=[name for name in table if name.startswith("n_groups")]).to_parquet(path, index=False)
    study = read_study(folder)
    sentence = next(f.sentence for f in read_limits(study) if f.verdict == "sample")
    assert "room for 0.015 of the other kind (rule of three)" in sentence
    assert "groups" not in " ".join(f.sentence for f in read(study))


def test_t_interval_agrees_with_scipy_and_drops_nan():
    values = np.random.default_rng(0).normal(size=9)
    interval = t_interval(pd.Series([*values, math.nan]))
    low, high = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.n == 9
    assert t_interval(pd.Series([math.nan])).sign == 0
