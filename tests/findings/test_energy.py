from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_sweeps import (
    A_TRADE,
    ENERGY_ALONE,
    HARM_ALONE,
    LESS_SELECTIVE,
    MORE_SELECTIVE,
    NO_ORDER,
    NOTHING_MOVES,
    PARTLY,
    SCALED_BETTER,
    Sweeps,
    as_studies,
    models_of,
    studies_of,
    sweeps_of,
)

from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.swept import energy_correlations, evaluated, sweep_ends, sweep_points, swept
from safety_subspaces.findings.topics.energy import ALONE, AT_EQUAL, ORDER, SHOWN, energy, energy_verdict

MEASURED = ("utility", "harm", "refusal", "over", "benign", "n_")


def read(world, seed=1):
    return decide(energy(studies_of(replace(world, own_noise=0.02, offset=0.1), seed=seed)))


def row_of(frame, **names):
    for name, value in names.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        (ENERGY_ALONE, "alone"),
        (MORE_SELECTIVE, "not alone"),
        (LESS_SELECTIVE, "not alone"),
        (A_TRADE, "not alone"),
        (SCALED_BETTER, "not alone"),
        (NOTHING_MOVES, "unknown"),
        (NO_ORDER, "does not order"),
        (PARTLY, "partly"),
        (replace(HARM_ALONE, selectivity=2.0), "not alone"),
    ],
)
def test_each_outcome_comes_out_of_its_world_over_seeds(world, verdict):
    found = read(world)
    assert list(asked(found, ALONE)["verdict"]) == [verdict]
    shown = asked(found, AT_EQUAL)
    details = asked(found, ALONE).iloc[0]["details"]
    # What the verdict counts is what the rows of the same table say.
    assert details["shown"] == shown["verdict"].isin(SHOWN).sum()
    assert details["compared"] == shown["p"].notna().sum() == shown["tests"].max()


def test_of_one_study_the_order_is_described_and_nothing_is_tested():
    found = read(replace(MORE_SELECTIVE, seeds=1, draws=19))
    assert set(asked(found, ORDER)["verdict"]) == {"described: one seed"}
    assert list(asked(found, ALONE)["verdict"]) == ["described: one seed"]
    assert asked(found, AT_EQUAL)["p"].isna().all()
    assert set(asked(found, ORDER)["unit"]) == {"random draws"}


def test_verdicts_ask_for_whole_intervals():
    strong, wide, weak = Interval(0.9, 0.85, 0.95, 3), Interval(0.9, 0.7, 0.95, 3), Interval(0.1, -0.2, 0.4, 3)
    assert energy_verdict([strong, strong], compared=12, differing=0) == "alone"
    assert energy_verdict([strong, strong], compared=12, differing=1) == "not alone"
    assert energy_verdict([strong, strong], compared=0, differing=0) == "unknown"
    assert energy_verdict([strong, wide], compared=12, differing=0) == "partly"
    assert energy_verdict([weak], compared=12, differing=0) == "does not order"
    assert energy_verdict([Interval(0.9, np.nan, np.nan, 1)], compared=12, differing=0) == "unknown"


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
    low, high = np.tanh(stats.t.interval(0.95, 2, loc=z.mean(), scale=stats.sem(z)))
    assert (row["rho"], row["low"], row["high"]) == pytest.approx((np.tanh(z.mean()), low, high))
    assert row["draw_spread"] == pytest.approx(np.std(rhos, axis=1, ddof=1).mean())
    assert (row["seeds"], row["draws"], row["points"], row["models"]) == (3, 3, 5 * 2 * 7, (2 + 3 * 3) * 2 * 7)


def test_draws_whose_energy_alone_is_known_are_no_points_and_are_counted():
    projections = sweeps_of(Sweeps(seeds=1, draws=6, own_noise=0.3))
    drawn = projections["subspace"].str.startswith("random") & (projections["draw"] >= 2)
    lacking = projections.copy()
    lacking.loc[drawn, [name for name in lacking if name.startswith(MEASURED)]] = np.nan
    pd.testing.assert_frame_equal(energy_correlations(lacking), energy_correlations(projections[~drawn]))
    assert len(evaluated(lacking)) == (~drawn).sum()
    point = row_of(sweep_points(lacking), subspace="random", method="away", fraction=0.25)
    assert (point["draws"], point["energies"], point["refusal_margin_n"]) == (2, 6, 2)
    none = sweep_points(projections.assign(**{name: np.nan for name in projections if name.startswith(MEASURED)}))
    assert (none["draws"] == 0).all()
    assert row_of(none, subspace="random", method="away", fraction=0.25)["energies"] == 6


def test_points_of_one_study_have_the_error_over_draws_and_never_a_smaller_one_than_prompts():
    projections = sweeps_of(Sweeps(seeds=1, own_noise=1.0))
    frame = sweep_points(projections)
    drawn = projections[(projections["subspace"] == "random") & (projections["method"] == "onto")]
    each = drawn[drawn["fraction"] == 0.4]["refusal_margin"]
    point = row_of(frame, subspace="random", method="onto", fraction=0.4)
    assert (point["refusal_margin"], point["refusal_margin_n"]) == (pytest.approx(each.mean()), 3)
    assert point["refusal_margin_error"] == pytest.approx(stats.sem(each))
    top = row_of(frame, subspace="top", method="onto", fraction=0.4)
    assert (top["refusal_margin_error"], top["refusal_margin_n"]) == (0.2, 1)
    # Draws that come out alike answer the same prompts.
    alike = row_of(sweep_points(sweeps_of(Sweeps(seeds=1))), subspace="random", method="onto", fraction=0.4)
    assert (alike["refusal_margin_error"], alike["refusal_margin_n"]) == (pytest.approx(0.2), 3)


def test_points_over_seeds_have_the_interval_of_means_over_draws_and_never_a_narrower_one_than_prompts():
    projections = sweeps_of(Sweeps(own_noise=1.0))
    point = row_of(sweep_points(projections), subspace="random", method="away", fraction=0.25)
    cell = projections[(projections["subspace"] == "random") & (projections["fraction"] == 0.25)]
    each = cell[cell["method"] == "away"].groupby("seed")["refusal_margin"].mean()
    low, high = stats.t.interval(0.95, 2, loc=each.mean(), scale=stats.sem(each))
    assert point["refusal_margin"] == pytest.approx(each.mean())
    assert point["refusal_margin_error"] == pytest.approx((high - low) / 2)
    assert (point["refusal_margin_n"], point["draws"], point["n_harmful"], point["n_groups_harmful"]) == (3, 3, 200, 50)
    same = row_of(sweep_points(sweeps_of(Sweeps())), subspace="top", method="away", fraction=0.25)
    assert same["refusal_margin_error"] == pytest.approx(1.96 * 0.2)


def test_a_sweep_that_another_repeats_and_adds_to_is_left_out_and_one_that_differs_is_named():
    world = Sweeps(seeds=1, own_noise=0.5)
    finer = sweeps_of(world)
    coarser = finer[finer["fraction"].isin((0.1, 0.5))].assign(analysis="quick")
    models = models_of(world)

    def names(*frames):
        return swept(as_studies(pd.concat(frames, ignore_index=True), models)).groupby("tuned").size().to_dict()

    assert names(coarser, finer) == {"contaminated": len(finer)}
    other = coarser.assign(refusal_margin=coarser["refusal_margin"] + 1)
    apart = {"contaminated (quick)": len(coarser), "contaminated (sweep_contaminated)": len(finer)}
    assert names(other, finer) == apart
    # A sweep that measured energies alone says nothing that the evaluated one does not.
    energies = coarser.assign(**{name: np.nan for name in coarser if name.startswith(MEASURED)})
    assert names(energies, finer) == {"contaminated": len(finer)}


def test_the_ends_of_a_sweep_are_the_means_over_seeds_of_the_two_models():
    world = Sweeps(tuned=("a", "b"))
    models = models_of(world)
    models.loc[models["model"] == "b", "refusal_margin"] = [-1.0, -2.0, -6.0]
    ends = sweep_ends(sweeps_of(world), models)
    assert list(zip(ends["tuned"], ends["model"], ends["is_whole"], strict=True)) == [
        ("a", "aligned", False), ("a", "a", True), ("b", "aligned", False), ("b", "b", True),
    ]  # fmt: skip
    assert list(ends["refusal_margin"]) == [8.0, -8.0, 8.0, -3.0]
    assert sweep_ends(sweeps_of(world), models[models["model"] == "a"])["utility"].isna().sum() == 3
