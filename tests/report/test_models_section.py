import math

import pytest
from support.synthetic_study import NOTHING_WORKS, World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import decide
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
