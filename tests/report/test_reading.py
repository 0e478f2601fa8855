import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_study import ENERGY_EXPLAINS_ALL, NOTHING_WORKS, TOP_IS_SELECTIVE, World, write_study

from safety_subspaces.report import reading
from safety_subspaces.report.findings import t_interval
from safety_subspaces.report.overlap_reading import read_overlap
from safety_subspaces.report.study import read_study


def make(path, world, **options):
    return read_study(write_study(path / "s", world, **options))


def verdicts(findings, topic):
    return [finding.verdict for finding in findings if finding.topic == topic]


def first(findings, topic):
    return next(finding for finding in findings if finding.topic == topic)


def test_where_energy_explains_all_the_reading_says_so(tmp_path):
    findings = reading.read(make(tmp_path, ENERGY_EXPLAINS_ALL))
    assert verdicts(findings, "alignment") == ["learnt"]
    assert verdicts(findings, "utility") == ["grew"]
    assert set(verdicts(findings, "energy")) == {"orders"}
    assert verdicts(findings, "selectivity")[0] == "no difference"
    assert verdicts(findings, "overlap")[0] == "distinct"
    answer = reading.answer(findings)
    assert "no difference that this many draws (4) can show" in answer
    assert "One seed: an anecdote, `make demo SEED=1` adds another." in answer


def test_where_top_k_is_selective_the_reading_says_more_selective(tmp_path):
    findings = reading.read(make(tmp_path, TOP_IS_SELECTIVE))
    assert set(verdicts(findings, "selectivity")) == {"more selective"}
    assert "24 configurations positive and 0 negative" in first(findings, "selectivity").sentence
    assert verdicts(findings, "overlap")[0] == "shared"


def test_where_top_k_is_the_wrong_way_round_the_reading_says_less_selective(tmp_path):
    findings = reading.read(make(tmp_path, World(selectivity=-6.0)))
    assert set(verdicts(findings, "selectivity")) == {"less selective"}
    assert "less selective" in reading.answer(findings)


def test_where_nothing_works_the_reading_says_so(tmp_path):
    findings = reading.read(make(tmp_path, NOTHING_WORKS))
    assert verdicts(findings, "alignment") == ["not learnt"]
    assert verdicts(findings, "loss") == []  # nothing to lose
    assert verdicts(findings, "utility") == ["did not grow"]
    assert set(verdicts(findings, "energy")) <= {"does not order", "unknown"}
    assert verdicts(findings, "selectivity")[0] == "no difference"


def test_a_difference_within_the_spread_of_a_draw_is_not_called_selective(tmp_path):
    world = World(selectivity=0.3)  # under the 0.4 nats that one draw differs from another
    finding = first(reading.read(make(tmp_path, world)), "selectivity")
    assert finding.verdict == "no difference"
    assert "within the spread of one draw" in finding.sentence


def test_which_fine_tunes_lost_alignment_is_named(tmp_path):
    sentence = first(reading.read(make(tmp_path, ENERGY_EXPLAINS_ALL)), "loss").sentence
    lost, kept = sentence.split(";")[0], sentence.split(";")[1].split(".")[0]
    assert "harmful" in lost
    assert "contaminated_lora" in lost
    assert kept.strip() == "kept by useful, useful_again"


def test_a_fine_tune_in_between_lost_alignment_in_part(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL)
    study.models.loc[study.models["model"] == "useful", "harm_score"] = 2.0
    study.models.loc[study.models["model"] == "harmful", "harm_score"] = math.nan
    sentence = first(reading.read_alignment(study.models), "loss").sentence
    assert "lost in part by useful;" in sentence
    assert "unknown for harmful" in sentence


def test_spearman_agrees_with_scipy_and_names_n(tmp_path):
    study = make(tmp_path, replace(ENERGY_EXPLAINS_ALL, seed=3))
    rows = study.projections[study.projections["group"] == "harmful"]
    rho = stats.spearmanr(rows["energy_kept"], rows["harm_score"]).statistic
    sentence = next(f.sentence for f in reading.read_energy(study.projections) if f.sentence.startswith("harmful:"))
    assert f"harm score {rho:+.2f} (n = {len(rows)})" in sentence


def test_nan_rows_are_dropped_and_counted(tmp_path):
    study = make(tmp_path, replace(ENERGY_EXPLAINS_ALL, unscored_rows=100))
    findings = reading.read_energy(study.projections)
    counted = [int(finding.sentence.split(" of them without")[0].split()[-1]) for finding in findings]
    assert sum(counted) == 100
    assert all("nan" not in finding.sentence for finding in reading.read(study))


def test_projections_that_were_not_evaluated_leave_the_questions_open(tmp_path):
    study = make(tmp_path, ENERGY_EXPLAINS_ALL, evaluated=False)
    assert set(verdicts(reading.read(study), "energy")) == {"unknown"}
    assert set(verdicts(reading.read(study), "selectivity")) == {"unknown"}


def test_a_study_without_analyses_says_what_is_missing(tmp_path):
    findings = reading.read(make(tmp_path, ENERGY_EXPLAINS_ALL, analyses=()))
    assert verdicts(findings, "alignment") == ["unknown"]
    assert verdicts(findings, "selectivity") == ["unknown"]
    assert verdicts(findings, "overlap") == ["unknown"]
    assert "cannot be told" in reading.answer(findings)


def test_one_draw_has_no_spread_and_one_configuration_no_interval(tmp_path):
    study = make(tmp_path, replace(TOP_IS_SELECTIVE, draws=1))
    assert "spread of one draw not known" in first(reading.read(study), "selectivity").sentence
    one = study.projections[(study.projections["fraction"] == 0.25) & (study.projections["method"] == "away")]
    finding = reading.read_selectivity(one[one["group"] == "harmful"])[0]
    assert finding.verdict == "unknown"
    assert "n = 1: no interval" in finding.sentence


def test_configurations_that_keep_everything_are_left_out(tmp_path):
    study = make(tmp_path, TOP_IS_SELECTIVE)
    whole = study.projections["fraction"] == 0.75
    study.projections.loc[whole & (study.projections["method"] == "onto"), "energy_kept"] = 1.0
    assert "3 left out because both sides keep all" in reading.read_selectivity(study.projections)[0].sentence


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
    assert first(reading.read_limits(study), "limits").verdict == "several seeds"
    assert "anecdote" not in reading.answer(reading.read(study))


def test_limits_name_n_draws_and_stages_that_are_not_complete(tmp_path):
    text = " ".join(f.sentence for f in reading.read_limits(make(tmp_path, ENERGY_EXPLAINS_ALL)))
    assert "One seed (0)" in text
    assert "4 draws" in text
    assert "200 harmful prompts" in text
    assert "harmful_again (running)" in text


def test_t_interval_agrees_with_scipy_and_drops_nan():
    values = np.random.default_rng(0).normal(size=9)
    interval = t_interval(pd.Series([*values, math.nan]))
    low, high = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.n == 9
    assert t_interval(pd.Series([math.nan])).sign == 0
