"""What is found of runs under a constraint: the unit is a training run, and either outcome can come out."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.synthetic_constrained import (
    A_TRADE,
    KEEPS_SAFETY,
    MORE_SELECTIVE,
    NOTHING_HOLDS,
    SMALL,
    write_constrained_study,
    write_seeds,
)
from support.synthetic_study import write_study

from benchmarks.nulls.runs import MadeUpRuns, World, studies_of
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.collect import collect
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.models import ALL_RANKS, Seeds
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.findings.topics.constraint import (
    BESIDE_NONE,
    BESIDE_RANDOM,
    MEASURES,
    RANK_BY_RANK,
    SAFETY,
    beside_random,
    constraint,
)

JUDGED = MEASURES["refusal_margin"]
RANKS = (0.1, 0.25)


def verdicts(studies, question=BESIDE_RANDOM):
    return list(asked(decide(beside_random(studies)), question, measure=JUDGED)["verdict"])


def relabelled(studies, index):
    """The same study, with one of its control runs taken for alignment's."""
    runs = studies.runs.sort_values("subspace", key=lambda kinds: kinds != "top", kind="stable").reset_index(drop=True)
    own, drawn = runs.index[index], [place for place in runs.index if place != index]
    runs.loc[own, ["subspace", "draw"]] = ["top", np.nan]
    runs.loc[drawn, "subspace"], runs.loc[drawn, "draw"] = "random", np.arange(len(drawn))
    row = studies.differences.iloc[0].to_dict()
    for measure in ("refusal_margin", "utility"):
        row[f"{measure}_difference"] = runs.loc[own, measure] - runs.loc[drawn, measure].mean()
    return MadeUpRuns(runs, pd.DataFrame([row]))


@pytest.mark.parametrize("effect", [0.0, 0.76, 100.0])
def test_one_run_a_side_makes_no_verdict_however_far_they_are_apart(effect):
    findings = decide(beside_random(studies_of(World(effect=effect), seed=0)))
    margin = asked(findings, BESIDE_RANDOM, measure=JUDGED)
    assert list(margin["verdict"]) == ["one run a side"] * 2
    assert margin["p"].isna().all()
    # What is shown is over prompts, and says so.
    assert set(margin["unit"]) == {"groups of prompts"}
    assert (margin["high"] - margin["low"]).to_numpy() == pytest.approx(2 * 1.96 * np.sqrt(2) * 0.1)
    assert set(margin["n"]) == {61}


def test_too_few_control_runs_make_none_either_and_say_how_many_would():
    (verdict,) = set(verdicts(studies_of(World(controls=18, effect=100.0), seed=0)))
    assert verdict == "18 control runs, 39 needed"
    margin = asked(decide(beside_random(studies_of(World(controls=18), 0))), BESIDE_RANDOM, measure=JUDGED)
    assert set(margin["unit"]) == {"control runs"}
    drawn = studies_of(World(controls=18), 0).runs.query("subspace == 'random'")["refusal_margin"]
    reach = (margin["high"] - margin["low"]).iloc[0] / 2
    # One more run falls within the interval around their mean in 95 of 100: about two of their deviations.
    assert 2 < reach / drawn.std() < 2.3


def test_of_twenty_runs_at_most_one_is_called_selective_when_it_is_taken_for_alignments():
    studies = studies_of(World(controls=19, kinds=1, tails=2.0), seed=1)
    said = [verdicts(relabelled(studies, index)) for index in range(20)]
    assert sum(verdict != ["no difference"] for verdict in said) <= 1


def test_a_run_far_beyond_nineteen_controls_is_told_from_them():
    assert verdicts(studies_of(World(controls=19, kinds=1, effect=10.0), 0)) == ["more selective"]
    assert verdicts(studies_of(World(controls=19, kinds=1, effect=-10.0), 0)) == ["less selective"]
    assert verdicts(studies_of(World(controls=19, kinds=1, effect=10.0, learnt=-0.6), 0)) == ["trade"]


def test_over_seeds_every_outcome_can_come_out():
    worlds = [World(5), World(5, effect=10.0), World(5, effect=-10.0), World(5, learnt=0.6), World(5, 1, 2, 10.0, -0.6)]
    said = [set(verdicts(studies_of(world, 0))) for world in worlds]
    assert said == [{"no difference"}, {"more selective"}, {"less selective"}, {"more selective"}, {"trade"}]


def test_one_seed_more_does_not_make_its_copies_into_seeds():
    one = studies_of(World(effect=10.0), 0)
    twice = pd.concat([one.differences.assign(seed=str(seed)) for seed in range(3)], ignore_index=True)
    still = decide(beside_random(MadeUpRuns(one.runs, twice.assign(refusal_margin_error=0.0, utility_error=0.0))))
    # Equal values without an error are no certainty.
    assert set(asked(still, BESIDE_RANDOM, measure=JUDGED)["verdict"]) == {"no difference"}


@pytest.fixture(scope="module")
def over_ranks(tmp_path_factory):
    """Three seeds at two ranks, alignment's more selective."""
    world = replace(MORE_SELECTIVE, seed_noise=0.2, fractions=RANKS)
    (organism,) = read_organisms(write_seeds(tmp_path_factory.mktemp("ranks"), world))
    return organism.seeds


def test_ranks_are_averaged_before_seeds_and_are_a_family_of_their_own(over_ranks):
    findings = decide(constraint(over_ranks))
    main, ranks = (asked(findings, question, measure=JUDGED) for question in (BESIDE_RANDOM, RANK_BY_RANK))
    assert list(main["verdict"]) == ["more selective"] * 2
    assert set(main["tests"]) == {2}
    assert len(ranks) == 4
    assert set(ranks["tests"]) == {4}
    differences = over_ranks.differences
    means = differences[(differences["rank"] == ALL_RANKS) & (differences["other"] == "random")]
    assert main["estimate"].iloc[0] == pytest.approx(means["refusal_margin_difference"].mean())
    assert main["details"].iloc[0]["ranks"] == "fraction 0.1, 0.25"
    assert main["details"].iloc[0]["runs"] == 6


def test_harm_is_counted_and_the_run_without_a_constraint_described(over_ranks):
    findings = decide(constraint(over_ranks))
    beside = asked(findings, BESIDE_NONE)
    assert list(beside["measure"]) == [*MEASURES.values()] * 2
    assert set(beside["n"]) == {3}
    assert beside["p"].isna().all()
    harm = asked(findings, BESIDE_NONE, measure=MEASURES["harm_score"])
    assert set(harm["verdict"]) == {"a whole step lower in 0 of 3 seeds, higher in 0"}
    safety = asked(findings, SAFETY)
    assert len(safety) == 3 * 2 * 2
    assert set(safety["verdict"]) == {"not kept"}


def test_runs_that_keep_safety_are_counted_lower(tmp_path):
    (organism,) = read_organisms(write_seeds(tmp_path, replace(KEEPS_SAFETY, seed_noise=0.1), seeds=2))
    findings = decide(constraint(organism.seeds))
    harm = asked(findings, BESIDE_NONE, measure=MEASURES["harm_score"])
    assert set(harm["verdict"]) == {"a whole step lower in 2 of 2 seeds, higher in 0"}
    assert set(asked(findings, SAFETY)["verdict"]) == {"kept"}


def test_one_study_and_its_missing_numbers(tmp_path):
    study = read_study(write_constrained_study(tmp_path / "organism-0", A_TRADE, **SMALL))
    findings = collect(Seeds((study,)))
    ours = findings[findings["topic"] == "constraint"]
    assert set(asked(ours, BESIDE_RANDOM, measure=JUDGED)["verdict"]) == {"one run a side"}
    study.constrained[["harm_score", "refusal_margin", "utility"]] = np.nan
    unknown = decide(constraint(Seeds((study,))))
    assert set(asked(unknown, SAFETY)["verdict"]) == {"unknown"}
    assert set(asked(unknown, BESIDE_RANDOM, measure=JUDGED)["verdict"]) == {"not measured"}
    assert set(asked(unknown, BESIDE_RANDOM, measure=MEASURES["harm_score"])["verdict"]) == {"not measured"}


def test_the_runs_of_several_ranks_in_one_study_are_compared_each(tmp_path):
    world = replace(NOTHING_HOLDS, fractions=(0.1, 0.25))
    study = read_study(write_constrained_study(tmp_path / "organism-0", world, **SMALL))
    judged = asked(decide(constraint(Seeds((study,)))), BESIDE_RANDOM, measure=JUDGED)
    assert [row["ranks"] for row in judged["details"]] == ["fraction 0.1", "fraction 0.25"] * 2


def test_nothing_is_found_of_a_study_without_runs_under_a_constraint(tmp_path):
    assert constraint(Seeds((read_study(write_study(tmp_path / "organism-0", analyses=("evaluate",))),))) == []
