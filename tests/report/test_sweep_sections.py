from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.synthetic_study import write_study
from support.synthetic_sweeps import FRACTIONS, MORE_SELECTIVE, as_studies, models_of, studies_of, sweeps_of

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.findings.swept import sweep_ends, sweep_points
from safety_subspaces.findings.topics.energy import energy as found_energy
from safety_subspaces.findings.topics.selectivity import selectivity as found_selectivity
from safety_subspaces.report.pages.opening import opening_of
from safety_subspaces.report.pages.page import part_of, render
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.parts.sweeps import kept_energy_figure, sweep_caption, sweep_figure
from safety_subspaces.report.parts.table import TERMINAL_WIDTH
from safety_subspaces.report.sections.energy import energy
from safety_subspaces.report.sections.selectivity import selectivity

WORLD = replace(MORE_SELECTIVE, own_noise=0.2)
KINDS = ("top", "random-energy", "random", "scaled")
SMALL = replace(WORLD, fractions=(0.1, 0.4, 0.75), tuned=("useful", "contaminated"), subspaces=KINDS)
TOPICS = (found_energy, found_selectivity)
MEASURED = ("utility", "harm", "refusal", "over", "benign", "n_")


def part_for(studies, *topics, anchor=""):
    return Part("SFT", studies, decide([found for topic in topics or TOPICS for found in topic(studies)]), anchor)


def without_measures(frame, rows=None):
    measured = [name for name in frame if name.startswith(MEASURED)]
    lost = frame.astype(dict.fromkeys(measured, float))
    lost.loc[slice(None) if rows is None else rows, measured] = np.nan
    return lost


def all_words(section):
    texts = [
        *section.headlines,
        *section.sentences,
        *section.notes,
        *(caption for _, caption in [section.hero or ("", ""), *section.charts]),
    ]
    return " ".join([*texts, *(f"{table.rows} {table.note}" for table in section.tables.values())])


@pytest.fixture(scope="module")
def sections():
    """Both sections of one study, whose draws are too few for a verdict, and of three seeds."""
    kinds = {1: (*KINDS, "random-k"), 3: KINDS}  # more rows than a terminal's screenful, and fewer
    parts = {n: part_for(studies_of(replace(SMALL, seeds=n, subspaces=kinds[n])), anchor="a") for n in kinds}
    return {n: (energy(part), selectivity(part)) for n, part in parts.items()}


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_study_and_several_seeds_have_the_same_charts_and_tables_with_every_cell(sections, seeds):
    for section in sections[seeds]:
        assert section.sentences
        assert section.headlines
        words = all_words(section)
        assert "nan" not in words
        assert "{" not in words
        for table in (*section.tables.values(), *section.terminal.values()):
            assert all(len(row) == len(table.columns) for row in table.rows)
        for table in section.terminal.values():
            assert max(map(len, table.to_text().splitlines())) <= TERMINAL_WIDTH
    on_energy, on_top = sections[seeds]
    titles = ["Kept energy and the outcome", "Energy in the alignment subspace", "Every projection"]
    assert list(on_energy.tables) == titles
    assert len(on_energy.charts) == 2 * 2 - 1  # against energy and against utility; one of these is the hero
    assert "against utility" in on_energy.hero[0].title
    rows = {title: len(table.rows) for title, table in on_top.tables.items()}
    assert rows == {"Top-k of alignment beside its controls": 2 * 3 * 3 * 2, "At each fraction": 2 * 2 * 3}


def test_one_study_says_what_it_cannot_tell_how_many_draws_would_and_where_a_draw_would_fall(sections):
    on_energy, on_top = sections[1]
    said = " ".join(on_top.sentences)
    assert "useful, at equal utility: whether top-k of alignment is more selective than random subspaces" in said
    assert "cannot be told: 3 draws, 19 needed" in said
    assert "(one more draw within ±" in said
    assert "one study has one of each" in said
    assert len(on_top.headlines) == 1
    assert "than random subspaces of equal energy cannot be told: 3 draws, 19 needed" in on_top.headlines[0]
    assert "Other training seeds are not covered" in " ".join(on_top.notes)
    assert "another training seed may order them otherwise" in " ".join(on_energy.sentences)
    assert "not tested: 3 draws, 39 needed" in " ".join(on_energy.sentences)


def test_several_seeds_say_the_verdict_with_its_p_and_the_tests_that_it_is_corrected_for(sections):
    on_energy, on_top = sections[3]
    assert len(on_top.headlines) == 2  # of the fine-tune that lost most, one a control
    assert all(line.startswith("useful, at equal utility: top-k of alignment is more") for line in on_top.headlines)
    assert all(", of 2 tests, 3 seeds, " in line for line in on_top.headlines)
    assert "3 seeds, 3 draws, 3 fractions" in on_top.sentences[0]
    assert "3 of 3 seeds more selective, 0 less" in on_top.sentences[0]
    assert (
        "orders the outcome, but not alone: at equal energy kinds differ (useful, contaminated)"
        in on_energy.headlines[0]
    )
    assert "of 12 differences in refusal margin or utility are shown" in on_energy.sentences[-1]


def test_the_terminal_has_the_rows_that_are_judged_and_top_with_its_control_alone_where_there_are_many(sections):
    for _, on_top in sections.values():
        (table,) = on_top.terminal.values()
        pairs = {row[table.columns.index("pair")] for row in table.rows}
        assert pairs == {"top - random-energy", "top - scaled"}
        assert {row[table.columns.index("method")] for row in table.rows} == {"both"}
    shown = sections[1][0].terminal
    title = "Projections (top-k and its control of equal energy; the page has every subspace)"
    assert {row[1] for row in shown[title].rows} == {"top", "random-energy"}
    assert list(sections[3][0].terminal) == ["Kept energy and the outcome"]


@pytest.mark.parametrize(("seeds", "unit"), [(1, "draws"), (3, "seeds")])
def test_the_chart_has_three_panels_with_the_numbers_and_errors_of_the_points(seeds, unit):
    world = replace(WORLD, seeds=seeds)
    projections = sweeps_of(world)
    points, ends = sweep_points(projections), sweep_ends(projections, models_of(world))
    figure = sweep_figure(points, ends, unit, Colours())
    drawn = [trace for trace in figure.data if trace.customdata is not None]
    assert len(drawn) == 3 * 5 * 2
    assert sum(len(trace.x) for trace in drawn if trace.yaxis == "y3") == 5 * 2 * len(FRACTIONS)
    assert {annotation.text for annotation in figure.layout.annotations} == {"aligned", "contaminated"}
    levels = sorted(shape.y0 for shape in figure.layout.shapes if shape.yref.startswith("y2"))
    assert levels == pytest.approx([1.0, 5.0])
    trace = next(t for t in drawn if t.name == "random-energy, away" and t.yaxis == "y3")
    rows = points[(points["subspace"] == "random-energy") & (points["method"] == "away")].sort_values("energy_kept")
    np.testing.assert_allclose(np.asarray(trace.y, float), rows["refusal_margin"])
    np.testing.assert_allclose(np.asarray(trace.error_y.array, float), rows["refusal_margin_error"])
    assert unit in str(trace.hovertemplate)


def test_measures_and_models_that_were_not_evaluated_are_not_drawn():
    world = replace(SMALL, seeds=1, tuned=("contaminated",))
    projections = sweeps_of(world)
    lost = projections.sample(20, random_state=0).index
    projections = without_measures(projections, lost).assign(refusal_margin=np.nan)
    ends = sweep_ends(projections, models_of(world).head(0))
    figure = sweep_figure(sweep_points(projections), ends, "draws", Colours())
    assert "Refusal margin" not in str([axis.title.text for axis in figure.select_yaxes()])
    assert not figure.layout.shapes
    for trace in figure.data:
        if trace.customdata is not None:
            assert not np.isnan(np.asarray(trace.y, float)).any()


def test_captions_say_what_bars_are_and_how_many_draws_have_an_energy_alone():
    one, three = (sweeps_of(replace(SMALL, seeds=n, draws=4)) for n in (1, 3))
    assert "seeds (0, 1, 2)" in sweep_caption(sweep_points(three), "useful", ("0", "1", "2"))
    assert "never narrower than that over prompts" in sweep_caption(sweep_points(three), "useful", ("0", "1", "2"))
    further = one["subspace"].str.startswith("random") & (one["draw"] > 0)
    caption = sweep_caption(sweep_points(without_measures(one, further)), "useful", ("0",))
    assert "drawn 1 times (the energy alone of 4)" in caption
    assert "standard error over draws, never below that over prompts" in caption
    assert "200 harmful prompts in 50 groups" in caption


def test_where_nothing_was_evaluated_the_energies_are_drawn_beside_chance_and_the_next_step_is_named():
    studies = as_studies(without_measures(sweeps_of(replace(SMALL, seeds=1))), models_of(replace(SMALL, seeds=1)))
    part = part_for(studies)
    section = energy(part)
    caption = section.hero[1]
    assert "of random subspaces the mean over draws" in caption
    figure = kept_energy_figure(sweep_points(sweeps_of(replace(SMALL, seeds=1))))
    assert sum(len(t.x) for t in figure.data if t.customdata is not None) == 2 * 4 * 2 * 3
    assert list(section.tables) == ["Energy in the alignment subspace", "Every projection"]
    assert section.headlines == []
    said = selectivity(part).sentences
    assert said == ["Whether top-k of alignment is selective cannot be told: no projected model was evaluated."]
    assert "nan" not in all_words(section)


def test_projected_and_evaluated_models_are_the_chart_at_the_top_and_energies_alone_are_not(sections):
    other = replace(sections[1][1], place=30, hero=(replace(sections[1][0].hero[0], name="constraint"), "runs"))
    opening, left = opening_of([other, sections[1][0]])
    assert opening.hero == sections[1][0].hero
    assert left[0].charts[0] == other.hero
    assert left[1].charts == sections[1][0].charts
    studies = as_studies(without_measures(sweeps_of(replace(SMALL, seeds=1))), models_of(replace(SMALL, seeds=1)))
    alone = energy(part_for(studies))
    assert alone.hero is not None
    assert opening_of([other, alone])[0].hero == other.hero


def test_without_a_projection_the_sections_are_the_next_step_towards_one(tmp_path):
    study = read_study(write_study(tmp_path / "s", analyses=(), stages=("base", "aligned", "useful")))
    part = part_for(Seeds((study,)))
    for section in (energy(part), selectivity(part)):
        ((what, command),) = section.missing
        assert what == "No projection was run."
        assert command.startswith("python analyze.py project")
    assert selectivity(part).headlines == [
        "Whether top-k of alignment is selective cannot be told: no projection was run."
    ]
    assert part.of_topic("energy").empty


def test_projections_that_were_not_evaluated_name_the_flag_that_evaluates_them(tmp_path):
    study = read_study(write_study(tmp_path / "s", evaluated=False, analyses=("project",), stages=("base", "aligned")))
    section = energy(part_for(Seeds((study,))))
    ((what, command),) = section.missing
    assert "not evaluated" in what
    assert what.endswith("Run project again with --evaluate true.")
    assert command == ""


def test_a_sweep_without_a_control_says_so():
    projections = sweeps_of(SMALL)
    studies = as_studies(projections[projections["subspace"] == "top"], models_of(SMALL))
    section = selectivity(part_for(studies))
    assert section.sentences == [
        "Whether top-k of alignment is selective cannot be told: no sweep has top-k and a control."
    ]


def test_the_harm_score_that_points_the_other_way_is_said_to():
    projections = sweeps_of(replace(SMALL, own_noise=0.02))
    turned = projections.assign(harm_score=6 - projections["harm_score"])
    section = selectivity(part_for(as_studies(turned, models_of(SMALL)), found_selectivity))
    assert "0 of 3 seeds more selective, 3 less" in section.sentences[0]
    assert ", the opposite." in section.sentences[0]
    # Nothing tests that the two disagree: it is described in the section, and no warning at the top of the page.
    assert section.warnings == []
    assert any(
        said.startswith("On useful, beside random subspaces of equal energy, top-k is more selective by the refusal")
        and "counted and not tested, goes the other way" in said
        for said in section.sentences
    )
    plain = selectivity(part_for(as_studies(projections, models_of(SMALL)), found_selectivity))
    assert not any("goes the other way" in said for said in plain.sentences)


def test_draws_that_miss_the_energy_are_counted_in_the_sentence_of_a_comparison_at_equal_energy():
    projections = sweeps_of(replace(SMALL, utility_moves=False, seeds=1, draws=5))
    missed = (
        (projections["subspace"] == "random-energy") & (projections["fraction"] == 0.4) & (projections["draw"] == 1)
    )
    projections.loc[missed, "energy_kept"] += 0.03
    part = part_for(as_studies(projections, models_of(replace(SMALL, seeds=1))), found_selectivity)
    said = selectivity(part).sentences[0]
    assert "at equal energy, for utility does not grow over the sweep" in said
    assert "Left out: 2 of 30 draws at a fraction, whose own energy differs by more than 0.02." in said


def test_the_page_shows_both_sections_with_their_charts(sections):
    studies = studies_of(SMALL)
    organism = Organism("SFT", None, studies)
    page = render(
        [organism], [part_of(organism, Part("SFT", studies, pd.DataFrame(), "a"), sections[3], is_alone=True)]
    )
    for name in ("chart-a-energy-0", "chart-a-energy-1"):
        assert page.count(f'id="{name}"') == 1
    assert ">nan<" not in page
    assert "Top-k against random subspaces of equal energy" in page


def test_a_table_of_the_points_says_how_many_draws_were_evaluated_and_how_many_energies_are_known():
    world = replace(SMALL, seeds=1, draws=4, tuned=("contaminated",), fractions=(0.1, 0.4, 0.5))
    one = sweeps_of(world)
    further = one["subspace"].str.startswith("random") & (one["draw"] > 1)
    section = energy(part_for(as_studies(without_measures(one, further), models_of(world))))
    assert {row[1] for row in section.terminal["Projections"].rows} == set(KINDS)
    table = section.tables["Every projection"]
    frame = pd.DataFrame(table.rows, columns=table.columns)
    drawn = frame["subspace"].str.startswith("random")
    assert set(zip(frame[drawn]["draws"], frame[drawn]["energies"], strict=True)) == {("2", "4")}
    assert "4 draws, 2 of them evaluated" in section.sentences[0]
