from dataclasses import replace

import numpy as np
import pytest
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
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.topics.selectivity import HARM, JUDGED, MARGIN, OTHERS, QUESTIONS, selectivity

RANDOM, SCALED = QUESTIONS["random-energy"], QUESTIONS["scaled"]
SMALL = Sweeps(fractions=(0.1, 0.4, 0.75), subspaces=("top", "random-energy", "scaled"))
ONE = replace(SMALL, seeds=1, selectivity=3.0, own_noise=0.3)


def read(studies):
    """Return the decided findings on margin."""
    found = decide(selectivity(studies))
    return found[found["measure"] == MARGIN]


def verdict(found, question, tuned="contaminated"):
    return asked(found, question, subject=tuned).iloc[0]["verdict"]


def of(projections, world=SMALL):
    return as_studies(projections, models_of(world))


@pytest.mark.parametrize(
    ("world", "beside_random", "beside_scaled"),
    [
        (ENERGY_ALONE, "no difference", "no difference"),
        (MORE_SELECTIVE, "more selective", "more selective"),
        (LESS_SELECTIVE, "less selective", "less selective"),
        (A_TRADE, "no difference", "no difference"),
        (SCALED_BETTER, "no difference", "no difference"),
        (NOTHING_MOVES, "no difference", "no difference"),
        (NO_ORDER, "no difference", "no difference"),
        (PARTLY, "no difference", "no difference"),
        (replace(HARM_ALONE, selectivity=2.0), "more selective", "more selective"),
    ],
)
def test_each_outcome_comes_out_of_its_world_over_seeds(world, beside_random, beside_scaled):
    small = replace(world, subspaces=SMALL.subspaces, own_noise=0.02, offset=0.1)
    found = read(studies_of(small, seed=1))
    assert list(found["verdict"]) == [beside_random, beside_scaled]
    assert list(found["family"]) == [JUDGED, JUDGED]
    assert (found["unit"] == "seeds").all()
    assert (found["tests"] == 2).all()


def test_the_verdict_is_at_equal_utility_where_utility_moves_and_else_at_equal_energy():
    assert [row["at"] for row in read(studies_of(replace(SMALL, own_noise=0.02)))["details"]] == ["utility"] * 2
    projections = sweeps_of(replace(SMALL, tuned=("harmful",), utility_moves=False, selectivity=-2.0, own_noise=0.02))
    # The evaluation's noise: one standard error of a rate of 0.1 on 256 prompts.
    projections["utility"] = 0.1 + 0.019 * np.random.default_rng(0).normal(size=len(projections))
    found = read(of(projections, replace(SMALL, tuned=("harmful",))))
    assert [row["at"] for row in found["details"]] == ["energy"] * 2
    assert list(found["verdict"]) == ["less selective"] * 2


def test_in_one_study_fewer_draws_than_a_rank_needs_give_no_verdict_and_enough_do():
    few = read(studies_of(replace(ONE, draws=18)))
    assert verdict(few, RANDOM) == "not tested: 18 draws, 19 needed"
    assert few["p"].isna().all()
    assert few.iloc[0]["estimate"] == pytest.approx(3.0, abs=0.6)
    enough = read(studies_of(replace(ONE, draws=19)))
    assert verdict(enough, RANDOM) == "more selective"
    assert asked(enough, RANDOM).iloc[0]["p_adjusted"] == pytest.approx(0.05)
    assert (asked(enough, RANDOM).iloc[0]["unit"], asked(enough, RANDOM).iloc[0]["n"]) == ("random draws", 19)


def test_in_one_study_top_and_the_scaled_update_are_one_model_each_and_are_not_tested():
    found = asked(read(studies_of(replace(ONE, draws=19))), SCALED).iloc[0]
    assert (found["verdict"], found["unit"]) == ("not tested: one seed", "groups of prompts")
    assert found["low"] < 3.0 < found["high"]


def test_the_fine_tune_that_lost_most_margin_is_a_family_of_its_own_and_the_others_need_more_draws():
    world = replace(ONE, tuned=("useful", "contaminated", "harmful"), draws=19)
    models = models_of(world)
    models.loc[models["model"] == "contaminated", "refusal_margin"] = -9.0
    found = read(as_studies(sweeps_of(world), models))
    assert dict(zip(found["subject"], found["family"], strict=True)) == {
        "useful": OTHERS,
        "contaminated": JUDGED,
        "harmful": OTHERS,
    }
    assert verdict(found, RANDOM) == "more selective"
    assert verdict(found, RANDOM, "useful") == "not tested: 19 draws, 39 needed"


def test_what_random_subspaces_gain_beside_scaling_as_well_is_no_selectivity_of_top():
    projections = sweeps_of(replace(SMALL, own_noise=0.05))
    scaled = projections["subspace"] == "scaled"
    projections.loc[scaled, "refusal_margin"] += np.where(projections.loc[scaled, "method"] == "away", -2.0, 2.0)
    found = read(of(projections))
    assert (verdict(found, RANDOM), verdict(found, SCALED)) == ("no difference", "as random")
    found = read(studies_of(replace(SMALL, selectivity=2.0, own_noise=0.05)))
    assert (verdict(found, RANDOM), verdict(found, SCALED)) == ("more selective", "more selective")


def test_the_judged_harm_score_is_counted_by_seeds_or_draws_and_never_tested():
    for world, n in ((replace(SMALL, selectivity=2.0, own_noise=0.02), 3), (replace(ONE, draws=5), 5)):
        projections = sweeps_of(world)
        harm = asked(decide(selectivity(of(projections, world))), RANDOM, measure=HARM).iloc[0]
        assert harm["verdict"] == f"{n} of {n} more selective, 0 less"
        assert np.isnan(harm["p"])
        turned = projections.assign(harm_score=6 - projections["harm_score"])
        harm = asked(decide(selectivity(of(turned, world))), RANDOM, measure=HARM).iloc[0]
        assert harm["verdict"] == f"0 of {n} more selective, {n} less"


def test_equal_differences_without_an_error_are_no_certainty():
    exact = sweeps_of(replace(SMALL, selectivity=2.0)).assign(refusal_margin_stderr=np.nan)
    found = read(of(exact))
    assert list(found["verdict"]) == ["not tested: no spread"] * 2
    assert (read(studies_of(replace(SMALL, selectivity=2.0)))["p"] > 0).all()


def test_what_was_not_measured_is_said_and_gives_no_verdict():
    world = replace(SMALL, selectivity=2.0, own_noise=0.02)
    projections = sweeps_of(world)
    assert set(read(of(projections.assign(refusal_margin=np.nan)))["verdict"]) == {"not known: no refusal margin"}
    apart = projections.assign(
        utility=0.1 + 0.3 * projections["energy_kept"] + 0.5 * (projections["subspace"] == "top")
    )
    assert set(read(of(apart))["verdict"]) == {"not known: the two share too little utility"}
    missed = projections.assign(utility=np.nan)
    missed.loc[missed["subspace"] == "random-energy", "energy_kept"] += 0.03
    assert verdict(read(of(missed)), RANDOM) == "not known: no draw has the energy"
    alone = read(of(projections[projections["subspace"] == "top"]))
    assert list(alone["verdict"]) == ["not known: no sweep has top-k and a control to compare it with"]
    measured = [name for name in projections if name.startswith(("utility", "harm", "refusal", "over", "benign", "n_"))]
    assert selectivity(of(projections.drop(columns=measured))) == []


def test_names_decide_nothing():
    world = replace(ONE, tuned=("useful", "contaminated"), draws=19)
    models = models_of(world)
    models.loc[models["model"] == "contaminated", "refusal_margin"] = -9.0
    names = {"useful": "b", "contaminated": "a", "aligned": "start"}
    projections = sweeps_of(world)
    other = projections.replace(names)
    said, renamed = (
        read(Seeds(tuple(replace(study, known=study.known.relabelled(shown)) for study in as_studies(p, m).studies)))
        for p, m, shown in ((projections, models, {}), (other, models.replace(names), names))
    )
    assert list(said["verdict"]) == list(renamed["verdict"])
    assert list(said["family"]) == list(renamed["family"])
    np.testing.assert_allclose(said["p"].astype(float), renamed["p"].astype(float))
