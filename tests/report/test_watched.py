import json
import math
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
    scalars_of,
    watch_stage,
    write_events,
    write_trajectory,
    write_watched_study,
)

from safety_subspaces.artefacts.next_step import watching_command
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.watched import first_passing, looks_at, prompts_at, trajectories_of, watched_stages
from safety_subspaces.report.command import report, summary_text
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.sections.watching.figures import layer_figure, rows_not_drawn, watching_figure
from safety_subspaces.report.sections.watching.reading import read_watched
from safety_subspaces.report.sections.watching.section import watched_runs
from safety_subspaces.report.sections.watching.tables import change_table, looks_table, trajectory_table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_watched_study(tmp_path_factory.mktemp("runs") / "organism-0"))


def watched_so(study, *runs, **changes):
    """The study with the values of other runs in place of its own, without a disk."""
    stage = next(stage for stage in study.stages if stage.name == "contaminated")
    stages = [
        replace(
            stage,
            name=f"run{number}" if number else stage.name,
            scalars={
                tag: pd.DataFrame({"step": list(values), "value": list(values.values())})
                for tag, values in scalars_of(run).items()
            },
            **changes,
        )
        for number, run in enumerate(runs)
    ]
    return replace(study, stages=tuple(stages))


def sentence(study, part):
    return next(finding.sentence for finding in read_watched(study) if part in finding.sentence)


def test_a_watched_run_is_read_with_its_errors_and_the_prompts_behind_each_look(study):
    (stage,) = watched_stages(study)
    assert stage.name == "contaminated"
    looks = looks_at(stage, "safety/harmful_rate")
    assert [look.step for look in looks] == [0, 60, 120, 180, 240]
    assert looks[2].value == pytest.approx(0.9)
    assert looks[2].error == pytest.approx(math.sqrt(0.9 * 0.1 / 32))
    assert prompts_at(stage, looks[2])["n_groups_harmful"] == 24
    assert all(math.isnan(look.error) for look in looks_at(stage, "activation/overlap"))


def test_where_a_resumed_run_looked_again_the_later_value_counts(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("useful",))
    write_events(folder / "useful", {"safety/harmful_rate": {0: 0.0, 60: 0.2, 120: 0.9}})
    write_events(folder / "useful", {"safety/harmful_rate": {60: 0.3, 120: 0.4}})
    looks = looks_at(read_study(folder).stages[0], "safety/harmful_rate")
    assert [(look.step, round(look.value, 3)) for look in looks] == [(0, 0.0), (60, 0.3), (120, 0.4)]


def test_a_measure_passes_a_level_between_two_looks_or_not_at_all(study):
    (stage,) = watched_stages(study)
    passing = first_passing(looks_at(stage, "safety/harmful_rate"), 0.5)
    assert (passing.before.step, passing.after.step) == (60, 120)
    assert first_passing(looks_at(stage, "safety/harmful_rate"), 1.0) is None
    assert first_passing(looks_at(stage, "safety/harmful_rate"), -1.0) is None  # above it from the start
    assert first_passing([], 0.5) is None


@pytest.mark.parametrize(
    ("run", "verdict", "said"),
    [
        (LOST_BEFORE, "lost before", "safety was lost before usefulness was gained"),
        (LOST_AFTER, "lost after", "safety was lost after usefulness was gained"),
        (LOST_TOGETHER, "lost together", "between the same looks, so that the order cannot be told"),
        (LOST_FOR_NOTHING, "lost", "Utility made no gain that these looks can show"),
        (HELD, "held", "safety held throughout. The harmful rate was 0.00 ± 0.00 at step 0, at most 0.03 ± 0.03"),
        (WORN, "worn", "at most 0.40 ± 0.09 (step 180; 32 harmful prompts in 24 groups) at 5 looks up to step 240"),
        (NEVER_SAFE, "never safe", "above one half from the first look on: 0.90 ± 0.05 at step 0"),
        (replace(LOST_BEFORE, utility=()), "lost", "Utility was not measured twice"),
        (replace(LOST_BEFORE, harmful=()), "unknown", "whether safety was lost cannot be told"),
    ],
)
def test_each_order_of_loss_and_gain_can_come_out(study, run, verdict, said):
    first = read_watched(watched_so(study, run))[0]
    assert (first.topic, first.verdict) == ("watching", verdict)
    assert said in first.sentence
    assert "nan" not in first.sentence


def test_both_passings_are_said_with_their_looks_errors_and_prompts(study):
    said = read_watched(study)[0].sentence
    assert (
        "first passed one half between step 60 and 120 (0.00 ± 0.00 to 0.90 ± 0.05; 32 harmful prompts in 24 groups)"
        in said
    )
    assert "half of its gain (0.10 ± 0.05 at step 0, 0.90 ± 0.05 at step 240) between step 120 and 180" in said
    without = replace(study, stages=tuple(replace(s, prompts=s.prompts.iloc[:0]) for s in study.stages))
    assert "prompts" not in " ".join(finding.sentence for finding in read_watched(without))


def test_a_gain_within_the_errors_of_its_looks_is_none(study):
    small = replace(LOST_BEFORE, utility=(0.30, 0.3, 0.3, 0.4, 0.42))  # 1 standard error of the difference
    assert read_watched(watched_so(study, small))[0].verdict == "lost"


def test_the_answer_says_each_outcome_once_with_the_runs_that_had_it(study):
    several = watched_so(study, LOST_BEFORE, HELD, LOST_BEFORE)
    said = answer(read(several))
    assert "Watched while training, in contaminated, run2 safety was lost before usefulness was gained" in said
    assert "; in run1 safety held throughout." in said
    unknown = watched_so(study, replace(LOST_BEFORE, harmful=()))
    assert "Watched while training" not in answer(read(unknown))


@pytest.mark.parametrize(
    ("margin", "verdict", "said"),
    [
        (
            (5.0, 3.0, -1.0, -4.0, -5.0),
            "fell",
            "moved by -2.00 ± 0.07 nats (from 5.00 ± 0.05 to 3.00 ± 0.05), 20 % of its",
        ),
        ((5.0, 6.0, -1.0, -4.0, -5.0), "rose", "-10 % of its change over the run: -10.00 ± 0.07 nats"),
        ((5.0, 4.95, -1.0, -4.0, -5.0), "stood", "That is no move that can be told from none."),
        ((5.0, 4.0, 4.0, 4.0, 5.0), "fell", "over the run +0.00 ± 0.07 nats"),
    ],
)
def test_how_far_the_margin_had_moved_before_the_rate_did(study, margin, verdict, said):
    findings = read_watched(watched_so(study, replace(LOST_BEFORE, margin=margin)))
    finding = next(finding for finding in findings if "refusal margin" in finding.sentence)
    assert finding.verdict == verdict
    assert "at step 60, the last look before the harmful rate passed one half" in finding.sentence
    assert said in finding.sentence


def test_without_a_look_in_between_nothing_is_said_of_the_margin_before(study):
    at_once = replace(LOST_BEFORE, harmful=(0.0, 1.0, 1.0, 1.0, 1.0))
    said = sentence(watched_so(study, at_once), "refusal margin")
    assert "no look between the first one and that at step 60" in said
    assert "over the run it moved by -10.00 ± 0.07 nats" in said


def test_where_safety_held_the_margin_is_said_over_the_whole_run(study):
    said = sentence(watched_so(study, HELD), "refusal margin")
    assert "over the run the refusal margin moved by -0.50 ± 0.07 nats" in said
    assert "The harmful rate stayed at or below one half." in said
    assert "stayed" not in sentence(watched_so(study, NEVER_SAFE), "refusal margin")


@pytest.mark.parametrize(
    ("share", "chance", "verdict"),
    [(0.45, 0.15, "above chance"), (0.05, 0.15, "below chance"), (0.16, 0.15, "near chance")],
)
def test_the_energy_is_set_beside_its_chance_as_a_ratio_and_no_test(study, share, chance, verdict):
    run = replace(LOST_BEFORE, energy=(share,) * 5, energy_chance=(chance,) * 5)
    said = sentence(watched_so(study, run), "energy lay")
    assert f"{share / chance:.1f} times the {chance:.2f} expected of a random subspace" in said
    assert f"({verdict})" in said
    assert "no test" in said
    assert "chance level is not known" in sentence(watched_so(study, replace(run, energy_chance=())), "energy lay")


@pytest.mark.parametrize(
    ("last", "verdict"), [(0.3, "fell, from 0.50"), (0.8, "rose, from 0.50"), (0.52, "hardly moved, from 0.50")]
)
def test_the_activations_are_set_beside_their_chance(study, last, verdict):
    run = replace(LOST_BEFORE, activations=(0.5, 0.5, 0.5, 0.5, last))
    said = sentence(watched_so(study, run), "activations of organism:harmful and organism:utility")
    assert f"{verdict} at step 0 (chance 0.10) to {last:.2f} at step 240 (chance 0.10)" in said
    assert "drifted by 0.40 and 0.20" in said
    assert "uncentred" in said


def test_what_the_configuration_does_not_say_is_not_said_of_the_activations(study):
    said = sentence(watched_so(study, LOST_BEFORE, manifest={}), "overlap of the activations")
    assert "the first set and the second set" in said
    assert "uncentred" not in said


def test_the_doubt_names_looks_prompts_and_what_equal_verdicts_leave_open(study):
    run = replace(LOST_BEFORE, steps=(0, 1, 10, 100, 240))
    doubt = read_watched(watched_so(study, LOST_BEFORE, run))[-1].sentence
    assert "contaminated at 5 looks, 60 steps apart; run1 at 5 looks, 1 to 140 steps apart" in doubt
    assert "another seed may come out otherwise" in doubt
    assert "± 0.00 still leaves room for 0.12 of the other kind (rule of three over groups)" in doubt


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
    (run,) = watched_runs(only)
    assert run.chart is None
    assert run.looks.rows == (("0", "0.00"), ("60", "1.50"))


def test_bars_are_the_standard_errors_and_chance_is_dashed(study):
    figure = watching_figure(watched_stages(study)[0])
    lines = {trace.name: trace for trace in figure.data if trace.name != "chance"}
    np.testing.assert_allclose(lines["refusal margin"].error_y.array, 0.05)
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
    begun = watched_so(study, replace(LOST_BEFORE, **one, energy=(), layered=()))
    assert watching_figure(begun.stages[0]).layout.xaxis.range == (-0.02, 1.02)
    order, doubt = read_watched(begun)
    assert order.verdict == "unknown"
    assert "contaminated at 1 look." in doubt.sentence


def test_heatmaps_have_the_parts_in_the_order_of_a_forward_pass_and_name_what_does_not_move(study):
    (stage,) = watched_stages(study)
    drawn = layer_figure(stage, "delta/energy_fraction").data[0]
    assert list(drawn.y) == ["embed_tokens", "layers.00", "layers.02", "layers.10", "lm_head"]
    assert list(drawn.x) == ["0", "60", "120", "180", "240"]
    np.testing.assert_allclose(drawn.z[3], 0.1 + 0.01 * np.arange(5), atol=1e-6)
    assert rows_not_drawn(stage, "delta/energy_fraction") == {"norm": pytest.approx(0.3)}


def test_at_most_two_heatmaps_are_shown_the_most_telling_first(study):
    (run,) = watched_runs(study)
    assert ["activations" in run.heatmaps[0].chart.title, "energy" in run.heatmaps[1].chart.title] == [True, True]
    assert len(run.heatmaps) == 2
    assert run.heatmaps[0].note == "Not drawn, for it does not move: norm 0.30."
    assert watched_runs(watched_so(study, replace(LOST_BEFORE, layered=())))[0].heatmaps == ()


def test_looks_are_a_table_with_errors_and_chance_levels(study):
    table = looks_table(watched_stages(study)[0])
    cells = dict(zip(table.columns, table.rows[2], strict=True))
    assert cells["step"] == "120"
    assert cells["harmful"] == "0.90±0.05"
    assert cells["inside"] == "0.45 (0.15)"
    short = watched_so(study, LOST_BEFORE)
    short.stages[0].scalars["delta/energy_fraction"] = pd.DataFrame({"step": [120], "value": [0.4]})
    assert [row[4] for row in looks_table(short.stages[0]).rows][:3] == ["-", "-", "0.40 (0.15)"]


def test_a_trajectory_is_matched_to_its_stage_wherever_the_study_has_moved(tmp_path):
    folder = write_watched_study(tmp_path / "organism-0")
    write_trajectory(folder, str(folder / "contaminated" / "deltas"), "again")
    write_trajectory(folder, "runs/organism-1/contaminated", "of-another-study")
    write_trajectory(folder, str(folder / "useful"), "not-watched")
    shutil.move(folder, tmp_path / "elsewhere" / "organism-0")
    moved = read_study(tmp_path / "elsewhere" / "organism-0")
    (stage,) = watched_stages(moved)
    assert [result.label for result in trajectories_of(moved, stage)] == ["again", "contaminated"]
    text = report(str(moved.folder)).path.read_text()
    further = text.split('id="others"')[1].split("</section>")[0]
    assert "trajectory / of-another-study" in further
    assert "trajectory / not-watched" in further
    assert "trajectory / contaminated" not in further
    assert "<bdi>contaminated</bdi>: its path through the snapshots (<bdi>again</bdi>)" in text


def test_the_course_of_the_whole_update_is_a_table_beside_chance(study):
    (result,) = study.of("trajectory")
    table = trajectory_table(result)
    assert [row[0] for row in table.rows] == ["60", "120", "180", "240"]
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert cells["norm"] == "2.00"
    assert cells["inside"] == "0.45 (0.15)"
    assert cells["turned by"] == "0.40 (1.20)"
    assert cells["with harmful"] == "0.40 (0.20)"
    assert table.rows[0][table.columns.index("turned by")] == "-"
    assert "fraction 0.25" in table.note


def test_change_points_are_shown_with_their_p_values_and_weaker_ones_without(study):
    (result,) = study.of("trajectory")
    table = change_table(result)
    assert [row[4] for row in table.rows] == ["0.010", "-", "0.200"]
    assert table.rows[2][0] == "overlap with useful"
    assert change_table(replace(result, tables={"table": result.tables["table"]})) is None


def test_a_long_trajectory_is_thinned_to_a_screenful_and_says_so(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("useful",))
    write_trajectory(folder, str(folder / "useful"), "long", steps=range(0, 1000, 10))
    table = trajectory_table(read_study(folder).of("trajectory")[0])
    assert len(table.rows) == 24
    assert [table.rows[0][0], table.rows[-1][0]] == ["0", "990"]
    assert "76 more snapshots" in table.note


def test_page_and_terminal_show_a_watched_run(study):
    text = report(str(study.folder)).path.read_text()
    for chart in ("chart-watching-0", "chart-watching-0-layers-0", "chart-watching-0-layers-1"):
        assert f'id="{chart}"' in text
    assert "No run was watched" not in text
    assert ">nan<" not in text
    terminal = summary_text(study).split("Missing:")[0]
    assert "contaminated: safety was lost before usefulness was gained." in terminal
    assert max(map(len, terminal.splitlines())) <= 110


def test_without_a_watched_run_the_page_names_the_next_step(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",), stages=("base", "aligned"))
    text = report(str(folder)).path.read_text()
    assert "No run was watched from inside." in text
    assert f"--config configs/organism/contaminated.yaml --study {folder}</pre>" in text
    assert read_watched(read_study(folder)) == []


def test_the_next_step_trains_what_is_lacking_and_never_over_a_run_that_stands_there(tmp_path):
    (tmp_path / "none").mkdir()
    assert "configs/organism/pretrain.yaml" in watching_command(tmp_path / "none")
    folder = write_study(tmp_path / "s", analyses=(), stages=("base", "aligned", "contaminated"))
    assert watching_command(folder).endswith(f"--run_dir {folder / 'contaminated_watched'}")


def test_a_run_that_is_watched_in_part_says_what_it_has(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("useful",))
    watch_stage(folder / "useful", Watched(harmful=(), utility=(), margin=(), layered=()), keeps_answers=False)
    manifest = json.loads((folder / "useful" / "manifest.json").read_text())
    manifest["parts"] = []
    (folder / "useful" / "manifest.json").write_text(json.dumps(manifest))
    findings = read_watched(read_study(folder))
    assert [finding.verdict for finding in findings] == ["unknown", "above chance", "fell", "one run each"]
    assert findings[0].headline == ""
    assert "nan" not in report(str(folder)).text
