from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_sweeps import (
    A_TRADE,
    ENERGY_ALONE,
    FRACTIONS,
    HARM_ALONE,
    LESS_SELECTIVE,
    MORE_SELECTIVE,
    NO_ORDER,
    NOTHING_MOVES,
    PARTLY,
    SCALED_BETTER,
    Sweeps,
    models_of,
    sweeps_of,
)

from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.sweeps import (
    BOTH,
    energy_correlations,
    equal_energy_differences,
    equal_energy_over_seeds,
    matched_utility_differences,
    matched_utility_over_seeds,
    sweep_over_seeds,
    utility_curve,
)
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.sections.energy.figures import sweep_caption, sweep_figure
from safety_subspaces.report.sections.energy.reading_seeds import energy_verdict, read_sweeps, selectivity_verdict
from safety_subspaces.report.sections.energy.tables import (
    correlations_table,
    selectivity_across_table,
    sweep_table,
)

# Small and without ranks, where only differences matter.
SMALL = Sweeps(fractions=(0.1, 0.4, 0.75), subspaces=("top", "random-energy", "scaled"))


def read(projections):
    """Return the verdicts on energy, those on selectivity, and everything that is said."""
    findings = read_sweeps(projections, "SFT")
    energy, selective = ([f.verdict for f in findings if f.topic == topic] for topic in ("energy", "selectivity"))
    return energy, selective, answer(findings) + " ".join(finding.sentence for finding in findings)


def row_of(frame, **names):
    for name, value in names.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def top_minus(frame, other, method=BOTH, tuned="contaminated"):
    return row_of(frame, tuned=tuned, subspace="top", other=other, method=method)


def by_hand(values):
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


@pytest.mark.parametrize(
    ("world", "energy", "beside_random", "beside_scaled"),
    [
        (ENERGY_ALONE, "alone", "no difference", "no difference"),
        (MORE_SELECTIVE, "not alone", "more selective", "more selective"),
        (LESS_SELECTIVE, "not alone", "less selective", "less selective"),
        (A_TRADE, "not alone", "no difference", "no difference"),
        (SCALED_BETTER, "not alone", "no difference", "no difference"),
        (NOTHING_MOVES, "unknown", "no difference", "no difference"),
        (NO_ORDER, "does not order", "no difference", "no difference"),
        (PARTLY, "partly", "no difference", "no difference"),
        (replace(HARM_ALONE, selectivity=2.0), "not alone", "more selective", "more selective"),
    ],
)
def test_each_outcome_comes_out_of_its_world(world, energy, beside_random, beside_scaled):
    on_energy, on_selectivity, said = read(sweeps_of(replace(world, own_noise=0.02, offset=0.1), seed=1))
    assert on_energy == [energy]
    assert on_selectivity == [beside_random, beside_scaled]
    assert "nan" not in said
    assert "{" not in said
    assert "3 seeds, 3 draws, 7 fractions" in said


def test_means_and_intervals_are_those_over_seeds_with_draws_averaged_first():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    cell = row_of(sweep_over_seeds(projections), subspace="random", method="away", fraction=0.25)
    chosen = (
        (projections["subspace"] == "random") & (projections["method"] == "away") & (projections["fraction"] == 0.25)
    )
    each = projections[chosen].groupby("seed")["refusal_margin"].mean()
    low, high = by_hand(each)
    assert cell["refusal_margin"] == pytest.approx(each.mean())
    assert cell["refusal_margin_reach"] == pytest.approx((high - low) / 2)
    assert (cell["refusal_margin_seeds"], cell["draws"], cell["n_harmful"], cell["n_groups_harmful"]) == (3, 3, 200, 50)


def test_differences_at_equal_energy_are_paired_by_seed_and_over_the_fractions_that_bear_one():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    # Both sides keep all of the energy: there is nothing to compare.
    projections.loc[(projections["fraction"] == 0.99) & (projections["method"] == "onto"), "energy_kept"] = 0.9999
    wide = projections[projections["fraction"] != 0.99].pivot_table(
        index="seed", columns=["subspace", "method"], values="refusal_margin"
    )
    each = wide["top", "onto"] - wide["random-energy", "onto"]
    row = top_minus(equal_energy_over_seeds(projections), "random-energy", "onto")
    low, high = by_hand(each)
    assert row["fractions"] == 6
    assert row["refusal_margin_difference"] == pytest.approx(each.mean())
    assert row["refusal_margin_difference_reach"] == pytest.approx((high - low) / 2)


def test_a_fraction_that_one_seed_lacks_is_in_no_difference():
    projections = sweeps_of(Sweeps(own_noise=1.0, trade=0.2))
    less = projections[(projections["seed"] != "1") | (projections["fraction"] != 0.5)]
    none = projections[projections["fraction"] != 0.5]
    assert equal_energy_differences(less)["fractions"].max() == len(FRACTIONS) - 1
    pd.testing.assert_frame_equal(equal_energy_differences(less), equal_energy_differences(none))


def test_a_constant_gap_at_equal_utility_is_found_though_utilities_differ_at_equal_energy():
    projections = sweeps_of(Sweeps(selectivity=2.0, trade=0.3))
    matched, equal = matched_utility_over_seeds(projections), equal_energy_over_seeds(projections)
    for other in ("random-energy", "scaled"):
        assert top_minus(matched, other, "away")["refusal_margin_difference"] == pytest.approx(2.0)
        assert top_minus(matched, other, "onto")["refusal_margin_difference"] == pytest.approx(-2.0)
        assert top_minus(matched, other)["refusal_margin_difference"] == pytest.approx(2.0)
        assert top_minus(matched, other)["refusal_margin_difference_reach"] == pytest.approx(0.0, abs=1e-9)
        assert top_minus(equal, other, "away")["utility_difference"] < -0.05
        assert top_minus(equal, other, "away")["refusal_margin_difference"] > 3.0
    row = top_minus(matched, "scaled", "away")
    assert row["utility_high"] == pytest.approx(0.1 + 0.88 * 0.7 * (1 - 0.01**0.7))
    assert row["utility_range"] == pytest.approx(row["utility_high"] - row["utility_low"])


def test_a_control_that_is_better_in_both_methods_leaves_their_signed_mean_and_is_told_method_by_method():
    projections = sweeps_of(replace(SCALED_BETTER, own_noise=0.02))
    matched = matched_utility_over_seeds(projections)
    assert top_minus(matched, "scaled", "away")["refusal_margin_difference"] == pytest.approx(-1.5, abs=0.1)
    assert top_minus(matched, "scaled", "onto")["refusal_margin_difference"] == pytest.approx(-1.5, abs=0.1)
    assert top_minus(matched, "scaled")["refusal_margin_difference"] == pytest.approx(0.0, abs=0.1)
    *_, said = read(projections)
    assert "random of equal energy minus scaled, away, refusal margin -1.5" in said


def test_utility_is_made_monotone_in_energy_and_ties_are_averaged():
    energy, utility = np.array([0.9, 0.1, 0.3, 0.6, 0.7]), np.array([0.9, 0.1, 0.5, 0.3, np.nan])
    distinct, margin = utility_curve(energy, utility, np.array([0.0, 8.0, 4.0, 2.0, 9.0]))
    np.testing.assert_allclose(distinct, [0.1, 0.4, 0.9])
    np.testing.assert_allclose(margin, [8.0, 3.0, 0.0])


def test_curves_that_share_too_little_utility_are_not_compared():
    projections = sweeps_of(SMALL)
    is_top = projections["subspace"] == "top"
    projections["utility"] = 0.1 + 0.3 * projections["energy_kept"] + 0.5 * is_top
    rows = matched_utility_differences(projections)
    of_top = rows[rows["subspace"] == "top"]
    assert of_top["refusal_margin_difference"].isna().all()
    assert (of_top["undefined"] == of_top["draws"]).all()
    assert (of_top["utility_range"] == 0).all()
    _, selective, said = read(projections)
    assert selective == ["unknown", "unknown"]
    assert "for the two share too little utility" in said


def test_where_utility_does_not_move_top_is_judged_at_equal_energy_and_the_sentence_says_so():
    projections = sweeps_of(replace(HARM_ALONE, selectivity=-2.0, own_noise=0.02))
    random = np.random.default_rng(0)
    # The evaluation's noise: one standard error of a rate of 0.1 on 256 prompts.
    projections["utility"] = 0.1 + 0.019 * random.normal(size=len(projections))
    _, selective, said = read(projections)
    assert selective == ["less selective", "less selective"]
    assert "at equal energy, for utility does not grow over the sweep" in said
    *_, said = read(sweeps_of(MORE_SELECTIVE))
    assert "equal energy, for" not in said
    assert "at equal utility" in said


def test_rank_correlations_average_draws_within_a_seed_and_seeds_on_fishers_scale():
    projections = sweeps_of(Sweeps(disorder=0.3, own_noise=0.5))
    row = row_of(energy_correlations(projections), measure="refusal_margin")
    rhos = []
    for seed in "012":
        of_seed = projections[projections["seed"] == seed]
        has_draws = of_seed["subspace"].str.startswith("random")
        draws = [of_seed[~has_draws | (of_seed["draw"] == draw)] for draw in range(3)]
        rhos.append([stats.spearmanr(draw["energy_kept"], draw["refusal_margin"]).statistic for draw in draws])
    z = np.arctanh(np.mean(rhos, axis=1))
    low, high = np.tanh(by_hand(z))
    assert (row["rho"], row["low"], row["high"]) == pytest.approx((np.tanh(z.mean()), low, high))
    assert row["draw_spread"] == pytest.approx(np.std(rhos, axis=1, ddof=1).mean())
    assert (row["seeds"], row["draws"], row["points"], row["models"]) == (3, 3, 5 * 2 * 7, (2 + 3 * 3) * 2 * 7)


def test_the_order_of_rows_and_an_offset_of_a_whole_seed_change_no_difference():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    shuffled = projections.sample(frac=1.0, random_state=0).reset_index(drop=True)
    shuffled["refusal_margin"] += shuffled["seed"].map({"0": -3.0, "1": 0.0, "2": 5.0})
    keys = ["tuned", "subspace", "other", "method"]
    for over_seeds in (equal_energy_over_seeds, matched_utility_over_seeds):
        first, second = (over_seeds(p).sort_values(keys, ignore_index=True) for p in (projections, shuffled))
        columns = [*keys, *(name for name in first if name.startswith("refusal_margin"))]
        pd.testing.assert_frame_equal(first[columns], second[columns])


def test_without_a_difference_a_verdict_comes_out_by_chance_in_about_one_experiment_of_twenty():
    world = Sweeps(fractions=(0.1, 0.75), subspaces=("top", "random-energy"), own_noise=1.0)
    wrong = 0
    for seed in range(30):
        row = top_minus(matched_utility_over_seeds(sweeps_of(world, seed)), "random-energy")
        wrong += abs(row["refusal_margin_difference"]) > row["refusal_margin_difference_reach"]
    assert wrong <= 5  # of 30: 1.5 expected, 3 standard deviations above


def test_a_missing_draw_is_counted_and_its_seed_still_speaks():
    projections = sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.02))
    lost = (projections["subspace"] == "random-energy") & (projections["seed"] == "2") & (projections["draw"] > 0)
    fewer = equal_energy_differences(projections[~lost])
    assert row_of(fewer, other="random-energy", method="away", seed="2")["draws"] == 1
    assert read(projections[~lost])[1] == ["more selective", "more selective"]


def test_a_measure_that_was_not_scored_stays_missing():
    projections = sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.02))
    _, selective, said = read(projections.assign(harm_score=np.nan))
    assert selective == ["more selective", "more selective"]
    assert "By the judged harm score: unknown" in said
    assert "harm score does not move, or too little was scored" in said
    _, selective, said = read(projections.assign(refusal_margin=None))
    assert selective == ["unknown", "unknown"]
    assert "no refusal margin can be compared" in said
    assert "nan" not in said
    few = projections[projections["subspace"] != "scaled"]
    assert "utility was not scored" in read(few.assign(utility=np.nan))[2]
    # One model of one seed without a margin: its fraction is left out, at equal energy, of every seed.
    one = projections.copy()
    one.loc[one.index[one["subspace"] == "top"][0], "refusal_margin"] = np.nan
    frame = equal_energy_over_seeds(one)
    assert top_minus(frame, "scaled", "onto")["fractions"] == 2
    assert top_minus(frame, "scaled", "onto")["refusal_margin_difference_seeds"] == 3


def test_one_seed_has_no_interval_and_no_verdict():
    projections = sweeps_of(replace(MORE_SELECTIVE, seeds=1))
    energy, selective, said = read(projections)
    assert energy == ["unknown"]
    assert selective == ["unknown", "unknown"]
    assert "for one seed has no interval" in said
    assert "+2.00 (no interval)" in said
    assert sweep_over_seeds(projections)["utility_reach"].isna().all()
    assert read(sweeps_of(replace(SMALL, selectivity=2.0, seeds=2, own_noise=0.01)))[1][0] == "more selective"


def test_the_judged_harm_score_may_say_the_opposite():
    projections = sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.02))
    turned = projections.assign(harm_score=6 - projections["harm_score"])
    assert "By the judged harm score: less selective, the opposite" in read(turned)[2]
    assert "By the judged harm score: more selective." in read(projections)[2]


def test_headlines_are_one_on_energy_and_one_a_control_of_the_contaminated_fine_tune():
    projections = sweeps_of(replace(SMALL, tuned=("useful", "contaminated"), own_noise=0.02))
    findings = read_sweeps(projections, "DPO")
    headlines = [finding.headline for finding in findings if finding.headline]
    assert [finding.topic for finding in findings] == ["energy"] * 2 + ["selectivity"] * 4
    assert len(headlines) == 3
    assert "(useful, contaminated)" in headlines[0]
    assert all("DPO, contaminated, at equal utility" in headline for headline in headlines[1:])
    assert [finding.verdict for finding in read_sweeps(projections.head(0), "DPO")] == ["unknown", "unknown"]


def test_verdicts_ask_for_whole_intervals():
    strong, wide, weak = Interval(0.9, 0.85, 0.95, 3), Interval(0.9, 0.7, 0.95, 3), Interval(0.1, -0.2, 0.4, 3)
    assert energy_verdict([strong, strong], compared=12, differing=0) == "alone"
    assert energy_verdict([strong, strong], compared=12, differing=1) == "not alone"
    assert energy_verdict([strong, strong], compared=0, differing=0) == "unknown"
    assert energy_verdict([strong, wide], compared=12, differing=0) == "partly"
    assert energy_verdict([weak], compared=12, differing=0) == "does not order"
    assert energy_verdict([Interval(0.9, np.nan, np.nan, 1)], compared=12, differing=0) == "unknown"
    assert selectivity_verdict(Interval(0.05, 0.04, 0.06, 3)) == "no difference"
    assert selectivity_verdict(Interval(-1.0, -1.5, -0.5, 3)) == "less selective"


def test_tables_have_every_cell_with_the_margin_beside_the_harm_score():
    projections = sweeps_of(replace(MORE_SELECTIVE, own_noise=0.02))
    every = sweep_table(projections)
    assert len(every.rows) == 5 * 2 * len(FRACTIONS)
    assert "200 harmful prompts in 50 groups" in every.note
    for table in (every, selectivity_across_table(projections), correlations_table(projections)):
        assert {"harm 1-5", "margin"} <= set(table.columns)
        assert "t interval over seeds" in table.note
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert "nan" not in str(table.rows)
    assert len(selectivity_across_table(projections).rows) == 3 * 3 * 2
    assert selectivity_across_table(projections.head(0)).rows == ()


def test_the_chart_has_four_panels_with_bars_over_seeds_and_none_of_one_seed():
    world = replace(MORE_SELECTIVE, own_noise=0.2)
    projections = sweeps_of(world)
    figure = sweep_figure(projections, models_of(world), "contaminated")
    drawn = [trace for trace in figure.data if trace.customdata is not None]
    assert len(drawn) == 4 * 5 * 2
    assert sum(len(trace.x) for trace in drawn if trace.yaxis == "y4") == 5 * 2 * len(FRACTIONS)
    assert all(trace.error_y.array is not None for trace in drawn)
    assert {annotation.text for annotation in figure.layout.annotations} == {"aligned", "contaminated"}
    assert "seeds (0, 1, 2)" in sweep_caption(projections, "contaminated")
    assert "± half the 95 % t interval over seeds" in sweep_caption(projections, "contaminated")
    alone = sweeps_of(replace(world, seeds=1))
    single = sweep_figure(alone, models_of(replace(world, seeds=1)), "contaminated")
    assert all(trace.error_y.array is None for trace in single.data)
    assert "without bars" in sweep_caption(alone, "contaminated")


def test_a_method_that_one_seed_cannot_compare_does_not_take_the_verdict_of_the_other():
    projections = sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.1))
    lost = (projections["seed"] == "1") & (projections["method"] == "onto")
    projections.loc[lost, "utility"] = 0.3  # no utility in common
    row = top_minus(matched_utility_over_seeds(projections), "random-energy")
    assert row["refusal_margin_difference_seeds"] == 3
    assert row["refusal_margin_difference"] == pytest.approx(2.0, abs=0.2)
    _, selective, said = read(projections)
    assert selective[0] == "more selective"
    assert "mean over away alone" in said


def test_what_random_subspaces_gain_beside_scaling_as_well_is_no_selectivity_of_top():
    projections = sweeps_of(replace(SMALL, own_noise=0.05))
    scaled = projections["subspace"] == "scaled"
    projections.loc[scaled, "refusal_margin"] += np.where(projections.loc[scaled, "method"] == "away", -2.0, 2.0)
    _, selective, said = read(projections)
    assert selective == ["no difference", "as random"]
    assert "and so are random subspaces of equal energy" in said
    assert read(sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.05)))[1] == ["more selective", "more selective"]
