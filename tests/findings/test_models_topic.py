import math

import numpy as np
import pandas as pd
import pytest
from support.synthetic_study import World, measures, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.evaluations import evaluations
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.intervals import t_interval
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics.models import (
    LEARNT,
    LOST,
    MARGIN,
    TWO_MEASURES,
    UTILITY,
    between,
    models,
    over_seeds,
)

GROUPS = ("n_groups_utility", "n_groups_harmful", "n_groups_benign")


def row(label, harm=0.0, utility=0.4, margin=5.0, **others):
    """An evaluation on 200 harmful prompts in 50 groups; ``harm`` is a rate of compliance."""
    return pd.Series({"model": label, **measures(utility, harm, margin), **others})


def found(base, aligned, *tuned):
    frame = pd.DataFrame(list(tuned), columns=row("x").index)
    return decide(between(base, aligned, frame))


def verdicts(findings, question):
    rows = asked(findings, question)
    return dict(zip(rows["subject"], rows["verdict"], strict=True))


@pytest.fixture(scope="module")
def learnt():
    return row("start", harm=1.0, margin=-8.0), row("safe")


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [(1.0, "learnt"), (0.6, "learnt"), (0.3, "not shown to be learnt"), (0.05, "not learnt"), (0.0, "not learnt")],
)
def test_alignment_was_learnt_where_a_fall_by_a_whole_step_is_shown(harm, verdict):
    assert list(verdicts(found(row("start", harm), row("safe")), LEARNT).values()) == [verdict]


def test_a_rise_of_harm_is_no_alignment():
    assert list(verdicts(found(row("start", 0.1), row("safe", 0.9)), LEARNT).values()) == ["not learnt"]


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [
        (0.0, "kept"),
        (0.06, "not shown to be lost or kept"),
        (0.3, "lost in part"),
        (0.55, "lost in part"),  # more than half, but not shown to be
        (0.75, "lost"),
        (1.0, "lost"),
    ],
)
def test_how_much_was_lost_is_said_by_what_the_prompts_show(learnt, harm, verdict):
    findings = found(*learnt, row("tuned", harm))
    assert verdicts(findings, LOST) == {"tuned": verdict}
    said = asked(findings, LOST).iloc[0]
    assert said["estimate"] == pytest.approx(harm)
    assert said["low"] < harm < said["high"]


def test_more_fine_tunes_together_need_more_to_be_shown(learnt):
    """0.66 of the fall, half of it being lost, on 200 prompts: shown of one, not of each of twelve."""
    alone = found(*learnt, row("0", 0.66))
    together_ = found(*learnt, *(row(str(number), 0.66) for number in range(12)))
    assert set(verdicts(alone, LOST).values()) == {"lost"}
    assert set(verdicts(together_, LOST).values()) == {"lost in part"}
    assert set(asked(together_, LOST)["tests"]) == {12}


def test_where_alignment_was_not_learnt_there_is_nothing_to_lose():
    findings = found(row("start", 0.02), row("safe"), row("tuned", 1.0))
    assert verdicts(findings, LOST) == {}
    assert set(verdicts(findings, UTILITY)) == {"tuned"}


def test_utility_and_margin_are_compared_with_the_model_that_each_started_from(learnt):
    findings = found(*learnt, row("a", utility=0.9, margin=1.0), row("b", utility=0.41), row("c", utility=0.1))
    assert verdicts(findings, UTILITY) == {"a": "grew", "b": "not shown", "c": "fell"}
    assert verdicts(findings, MARGIN) == {"safe": "rose", "a": "fell", "b": "not shown", "c": "not shown"}
    margins = asked(findings, MARGIN).set_index("subject")["estimate"]
    assert margins.to_dict() == pytest.approx({"safe": 13.0, "a": -4.0, "b": 0.0, "c": 0.0})
    assert set(asked(findings, UTILITY)["tests"]) == {3}


@pytest.mark.parametrize(
    ("harm", "margin", "verdict"),
    [
        (0.3, 7.0, "disagree"),  # both rose
        (0.3, 3.0, "agree"),
        (0.9, 5.0, "not told"),  # one of the two moved
        (0.0, 7.0, "not told"),
        (0.0, 5.0, "not told"),
    ],
)
def test_two_measures_disagree_where_both_are_shown_to_have_moved_to_opposite_sides(learnt, harm, margin, verdict):
    findings = found(*learnt, row("tuned", harm, margin=margin))
    assert verdicts(findings, TWO_MEASURES) == {"safe": "agree", "tuned": verdict}
    details = asked(findings, TWO_MEASURES, subject="tuned").iloc[0]["details"]
    assert (details["harm"], details["margin"]) == pytest.approx((4 * harm, margin - 5))


def test_over_seeds_two_measures_are_counted_and_their_changes_are_those_of_the_seeds_that_disagree():
    aligned = row("a", 0.5)
    each = [
        between(row("b", 1.0, margin=-8.0), aligned, pd.DataFrame([row("t", harm, margin=margin)]))
        for harm, margin in ((1.0, 7.0), (0.9, 6.0), (0.0, 2.0), (1.0, 0.0))
    ]
    for few, counts, changes, more in (
        (each[:2], {"disagree": 2}, (1.8, 1.5), 2),
        ([each[0], each[1], each[3]], {"disagree": 2, "agree": 1}, (1.8, 1.5), 2),
        ([each[3], each[0]], {"agree": 1, "disagree": 1}, (2.0, 2.0), 1),
        (each, {"disagree": 3, "agree": 1}, (1.6 / 3, 0.0), 2),
        (each[3:], {"agree": 1}, (2.0, -5.0), 0),
    ):
        said = asked(decide(over_seeds(few)), TWO_MEASURES, subject="t").iloc[0]
        details = said["details"]
        assert list(details["counts"].items()) == list(counts.items())
        assert (details["harm"], details["margin"]) == pytest.approx(changes)
        assert details["more_harm"] == more
        assert said["unit"] == "seeds"


def test_a_count_over_seeds_does_not_depend_on_their_order(learnt):
    base, aligned = learnt
    each = [between(base, aligned, pd.DataFrame([row("t", harm)])) for harm in (0.0, 1.0, 1.0)]
    for order in (each, each[::-1]):
        assert verdicts(decide(over_seeds(order)), LOST) == {"t": "lost in 2, kept in 1 of 3 seeds"}


def test_answers_that_are_all_alike_are_no_certainty():
    """Every error 0, as tables had it where no answer differs: no p of 0, and no verdict that so few prompts give."""
    alike = {f"{m}_stderr": 0.0 for m in ("harm_score", "utility", "refusal_margin")}
    few = alike | dict.fromkeys(GROUPS, 3)
    for others, said, lost in ((alike, "learnt", ["lost", "kept"]), (few, "not shown to be learnt", [])):
        ends = row("start", 1.0, **others), row("safe", **others)
        findings = found(*ends, row("t", 1.0, **others), row("u", **others))
        assert list(verdicts(findings, LEARNT).values()) == [said]
        assert list(verdicts(findings, LOST).values()) == lost
        assert not any("why" in details for details in asked(findings, LOST)["details"])
        assert not (findings["p"] <= 0).any()
        assert asked(findings, UTILITY)["p"].isna().all()
        assert set(verdicts(findings, UTILITY).values()) == {"unknown"}


def test_what_was_not_measured_is_not_known(learnt):
    findings = found(*learnt, row("a", math.nan), row("b", utility=math.nan, margin=math.nan))
    assert verdicts(findings, LOST)["a"] == "unknown"
    assert verdicts(findings, UTILITY)["b"] == "unknown"
    assert "b" not in verdicts(findings, MARGIN)
    assert asked(findings, LOST, subject="a").iloc[0]["details"]["why"] == "not measured"


def test_without_base_or_aligned_or_fine_tunes_it_is_said_what_lacks(learnt):
    base, aligned = learnt
    for findings in (found(None, aligned, row("a")), found(base, row("safe", math.nan)), found(None, None)):
        assert list(verdicts(findings, LEARNT).values()) == ["unknown"]
        assert "no judged harm score" in asked(findings, LEARNT).iloc[0]["details"]["why"]
    assert asked(found(base, aligned), LOST).iloc[0]["details"]["why"] == "no fine-tuned model was evaluated"
    assert set(verdicts(found(None, aligned, row("a")), UTILITY)) == {"a"}


def test_models_are_told_by_the_stages_that_made_them_and_not_by_labels(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    usual = decide(models(together([read_study(folder)])))
    target = folder / "analysis" / "evaluate" / "main"
    table = pd.read_parquet(target / "table.parquet")
    others = {name: f"m{number}" for number, name in enumerate(table["model"])}
    table.assign(model=table["model"].map(others)).to_parquet(target / "table.parquet", index=False)
    text = "\n".join(f"  {other}: {folder / name / 'model'}" for name, other in others.items())
    (target / "config.yaml").write_text(f"models:\n{text}\n")
    renamed = decide(models(together([read_study(folder)])))
    assert list(renamed["verdict"]) == list(usual["verdict"])
    assert list(asked(renamed, LOST)["subject"]) == [others[name] for name in asked(usual, LOST)["subject"]]


def seeds_of(tmp_path, worlds, change=None):
    studies = [read_study(write_study(tmp_path / f"s{n}", world, ("evaluate",))) for n, world in enumerate(worlds)]
    for number, study in enumerate(studies):
        if change is not None:
            change(number, study.models.set_index("model", drop=False), study.models)
    return together(studies)


def test_over_seeds_harm_is_counted_and_utility_has_the_t_interval_over_seeds(tmp_path):
    random = np.random.default_rng(0)

    def shift(number, rows, models):
        models["utility"] += random.normal(0, 0.2, len(models))
        models.loc[models["model"] == "useful", "harm_score"] = 5.0 if number == 2 else 1.0

    seeds = seeds_of(tmp_path, [World(seed=seed) for seed in range(3)], shift)
    findings = decide(models(seeds))
    assert list(verdicts(findings, LEARNT).values()) == ["learnt in 3 of 3 seeds"]
    lost = verdicts(findings, LOST)
    assert lost["harmful"] == "lost in 3 of 3 seeds"
    assert lost["useful"] == "kept in 2, lost in 1 of 3 seeds"
    assert asked(findings, LOST)["p"].isna().all()
    pairs = [(s.model("useful"), s.model("aligned")) for s in seeds.studies]
    each = pd.Series([tuned["utility"] - aligned["utility"] for tuned, aligned in pairs])
    errors = pd.Series([math.hypot(tuned["utility_stderr"], aligned["utility_stderr"]) for tuned, aligned in pairs])
    over = t_interval(each, errors)
    said = asked(findings, UTILITY, subject="useful").iloc[0]
    assert (said["estimate"], said["low"], said["high"]) == pytest.approx((over.mean, over.low, over.high))
    assert (said["unit"], said["n"], said["tests"]) == ("seeds", 3, 6)


def test_seeds_that_are_all_alike_have_the_prompts_as_their_floor():
    """Five equal seeds: the interval is the normal one of a single evaluation, not a point."""
    each = [between(row("b", 1.0), row("a"), pd.DataFrame([row("t", utility=0.45)])) for _ in range(5)]
    said = asked(decide(over_seeds(each)), UTILITY).iloc[0]
    error = math.hypot(*(row("x", utility=u)["utility_stderr"] for u in (0.4, 0.45)))
    assert said["high"] - said["estimate"] == pytest.approx(1.96 * error, rel=1e-3)
    assert said["verdict"] == "not shown"
    assert said["p"] > 0.05


def test_a_model_that_one_seed_has_and_a_seed_without_a_verdict_are_counted_as_such():
    first = between(row("b", 1.0), row("a"), pd.DataFrame([row("t", 1.0), row("u", 1.0)]))
    second = between(None, row("a"), pd.DataFrame([row("t", 1.0)]))
    findings = decide(over_seeds([first, second]))
    assert list(verdicts(findings, LEARNT).values()) == ["learnt in 1, not known in 1 of 2 seeds"]
    assert verdicts(findings, LOST) == {"t": "lost in 1 of 1 seeds", "u": "lost in 1 of 1 seeds"}
    assert asked(findings, UTILITY, subject="u")["verdict"].item() == "one seed"


def test_where_nothing_works_it_is_said_of_each_seed(tmp_path):
    findings = decide(models(seeds_of(tmp_path, [World(learnt=False, energy_effect=0.0, seed=n) for n in (0, 1)])))
    assert list(verdicts(findings, LEARNT).values()) == ["not learnt in 2 of 2 seeds"]
    assert asked(findings, LOST).empty
    assert set(verdicts(findings, UTILITY).values()) == {"not shown"}


def test_a_model_that_was_evaluated_twice_is_seldom_said_to_have_changed():
    """Three fine-tunes with the law of the aligned model, 20 studies: 1 family with a verdict, 3 sd above are 4."""
    random = np.random.default_rng(0)
    wrong = dict.fromkeys((LOST, UTILITY, MARGIN), 0)
    for _ in range(20):
        drawn = [
            row(
                str(number),
                harm=random.binomial(50, 0.06) / 50,
                utility=random.binomial(256, 0.4) / 256,
                margin=5 + 0.2 * random.normal(),
            )
            for number in range(4)
        ]
        findings = found(row("base", 0.99), *drawn)
        for question in wrong:
            rows = asked(findings, question)
            rows = rows[rows["subject"] != "0"]
            wrong[question] += rows["verdict"].isin(["lost", "lost in part", "grew", "fell", "rose"]).any()
    assert max(wrong.values()) <= 4


def test_a_row_of_the_table_is_an_evaluation_or_a_mean_over_seeds(tmp_path):
    def shift(number, rows, models):
        models["n_unscored"] = number
        models["utility"] += 0.1 * number

    seeds = seeds_of(tmp_path, [World(seed=seed) for seed in range(3)], shift)
    over = evaluations(seeds).set_index("model")
    each = [study.model("useful")["utility"] for study in seeds.studies]
    assert over.loc["useful", "utility"] == pytest.approx(np.mean(each))
    assert over.loc["useful", "utility_seeds"] == 3
    assert over.loc["useful", "n_unscored"] == 3
    # All seeds have one margin: the interval is what the prompts leave open.
    assert over.loc["useful", "refusal_margin_error"] == pytest.approx(1.96 * 0.2, rel=1e-3)
    one = evaluations(together(seeds.studies[:1])).set_index("model")
    assert one.loc["useful", "refusal_margin_error"] == pytest.approx(0.2)
