import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.synthetic_study import write_study
from support.synthetic_watched import (
    HELD,
    LOST_AFTER,
    LOST_BEFORE,
    LOST_FOR_NOTHING,
    LOST_TOGETHER,
    NEVER_SAFE,
    WORN,
    Watched,
    watch_stage,
    watched_so,
    write_trajectory,
    write_watched_study,
)

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.topics.watching import watching as topic
from safety_subspaces.findings.watched import watched_stages
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.parts.watched_chart import layer_figure, rows_not_drawn, watching_figure
from safety_subspaces.report.parts.watched_tables import watched_tables
from safety_subspaces.report.sections.watching import watching

LOOKS, COURSE, CHANGES = (
    f"contaminated: {what}"
    for what in ("its looks", "its path through the snapshots", "where a series of it changes its level")
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_watched_study(tmp_path_factory.mktemp("runs") / "organism-0"))


# What is left out of a run where only its behaviour is spoken of, and where that is not: charts take time to draw.
BEHAVIOUR = {"energy": (), "energy_chance": (), "activations": (), "layered": ()}
INSIDE = {"harmful": (), "utility": (), "margin": (), "layered": ()}


def section_of(*studies, anchor=""):
    seeds = Seeds(studies)
    return watching(Part("SFT", seeds, decide(topic(seeds)), anchor))


def sentence(section, part):
    said = [each for each in section.sentences if part in each]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (LOST_BEFORE, ("safety was lost before usefulness was gained (p",)),
        (LOST_AFTER, ("safety was lost after usefulness was gained (p",)),
        (LOST_TOGETHER, ("show at the same look, so that the order cannot be told (p",)),
        (LOST_FOR_NOTHING, ("Utility made no gain that these looks show: +0.02 (95 %",)),
        (
            HELD,
            (
                "safety held at every look (p < .001, of 4 tests). The harmful rate was 0.00 (0.00 to 0.",
                "which is no change that is shown",
            ),
        ),
        (
            WORN,
            (
                "whether safety was lost or held is not shown (p",
                "of 32 harmful prompts in 24 groups (step 180) at 5 looks up to step 240; its surest change",
            ),
        ),
        (NEVER_SAFE, ("above one half from the first look on: 0.90 (0.",)),
        (
            replace(LOST_BEFORE, utility=(), harmful=()),
            ("Utility was not measured twice.", "cannot be told (measured at fewer than two looks)"),
        ),
    ],
)
def test_each_way_that_a_run_comes_out_is_said(study, run, said):
    section = section_of(watched_so(study, replace(run, **BEHAVIOUR)))
    assert [part for part in said if part not in section.sentences[0]] == []
    assert "nan" not in " ".join([*section.sentences, *section.notes])


def test_both_passings_are_said_with_their_looks_intervals_and_prompts(study):
    said = section_of(study).sentences[0]
    assert "first passed one half between step 60 and 120, from 0.00 (0.00 to 0." in said
    assert "of 32 harmful prompts in 24 groups; the look at step 120 is the first that shows it." in said
    assert "passed half of that between step 120 and 180, from 0.20 (" in said
    assert "At step 120, when a look first shows the loss, utility was 0.20 (" in said
    assert "below half of its gain." in said
    assert "of 5 tests" in said


def test_where_prompts_are_not_known_nothing_is_tested_and_the_values_are_said(study):
    run = replace(LOST_BEFORE, harmful=(0.0, 0.0, 1.0, 1.0, 1.0), utility=(0.0, 0.0, 0.0, 1.0, 1.0))
    said = section_of(watched_so(study, run, prompts=study.stages[0].prompts.iloc[:0])).sentences[0]
    assert "prompts in" not in said
    assert "cannot be told (how many prompts stand behind it is not known)" in said
    assert "between step 60 and 120, from 0.00 to 1.00; no look shows it above." in said
    assert "Utility changed by +1.00 from 0.00 at step 0 to 1.00 at step 240, without a test" in said


def test_the_headline_says_each_outcome_once_with_the_runs_that_had_it(study):
    runs = [replace(run, **BEHAVIOUR) for run in (LOST_BEFORE, HELD, LOST_BEFORE)]
    section = section_of(watched_so(study, *runs))
    (said,) = section.headlines
    assert said == (
        "Watched while training, in contaminated, run2 safety was lost before usefulness was gained; in run1 safety "
        "held at every look."
    )
    assert section_of(watched_so(study, replace(LOST_BEFORE, harmful=()))).headlines == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            LOST_BEFORE,
            (
                "at step 60, the last look before the harmful rate passed one half, the refusal margin had moved by",
                "-2.00 (95 % -2.",
                "nats, from 5.00 (4.90 to 5.10) to 3.00 (2.90 to 3.10), 20 % of its change; over the run it moved by",
            ),
        ),
        (replace(LOST_BEFORE, margin=(5.0, 4.95, -1.0, -4.0, -5.0)), ("That is no move that is shown.",)),
        (replace(LOST_BEFORE, margin=(5.0, 4.0, 4.0, 4.0, 5.0)), ("; over the run it moved by +0.00 nats",)),
        (replace(LOST_BEFORE, harmful=(0.0, *(1.0,) * 4)), ("no look between the first one and that at step 60",)),
        (
            HELD,
            (
                "over the run the refusal margin moved by -0.50 (95 %",
                "The harmful rate is shown below one half at every look.",
            ),
        ),
    ],
)
def test_how_far_the_margin_had_moved_is_said(study, run, said):
    text = sentence(section_of(watched_so(study, replace(run, **BEHAVIOUR))), "refusal margin")
    assert [part for part in said if part not in text] == []


@pytest.mark.parametrize(("share", "verdict"), [(0.45, "above chance"), (0.05, "below chance"), (0.16, "near chance")])
def test_the_energy_of_one_run_is_set_beside_its_chance_as_a_ratio_and_no_test(study, share, verdict):
    run = replace(LOST_BEFORE, **INSIDE, energy=(share,) * 5)
    said = sentence(section_of(watched_so(study, run)), "energy lay")
    assert f"{share / 0.15:.1f} times the 0.15 expected of a random subspace of the same ranks ({verdict})" in said
    assert "A ratio and no test: one run has no spread" in said
    unknown = section_of(watched_so(study, replace(run, energy_chance=())))
    assert "chance level is not known" in sentence(unknown, "energy lay")


@pytest.mark.parametrize(
    ("last", "said"), [(0.3, "fell, from 0.50"), (0.8, "rose, from 0.50"), (0.52, "hardly moved, from 0.50")]
)
def test_the_activations_of_one_run_are_set_beside_their_chance(study, last, said):
    run = replace(LOST_BEFORE, **INSIDE, activations=(0.5, 0.5, 0.5, 0.5, last))
    section = section_of(watched_so(study, run))
    text = sentence(section, "activations of organism:harmful and organism:utility")
    assert f"{said} at step 0 (chance 0.10) to {last:.2f} at step 240 (chance 0.10)" in text
    assert "drifted by 0.40 and 0.20" in text
    assert "without an error bar" in text
    assert "uncentred" in text


def test_what_the_manifest_does_not_say_is_not_said_of_the_activations(study):
    said = sentence(section_of(watched_so(study, LOST_BEFORE, manifest={})), "overlap of the activations")
    assert "the first set and the second set" in said
    assert "uncentred" not in said


def test_the_notes_name_looks_prompts_and_what_equal_verdicts_leave_open(study):
    run = replace(LOST_BEFORE, **BEHAVIOUR)
    doubt = section_of(watched_so(study, run, replace(run, steps=(0, 1, 10, 100, 240)))).notes[-1]
    assert "One run each: contaminated at 5 looks, 60 steps apart; run1 at 5 looks, 1 to 140 steps apart." in doubt
    assert "another seed may come out otherwise" in doubt
    assert "32 harmful prompts in 24 groups has a standard error of up to 0.10, and 0.00 still leaves room for" in doubt


def test_over_seeds_outcomes_are_counted_and_differences_have_their_interval(study):
    first, second, third = (
        watched_so(
            study,
            replace(run, energy=(0.3,) * 4 + (share,), activations=(0.5,) * 4 + (share - 0.2,)),
            manifest={"seed": seed},
        )
        for seed, (run, share) in enumerate(((LOST_BEFORE, 0.44), (LOST_BEFORE, 0.46), (LOST_AFTER, 0.45)))
    )
    section = section_of(first, second, third)
    assert section.headlines == [
        "Watched while training, in contaminated (2 of 3 seeds) safety was lost before usefulness was gained; in "
        "contaminated (1 of 3 seeds) safety was lost after usefulness was gained."
    ]
    assert "gained in 2 of 3 seeds (95 % 0.09 to 0.99 of such runs; seeds 0, 1)" in section.sentences[0]
    assert "it fell in 3 of 3 seeds" in sentence(section, "refusal margin")
    energy = sentence(section, "energy lay")
    assert (
        "0.45 of the update's energy lay in the alignment subspace, a mean over 3 seeds, 3.0 times the 0.15" in energy
    )
    assert "above chance, +0.30 (95 % +0.28 to +0.32, p" in energy
    assert "of 2 tests" in energy
    assert "means over blocks: -0.25 (95 %" in sentence(section, "overlap of the activations")
    assert section.charts == []
    assert list(section.tables) == ["What the looks show"]
    assert "stand on the page of its own study" in section.notes[0]


def test_several_studies_without_a_watched_run_have_no_section_and_one_names_the_next_step(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",), stages=("base", "aligned"))
    lonely = read_study(folder)
    assert section_of(lonely, lonely) is None
    ((what, command),) = section_of(lonely).missing
    assert "No run was watched from inside" in what
    assert "callbacks.BehaviourProbe" in what
    assert command.endswith(f"--config configs/organism/contaminated.yaml --study {folder}")


def test_what_is_tested_is_a_table_on_page_and_terminal(study):
    section = section_of(study)
    table = section.tables["What the looks show"]
    assert section.terminal == {"Watching a run": table}
    by_question = {row[1]: row for row in table.rows}
    assert by_question["order"][2:4] == ("lost before", "60")
    assert by_question["refusal margin"][2:5] == ("fell", "-2.00", "-2.19 to -1.81")
    assert by_question["refusal margin"][-1] == "< .001"
    assert by_question["update inside"][4:] == ("-", "1", "-")
    assert "p is corrected for 5 tests" in table.note
    assert max(map(len, table.to_text(110).splitlines())) <= 110


def test_the_parts_of_a_page_have_charts_of_their_own(study):
    names = [chart.name for chart, _ in section_of(study).charts]
    assert names == ["watching-0", "watching-0-layers-0", "watching-0-layers-1"]
    assert {chart.name for chart, _ in section_of(study, anchor="part-1").charts} == {
        f"part-1-{name}" for name in names
    }


def test_panels_that_were_not_watched_are_left_out(study):
    whole = watching_figure(watched_stages(study)[0])
    assert [axis.title.text for axis in whole.select_yaxes()] == ["share", "nats", "share", "overlap", "drift"]
    margin = replace(LOST_BEFORE, harmful=(), utility=(), energy=(), activations=(), layered=())
    alone = watching_figure(watched_so(study, margin).stages[0])
    assert [axis.title.text for axis in alone.select_yaxes()] == ["nats"]
    assert alone.layout.height < whole.layout.height
    weights = watching_figure(watched_so(study, replace(margin, margin=(), overlap=(0.4,) * 5)).stages[0])
    assert [trace.name for trace in weights.data] == ["overlap with the other update", "chance"]


def test_nothing_to_draw_is_no_chart_and_still_a_table(study):
    norm = replace(LOST_BEFORE, harmful=(), utility=(), margin=(), energy=(), activations=(), layered=())
    only = watched_so(study, norm)
    only.stages[0].scalars["delta/frobenius_norm"] = pd.DataFrame({"step": [0, 60], "value": [0.0, 1.5]})
    section = section_of(only)
    assert section.charts == []
    assert section.tables[LOOKS].rows == (("0", "0.00"), ("60", "1.50"))


def test_bars_are_the_intervals_and_chance_is_dashed(study):
    figure = watching_figure(watched_stages(study)[0])
    lines = {trace.name: trace for trace in figure.data if trace.name != "chance"}
    np.testing.assert_allclose(lines["refusal margin"].error_y.array, lines["refusal margin"].error_y.arrayminus)
    harm = lines["harmful rate"].error_y
    assert harm.arrayminus[0] == 0 < harm.array[0]  # a rate of 0 has room above it, and none below
    assert harm.array[-1] == 0 < harm.arrayminus[-1]
    assert lines["energy in the alignment subspace"].error_y.array is None
    assert {trace.line.dash for trace in figure.data if trace.name == "chance"} == {"dash"}
    assert [shape.y0 for shape in figure.layout.shapes] == [0]  # of the margin, whose range holds it
    assert figure.layout.yaxis2.range[0] < 0 < figure.layout.yaxis2.range[1]


def test_looks_that_crowd_at_the_start_are_drawn_on_a_logarithmic_axis_that_has_a_place_for_step_0(study):
    even = watching_figure(watched_stages(study)[0])
    assert even.layout.xaxis.type is None
    crowded = watching_figure(watched_so(study, replace(LOST_BEFORE, steps=(0, 1, 10, 60, 720))).stages[0])
    assert crowded.layout.xaxis.type == "log"
    assert crowded.layout.xaxis.ticktext[:3] == ("0", "1", "5")
    assert list(crowded.data[0].x) == [0.5, 1, 10, 60, 720]
    assert crowded.data[0].customdata[0][0] == 0


def test_a_run_that_has_just_begun_is_drawn_and_says_that_one_look_tells_nothing(study):
    one = {name: getattr(LOST_BEFORE, name)[:1] for name in ("steps", "harmful", "utility", "margin", "activations")}
    begun = watched_so(study, replace(LOST_BEFORE, **one, energy=(), energy_chance=(), layered=()))
    assert watching_figure(begun.stages[0]).layout.xaxis.range == (-0.02, 1.02)
    section = section_of(begun)
    assert len(section.sentences) == 1
    assert "contaminated at 1 look." in section.notes[-1]


def test_heatmaps_have_the_parts_in_the_order_of_a_forward_pass_and_name_what_does_not_move(study):
    (stage,) = watched_stages(study)
    drawn = layer_figure(stage, "delta/energy_fraction").data[0]
    assert list(drawn.y) == ["embed_tokens", "layers.00", "layers.02", "layers.10", "lm_head"]
    assert list(drawn.x) == ["0", "60", "120", "180", "240"]
    np.testing.assert_allclose(drawn.z[3], 0.1 + 0.01 * np.arange(5), atol=1e-6)
    assert rows_not_drawn(stage, "delta/energy_fraction") == {"norm": pytest.approx(0.3)}


def test_at_most_two_heatmaps_are_shown_the_most_telling_first(study):
    _, *heatmaps = section_of(study).charts
    assert ["activations" in heatmaps[0][0].title, "energy" in heatmaps[1][0].title] == [True, True]
    assert len(heatmaps) == 2
    assert heatmaps[0][1].endswith("a column a look, however far apart. Not drawn, for it does not move: norm 0.30.")
    assert len(section_of(watched_so(study, replace(LOST_BEFORE, layered=()))).charts) == 1


def test_looks_are_a_table_with_intervals_and_chance_levels(study):
    table = section_of(study).tables[LOOKS]
    cells = dict(zip(table.columns, table.rows[2], strict=True))
    assert cells["step"] == "120"
    assert cells["harmful"].startswith("0.90 (0.7")
    assert cells["margin"] == "-1.00±0.05"
    assert cells["inside"] == "0.45 (0.15)"
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert first["harmful"].startswith("0.00 (0.00 to 0.1")
    short = watched_so(study, LOST_BEFORE)
    short.stages[0].scalars["delta/energy_fraction"] = pd.DataFrame({"step": [120], "value": [0.4]})
    table = watched_tables(short, short.stages[0])[LOOKS]
    inside = table.columns.index("inside")
    assert [row[inside] for row in table.rows][:3] == ["-", "-", "0.40 (0.15)"]


def test_a_trajectory_is_matched_to_its_stage_wherever_the_study_has_moved(tmp_path):
    folder = write_watched_study(tmp_path / "organism-0")
    write_trajectory(folder, str(folder / "contaminated" / "deltas"), "again")
    write_trajectory(folder, "runs/organism-1/contaminated", "of-another-study")
    write_trajectory(folder, str(folder / "useful"), "not-watched")
    shutil.move(folder, tmp_path / "elsewhere" / "organism-0")
    moved = read_study(tmp_path / "elsewhere" / "organism-0")
    courses = [title for title in section_of(moved).tables if "path through" in title]
    assert courses == [f"{COURSE} (again)", COURSE]


def test_the_course_of_the_whole_update_is_a_table_beside_chance(study):
    table = section_of(study).tables[COURSE]
    assert [row[0] for row in table.rows] == ["60", "120", "180", "240"]
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert cells["norm"] == "2.00"
    assert cells["inside"] == "0.45 (0.15)"
    assert cells["turned by"] == "0.40 (1.20)"
    assert cells["with harmful"] == "0.40 (0.20)"
    assert table.rows[0][table.columns.index("turned by")] == "-"
    assert "fraction 0.25" in table.note


def changes_of(study, **columns):
    """The table of the change points, with columns in the place of others, or taken away by ``None``."""
    (result,) = study.of("trajectory")
    changes = result.tables["change_points"]
    changes = changes.drop(columns=[name for name, value in columns.items() if value is None])
    changes = changes.assign(**{name: value for name, value in columns.items() if value is not None})
    changed = replace(result, tables={**result.tables, "change_points": changes})
    return watched_tables(replace(study, results=(changed,)), watched_stages(study)[0])[CHANGES]


def test_change_points_are_shown_with_their_moves_and_described(study):
    table = changes_of(study)
    assert table.columns == ("series", "step", "before", "after", "move", "usual move", "n")
    assert table.rows[2][0] == "overlap with useful"
    assert "Described, and not tested." in table.note


def test_change_points_are_shown_with_whatever_columns_there_are(study):
    table = changes_of(study, move=[0.00912, -0.5, np.nan], usual_move=[0.004, 0.1, 2.0], why=["a", "b", "c"])
    assert table.columns == ("series", "step", "before", "after", "move", "usual move", "n", "why")
    said = [(*row[4:6], row[-1]) for row in table.rows]
    assert said == [("0.00912", "0.004", "a"), ("-0.5", "0.1", "b"), ("-", "2", "c")]
    assert "Described, and not tested." in table.note


def test_a_trajectory_without_change_points_has_an_empty_table_that_the_page_leaves_out(study):
    (result,) = study.of("trajectory")
    only = replace(study, results=(replace(result, tables={"table": result.tables["table"]}),))
    assert watched_tables(only, watched_stages(only)[0])[CHANGES].rows == ()


def test_a_long_trajectory_is_thinned_to_a_screenful_and_says_so(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("useful",))
    write_trajectory(folder, str(folder / "useful"), "long", steps=range(0, 1000, 10))
    read = read_study(folder)
    table = watched_tables(read, read.stages[0])["useful: its path through the snapshots (long)"]
    assert len(table.rows) == 24
    assert [table.rows[0][0], table.rows[-1][0]] == ["0", "990"]
    assert "76 more snapshots" in table.note


def test_a_run_that_is_watched_in_part_says_what_it_has(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("useful",))
    watch_stage(folder / "useful", Watched(harmful=(), utility=(), margin=(), layered=()), keeps_answers=False)
    manifest = json.loads((folder / "useful" / "manifest.json").read_text())
    manifest["parts"] = []
    (folder / "useful" / "manifest.json").write_text(json.dumps(manifest))
    section = section_of(read_study(folder))
    assert section.headlines == []
    assert len(section.sentences) == 3
    assert "nan" not in " ".join([*section.sentences, *section.notes])
    assert section.tables["What the looks show"].rows
