"""The sections on activations, probes and steering: what they say, draw and list, of one study and of several seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.synthetic_activations import (
    DIRECTION,
    DISTINCT,
    ERASURES,
    LAYERS,
    MODELS,
    OVERLAPPING,
    PAIRS,
    PROBES,
    STRENGTHS,
    UNDECIDED,
    write_hidden_seeds,
    write_hidden_study,
)

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.activations import read_activations, space_over_seeds
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.probes import layers_over_seeds, read_probes
from safety_subspaces.findings.steering import of_view, read_steering, responses
from safety_subspaces.findings.topics.activations import activations as activations_topic
from safety_subspaces.findings.topics.probes import probes as probes_topic
from safety_subspaces.findings.topics.steering import steering as steering_topic
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.sections.activations import activations, heatmap_figure, margin_figure
from safety_subspaces.report.sections.probes import layer_figure, probes
from safety_subspaces.report.sections.steering import dose_figure, steering

PLACES = len(MODELS) * (LAYERS + 1)


def sections_of(*folders):
    """Return the three sections of some studies, ``None`` where an analysis is missing."""
    seeds = together([read_study(folder) for folder in folders])
    topics = (activations_topic, probes_topic, steering_topic)
    part = Part("SFT", seeds, decide([row for topic in topics for row in topic(seeds)]), "organism-0")
    return activations(part), probes(part), steering(part)


def said_in(section):
    parts = [*section.headlines, *section.sentences, *section.notes, *(note for _, note in section.charts)]
    return " ".join([*parts, *(table.to_text(300) for table in section.tables.values())])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_hidden_study(tmp_path_factory.mktemp("one") / "organism-0"))


@pytest.fixture(scope="module")
def single(study):
    return sections_of(study.folder)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return sections_of(*write_hidden_seeds(tmp_path_factory.mktemp("more"), replace(OVERLAPPING, seed_noise=0.01)))


@pytest.mark.parametrize("which", ["single", "seeds"])
def test_every_chart_says_its_sample_and_nothing_is_left_unsaid(which, request):
    for section in request.getfixturevalue(which):
        assert section.headlines
        assert section.charts
        assert all("n: " in note or "Bars" in note for _, note in section.charts)
        said = said_in(section)
        assert "nan" not in said.lower()
        assert "{" not in said
        assert sum(len(chart.json) for chart, _ in section.charts) < 300_000
        for table in section.terminal.values():
            assert max(map(len, table.to_text(110).splitlines())) <= 110


@pytest.mark.parametrize(
    ("hidden", "verdict", "above"),
    [
        (OVERLAPPING, "nearer to parts of one set than to chance", PLACES),
        (DISTINCT, "nearer to chance than to parts of one set", 0),
        (UNDECIDED, "undecided between the two", PLACES),
    ],
)
def test_activations_are_counted_by_verdict_place_by_place(tmp_path, hidden, verdict, above):
    section, _, _ = sections_of(write_hidden_study(tmp_path / "s", hidden, commands=("activations",)))
    (headline,) = section.headlines
    assert headline.startswith("In activations (")
    assert f"harmful and utility prompts are {verdict} in {PLACES} of {PLACES} layers and models" in headline
    assert f"({PLACES} tests, corrected together)" in headline
    assert any(f"is shown above it in {above} of {PLACES} layers and models" in said for said in section.sentences)
    differ = PLACES if hidden.differs else 0
    assert any(f"shown to differ in {differ} of {PLACES} places by kernel MMD" in said for said in section.sentences)


def test_too_few_draws_are_said_in_the_place_of_a_verdict(tmp_path):
    hidden = replace(OVERLAPPING, controls=99)
    section, _, _ = sections_of(write_hidden_study(tmp_path / "s", hidden, commands=("activations",)))
    needed = 20 * PLACES - 1
    untold = f"unknown in {PLACES}: 99 draws, {needed} needed for {PLACES} tests"
    assert any(f"shown above it in 0 of {PLACES}" in said and untold in said for said in section.sentences)


def test_activations_over_seeds_are_said_with_their_interval(seeds):
    section = seeds[0]
    assert f"than to chance in {len(MODELS)} of {len(MODELS)} models (mean over layers)" in section.headlines[0]
    over = next(said for said in section.sentences if said.startswith("Overlap minus "))
    assert "3 seeds, p " in over
    assert over.count("above chance") == len(MODELS)


def test_maps_show_the_numbers_of_the_table_with_chance_in_the_middle(study):
    read = read_activations([("", study)])
    view = read.views[0]
    cells = space_over_seeds(read, view, by_layer=True)
    figure = heatmap_figure(cells, view)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == len(PAIRS) + 1  # and the floor
    first = cells[(cells["first"] == view.pairs[0][0]) & (cells["second"] == view.pairs[0][1])]
    expected = first.pivot_table(index="model", columns="layer", values="above").loc[list(view.models)]
    np.testing.assert_allclose(np.asarray(maps[0].z, float), expected)
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax


def test_a_margin_without_a_test_has_no_chart(study):
    read = read_activations([("", study)])
    cells = space_over_seeds(read, read.views[0], by_layer=True).assign(from_margin=np.nan)
    assert margin_figure(cells, read.views[0], read.views[0].pairs, Colours()) is None


@pytest.mark.parametrize("which", ["single", "seeds"])
def test_probes_are_named_by_erasure(which, request):
    section = request.getfixturevalue(which)[1]
    headline = section.headlines[0]
    assert headline.startswith("Probes of aligned (harmful against benign prompts")
    plain, linear, quadratic = headline.split("; ")
    assert plain.endswith(" linear, rbf_svm, mlp")
    assert linear == "after linear erasure (LEACE) rbf_svm, mlp"
    assert " none " in quadratic
    assert f"({3 * len(PROBES) * len(MODELS)} tests)" in headline


def test_probes_are_drawn_by_layer_with_their_error_the_control_task_and_chance(study):
    rows = read_probes([("", study)]).table
    chosen = rows[(rows["model"] == "aligned") & (rows["negative"] == "benign")]
    figure = layer_figure(layers_over_seeds(chosen))
    linear = [trace for trace in figure.data if trace.name == "linear"]
    assert len(linear) == 2 * len(ERASURES)
    np.testing.assert_allclose(linear[0].error_y.array, 0.02)
    dots = [t for t in figure.data if t.line.dash == "dot" and t.y is not None and len(t.y) == LAYERS]
    assert {float(value) for t in dots for value in t.y} == {0.52, 0.5}


def test_without_an_auc_accuracy_is_judged(tmp_path):
    folder = write_hidden_study(tmp_path / "s", without=("auc", "auc_stderr"), commands=("probe",))
    _, section, _ = sections_of(folder)
    assert "nan" not in said_in(section).lower()
    # After quadratic erasure the level is control labels' AUC, which is not known.
    assert "not known: unknown" in " ".join(section.sentences)


@pytest.mark.parametrize(("effect", "verdict"), [(1.2, "higher"), (-1.2, "lower")])
def test_steering_is_counted_by_verdict_and_its_reasons_are_said(tmp_path, effect, verdict):
    hidden = replace(OVERLAPPING, effect=effect, directions=319)
    _, _, section = sections_of(write_hidden_study(tmp_path / "s", hidden, commands=("steer",)))
    headline = section.headlines[0]
    assert headline.startswith("Steering aligned, beside random directions at equal cost: ")
    assert f"harm score {verdict} in 4" in headline
    assert f"refusal margin {verdict} in 4" in headline
    assert "no harmful prompt has this measure" in headline


def test_few_random_directions_are_a_band_and_no_verdict(single, study):
    section = single[2]
    assert "4 random directions, 19 needed" in section.headlines[0]
    read = read_steering([("", study)])
    view = next(view for view in read.views("aligned") if view.intervention == "addition")
    assert view.layer == "3"  # the middle one of three, whatever came out
    pooled = responses(of_view(read, view), "harm_score").set_index(["direction", "strength"])
    band = pooled.loc[(f"random:{DIRECTION}", STRENGTHS[-1])]
    assert band["draws"] == 4
    assert (band["low"], band["high"]) == (pytest.approx(2.1), pytest.approx(2.9))
    figure = dose_figure(read, view)
    assert len([trace for trace in figure.data if trace.fill == "tonexty"]) == 5
    # Every curve passes through the model without an intervention.
    curve = next(trace for trace in figure.data if trace.name == DIRECTION)
    assert list(curve.x) == [STRENGTHS[0], 0.0, *STRENGTHS[1:]]
    assert list(curve.y)[1] == 2.5
    assert any("harm score 4.90 ± 0.05 (random 2.10 to 2.90, 4 draws)" in said for said in section.sentences)


def test_what_is_compared_at_the_largest_dose_is_counted(tmp_path):
    folder = write_hidden_study(tmp_path / "s", commands=("steer",))
    path = folder / "analysis" / "steer" / "states" / "selectivity.parquet"
    table = pd.read_parquet(path)
    is_of = (table["intervention"] == "ablation") & (table["model"] == "aligned") & table["selectivity"].notna()
    table.loc[is_of, "reason"] = "a cost of 0.1 is not reached; compared at the largest"
    table.to_parquet(path, index=False)
    _, _, section = sections_of(folder)
    assert any(said.startswith("2 values behind them are compared at the largest dose") for said in section.sentences)


def test_a_run_that_was_only_partly_scored_is_read(tmp_path):
    folder = write_hidden_study(tmp_path / "s", commands=("steer",))
    path = folder / "analysis" / "steer" / "states" / "table.parquet"
    table = pd.read_parquet(path)
    table.loc[table["strength"] > 1, ["harm_score", "perplexity"]] = np.nan
    table.to_parquet(path, index=False)
    _, _, section = sections_of(folder)
    dose = next(said for said in section.sentences if said.startswith("Addition"))
    assert "harm score" not in dose
    assert "utility 0.80" in dose


@pytest.mark.parametrize(("command", "place"), [("activations", 0), ("probe", 1), ("steer", 2)])
def test_an_analysis_that_was_not_run_has_no_section_and_the_others_stay(tmp_path, command, place):
    others = tuple(name for name in ("activations", "probe", "steer") if name != command)
    sections = sections_of(write_hidden_study(tmp_path / "s", commands=others))
    assert [section is None for section in sections] == [number == place for number in range(3)]
