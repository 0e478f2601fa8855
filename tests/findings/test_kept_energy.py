from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_sweeps import Sweeps, as_studies, models_of, sweeps_of

from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.intervals import rank_p_value
from safety_subspaces.findings.kept_energy import energy_beside_chance
from safety_subspaces.findings.swept import swept
from safety_subspaces.findings.topics.energy import INSIDE, energy

FRACTIONS = (0.1, 0.25, 0.5)
MEASURES = ("utility", "harm_score", "harmful_rate", "over_refusal_rate", "benign_answered_rate", "refusal_margin")


def energies(draws=99, tuned=("a",), excess=0.0, seeds=1, spread=0.01, seed=0, evaluated=2):
    """Sweeps in which top keeps chance and an excess, with a deviation of its own as each draw has."""
    random = np.random.default_rng(seed)
    world = Sweeps(seeds=seeds, draws=draws, tuned=tuned, fractions=FRACTIONS, subspaces=("top", "random"))
    frame = sweeps_of(world, seed)
    own = frame.groupby(["seed", "tuned", "subspace", "draw"]).ngroup()
    deviation = spread * random.normal(size=own.nunique())[own]
    inside = frame["fraction"] + deviation + excess * (frame["subspace"] == "top")
    frame["energy_kept"] = np.where(frame["method"] == "onto", inside, 1 - inside)
    measured = [name for name in frame if name.startswith((*MEASURES, "n_"))]
    frame.loc[(frame["subspace"] == "random") & (frame["draw"] >= evaluated), measured] = np.nan
    return as_studies(frame, models_of(world))


def verdicts(studies):
    return list(asked(decide(energy(studies)), INSIDE)["verdict"])


def test_of_one_study_p_is_the_rank_of_the_mean_over_fractions_among_the_draws():
    projections = swept(energies(draws=24, seed=4))
    onto = projections[projections["method"] == "onto"]
    means = onto.groupby(["subspace", "draw"])["energy_kept"].mean()
    row = energy_beside_chance(projections, ["tuned"]).iloc[0]
    assert row["p"] == pytest.approx(rank_p_value(means["top"].iloc[0], means["random"].to_numpy()))
    assert row["difference"] == pytest.approx(means["top"].iloc[0] - means["random"].mean())
    reach = stats.t.ppf(0.975, 23) * means["random"].std(ddof=1) * np.sqrt(1 + 1 / 24)
    assert row["reach"] == pytest.approx(reach)
    assert (row["n"], row["draws"], row["fractions"], row["seeds"]) == (24, 24, 3, 1)
    assert row["chance_energy"] == pytest.approx(np.mean(FRACTIONS))


def test_whichever_subspace_is_called_top_the_ranks_are_all_there_once():
    projections = swept(energies(draws=9))
    p = []
    for draw in range(10):
        other = projections.copy()
        if draw < 9:
            is_draw = (projections["subspace"] == "random") & (projections["draw"] == draw)
            is_top = projections["subspace"] == "top"
            other.loc[is_draw, ["subspace", "draw"]] = ["top", 0.0]
            other.loc[is_top, ["subspace", "draw"]] = ["random", float(draw)]
        p.append(energy_beside_chance(other, ["tuned"]).iloc[0]["p"])
    np.testing.assert_allclose(sorted(p), np.arange(1, 11) / 10)


def test_an_excess_over_chance_is_found_with_enough_draws_for_the_family_and_none_is_told_with_fewer():
    tuned = ("a", "b", "c")
    assert verdicts(energies(draws=59, tuned=tuned, excess=0.05)) == ["more than random"] * 3
    assert verdicts(energies(draws=59, tuned=tuned, excess=-0.05)) == ["less than random"] * 3
    assert verdicts(energies(draws=58, tuned=tuned, excess=0.05)) == ["not tested: 58 draws, 59 needed"] * 3
    found = asked(decide(energy(energies(draws=59, tuned=tuned, excess=0.05))), INSIDE)
    assert [row["evaluated"] for row in found["details"]] == [2, 2, 2]
    assert (found["tests"] == 3).all()


def test_over_seeds_it_is_a_t_test_of_the_difference_from_the_expected_share():
    studies = energies(draws=3, seeds=4, excess=0.05)
    projections = swept(studies)
    onto = projections[(projections["method"] == "onto") & (projections["subspace"] == "top")]
    each = (onto["energy_kept"] - onto["chance_energy"]).groupby(onto["seed"]).mean()
    row = energy_beside_chance(projections, ["tuned"]).iloc[0]
    assert row["p"] == pytest.approx(stats.ttest_1samp(each, 0).pvalue)
    assert row["difference"] == pytest.approx(each.mean())
    assert verdicts(studies) == ["more than random"]
    assert verdicts(energies(draws=3, seeds=4, seed=1)) == ["no difference"]
    assert verdicts(energies(draws=3, seeds=4, excess=0.05, spread=0.0)) == ["not tested: no spread"]


def test_a_subspace_that_is_projected_away_says_the_same_as_one_that_is_projected_onto():
    projections = swept(energies(draws=5))
    frames = [energy_beside_chance(projections[projections["method"] == m], ["tuned"]) for m in ("onto", "away")]
    pd.testing.assert_frame_equal(*frames)


def test_what_is_known_in_closed_form_is_no_draw():
    projections = swept(energies(draws=1))
    projections.loc[projections["subspace"] == "random", "draw"] = np.nan
    row = energy_beside_chance(projections, ["tuned"]).iloc[0]
    assert (row["n"], row["draws"]) == (0, 0)
    assert np.isnan(row["p"])
    assert row["difference"] == pytest.approx(row["energy_top"] - row["chance_energy"])
    alone = projections[projections["subspace"] == "top"]
    assert energy_beside_chance(alone, ["tuned"]).iloc[0]["difference"] == pytest.approx(row["difference"])
    assert energy_beside_chance(projections[projections["subspace"] != "top"], ["tuned"]).empty


def test_a_fraction_alone_and_their_mean_are_the_same_where_there_is_one():
    projections = swept(energies(draws=5))
    one = projections[projections["fraction"] == 0.25]
    of_mean, of_each = (energy_beside_chance(one, keys) for keys in (["tuned"], ["tuned", "fraction"]))
    pd.testing.assert_frame_equal(of_mean, of_each.drop(columns="fraction"))
    assert list(energy_beside_chance(projections, ["tuned", "fraction"])["fraction"]) == list(FRACTIONS)


def test_draws_that_lack_a_fraction_are_not_among_those_that_top_is_ranked_with():
    projections = swept(energies(draws=5))
    lost = (projections["subspace"] == "random") & (projections["draw"] == 3) & (projections["fraction"] == 0.25)
    assert energy_beside_chance(projections[~lost], ["tuned"]).iloc[0]["n"] == 4


def test_the_topic_asks_each_fine_tune_of_a_study_that_was_not_evaluated():
    frame = replace_measures(energies(draws=19, excess=0.05))
    found = decide(energy(frame))
    assert set(found["question"]) == {INSIDE}
    assert list(found["verdict"]) == ["more than random"]


def replace_measures(studies):
    """The same studies, in which no projected model was evaluated."""
    measured = [c for c in studies.studies[0].projections if c.startswith((*MEASURES, "n_"))]
    plain = [replace(s, projections=s.projections.assign(**dict.fromkeys(measured, np.nan))) for s in studies.studies]
    return type(studies)(tuple(plain))
