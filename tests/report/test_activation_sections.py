import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.states_read import findings_of, states_of
from support.synthetic_activations import (
    DISTINCT,
    LAYERS,
    MODELS,
    OVERLAPPING,
    PAIRS,
    UNDECIDED,
    activation_tables,
    write_hidden_study,
    write_result,
)
from support.synthetic_study import write_study

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.activations import ASKED, overlap_cells, read_activations, verdict_counts
from safety_subspaces.report.command import report
from safety_subspaces.report.pages.hidden_states import state_findings, state_sections
from safety_subspaces.report.sections.activations.figures import cka_figure, heatmap_figure, margin_figure
from safety_subspaces.report.sections.activations.reading import space_verdict
from safety_subspaces.report.sections.activations.tables import activations_table, verdicts_table

CELLS = len(MODELS) * (LAYERS + 1)
TOPICS = ("activations", "probes", "steering")
# Everything that a table may lack.
OPTIONAL = (
    *("rank_first", "rank_second", "chance", "p_haar", "p_matched", "mean_angle_radians", "n_first", "n_second"),
    *("margin", "stderr", "p_overlapping", "power", "n_groups_first", "n_groups_second", "mean_distance", "mmd_p"),
    *("two_nn_stderr", "mle", "mle_stderr", "n", "rbf", "accuracy_stderr", "balanced_accuracy", "auc", "auc_stderr"),
    *(
        "control_accuracy",
        "selectivity_stderr",
        "n_positive",
        "n_negative",
        "n_groups",
        "draw",
        "reason",
        "low",
        "high",
    ),
    *("perplexity", "utility", "utility_stderr", "n_harmful", "n_utility", "n_benign", "n_unscored", "matched"),
    *("negative", "sign", "matched_on", "n_draws", "cost"),
)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    return write_hidden_study(tmp_path_factory.mktemp("runs") / "organism-0", OVERLAPPING)


@pytest.fixture(scope="module")
def states(overlapping):
    return states_of(overlapping)


@pytest.fixture(scope="module")
def page(overlapping):
    return report(str(overlapping)).path.read_text()


@pytest.mark.parametrize(
    ("hidden", "space", "probes", "steering"),
    [
        (OVERLAPPING, "overlapping", "not shown", "differs"),
        (DISTINCT, "distinct", "left", "differs"),
        (UNDECIDED, "undecided", "not shown", "undecided"),
    ],
)
def test_each_outcome_can_come_out_in_one_form(tmp_path, hidden, space, probes, steering):
    states = states_of(write_hidden_study(tmp_path / "s", hidden))
    by_topic = {topic: findings_of(states, topic) for topic in TOPICS}
    assert [by_topic[topic][0].verdict for topic in TOPICS] == [space, probes, steering]
    assert f"{space} in {CELLS}" in by_topic["activations"][0].headline
    for name in ("overlapping", "distinct", "undecided", "undefined"):
        assert f"{name} in " in by_topic["activations"][0].headline
    for words in ("minus matched chance", "two halves of one set", "power 0.90", "n: 200 and 128 prompts"):
        assert words in by_topic["activations"][0].sentence
    for name in ("higher", "lower", "undecided", "unknown"):
        assert f"{name} in " in by_topic["steering"][0].headline
    side = {1: "higher", -1: "lower", 0: "undecided"}[int(np.sign(hidden.effect))]
    assert f"harm score {side} in 4" in re.sub(r"\w+ in 0,? ?", "", by_topic["steering"][0].headline)
    every = " ".join(f.headline + f.sentence for findings in by_topic.values() for f in findings)
    assert "nan" not in every.lower()
    assert "{" not in every


def test_the_paper_s_pair_comes_first_and_is_the_only_one_spoken_of(states):
    activations = states.activations
    (view,) = activations.views
    assert set(view.pairs[0]) == ASKED[0]
    assert set(view.pairs) == set(PAIRS)
    assert view.energy == 0.9
    assert "uncentred" in view.words
    headline = findings_of(states, "activations")[0].headline
    assert "harmful and utility" in headline
    assert "Elsewhere: energy 0.5: overlapping" in findings_of(states, "activations")[0].sentence


def test_overlaps_stand_above_their_own_matched_chance_beside_floor_and_like_prompts(states):
    activations = states.activations
    raw = activation_tables(OVERLAPPING, np.random.default_rng([0, 11]))["table"]
    cells = overlap_cells(activations, activations.views[0])
    assert len(cells) == len(PAIRS) * CELLS
    cell = cells[(cells["model"] == "base") & (cells["second"] == "benign") & (cells["layer"] == 2)].iloc[0]
    rows = raw[(raw["model"] == "base") & (raw["layer"] == 2) & (raw["energy"] == 0.9) & ~raw["matched"]]
    pair = rows[(rows["first"] == "harmful") & (rows["second"] == "benign")].iloc[0]
    floors = rows[rows["floor"] & rows["first"].isin(["harmful", "benign"])]
    assert cell["above"] == pytest.approx(pair["overlap"] - pair["matched_chance"])
    assert cell["floor_above"] == pytest.approx((floors["overlap"] - floors["matched_chance"]).mean())
    assert cell["alike_above"] == pytest.approx(cell["above"])


def test_without_a_matched_control_chance_takes_its_place_and_is_named(tmp_path):
    states = states_of(write_hidden_study(tmp_path / "s", replace(OVERLAPPING, has_control=False)))
    cells = overlap_cells(states.activations, states.activations.views[0])
    np.testing.assert_allclose(cells["above"], cells["overlap"] - 0.15)
    assert "no matched control was run" in findings_of(states, "activations")[0].sentence
    assert "no matched control was run" in state_sections(states)[0].charts[0][1]


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((9, 1, 2, 50), "overlapping"),
        ((1, 9, 2, 0), "distinct"),
        ((1, 2, 9, 0), "undecided"),
        ((5, 5, 0, 0), "mixed"),
        ((0, 0, 0, 7), "undefined"),
        ((0, 0, 0, 0), "unknown"),
    ],
)
def test_the_verdict_of_many_cells_is_that_of_more_than_half_of_those_that_have_one(counts, verdict):
    assert (
        space_verdict(dict(zip(("overlapping", "distinct", "undecided", "undefined"), counts, strict=True))) == verdict
    )


def test_undefined_tests_are_counted_and_are_in_no_mean(tmp_path):
    tables = activation_tables(OVERLAPPING, np.random.default_rng(0))
    lost = tables["equivalence"]["layer"] == 0
    tables["equivalence"].loc[lost, ["verdict", "overlap"]] = ["undefined", 99.0]
    folder = write_study(tmp_path / "s", analyses=(), stages=("aligned",))
    write_result(folder, "activations", "states", tables, {})
    activations = states_of(folder).activations
    row = next(r for r in verdicts_table(activations).rows if r[:2] == ("harmful - utility", "base") and r[4] == "0.9")
    columns = verdicts_table(activations).columns
    assert row[columns.index("undefined")] == "1"
    assert row[columns.index("overlapping")] == str(LAYERS)
    assert float(row[columns.index("minus margin")]) < 0.3
    assert verdict_counts(pd.DataFrame({"verdict": ["undefined", None, "distinct"]})) == {
        "overlapping": 0,
        "distinct": 1,
        "undecided": 0,
        "undefined": 2,
    }


def test_figures_show_the_numbers_of_the_tables(states):
    activations = states.activations
    view = activations.views[0]
    maps = [trace for trace in heatmap_figure(activations, view).data if trace.type == "heatmap"]
    assert len(maps) == len(PAIRS) + 1  # and the floor
    cells = overlap_cells(activations, view)
    of_pair = cells[(cells["first"] == view.pairs[0][0]) & (cells["second"] == view.pairs[0][1])]
    expected = of_pair.pivot(index="model", columns="layer", values="above").loc[list(MODELS)]
    np.testing.assert_allclose(np.asarray(maps[0].z, float), expected)
    axis = heatmap_figure(activations, view).layout.coloraxis
    assert axis.cmin == -axis.cmax  # chance is the middle colour
    drawn = [t for t in margin_figure(activations, view).data if t.name == "aligned" and t.showlegend is False]
    assert len(drawn) == len(PAIRS)
    assert set(drawn[0].marker.symbol) == {"circle"}
    np.testing.assert_allclose(drawn[0].error_y.array, OVERLAPPING.error)
    beside = cka_figure(activations, view)
    assert {t.name for t in beside.data} == {"base", "contaminated"}


def test_verdicts_have_symbols_of_their_own(tmp_path):
    shown = {}
    for hidden in (DISTINCT, UNDECIDED):
        activations = states_of(write_hidden_study(tmp_path / str(hidden.position), hidden)).activations
        figure = margin_figure(activations, activations.views[0])
        shown[hidden.position] = set(next(t for t in figure.data if t.name == "base").marker.symbol)
    assert shown == {0.1: {"diamond"}, 0.5: {"circle-open"}}


def test_the_page_has_the_three_sections_with_their_charts_and_links(page):
    for anchor in TOPICS:
        assert f'<a href="#{anchor}">' in page
        section = re.search(rf'<section id="{anchor}">.*?</section>', page, re.DOTALL).group()
        assert section.count('class="chart"') >= 2
        notes = re.findall(r'</figure>\s*<p class="note">(.*?)</p>', section)
        assert len(notes) == section.count('class="chart"')
        assert all("n: " in note for note in notes)
    assert page.index('id="overlap"') < page.index('id="activations"') < page.index('id="training"')
    assert ">nan<" not in page
    assert "tolerated" not in page  # a column that is not known
    assert "Further analyses" not in page


def test_the_sections_weigh_little(states):
    for section in state_sections(states):
        assert sum(len(chart.json) for chart, _ in section.charts) < 300_000


def test_a_study_of_many_layers_and_models_stays_light(tmp_path, monkeypatch):
    monkeypatch.setattr("support.synthetic_activations.LAYERS", 32)
    monkeypatch.setattr(
        "support.synthetic_activations.MODELS", ("base", "aligned", "useful", "harmful", "contaminated")
    )
    folder = write_hidden_study(tmp_path / "s")
    sizes = [len(chart.json) for section in state_sections(states_of(folder)) for chart, _ in section.charts]
    assert sum(sizes) < 1_500_000  # plotly.js has 4.7 million


@pytest.mark.parametrize("command", ["activations", "probe", "steer"])
def test_an_analysis_that_was_not_run_has_no_section_and_the_others_stay(tmp_path, command):
    others = tuple(name for name in ("activations", "probe", "steer") if name != command)
    folder = write_hidden_study(tmp_path / "s", commands=others)
    states = states_of(folder)
    anchor = {"activations": "activations", "probe": "probes", "steer": "steering"}[command]
    assert {section.anchor for section in state_sections(states)} == set(TOPICS) - {anchor}
    assert {finding.topic for finding in state_findings(states)} == set(TOPICS) - {anchor}


def test_a_study_without_these_analyses_says_nothing_of_them(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("aligned",))
    states = states_of(folder)
    assert (state_findings(states), state_sections(states)) == ([], [])
    text = report(str(folder)).path.read_text()
    for word in ("Activation space", "Probes", "Steering", "analyze.py activations"):
        assert word not in text


def test_missing_optional_columns_leave_a_page(tmp_path):
    folder = write_hidden_study(tmp_path / "s", without=OPTIONAL)
    text = report(str(folder)).path.read_text()
    assert ">nan<" not in text
    said = " ".join(f.headline + f.sentence for f in state_findings(states_of(folder)))
    assert "nan" not in said.lower()
    assert findings_of(states_of(folder), "steering")[0].verdict == "unknown"  # no interval, no verdict
    assert "overlapping" in findings_of(states_of(folder), "activations")[0].verdict


def test_tables_that_are_missing_leave_the_others(tmp_path):
    folder = write_hidden_study(tmp_path / "s")
    for name in ("equivalence", "two_sample", "dimension", "cka", "depth"):
        (folder / "analysis" / "activations" / "states" / f"{name}.parquet").unlink()
    (folder / "analysis" / "steer" / "states" / "selectivity.parquet").unlink()
    states = states_of(folder)
    assert findings_of(states, "activations")[0].verdict == "unknown"
    assert "no equivalence test was run" in findings_of(states, "activations")[0].headline
    assert len(findings_of(states, "activations")) == 1
    assert "cannot be told" in findings_of(states, "steering")[0].headline
    assert [len(section.charts) for section in state_sections(states)] == [1, 4, 2]


def test_a_table_without_a_required_column_names_its_file(tmp_path):
    folder = write_hidden_study(tmp_path / "s", without=("verdict",), commands=("activations",))
    with pytest.raises(InputError, match=r"equivalence has no column verdict; .*analyze.py activations"):
        read_activations([("", read_study(folder))])


def test_several_runs_and_positions_stand_beside_each_other(tmp_path):
    folder = write_hidden_study(tmp_path / "s", commands=("activations",))
    tables = activation_tables(DISTINCT, np.random.default_rng(1))
    mean = {name: table.assign(position="mean") for name, table in tables.items()}
    write_result(folder, "activations", "centred", mean, {"center": True})
    states = states_of(folder)
    assert [view.position for view in states.activations.views] == ["mean", "last"]
    assert states.activations.views[0].words.endswith("centred")
    text = findings_of(states, "activations")[0].sentence
    assert "states, last, energy 0.9: overlapping" in text
    assert len(activations_table(states.activations).rows) == 2 * len(PAIRS) * len(MODELS)
    assert len({chart.name for chart, _ in state_sections(states)[0].charts}) == 8
