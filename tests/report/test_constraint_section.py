"""The section on training under a constraint, of one study and of several: the same sentences, charts and tables."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.synthetic_constrained import (
    KINDS,
    MORE_SELECTIVE,
    NOTHING_HOLDS,
    SMALL,
    ConstrainedRuns,
    write_constrained_study,
    write_seeds,
)
from support.synthetic_study import write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.models import Seeds, aligned_levels, runs_over_seeds
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.findings.topics.constraint import SAFETY
from safety_subspaces.findings.topics.constraint import constraint as findings_on
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.runs_chart import runs_figure
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.sections import SECTIONS
from safety_subspaces.report.sections.constraint import constraint

RANKS = (0.1, 0.25)


def section_of(seeds):
    return constraint(Part("SFT", seeds, decide(findings_on(seeds)), "organism-0"))


def figure_of(seeds):
    return runs_figure(runs_over_seeds(seeds), seeds.runs, aligned_levels(seeds), "±", Colours())


def said_in(section):
    parts = [*section.headlines, *section.sentences, *section.notes, section.hero[1]]
    return " ".join([*parts, *(table.to_text(200) for table in section.tables.values())])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One study at two ranks, with a difference between its runs."""
    world = replace(MORE_SELECTIVE, fractions=RANKS)
    return Seeds((read_study(write_constrained_study(tmp_path_factory.mktemp("one") / "organism-0", world, **SMALL)),))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three seeds of the same."""
    world = replace(MORE_SELECTIVE, fractions=RANKS, seed_noise=0.2)
    (organism,) = read_organisms(write_seeds(tmp_path_factory.mktemp("several"), world))
    return organism.seeds


def test_the_section_is_found_and_has_its_place():
    assert "constraint" in SECTIONS.names()


@pytest.mark.parametrize("studies", ["single", "several"])
def test_one_code_path_says_it_of_one_study_and_of_several(studies, request):
    section = section_of(request.getfixturevalue(studies))
    assert section.place == 30
    assert not section.missing
    assert list(section.tables) == ["Every run", "Beside the runs of the same seed", "Safety, run by run"]
    assert len(section.tables["Every run"].rows) == len(RANKS) * (len(KINDS) + 1)
    assert section.hero[0].name == "organism-0-constraint"
    assert not section.charts
    for text in (said_in(section), section.hero[0].json):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "{" not in said_in(section)
    assert all(max(map(len, table.to_text(110).splitlines())) <= 110 for table in section.terminal.values())


def test_one_study_says_plainly_that_it_cannot_tell_and_what_would(single):
    section = section_of(single)
    for said in (section.headlines[-1], section.sentences[-1]):
        assert "one run a side, and another run would differ by an unknown amount" in said
        assert "`make study` over seeds would tell" in said
    said = " ".join([*section.headlines, *section.sentences])
    assert "selective than a random one is not told" in said
    assert "is more selective" not in said.replace(
        "alignment's subspace is more selective than a random one is not", ""
    )
    assert "over prompts" in section.sentences[-1]
    assert "A random subspace of equal energy has more directions" in section.sentences[-1]
    assert any("cover no other run" in note for note in section.notes)


def test_several_seeds_say_the_verdict_with_its_p_and_the_number_of_tests(several):
    section = section_of(several)
    assert (
        "Alignment's subspace is more selective than a random subspace of equal rank (3 seeds, p"
        in section.headlines[1]
    )
    assert "of 2 tests" in section.headlines[1]
    assert "judged harm moved less than a step" in section.headlines[1]
    assert "did not keep safety in 6 of 6 runs, with 92 % of the gain in utility" in section.headlines[0]
    away = next(said for said in section.sentences if "minus held away from a random subspace of equal energy" in said)
    assert "fraction 0.1, 0.25" in away
    assert "Rank by rank, of 4 tests" in away
    assert "2 degrees of freedom" in section.notes[0]


def test_kinds_of_run_that_came_out_otherwise_are_named_in_one_sentence(single):
    found = decide(findings_on(single))
    away = found[[row["question"] == SAFETY and row["details"]["constraint"] == "away" for _, row in found.iterrows()]]
    other = away.assign(details=[row | {"fine_tune": "useful"} for row in away["details"]], verdict="kept")
    section = constraint(Part("SFT", single, pd.concat([found, other], ignore_index=True)))
    (said,) = [headline for headline in section.headlines if "fine-tuning" in headline]
    assert said.startswith("Held away from the alignment subspace, fine-tuning on contaminated did not keep safety")
    assert ", but on useful kept safety in 2 of 2 runs" in said
    assert "; held inside it, fine-tuning" in said
    assert section.clause == said[0].lower() + re.sub(r", with \d+ % of the gain in utility", "", said)[1:-1]


@pytest.mark.parametrize("mode", ["away", "onto"])
def test_two_fine_tunes_held_in_one_way_are_not_said_to_be_held_in_both(single, mode):
    found = decide(findings_on(single))
    safety = asked(found, SAFETY)
    of_mode = safety[[details["constraint"] == mode for details in safety["details"]]]
    other = of_mode.assign(details=[details | {"fine_tune": "useful"} for details in of_mode["details"]])
    beside = found[found["question"] != SAFETY]
    said = constraint(Part("SFT", single, pd.concat([beside, of_mode, other], ignore_index=True))).clause
    assert said.startswith({"away": "held away from", "onto": "held inside"}[mode])
    assert ({"away": "inside", "onto": "away"}[mode]) not in said
    assert "on contaminated" in said
    assert "on useful" in said


def test_a_tile_of_one_run_says_that_its_number_is_harm_regained_and_one_of_several_how_many_kept_safety(single):
    found = decide(findings_on(single))
    rows = asked(found, SAFETY)
    first = rows[[details["constraint"] == "away" for details in rows["details"]]].iloc[[0]]
    alone = pd.concat([found[found["question"] != SAFETY], first], ignore_index=True)
    (tile,) = constraint(Part("SFT", single, alone)).tiles
    assert tile.name == "Harm regained, held away from alignment's subspace"
    assert tile.value == f"{first['estimate'].item():.2f}"
    (tile,) = section_of(single).tiles
    assert tile.name == "Kept safety, held away from alignment's subspace"
    assert tile.value == "0 of 2 runs"


def test_differences_are_said_beside_the_unconstrained_run_at_each_rank(single):
    away = section_of(single).sentences[0]
    assert away.startswith("Held away from the alignment subspace (fraction 0.1, 0.25), fine-tuning")
    for rank in RANKS:
        assert f"Minus the unconstrained run of the same seed at fraction {rank}: refusal margin +7.00" in away


def test_the_chart_has_every_run_once_a_panel_with_its_bars(single):
    figure, runs = figure_of(single), single.runs
    for axis, measure in (("y", "harm_score"), ("y2", "refusal_margin")):
        traces = [t for t in figure.data if t.customdata is not None and (t.yaxis or "y") == axis]
        assert sum(len(t.x) for t in traces) == len(RANKS) * len(KINDS) + 1  # the unconstrained run once
        away = next(t for t in traces if t.name == "away, random, equal energy")
        rows = runs[runs["subspace"] == "random-energy"].sort_values("fraction")
        np.testing.assert_allclose(np.asarray(away.y, float), rows[measure].astype(float))
        errors = rows[f"{measure}_stderr"].astype(float)
        np.testing.assert_allclose(np.asarray(away.error_y.array, float), errors.where(errors > 0))
        np.testing.assert_allclose(np.asarray(away.error_x.array, float), rows["utility_stderr"].astype(float))
        assert list(away.marker.size) == sorted(away.marker.size)


def test_the_chart_over_seeds_has_means_and_every_run_behind_them(several):
    figure = figure_of(several)
    small = [t for t in figure.data if t.marker.opacity == 0.45 and t.yaxis == "y2"]
    large = [t for t in figure.data if t.marker.opacity == 1 and t.yaxis == "y2"]
    assert sum(len(t.x) for t in large) == len(RANKS) * len(KINDS) + 1
    assert sum(len(t.x) for t in small) == 3 * (len(RANKS) * len(KINDS) + 1)


def test_an_aligned_model_far_from_the_runs_is_named_and_does_not_press_them_flat(single, tmp_path):
    figure = figure_of(single)
    assert figure.layout.yaxis2.range[1] < 0
    assert any(note.text == "aligned at 10.00, above" for note in figure.layout.annotations)
    near = write_constrained_study(tmp_path / "organism-0", ConstrainedRuns(margin=12.0), **SMALL)
    assert [note.text for note in figure_of(Seeds((read_study(near),))).layout.annotations] == ["aligned", "aligned"]


def test_several_control_runs_in_a_study_are_shown_behind_their_mean(tmp_path):
    world = replace(NOTHING_HOLDS, seed_noise=1.0, controls=3)
    seeds = Seeds((read_study(write_constrained_study(tmp_path / "organism-0", world, **SMALL)),))
    section = section_of(seeds)
    assert "3 control runs, 39 needed" in section.headlines[-1]
    assert "as far as one more of 3 control runs would fall from their mean" in section.sentences[-1]
    column = section.tables["Every run"].columns.index("runs")
    assert [row[column] for row in section.tables["Every run"].rows] == ["1", "1", "3", "3", "1"]
    small = [t for t in figure_of(seeds).data if t.marker.opacity == 0.45 and t.yaxis == "y2"]
    assert sum(len(t.x) for t in small) == 1 + 2 + 2 * 3


def test_a_study_without_constrained_runs_names_the_next_step(tmp_path):
    plain = Seeds((read_study(write_study(tmp_path / "s", analyses=("evaluate",), stages=("base", "aligned"))),))
    ((what, command),) = section_of(plain).missing
    assert what == "No run under a constraint was evaluated."
    assert "--config configs/organism/contaminated_away.yaml" in command
    folder = write_constrained_study(tmp_path / "organism-0", **SMALL)
    shutil.rmtree(folder / "analysis" / "evaluate" / "constrained")
    ((_, command),) = section_of(Seeds((read_study(folder),))).missing
    assert "analyze.py evaluate --models" in command
    both = section_of(Seeds((*plain.studies, read_study(folder))))
    assert "make study trains them" in both.missing[0][0]


def test_a_weaker_constraint_is_told_apart_and_has_no_controls_of_another(tmp_path):
    folder = write_constrained_study(tmp_path / "organism-0", **SMALL)
    path = folder / "contaminated_away" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"][-1]["constraint"]["details"] = "constrain gradient, strength 0.5"
    path.write_text(json.dumps(manifest))
    section = section_of(Seeds((read_study(folder),)))
    assert "away, constrain gradient, strength 0.5" in section.tables["Every run"].to_text(200)
    assert section.sentences[0].startswith(
        "Held away from the alignment subspace (fraction 0.25; constrain gradient, strength 0.5), fine-tuning"
    )
    assert not any("minus held" in said for said in section.sentences)
