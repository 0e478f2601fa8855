from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_sweeps import FRACTIONS, SCALED_BETTER, Sweeps, studies_of, sweeps_of

from safety_subspaces.findings.finding import draws_needed
from safety_subspaces.findings.intervals import Z, rank_p_value
from safety_subspaces.findings.relabelled import relabelled_p_value
from safety_subspaces.findings.sweep_contrasts import (
    BOTH,
    DRAWS,
    PROMPTS,
    SEEDS,
    contrasts,
    contrasts_by_fraction,
    difference_of,
)
from safety_subspaces.findings.swept import evaluated, swept
from safety_subspaces.findings.utility_curves import utility_curve

# Small and without ranks, where only differences matter.
SMALL = Sweeps(fractions=(0.1, 0.4, 0.75), subspaces=("top", "random-energy", "scaled"))
ONE_STUDY = replace(SMALL, seeds=1, draws=6, own_noise=1.0)
SIGNS = {"away": 1, "onto": -1}


def row_of(frame, **names):
    for name, value in names.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def top_minus(frame, other, method=BOTH):
    return row_of(frame, tuned="contaminated", subspace="top", other=other, method=method)


def margins(frame, subspace, draw=0):
    """The refusal margins of a kind and draw, by method and fraction."""
    rows = frame[(frame["subspace"] == subspace) & (frame["draw"] == draw)]
    return rows.set_index(["method", "fraction"])["refusal_margin"]


def relabelled(frame, draw):
    """The same study with a draw of random-energy called top, and top called that draw."""
    is_top = frame["subspace"] == "top"
    is_draw = (frame["subspace"] == "random-energy") & (frame["draw"] == draw)
    other = frame.copy()
    other.loc[is_top, ["subspace", "draw"]] = ["random-energy", draw]
    other.loc[is_draw, ["subspace", "draw"]] = ["top", 0]
    return other


def test_differences_at_equal_energy_are_paired_by_seed_and_over_the_fractions_that_bear_one():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    # Both sides keep all of the energy: there is nothing to compare.
    projections.loc[(projections["fraction"] == 0.99) & (projections["method"] == "onto"), "energy_kept"] = 0.9999
    wide = projections[projections["fraction"] != 0.99].pivot_table(
        index="seed", columns=["subspace", "method"], values="refusal_margin"
    )
    each = wide["top", "onto"] - wide["random-energy", "onto"]
    row = top_minus(contrasts(projections, "energy"), "random-energy", "onto")
    low, high = stats.t.interval(0.95, 2, loc=each.mean(), scale=stats.sem(each))
    assert (row["fractions"], row["unit"], row["refusal_margin_difference_n"]) == (6, SEEDS, 3)
    assert row["refusal_margin_difference"] == pytest.approx(each.mean())
    assert row["refusal_margin_difference_reach"] == pytest.approx((high - low) / 2)


def test_a_fraction_that_one_seed_lacks_is_in_no_difference():
    projections = sweeps_of(Sweeps(own_noise=1.0, trade=0.2))
    less = projections[(projections["seed"] != "1") | (projections["fraction"] != 0.5)]
    none = projections[projections["fraction"] != 0.5]
    frame = contrasts(less, "energy")
    assert frame["fractions"].max() == len(FRACTIONS) - 1
    columns = [name for name in frame if "difference" in name]
    pd.testing.assert_frame_equal(frame[columns], contrasts(none, "energy")[columns])


def test_a_constant_gap_at_equal_utility_is_found_though_utilities_differ_at_equal_energy():
    projections = sweeps_of(Sweeps(selectivity=2.0, trade=0.3))
    matched, equal = (contrasts(projections, at) for at in ("utility", "energy"))
    for other in ("random-energy", "scaled"):
        assert top_minus(matched, other, "away")["refusal_margin_difference"] == pytest.approx(2.0)
        assert top_minus(matched, other, "onto")["refusal_margin_difference"] == pytest.approx(-2.0)
        assert top_minus(matched, other)["refusal_margin_difference"] == pytest.approx(2.0)
        assert top_minus(equal, other, "away")["utility_difference"] < -0.05
        assert top_minus(equal, other, "away")["refusal_margin_difference"] > 3.0
    row = top_minus(matched, "scaled", "away")
    assert row["utility_high"] == pytest.approx(0.1 + 0.88 * 0.7 * (1 - 0.01**0.7))
    assert row["utility_range"] == pytest.approx(row["utility_high"] - row["utility_low"])


def test_without_a_spread_over_seeds_the_prompts_are_the_floor_of_the_interval():
    matched = contrasts(sweeps_of(replace(SMALL, selectivity=2.0)), "utility")
    # Every margin has a standard error of 0.2, and two independent ones differ by sqrt(2) of it.
    row = top_minus(matched, "random-energy")
    assert row["refusal_margin_difference_reach"] == pytest.approx(Z * 0.2 * 2**0.5)
    assert row["refusal_margin_difference_p"] == pytest.approx(2 * stats.norm.sf(2 / (0.2 * 2**0.5)))
    exact = sweeps_of(replace(SMALL, selectivity=2.0)).assign(refusal_margin_stderr=np.nan)
    assert np.isnan(top_minus(contrasts(exact, "utility"), "scaled")["refusal_margin_difference_p"])


def test_an_interval_over_seeds_leaves_out_zero_where_its_p_is_below_one_in_twenty():
    for seed, spread in ((0, 0.1), (1, 0.3), (2, 1.0), (3, 3.0), (4, 0.2), (5, 0.2)):
        frame = contrasts(sweeps_of(replace(SMALL, selectivity=0.4, own_noise=spread), seed), "energy")
        for _, row in frame.iterrows():
            assert bool(difference_of(row, "refusal_margin").sign) == (row["refusal_margin_difference_p"] < 0.05)


def test_a_control_that_is_better_in_both_methods_leaves_their_signed_mean_and_is_told_method_by_method():
    matched = contrasts(sweeps_of(replace(SCALED_BETTER, own_noise=0.02)), "utility")
    assert top_minus(matched, "scaled", "away")["refusal_margin_difference"] == pytest.approx(-1.5, abs=0.1)
    assert top_minus(matched, "scaled", "onto")["refusal_margin_difference"] == pytest.approx(-1.5, abs=0.1)
    assert top_minus(matched, "scaled")["refusal_margin_difference"] == pytest.approx(0.0, abs=0.1)


def test_utility_is_made_monotone_in_energy_and_ties_are_averaged():
    energy, utility = np.array([0.9, 0.1, 0.3, 0.6, 0.7]), np.array([0.9, 0.1, 0.5, 0.3, np.nan])
    distinct, margin = utility_curve(energy, utility, np.array([0.0, 8.0, 4.0, 2.0, 9.0]))
    np.testing.assert_allclose(distinct, [0.1, 0.4, 0.9])
    np.testing.assert_allclose(margin, [8.0, 3.0, 0.0])


def test_curves_that_share_too_little_utility_are_not_compared_and_are_counted():
    projections = sweeps_of(SMALL)
    projections["utility"] = 0.1 + 0.3 * projections["energy_kept"] + 0.5 * (projections["subspace"] == "top")
    row = top_minus(contrasts(projections, "utility"), "random-energy", "away")
    assert np.isnan(row["refusal_margin_difference"])
    assert (row["undefined"], row["utility_range"]) == (9, 0)  # three seeds of three draws


def test_the_order_of_rows_and_an_offset_of_a_whole_seed_change_no_difference():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    shuffled = projections.sample(frac=1.0, random_state=0).reset_index(drop=True)
    shuffled["refusal_margin"] += shuffled["seed"].map({"0": -3.0, "1": 0.0, "2": 5.0})
    keys = ["tuned", "subspace", "other", "method"]
    for at in ("energy", "utility"):
        first, second = (contrasts(p, at).sort_values(keys, ignore_index=True) for p in (projections, shuffled))
        columns = [*keys, *(name for name in first if name.startswith("refusal_margin"))]
        pd.testing.assert_frame_equal(first[columns], second[columns])


def test_a_draw_is_left_out_where_its_own_energy_misses_though_the_mean_of_the_draws_does_not():
    projections = sweeps_of(ONE_STUDY)
    at = (projections["subspace"] == "random-energy") & (projections["fraction"] == 0.4)
    at &= projections["method"] == "away"
    for draw, miss in ((1, 0.03), (2, -0.03)):
        projections.loc[at & (projections["draw"] == draw), "energy_kept"] += miss
    row = top_minus(contrasts(projections, "energy"), "random-energy", "away")
    assert (row["left_out"], row["compared"], row["draws"], row["fractions"]) == (2, 16, 6, 3)
    assert row["energy_gap"] <= 0.02
    top = margins(projections, "top")["away"]
    each = [(top - margins(projections, "random-energy", draw)["away"]).mean() for draw in (0, 3, 4, 5)]
    missed = [(top - margins(projections, "random-energy", draw)["away"]).drop(0.4).mean() for draw in (1, 2)]
    assert row["refusal_margin_difference"] == pytest.approx(np.mean([*each, *missed]))
    by_fraction = row_of(contrasts_by_fraction(projections), method="away", fraction=0.4)
    assert (by_fraction["left_out"], by_fraction["draws"]) == (2, 4)


def test_in_one_study_the_interval_is_that_of_one_more_draw_and_that_of_prompts_where_nothing_is_drawn():
    projections = sweeps_of(ONE_STUDY)
    frame = contrasts(projections, "energy")
    top = margins(projections, "top")
    drawn = [(top - margins(projections, "random-energy", draw))["away"].mean() for draw in range(6)]
    row = top_minus(frame, "random-energy", "away")
    assert (row["unit"], row["refusal_margin_difference_n"]) == (DRAWS, 6)
    assert row["refusal_margin_difference"] == pytest.approx(np.mean(drawn))
    reach = stats.t.ppf(0.975, 5) * np.std(drawn, ddof=1) * np.sqrt(1 + 1 / 6)
    assert row["refusal_margin_difference_reach"] == pytest.approx(reach)
    scaled = top_minus(frame, "scaled", "away")
    assert scaled["unit"] == PROMPTS
    assert scaled["refusal_margin_difference_reach"] == pytest.approx(Z * 0.2 * 2**0.5)


@pytest.mark.parametrize("at", ["energy", "utility"])
def test_whichever_subspace_is_called_top_the_ranks_are_all_there_once(at):
    # Exchangeable subspaces: each is as likely the one that is called top, so a p of k / (n + 1) comes once each.
    projections = sweeps_of(replace(ONE_STUDY, draws=9, trade=0.1), seed=3)
    every = [projections, *(relabelled(projections, draw) for draw in range(9))]
    p = sorted(relabelled_p_value(study, at, ["onto", "away"]) for study in every)
    np.testing.assert_allclose(p, np.arange(1, 11) / 10)


def test_at_equal_energy_the_rank_is_that_of_the_mean_signed_margins():
    projections = sweeps_of(replace(ONE_STUDY, selectivity=0.5), seed=5)
    signs = margins(projections, "top").index.get_level_values("method").map(SIGNS)
    means = [(margins(projections, "random-energy", draw) * signs).mean() for draw in range(6)]
    expected = rank_p_value((margins(projections, "top") * signs).mean(), np.array(means))
    assert relabelled_p_value(projections, "energy", ["onto", "away"]) == pytest.approx(expected)


def test_a_rank_needs_nineteen_draws_for_each_test_of_its_family():
    assert [draws_needed(tests) for tests in (0, 1, 2, 3)] == [19, 19, 39, 59]
    for tests in (1, 2, 3):
        smallest = 1 / (draws_needed(tests) + 1)
        assert smallest * tests == pytest.approx(0.05)


def test_draws_whose_energy_alone_is_known_are_in_no_difference():
    projections = sweeps_of(ONE_STUDY)
    further = projections[projections["subspace"] == "random-energy"].copy()
    further["draw"] += 100
    measured = [name for name in further if name.startswith(("utility", "harm", "refusal", "over", "benign", "n_"))]
    further[measured] = np.nan
    both = pd.concat([projections, further], ignore_index=True)
    assert len(evaluated(both)) == len(projections)
    for at in ("energy", "utility"):
        pd.testing.assert_frame_equal(contrasts(projections, at), contrasts(both, at))
    assert relabelled_p_value(both, "energy", ["away"]) == relabelled_p_value(projections, "energy", ["away"])


def test_a_method_that_one_seed_cannot_compare_leaves_the_mean_to_the_other():
    projections = sweeps_of(replace(SMALL, selectivity=2.0, own_noise=0.1))
    lost = (projections["seed"] == "1") & (projections["method"] == "onto")
    projections.loc[lost, "utility"] = 0.3  # no utility in common
    row = top_minus(contrasts(projections, "utility"), "random-energy")
    assert (row["methods"], row["refusal_margin_difference_n"]) == ("away", 3)
    assert row["refusal_margin_difference"] == pytest.approx(2.0, abs=0.2)


def test_a_measure_that_one_model_lacks_is_left_out_at_its_fraction_of_every_seed():
    projections = swept(studies_of(replace(SMALL, selectivity=2.0, own_noise=0.02)))
    is_top = projections["subspace"] == "top"
    projections.loc[projections.index[is_top][0], "refusal_margin"] = np.nan
    row = top_minus(contrasts(projections, "energy"), "scaled", "onto")
    assert (row["fractions"], row["refusal_margin_difference_n"], row["utility_difference_n"]) == (2, 3, 3)


def test_without_a_difference_an_interval_over_seeds_leaves_out_zero_in_about_one_experiment_of_twenty():
    world = Sweeps(fractions=(0.1, 0.75), subspaces=("top", "random-energy"), own_noise=1.0)
    wrong = 0
    for seed in range(60):
        row = top_minus(contrasts(sweeps_of(world, seed), "utility"), "random-energy")
        wrong += abs(row["refusal_margin_difference"]) > row["refusal_margin_difference_reach"]
    assert wrong <= 9  # of 60: 3 expected, 3.5 standard deviations above
