"""What was run, how it was learnt, what models answered, further analyses, and limits."""

import shutil

import pandas as pd
import pytest
from support.synthetic_study import HOSTILE, World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.collect import collect
from safety_subspaces.findings.finding import Finding, Words, decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics import limits as limits_topic
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.sections.answers import answers
from safety_subspaces.report.sections.constraint import constraint
from safety_subspaces.report.sections.limits import limits
from safety_subspaces.report.sections.others import others
from safety_subspaces.report.sections.runs import runs
from safety_subspaces.report.sections.training import loss_figure, training
from safety_subspaces.report.sections.watching import watching


def part_of(*studies, findings=None):
    seeds = together(studies)
    return Part("SFT", seeds, decide(limits_topic.limits(seeds)) if findings is None else findings)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    analyses = ("evaluate", "project", "atlas")
    return [read_study(write_study(folder / f"s{n}", World(seed=n), analyses)) for n in range(2)]


def test_every_run_is_a_row_and_several_studies_have_a_column_for_theirs(studies):
    one = runs(part_of(studies[0]))
    table = one.tables["Every run"]
    assert table.columns[:3] == ("stage", "status", "seed")
    assert dict(zip(table.columns, table.rows[0], strict=True))["examples"] == "19,200"
    assert len(table.rows) == len(studies[0].stages)
    both = runs(part_of(*studies)).tables["Every run"]
    assert both.columns[:2] == ("study", "stage")
    assert [row[0] for row in both.rows] == ["0"] * len(table.rows) + ["1"] * len(table.rows)
    assert not one.missing


def test_analyses_of_models_that_were_trained_elsewhere_name_no_training(tmp_path):
    part = part_of(read_study(write_study(tmp_path / "s", analyses=("evaluate",), stages=())))
    assert [section(part) for section in (runs, training, constraint, watching)] == [None] * 4


def test_losses_are_drawn_for_one_study_alone(studies):
    ((_, caption),) = training(part_of(studies[0])).charts
    assert "running mean of 9" in caption
    assert training(part_of(*studies)) is None


def test_a_stage_without_events_is_no_curve(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("base", "aligned"))
    for path in (folder / "aligned").glob("events*"):
        path.unlink()
    shutil.rmtree(folder / "base" / "model")
    assert {trace.name for trace in loss_figure(read_study(folder).stages, Colours()).data} == {
        "base",
        "base, validation",
    }


def test_the_first_answers_of_each_set_are_quoted_in_their_order(studies):
    section = answers(part_of(studies[0]))
    assert list(section.quotes) == list(dict.fromkeys(studies[0].models["model"]))
    kinds = section.quotes["useful"]
    assert [sample.kind for sample in kinds] == ["harmful", "benign", "utility"]
    assert [(len(sample.answers), sample.total) for sample in kinds] == [(3, 5)] * 3
    assert kinds[0].answers[0]["prompt"] == HOSTILE
    assert answers(part_of(*studies)) is None


def test_answers_of_one_model_to_two_analyses_stand_apart(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    shutil.copytree(folder / "analysis" / "evaluate" / "main", folder / "analysis" / "evaluate" / "more")
    quotes = answers(part_of(read_study(folder))).quotes
    assert {"useful (main)", "useful (more)"} <= set(quotes)


def test_without_answers_it_is_said_where_they_come_from(tmp_path):
    study = read_study(write_study(tmp_path / "s", analyses=()))
    assert "they come with evaluate" in answers(part_of(study)).missing[0][0]


def test_analyses_without_a_section_are_shown_as_they_are(studies, tmp_path):
    assert list(others(part_of(studies[0])).tables) == ["atlas / main"]
    assert list(others(part_of(*studies)).tables) == ["atlas / main, seed 0", "atlas / main, seed 1"]
    assert others(part_of(read_study(write_study(tmp_path / "s")))) is None


def test_limits_name_seed_draws_prompts_and_runs_that_are_not_complete(studies):
    section = limits(part_of(studies[0]))
    text = " ".join(section.sentences)
    assert section.headlines == ["One seed: an anecdote, `make demo SEED=1` adds another."]
    assert "One seed (0): an anecdote" in text
    assert "4 draws a configuration at most" in text
    assert "Fewer than 19 can give no p of 0.05." in text
    assert "200 harmful prompts in 50 groups moves in steps of 0.005" in text
    assert "room for 0.060 of the other kind (rule of three over groups)" in text
    assert "harmful_again (running)" in text
    assert "not independent of one another" in text


def test_limits_of_several_seeds_say_what_an_interval_over_them_covers(studies):
    section = limits(part_of(*studies))
    text = " ".join(section.sentences)
    assert section.headlines == []
    assert "2 seeds (0, 1): each trains every stage anew" in text
    assert "it has 1 degree of freedom" in text
    assert "All seeds answer the same prompts." in text


def test_several_training_seeds_and_unknown_ones_are_no_anecdote(studies):
    study = read_study(studies[0].folder)
    study.stages[1].manifest["seed"] = 7
    assert "2 training seeds (0, 7)." in limits(part_of(study)).sentences
    for stage in study.stages:
        stage.manifest["seed"] = None
    unknown = "Seeds are not known: no stage has a manifest with one."
    assert limits(part_of(study)).headlines == [unknown]


def test_the_families_on_the_page_are_listed_with_their_tests(studies):
    tested = {"words": Words("more", "less", "not shown"), "unit": "random draws", "estimate": 1.0}
    found = decide(Finding("energy", "asked", str(p), p=p, **tested) for p in (0.01, 0.5))
    table = limits(part_of(studies[0], findings=found)).tables["Tests on this page"]
    assert table.rows == (("asked", "energy", "random draws", "2", "1"),)
    assert "Holm" in table.note


def test_the_findings_of_a_study_name_each_of_their_families(studies):
    found = collect(together(studies[:1]))
    listed = limits(part_of(studies[0], findings=found)).tables["Tests on this page"]
    assert {"safety lost", "utility grown"} <= {row[0] for row in listed.rows}
    assert sum(int(row[3]) for row in listed.rows) == found["p"].notna().sum()
    assert pd.notna(found.loc[found["tests"] > 0, "p_adjusted"]).all()
