import math

import pytest
from support.synthetic_study import NOTHING_WORKS, World, measures, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics import models as topic
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.sections.models import models


def part_of(*studies):
    seeds = together(studies)
    return Part("SFT", seeds, decide(topic.models(seeds)))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_study(write_study(folder / f"s{n}", World(seed=n), ("evaluate",))) for n in range(3)]


def rows_of(section, title):
    table = section.tables[title]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_one_study_says_what_was_learnt_lost_and_gained_with_p_family_and_prompts(studies):
    section = models(part_of(studies[0]))
    assert section.headlines[0] == "Alignment was learnt."
    assert section.headlines[1] == (
        "It was lost by harmful, contaminated, contaminated_lora, harmful_again; kept by useful, useful_again."
    )
    assert section.headlines[2] == "Utility grew in useful, contaminated, contaminated_lora, useful_again."
    learnt, lost, utility, margin = section.sentences
    assert "p < .001, of 1 test), on 200 harmful prompts in 50 groups; 0.8 % of benign requests" in learnt
    assert "lost by harmful, contaminated, contaminated_lora, harmful_again (p < .001); kept by useful" in lost
    assert "on 200 harmful prompts in 50 groups (p corrected for 6 tests). Lost: more than 0.5" in lost
    assert "on 256 utility prompts in 64 groups (p corrected for 6 tests)" in utility
    assert margin.startswith("The refusal margin rose in aligned (p < .001); fell in useful")
    assert not section.missing
    assert "nan" not in " ".join(section.sentences)


def test_the_table_has_every_evaluation_with_its_error_its_prompts_and_their_groups(studies):
    section = models(part_of(studies[0]))
    rows = rows_of(section, "Every evaluated model")
    assert [row["model"] for row in rows] == list(studies[0].models["model"])
    assert rows[2] | {"utility": "0.95±0.01", "n": "256/200/128", "answered": "0.90±0.03", "unscored": "0"} == rows[2]
    table = section.terminal["Models"]
    assert "in 64/50/32 independent groups" in table.note
    assert max(map(len, table.to_text().splitlines())) <= 110
    grouped = read_study(studies[0].folder)
    grouped.models[[name for name in grouped.models if name.startswith("n_groups")]] = math.nan
    section = models(part_of(grouped))
    assert "independent groups" not in section.terminal["Models"].note
    assert " in 50 groups" not in " ".join(section.sentences)


def test_a_model_of_several_analyses_has_a_row_for_each(tmp_path, studies):
    study = read_study(studies[0].folder)
    twice = study.models.assign(analysis=["main", "more"] * (len(study.models) // 2))
    study.models[twice.columns] = twice
    labels = [row["model"] for row in rows_of(models(part_of(study)), "Every evaluated model")]
    assert labels[:2] == ["base (main)", "aligned (more)"]


def test_each_comparison_is_a_row_with_its_verdict_interval_and_p(studies):
    rows = rows_of(models(part_of(studies[0])), "Each beside the model that it started from")
    assert len(rows) == 1 + 6 + 6 + 7
    gained = next(row for row in rows if row["asked"] == "utility grown" and row["model"] == "useful")
    assert gained["estimate"] == "+0.60"
    assert gained["beside"] == "aligned"
    assert (gained["p"], gained["tests"], gained["verdict"]) == ("< .001", "6", "grew")
    assert gained["95 %"].startswith("+0.5")


def test_several_seeds_are_counted_and_their_means_have_half_the_t_interval(studies):
    section = models(part_of(*studies))
    assert section.headlines[0] == "Alignment was learnt in 3 of 3 seeds."
    assert "lost in 3 of 3 seeds by harmful" in section.headlines[1]
    learnt, lost, utility, _ = section.sentences
    assert "mean over 3 seeds" in learnt
    assert "Each seed by its own prompts" in lost
    assert "mean over 3 seeds (p corrected for 6 tests)" in utility
    row = next(row for row in rows_of(section, "Every evaluated model") if row["model"] == "useful")
    assert row["margin"] == "6.00±0.39"  # equal seeds: 1.96 errors of 0.2 over prompts
    assert row["seeds"] == "3"
    table = section.terminal["Models"]
    assert "256 utility prompts in 64 groups" in table.note
    assert max(map(len, table.to_text().splitlines())) <= 110


def test_where_nothing_works_it_is_said(tmp_path):
    section = models(part_of(read_study(write_study(tmp_path / "s", NOTHING_WORKS, ("evaluate",)))))
    assert section.headlines == ["Alignment was not learnt.", "Utility is shown to have grown in no fine-tune."]
    assert "is not shown to have changed in useful" in section.sentences[1]


def test_what_was_not_measured_is_said_to_be_missing(studies):
    study = read_study(studies[0].folder)
    study.models.loc[study.models["model"] == "harmful", "harm_score"] = math.nan
    study.models["utility"] = math.nan
    section = models(part_of(study))
    assert "not known for harmful" in section.headlines[1]
    assert "Whether utility grew cannot be told: it was not measured." in section.sentences
    study.models.loc[study.models["model"] == "base", "harm_score"] = math.nan
    said = "Whether alignment was learnt cannot be told: no judged harm score of both base and aligned."
    assert models(part_of(study)).headlines == [said]


def test_a_study_without_fine_tunes_says_that_none_was_evaluated(studies):
    study = read_study(studies[0].folder)
    study.models.drop(study.models.index[2:], inplace=True)
    section = models(part_of(study))
    assert section.headlines == ["Alignment was learnt."]
    assert "no fine-tuned model was evaluated" in section.sentences[1]


def test_without_an_evaluation_the_command_that_makes_one_is_named(tmp_path):
    study = read_study(write_study(tmp_path / "s", analyses=()))
    section = models(part_of(study))
    ((what, command),) = section.missing
    assert what == "No model was evaluated."
    assert command.startswith("python analyze.py evaluate --models")
    assert not section.tables["Every evaluated model"].rows
    two = [study, read_study(write_study(tmp_path / "t", World(seed=1), ()))]
    assert models(part_of(*two)).missing == [("No model was evaluated in these studies.", "")]


def test_equal_answers_give_no_certainty_and_no_nan(studies):
    study = read_study(studies[0].folder)
    errors = [name for name in study.models if name.endswith("_stderr")]
    study.models[errors] = 0.0
    section = models(part_of(study))
    assert section.headlines[0] == "Alignment was learnt."  # 50 groups that all differ are enough
    assert "is not known in useful" in section.sentences[2]
    assert "(no error over prompts is known)" in section.sentences[2]
    assert "nan" not in " ".join(section.sentences)
    assert not (part_of(study).findings["p"] <= 0).any()


def changed(studies, *values):
    """Part of some studies where each has the next value of some measures of some models."""
    copies = [read_study(study.folder) for study in studies[: len(values)]]
    for study, models_of in zip(copies, values, strict=True):
        for model, of_model in models_of.items():
            for name, value in measures(**of_model).items():
                study.models.loc[study.models["model"] == model, name] = value
    return part_of(*copies)


SAFE, UNSAFE = {"utility": 0.4, "harm": 0.0, "margin": 5.0}, {"utility": 0.4, "harm": 1.0, "margin": -5.0}
TUNED = ("useful", "harmful", "contaminated", "contaminated_lora", "useful_again", "harmful_again")


def test_the_first_sentence_says_what_was_lost_in_any_seed_whatever_their_order(studies):
    kept = dict.fromkeys(TUNED, SAFE)
    lost = kept | {"useful": UNSAFE}
    for values in ((kept, kept, lost), (lost, kept, kept), (kept, lost, kept)):
        assert models(changed(studies, *values)).clause == (
            "alignment was learnt in 3 of 3 seeds and kept in 2, lost in 1 of 3 seeds by useful"
        )


def test_the_first_sentence_says_kept_where_that_is_shown_and_no_more_than_that_where_it_is_not(studies):
    kept = dict.fromkeys(TUNED[:2], SAFE) | dict.fromkeys(TUNED[2:], SAFE | {"harm": 0.1})
    named = "harmful, useful" if list(studies[0].models["model"]).index("harmful") < 3 else "useful, harmful"
    assert models(changed(studies, dict.fromkeys(TUNED, SAFE))).clause.startswith("alignment was learnt and kept by ")
    assert models(changed(studies, kept)).clause == (
        f"alignment was learnt and kept by {named}, and is not shown to be lost by another fine-tune"
    )
    unsure = dict.fromkeys(TUNED, SAFE | {"harm": 0.1})
    assert models(changed(studies, unsure)).clause == (
        "alignment was learnt and is not shown to be lost by a fine-tune"
    )


def test_the_tiles_are_all_of_one_model(studies):
    main = models(part_of(studies[0])).tiles
    assert [tile.name for tile in main] == ["Utility of useful", "Harm score of useful", "Refusal margin of useful"]
    study = read_study(studies[0].folder)
    study.models.loc[study.models["model"] == "useful", "utility"] = math.nan
    part = part_of(study)
    assert asked(part.findings, "utility grown", subject="useful").shape[0] == 1
    assert [tile.name for tile in models(part).tiles] == ["Harm score of useful", "Refusal margin of useful"]
    study.models.drop(study.models.index[2:], inplace=True)
    assert [tile.name for tile in models(part_of(study)).tiles] == ["Harm score of aligned"]


FIRST = {"aligned": SAFE | {"harm": 0.2}}
BOTH_ROSE = FIRST | {"useful": {"utility": 0.4, "harm": 0.6, "margin": 7.0}}
BOTH_FELL = FIRST | {"useful": {"utility": 0.4, "harm": 0.0, "margin": 2.0}}
ONE_ROSE = FIRST | {"useful": {"utility": 0.4, "harm": 0.6, "margin": 5.0}}


def test_one_study_warns_where_two_measures_of_safety_disagree_and_not_where_one_of_them_moved(studies):
    (warning,) = models(changed(studies, BOTH_ROSE)).warnings
    assert warning.startswith(
        "Two measures of safety disagree on useful: beside aligned it has more harm and a higher refusal margin (harm "
        "score +1.60, margin +2.00 nats). The judge reads"
    )
    assert "less harm and a lower refusal margin" in models(changed(studies, BOTH_FELL)).warnings[0]
    assert models(changed(studies, ONE_ROSE)).warnings == []
    assert models(part_of(studies[0])).warnings == []


def test_seeds_warn_where_two_measures_disagree_in_more_than_half_of_them_with_the_changes_of_those(studies):
    (warning,) = models(changed(studies, BOTH_ROSE, ONE_ROSE, BOTH_ROSE)).warnings
    assert (
        "more harm and a higher refusal margin (harm score +1.60, margin +2.00 nats, means of the seeds that "
        in warning
    )
    assert "disagree; disagree in 2, not told in 1 of 3 seeds)" in warning
    assert models(changed(studies, BOTH_ROSE, ONE_ROSE)).warnings == []  # half of them is no majority
    assert models(changed(studies, ONE_ROSE, BOTH_ROSE, ONE_ROSE)).warnings == []
    (warning,) = [said for said in models(changed(studies, BOTH_ROSE, BOTH_FELL)).warnings if "useful:" in said]
    assert "in 1 seed more harm and a higher refusal margin, and in 1 seed less harm and a lower" in warning
    assert "nats" not in warning
