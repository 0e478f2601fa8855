"""Control runs: which runs are draws of one control, how they are counted, and when alignment's is told from them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_constrained import NOTHING_HOLDS, SMALL, write_constrained_study, write_seeds

from safety_subspaces.artefacts.run_constraint import subspace_seed
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.constrained import compare_runs, constrained_runs
from safety_subspaces.findings.control_runs import Comparison, with_enough_draws
from safety_subspaces.findings.intervals import Interval, joint_rank_p_values, rank_p_value, t_interval
from safety_subspaces.findings.models import Seeds, differences_over_seeds, runs_over_seeds
from safety_subspaces.findings.organisms import read_organisms

NOISY = replace(NOTHING_HOLDS, seed_noise=1.0)


def of_control(study, other="random"):
    return compare_runs(study).set_index(["constraint", "other"]).loc[("away", other)]


def edit(study, stage, change):
    path = study.folder / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return read_study(study.folder)


@pytest.fixture
def study(tmp_path):
    """A study with three runs of each control."""
    return read_study(write_constrained_study(tmp_path / "organism-0", replace(NOISY, controls=3), **SMALL))


def test_control_runs_are_averaged_and_their_error_over_prompts_is_not(study):
    row, runs = of_control(study), constrained_runs(study)
    drawn = runs[runs["subspace"] == "random"]
    own = runs[(runs["constraint"] == "away") & (runs["subspace"] == "top")].iloc[0]
    assert sorted(drawn["draw"]) == [0, 100, 200]
    assert row["runs"] == 3
    assert row["refusal_margin_difference"] == pytest.approx(own["refusal_margin"] - drawn["refusal_margin"].mean())
    # All runs answer the same prompts: three of them are no surer than one.
    assert row["refusal_margin_error"] == pytest.approx(np.hypot(0.2, 0.2))


def test_a_run_that_repeats_a_subspace_is_no_second_draw(study):
    again = edit(
        study, "contaminated_away_random-s1", lambda m: m["parts"][-1]["constraint"]["settings"].update(seed=0)
    )
    assert of_control(again)["runs"] == 2

    def of_another_part(manifest):
        manifest["parts"][-1]["constraint"].pop("settings")

    for draw in ("", "-s1", "-s2"):
        again = edit(again, f"contaminated_away_random{draw}", of_another_part)
    assert of_control(again)["runs"] == 3  # told apart by their numbers
    drawn = again.constrained.index[again.constrained["model"].str.startswith("contaminated_away_random")]
    again.constrained.loc[drawn[2], list(COMPARED)] = again.constrained.loc[drawn[0], list(COMPARED)]
    assert of_control(again)["runs"] == 2


def test_only_runs_of_the_same_recipe_and_constraint_are_draws(study):
    other = edit(study, "contaminated_away_random-s1", lambda manifest: manifest.update(recipe_sha256="another seed"))
    other = edit(
        other, "contaminated_away_random-s2", lambda m: m["parts"][-1]["constraint"].update(details="side right")
    )
    assert of_control(other)["runs"] == 1


def test_a_subspace_that_was_not_drawn_has_no_seed():
    def manifest(**facts):
        return {"parts": [{"constraint": {"mode": "away", "subspace": "random", **facts}}]}

    assert subspace_seed(manifest(settings={"seed": 4})) == 4
    assert subspace_seed(manifest(settings={})) is subspace_seed(manifest()) is None
    assert subspace_seed(manifest(subspace="top", settings={"seed": 4})) is None
    assert subspace_seed({}) is None


def test_several_runs_of_a_seed_count_as_one_value_over_seeds(tmp_path):
    (organism,) = read_organisms(write_seeds(tmp_path, replace(NOISY, controls=2), seeds=2))
    seeds = organism.seeds
    runs = runs_over_seeds(seeds).set_index(["constraint", "subspace"]).loc[("away", "random")]
    of_seed = seeds.runs[seeds.runs["subspace"] == "random"].groupby("seed")["refusal_margin"].mean()
    assert (runs["runs"], runs["refusal_margin_seeds"]) == (4, 2)
    low, high = stats.t.interval(0.95, 1, loc=of_seed.mean(), scale=stats.sem(of_seed))
    assert runs["refusal_margin_reach"] == pytest.approx(max((high - low) / 2, 1.96 * 0.2))
    rows = differences_over_seeds(seeds).set_index(["constraint", "other"]).loc[("away", "random")]
    each = [of_control(study)["refusal_margin_difference"] for study in seeds.studies]
    assert rows["refusal_margin_difference"] == pytest.approx(np.mean(each))
    assert np.isnan(rows["harm_score_difference_reach"])


def test_no_interval_over_seeds_is_narrower_than_the_error_over_prompts():
    alike, errors = pd.Series([0.12, 0.12, 0.12]), pd.Series([0.1, 0.1, 0.1])
    assert t_interval(alike, errors).reach == pytest.approx(0.196)
    assert np.isnan(t_interval(alike).p_value)


@pytest.mark.parametrize("measures", [1, 2, 3])
def test_of_exchangeable_runs_no_more_than_one_in_twenty_is_told_apart(measures):
    random = np.random.default_rng(measures)
    # Measures that hang together, and with heavy tails.
    runs = random.standard_t(2, size=(20, measures)) @ random.normal(size=(measures, measures))
    p_values = [joint_rank_p_values(runs[i], np.delete(runs, i, axis=0)).min() for i in range(20)]
    assert sorted(p_values) == pytest.approx(np.arange(1, 21) / 20)


def test_of_a_single_measure_the_joint_p_is_that_of_its_rank():
    runs = np.random.default_rng(0).normal(size=30)
    for i in range(30):
        rest = np.delete(runs, i)
        assert joint_rank_p_values(runs[i : i + 1], rest[:, None])[0] == rank_p_value(runs[i], rest)


def test_a_measure_that_does_not_vary_is_never_the_surer_one():
    random = np.random.default_rng(0)
    drawn = np.column_stack([random.normal(size=39), np.full(39, 0.1) + 1e-17])
    margin, utility = joint_rank_p_values(np.array([9.0, 0.1]), drawn)
    assert (margin, utility) == (1 / 40, 1.0)
    assert np.isnan(joint_rank_p_values(np.array([9.0, np.nan]), drawn)).all()
    assert np.isnan(joint_rank_p_values(np.array([9.0, 0.1]), drawn[:0])).all()


def comparison(margin=0.0, utility=0.0, p_values=(0.01, 0.01), draws=0):
    intervals = {"refusal_margin": Interval(margin, -9.0, 9.0, 3), "utility": Interval(utility, -9.0, 9.0, 3)}
    return Comparison(pd.DataFrame(), intervals, "seeds", p_values, draws)


@pytest.mark.parametrize(
    ("draws", "tested"),
    [([18], 0), ([19], 1), ([19, 19], 0), ([39, 39], 2), ([39, 19], 1), ([59, 59, 59, 3], 3), ([99, 39, 2], 2)],
)
def test_ranks_are_tested_where_enough_runs_stand_behind_each(draws, tested):
    every = with_enough_draws([comparison(draws=n) for n in draws])
    assert sum(one.is_tested for one in every) == tested
    for one in every:
        # The smallest p that its rank can have stays at 5 % after Holm; or it is said how many runs that takes.
        assert not one.is_tested or tested / (one.draws + 1) <= 0.05
        assert one.is_tested or one.why == f"{one.draws} control runs, {20 * len(draws) - 1} needed"


def test_ranks_share_their_family_with_what_is_tested_over_seeds():
    (_, few), (_, enough) = (with_enough_draws([comparison(), comparison(draws=n)]) for n in (38, 39))
    assert (few.is_tested, enough.is_tested) == (False, True)


@pytest.mark.parametrize(
    ("margin", "utility", "p_values", "p", "word"),
    [
        (1.0, 0.0, (0.01, 0.9), 0.01, "more selective"),
        (0.0, 0.1, (0.9, 0.01), 0.01, "more selective"),
        (1.0, 0.1, (0.02, 0.01), 0.01, "more selective"),
        (-1.0, 0.0, (0.01, 0.9), 0.01, "less selective"),
        (0.0, -0.4, (0.9, 0.01), 0.01, "less selective"),
        (1.0, -0.4, (0.01, 0.02), 0.01, "trade"),
        (-1.0, 0.4, (0.02, 0.01), 0.01, "trade"),
        # The other is not as sure in both tests of the family.
        (1.0, -0.4, (0.01, 0.03), 0.01, "more selective"),
        # A tenth of a nat, or five prompts, is no change, however sure.
        (0.05, 0.0, (0.001, 0.9), 0.001, "no difference"),
        (0.05, -0.1, (0.001, 0.04), 0.04, "less selective"),
    ],
)
def test_margin_and_utility_are_judged_together(margin, utility, p_values, p, word):
    assert comparison(margin, utility, p_values).judged(tests=2) == (p, word)


def test_a_moved_or_copied_study_has_the_same_draws(study, tmp_path):
    moved = read_study(shutil.copytree(study.folder, tmp_path / "elsewhere" / "organism-0"))
    names = ["runs", "refusal_margin_difference"]
    assert of_control(moved)[names].equals(of_control(study)[names])
    assert len(Seeds((moved,)).runs) == len(Seeds((study,)).runs)
