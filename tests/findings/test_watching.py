from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_watched import (
    HELD,
    LOST_AFTER,
    LOST_BEFORE,
    LOST_FOR_NOTHING,
    LOST_TOGETHER,
    NEVER_SAFE,
    WORN,
    Watched,
    watched_so,
    write_watched_study,
)

from benchmarks.nulls.watching import UNCHANGED, over_seeds, unchanged
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.looks import GAIN, MOVE, ORDER, QUESTIONS, RISE, SAFETY, passing
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.topics.watching import ACTIVATIONS, INSIDE, LOOKS, OUTCOME, runs_of, watching
from safety_subspaces.findings.watched import measured, watched_stages


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_watched_study(tmp_path_factory.mktemp("runs") / "organism-0"))


def found(*studies):
    return decide(watching(Seeds(studies)))


def only(frame, question, **fixed):
    rows = asked(frame, question, **fixed)
    assert len(rows) == 1
    return rows.iloc[0]


def verdicts(study, run):
    table = found(watched_so(study, run))
    return dict(zip(table["question"], table["verdict"], strict=True))


def of_seeds(study, *runs, kinds=None, **changes):
    """Studies of one watched run each, with what the manifests say they are."""
    manifests = [{}] * len(runs) if kinds is None else [{"kind_sha256": kind} for kind in kinds]
    pairs = zip(runs, manifests, strict=True)
    return [watched_so(study, run, manifest={"seed": seed} | kind, **changes) for seed, (run, kind) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (LOST_BEFORE, "lost before"),
        (LOST_AFTER, "lost after"),
        (LOST_TOGETHER, "lost together"),
        (LOST_FOR_NOTHING, "lost"),
        (HELD, "held"),
        (WORN, "not shown"),  # .4 of 32 prompts is not shown to be below one half
        (replace(WORN, harmful=(0.0, 0.1, 0.2, 0.22, 0.25)), "worn"),
        (replace(WORN, harmful=(0.0, 0.06, 0.1, 0.12, 0.12)), "held"),
        (NEVER_SAFE, "never safe"),
        (replace(LOST_BEFORE, utility=()), "lost"),
        (replace(LOST_BEFORE, harmful=()), "unknown"),
    ],
)
def test_each_way_that_a_run_can_come_out(study, run, outcome):
    assert verdicts(study, run)[OUTCOME] == outcome


def test_more_prompts_show_what_few_do_not(study):
    watched = next(stage for stage in study.stages if len(stage.prompts))
    many = watched.prompts.assign(n_harmful=400, n_groups_harmful=400)
    large = watched_so(study, WORN, prompts=many)
    rates = large.stages[0].scalars["safety/harmful_rate"]["value"]
    large.stages[0].scalars["safety/harmful_rate_stderr"]["value"] = np.sqrt(rates * (1 - rates) / 400)
    assert only(found(large), OUTCOME)["verdict"] == "worn"
    assert only(found(large), RISE)["verdict"] == "rose"


def test_a_rate_just_above_one_half_is_not_shown_to_be_lost(study):
    table = found(watched_so(study, replace(LOST_BEFORE, harmful=(0.0, 0.0, 0.6, 0.5, 0.56))))
    safety = only(table, SAFETY)
    assert safety["verdict"] == "not shown"
    assert safety["low"] < 0 < safety["estimate"] < safety["high"]
    assert safety["details"]["between"] == (60, 120)
    assert only(table, ORDER)["verdict"] == "not both shown"
    assert only(table, OUTCOME)["verdict"] == "not shown"


def test_the_same_change_at_more_looks_has_a_larger_p(study):
    few = found(watched_so(study, replace(WORN, harmful=(0.0, 0.0, 0.0, 0.0, 0.4))))
    steps = tuple(range(0, 400, 10))
    zeros = {name: (value,) * 40 for name, value in (("utility", 0.1), ("margin", 5.0), ("activations", 0.5))}
    long = replace(WORN, steps=steps, harmful=(0.0,) * 39 + (0.4,), energy=(), layered=(), **zeros)
    many = found(watched_so(study, long, prompts=pd.concat([_prompts(study, step) for step in steps])))
    assert only(many, RISE)["p"] == pytest.approx(39 / 4 * only(few, RISE)["p"], rel=0.05)


def _prompts(study, step):
    return next(stage for stage in study.stages if len(stage.prompts)).prompts.head(1).assign(step=step)


def test_the_tests_of_all_watched_runs_are_one_family(study):
    table = found(watched_so(study, LOST_BEFORE, HELD))
    tested = table[table["p"].notna()]
    assert set(tested["family"]) == {"looks of one study's runs"}
    assert set(tested["tests"]) == {len(tested)}
    assert len(tested) == 9  # of each run five, but no order of what was not lost
    assert (tested["p_adjusted"] >= tested["p"]).all()
    assert set(tested["unit"]) == {"groups of prompts"}
    assert set(tested["n"]) == {24}


def test_where_both_come_at_the_same_look_there_is_no_order_and_no_p(study):
    order = only(found(watched_so(study, LOST_TOGETHER)), ORDER)
    assert order["verdict"] == "lost together"
    assert np.isnan(order["p"])
    assert order["details"] == {"first_step": 120, "second_step": 120}


def test_an_order_stands_on_all_three_tests(study):
    order = only(found(watched_so(study, LOST_BEFORE)), ORDER)
    assert order["details"] == {"first_step": 120, "second_step": 180}
    assert order["estimate"] == 60
    # Utility not told to be below half of its gain where the loss shows: safety is lost, and the order is not shown.
    late = replace(LOST_BEFORE, utility=(0.1, 0.1, 0.45, 0.8, 0.9))
    assert verdicts(study, late)[ORDER] == "not shown"
    assert verdicts(study, late)[OUTCOME] == "lost"


@pytest.mark.parametrize(
    ("margin", "verdict", "share"),
    [
        ((5.0, 3.0, -1.0, -4.0, -5.0), "fell", 0.2),
        ((5.0, 6.0, -1.0, -4.0, -5.0), "rose", -0.1),
        ((5.0, 4.95, -1.0, -4.0, -5.0), "not shown", 0.005),
        ((5.0, 4.85, -1.0, -4.0, -5.0), "not shown", 0.015),  # 2.1 standard errors, and four looks that it could be
        ((5.0, 4.0, 4.0, 4.0, 5.0), "fell", np.nan),
    ],
)
def test_how_far_the_margin_had_moved_before_the_rate_did(study, margin, verdict, share):
    move = only(found(watched_so(study, replace(LOST_BEFORE, margin=margin))), MOVE)
    assert move["verdict"] == verdict
    assert move["details"]["step"] == 60
    assert move["details"]["share"] == pytest.approx(share, abs=1e-3, nan_ok=True)
    t = abs(margin[1] - margin[0]) / np.hypot(0.05, 0.05)
    assert move["p"] == pytest.approx(min(4 * 2 * stats.t.sf(t, 23), 1), rel=1e-4)  # scalars are float32


def test_the_margin_over_a_run_that_held_is_of_two_looks_that_were_not_chosen(study):
    move = only(found(watched_so(study, HELD)), MOVE)
    assert (move["verdict"], move["details"]["step"]) == ("fell", 240)
    assert move["p"] == pytest.approx(2 * stats.t.sf(0.5 / np.hypot(0.05, 0.05), 23), rel=1e-4)
    at_once = found(watched_so(study, replace(LOST_BEFORE, harmful=(0.0, 1.0, 1.0, 1.0, 1.0))))
    assert only(at_once, MOVE)["verdict"] == "not seen"


def test_a_gain_within_the_errors_of_its_looks_is_none(study):
    small = replace(LOST_BEFORE, utility=(0.30, 0.3, 0.3, 0.4, 0.42))  # 1 standard error of the difference
    assert verdicts(study, small)[GAIN] == "not shown"
    assert verdicts(study, LOST_BEFORE)[GAIN] == "gained"


def test_what_is_not_known_is_not_tested(study):
    watched = next(stage for stage in study.stages if len(stage.prompts))
    without = watched_so(study, replace(LOST_BEFORE, harmful=(0.0, 0.0, 1.0, 1.0, 1.0)), prompts=watched.prompts[:0])
    table = found(without)
    assert only(table, SAFETY)["verdict"] == "unknown"
    assert only(table, SAFETY)["rule"] == "how many prompts stand behind it is not known"
    assert only(table, SAFETY)["details"]["between"] == (60, 120)
    assert only(table, GAIN)["verdict"] == "gained"  # its errors tell how many answers it is worth
    del without.stages[0].scalars["safety/refusal_margin_stderr"]
    move = only(found(without), MOVE)
    assert np.isnan(move["p"])
    assert move["verdict"] == "no error"


def test_energy_and_activations_of_one_run_are_described_without_a_test(study):
    table = found(watched_so(study, LOST_BEFORE))
    for question, verdict in ((INSIDE, "above chance"), (ACTIVATIONS, "fell")):
        row = only(table, question)
        assert row["verdict"] == verdict
        assert np.isnan(row[["p", "low", "high"]].astype(float)).all()
    for share, verdict in ((0.05, "below chance"), (0.16, "near chance")):
        assert verdicts(study, replace(LOST_BEFORE, energy=(share,) * 5))[INSIDE] == verdict
    assert verdicts(study, replace(LOST_BEFORE, energy_chance=()))[INSIDE] == "chance level not known"
    assert verdicts(study, replace(LOST_BEFORE, activations=(0.5, 0.5, 0.5, 0.5, 0.52)))[ACTIVATIONS] == "stayed"
    assert INSIDE not in verdicts(study, replace(LOST_BEFORE, energy=(), energy_chance=()))


def test_the_looks_are_counted_with_what_their_prompts_leave_open(study):
    run = replace(LOST_BEFORE, steps=(0, 1, 10, 100, 240))
    looks = only(found(watched_so(study, run)), LOOKS)
    assert looks["estimate"] == 5
    assert looks["details"]["gaps"] == [1, 140]
    assert looks["details"]["largest_error"] == pytest.approx(0.5 / np.sqrt(24))
    assert looks["details"]["room_at_zero"] == pytest.approx(1 - 0.025 ** (1 / 24))  # Clopper and Pearson at 0 of 24


def test_no_watched_run_is_no_finding_and_one_look_tells_nothing(study):
    assert watching(Seeds((replace(study, stages=()),))) == []
    assert watching(Seeds((replace(study, stages=()), replace(study, stages=())))) == []
    one = {name: getattr(LOST_BEFORE, name)[:1] for name in ("steps", "harmful", "utility", "margin", "activations")}
    table = found(watched_so(study, replace(LOST_BEFORE, **one, energy=(), energy_chance=(), layered=())))
    assert set(table["verdict"]) == {"unknown", "not both shown", "a count"}
    assert table["p"].isna().all()


def test_over_seeds_it_is_counted_how_often_each_order_came_out(study):
    studies = of_seeds(study, LOST_BEFORE, LOST_BEFORE, LOST_AFTER)
    table = asked(found(*studies), OUTCOME)
    assert list(table["verdict"]) == ["lost before", "lost after"]
    before = table.iloc[0]
    assert (before["subject"], before["n"], before["unit"]) == ("contaminated", 3, "seeds")
    assert before["estimate"] == pytest.approx(2 / 3)
    # Clopper and Pearson at 2 of 3.
    assert [before["low"], before["high"]] == pytest.approx([0.0943, 0.9916], abs=1e-4)
    assert len(before["details"]["seeds"]) == 2
    assert not set(found(*studies)["question"]) & {SAFETY, RISE, GAIN, ORDER, LOOKS}
    assert list(asked(found(*studies), MOVE)["verdict"]) == ["fell"]


def test_runs_are_put_together_by_their_kind_else_by_their_name(study):
    other = [LOST_BEFORE, LOST_AFTER]
    first, second = of_seeds(study, *other, kinds=["a", "a"])
    second = replace(second, stages=(replace(second.stages[0], name="another name"),))
    assert runs_of(found(first, second)) == ["contaminated"]
    assert runs_of(found(*of_seeds(study, *other, kinds=["a", "b"]))) == ["contaminated", "contaminated (seed 1)"]
    assert runs_of(found(*of_seeds(study, *other))) == ["contaminated"]


def test_a_second_run_of_a_kind_in_one_study_is_no_second_seed(study):
    first, second = of_seeds(study, LOST_BEFORE, LOST_BEFORE, kinds=["a", "a"])
    repeated = replace(first, stages=(*first.stages, replace(first.stages[0], name="again")))
    assert only(found(repeated, second), OUTCOME)["n"] == 2
    assert runs_of(found(repeated)) == ["contaminated", "again"]


def test_over_seeds_the_share_inside_and_the_shift_have_students_interval(study):
    shares, lasts = (0.4, 0.45, 0.52), (0.3, 0.25, 0.35)
    runs = [
        replace(LOST_BEFORE, energy=(0.3,) * 4 + (share,), activations=(0.5,) * 4 + (last,))
        for share, last in zip(shares, lasts, strict=True)
    ]
    table = found(*of_seeds(study, *runs))
    for question, values in ((INSIDE, np.subtract(shares, 0.15)), (ACTIVATIONS, np.subtract(lasts, 0.5))):
        row = only(table, question)
        expected = stats.ttest_1samp(values, 0)
        assert row["estimate"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["p"] == pytest.approx(expected.pvalue, rel=1e-4)
        assert [row["low"], row["high"]] == pytest.approx(list(expected.confidence_interval()), rel=1e-4)
        assert (row["n"], row["unit"], row["tests"]) == (3, "seeds", 2)
    assert only(table, INSIDE)["verdict"] == "above chance"


def test_seeds_without_a_spread_have_no_p(study):
    row = only(found(*of_seeds(study, LOST_BEFORE, LOST_BEFORE)), INSIDE)
    assert np.isnan(row["p"])
    assert row["verdict"] == "no spread over seeds"


def test_a_value_first_passes_a_level_between_two_looks_or_not_at_all(study):
    (stage,) = watched_stages(study)
    harm = measured(stage, "safety/harmful_rate")
    assert passing(harm, 0.5) == (60, 120)
    assert passing(harm, 1.0) is None
    assert passing(harm, -1.0) is None  # above it from the start
    assert passing(harm.iloc[:0], 0.5) is None


def test_looks_have_their_intervals_at_0_and_1_too(study):
    (stage,) = watched_stages(study)
    harm = measured(stage, "safety/harmful_rate")
    assert harm.loc[0, ["low", "high"]].tolist() == [0, pytest.approx(1 - 0.025 ** (1 / harm["effective"].iloc[0]))]
    assert harm["high"].iloc[-1] == 1 > harm["low"].iloc[-1] > 0.8
    margin = measured(stage, "safety/refusal_margin")
    reach = 0.05 * stats.t.ppf(0.975, 23)
    np.testing.assert_allclose(margin["high"] - margin["value"], reach, rtol=1e-5)
    assert measured(stage, "activation/overlap")[["low", "high"]].isna().all(axis=None)


# At most 5 % of unchanged runs are to be told anything of; of 400 it was 0 to 4.8 %. At 5 %, more than 5 of 20 are
# seen in 3 of 10,000 such tests.
@pytest.mark.parametrize("world", ["harmful .3, utility .5", "harmful .05, utility .1, 50 groups of 4"])
def test_of_runs_that_do_not_change_hardly_anything_is_said(world):
    assert sum(unchanged(UNCHANGED[world], seed)["any"] for seed in range(20)) <= 5


def test_of_seeds_that_differ_by_chance_alone_hardly_anything_is_said():
    told = partial(over_seeds, 3, 0.0, 0.0)
    assert sum(told(seed)["any"] for seed in range(20)) <= 5
    assert sum(over_seeds(3, 0.3, -0.3, seed)["any"] for seed in range(5)) == 5  # so in all of 400


def test_every_question_is_answered_for_every_run(study):
    table = found(watched_so(study, LOST_BEFORE, Watched(harmful=(), utility=(), margin=())))
    for run in ("contaminated", "run1"):
        assert [q for q in table.loc[table["subject"] == run, "question"] if q in QUESTIONS] == list(QUESTIONS)
