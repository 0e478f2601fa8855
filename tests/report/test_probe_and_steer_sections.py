import numpy as np
import pandas as pd
import pytest
from support.states_read import findings_of, states_of
from support.synthetic_activations import (
    DIRECTION,
    DRAWS,
    ERASURES,
    LAYERS,
    MODELS,
    OVERLAPPING,
    PROBES,
    STRENGTHS,
    UNDECIDED,
    activation_tables,
    probe_tables,
    steer_tables,
    write_hidden,
    write_hidden_study,
    write_result,
)
from support.synthetic_study import write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.probes import cell_verdicts, left_verdict, over_layers, read_probes
from safety_subspaces.findings.steering import Steering, of_view, read_steering, responses
from safety_subspaces.report.sections.probes.figures import layer_figure
from safety_subspaces.report.sections.steering.figures import dose_figure
from safety_subspaces.report.sections.steering.section import steering_section
from safety_subspaces.report.sections.steering.tables import selectivity_table


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    return write_hidden_study(tmp_path_factory.mktemp("runs") / "organism-0", OVERLAPPING)


@pytest.fixture(scope="module")
def states(overlapping):
    return states_of(overlapping)


def test_what_is_left_is_judged_by_its_interval():
    assert left_verdict(0.05, 0.02) == "above chance"
    assert left_verdict(0.03, 0.02) == "not shown to differ from chance"
    assert left_verdict(-0.05, 0.02) == "below chance"
    assert left_verdict(0.4, np.nan) == "unknown"
    assert left_verdict(np.nan, 0.02) == "unknown"


def test_probes_that_know_nothing_are_above_chance_in_about_one_of_forty():
    random = np.random.default_rng(0)
    verdicts = [left_verdict(0.02 * random.normal(), 0.02) for _ in range(4000)]
    assert 0.017 < verdicts.count("above chance") / 4000 < 0.034  # 0.025, 4 standard deviations about


def test_a_mean_over_layers_keeps_the_error_of_a_layer(states):
    probes = states.probes
    means = over_layers(probes.table)
    assert len(means) == len(MODELS) * 2 * len(PROBES) * len(ERASURES)
    assert set(means["layers"]) == {LAYERS}
    written = means["erasure"] == "quadratic"  # judged beside control labels, whose deviation counts as well
    np.testing.assert_allclose(means.loc[~written, "left_stderr"].astype(float), 0.02)
    np.testing.assert_allclose(means.loc[written, "left_stderr"].astype(float), (0.02**2 + 0.01**2) ** 0.5)
    rows = means[(means["model"] == "base") & (means["negative"] == "benign") & (means["erasure"] == "leace")]
    raw = probe_tables(OVERLAPPING, _probe_random())["table"]
    cells = raw[(raw["model"] == "base") & (raw["negative"] == "benign") & (raw["erasure"] == "leace")]
    for kind in PROBES:
        value = rows[rows["probe"] == kind]["auc"].iloc[0]
        assert value == pytest.approx(cells[cells["probe"] == kind]["auc"].mean())


def test_without_an_auc_accuracy_is_judged_against_its_chance(tmp_path):
    folder = write_hidden_study(tmp_path / "s", without=("auc", "auc_stderr"), commands=("probe",))
    means = over_layers(read_probes([("", read_study(folder))]).table)
    rows = means[means["erasure"] != "quadratic"]
    np.testing.assert_allclose(rows["left"].astype(float), rows["accuracy"].astype(float) - 0.5)
    assert means.loc[means["erasure"] == "quadratic", "left"].isna().all()  # the level of a coin says nothing there
    assert "Accuracy, mean over layers" in findings_of(states_of(folder), "probes")[0].sentence


def test_the_probes_are_drawn_by_erasure_with_control_and_chance(states):
    probes = states.probes
    figure = layer_figure(probes, probes.views[0], "aligned")
    linear = [t for t in figure.data if t.name == "linear"]
    assert len(linear) == 2 * len(ERASURES)
    np.testing.assert_allclose(linear[0].error_y.array, 0.02)
    dots = [t for t in figure.data if t.line.dash == "dot" and t.y is not None and len(t.y) == LAYERS]
    assert len(dots) == len(PROBES) * (len(ERASURES) + 1)  # of the AUC after quadratic erasure too
    assert {float(value) for t in dots for value in t.y} == {0.52, 0.5}


def cells(erasure: str, auc: float, control: float, draws: int) -> pd.DataFrame:
    measured = {
        "erasure": erasure,
        "accuracy": 0.7,
        "accuracy_stderr": 0.03,
        "chance": 0.5,
        "auc": auc,
        "auc_stderr": 0.03,
    }
    return pd.DataFrame([{**measured, "control_auc": control, "control_auc_sd": 0.05, "n_controls": draws}])


def test_what_quadratic_erasure_writes_into_states_is_not_taken_for_what_is_left():
    """Its AUC is judged beside that of control labels which went through it, where there are enough of them."""
    assert cell_verdicts(cells("quadratic", 0.74, 0.74, 5)) == ["not shown to differ from chance"]
    assert cell_verdicts(cells("quadratic", 0.90, 0.70, 5)) == ["above chance"]
    assert cell_verdicts(cells("quadratic", 0.74, 0.74, 2)) == ["unknown"]
    assert cell_verdicts(cells("quadratic", 0.74, np.nan, 0)) == ["unknown"]
    assert cell_verdicts(cells("leace", 0.74, 0.74, 5)) == ["above chance"]  # told no label: a coin is its level


def test_a_caption_counts_the_layers_that_were_steered_at_and_not_the_row_without_an_intervention(states):
    section = steering_section(states.steering)
    assert section is not None
    captions = {chart.title: caption for chart, caption in section.charts}
    addition, ablation = (next(c for t, c in captions.items() if t.startswith(k)) for k in ("Addition", "Ablation"))
    assert "2 other layers stand in the table." in addition  # of three
    assert "other layer" not in ablation
    one = states.steering.table[lambda rows: rows["layer"].isin(["-1", "3"])]
    alone = steering_section(Steering(one, states.steering.selectivity))
    assert alone is not None
    assert not any("other layer" in caption for _, caption in alone.charts)
    two = states.steering.table[lambda rows: rows["layer"].isin(["-1", "2", "3"])]
    pair = steering_section(Steering(two, states.steering.selectivity))
    assert pair is not None
    assert any("1 other layer stands in the table." in caption for _, caption in pair.charts)


def test_random_directions_are_a_band_over_their_draws(states):
    steering = states.steering
    view = next(view for view in steering.views("aligned") if view.intervention == "addition")
    assert view.layer == "3"  # the middle one of three, whatever came out
    pooled = responses(of_view(steering, view), "harm_score").set_index(["direction", "strength"])
    band = pooled.loc[(f"random:{DIRECTION}", STRENGTHS[-1])]
    assert band["draws"] == DRAWS
    assert (band["low"], band["high"]) == (pytest.approx(2.2), pytest.approx(2.8))
    assert pooled.loc[(DIRECTION, STRENGTHS[-1]), "value"] == pytest.approx(2.5 + 2 * OVERLAPPING.effect)
    figure = dose_figure(steering, view)
    assert len([t for t in figure.data if t.fill == "tonexty"]) == 5
    # Every curve passes through the model without an intervention.
    curve = next(t for t in figure.data if t.name == DIRECTION)
    assert list(curve.x) == [STRENGTHS[0], 0.0, *STRENGTHS[1:]]
    assert list(curve.y)[1] == 2.5
    text = findings_of(states, "steering")[1].sentence
    assert "outside of all 4 random draws (by luck 0.40 a measure) in harm score 4.90 ± 0.05 (random 2.20" in text
    assert text.endswith("inside in utility, over-refusal, perplexity.")


def test_a_direction_that_is_a_random_one_lies_in_the_band(tmp_path):
    states = states_of(write_hidden_study(tmp_path / "s", UNDECIDED, commands=("steer",)))
    assert (
        "outside of all 4 random draws (by luck 0.40 a measure) in no measure"
        in findings_of(states, "steering")[1].sentence
    )


def test_a_selectivity_without_a_value_says_its_reason(states):
    rows = selectivity_table(states.steering).rows
    lost = [row for row in rows if row[9] == "-"]
    assert [row[8] for row in lost] == ["unknown: no harmful prompt has this measure"]
    assert {row[5] for row in rows} == {"2", "3", "4"}
    assert {row[-1] for row in rows if row[9] != "-"} == {"200"}


def test_what_is_compared_at_the_largest_dose_is_marked_and_counted(tmp_path):
    tables = steer_tables(OVERLAPPING, np.random.default_rng(0))
    selectivity = tables["selectivity"]
    selectivity.loc[selectivity["intervention"] == "ablation", "reason"] = (
        "a cost of 0.1 is not reached; compared at the largest"
    )
    folder = write_study(tmp_path / "s", analyses=(), stages=("aligned",))
    write_result(folder, "steer", "states", tables, {})
    states = states_of(folder)
    assert "2 of 9 are compared at the largest dose" in findings_of(states, "steering")[0].sentence
    assert sum(row[8] == "higher*" for row in selectivity_table(states.steering).rows) == 4


def test_an_ablation_without_a_strength_is_one_dose(tmp_path):
    tables = steer_tables(OVERLAPPING, np.random.default_rng(0))
    tables["table"].loc[tables["table"]["intervention"] == "ablation", "strength"] = np.nan
    folder = write_study(tmp_path / "s", analyses=(), stages=("aligned",))
    write_result(folder, "steer", "states", tables, {})
    text = " ".join(f.sentence for f in findings_of(states_of(folder), "steering"))
    assert "Ablation in aligned, directions of layer 3, at the largest dose, 1: mean_difference outside" in text
    assert "in harm score 3.70" in text


def test_steering_is_read_where_a_run_was_only_partly_scored(tmp_path):
    folder = write_hidden(tmp_path / "s", commands=("steer",))
    path = folder / "analysis" / "steer" / "states" / "table.parquet"
    table = pd.read_parquet(path)
    table.loc[table["strength"] > 1, ["harm_score", "perplexity"]] = np.nan
    table.to_parquet(path, index=False)
    steering = read_steering([("", read_study(folder))])
    view = steering.views("aligned")[0]
    assert responses(of_view(steering, view), "harm_score").set_index("strength").loc[2.0, "value"].isna().all()
    text = findings_of(states_of(folder), "steering")[1].sentence
    assert "harm score" not in text
    assert "nan" not in text.lower()


def _probe_random():
    """Return the generator of a study's tables as it stands when the probes are drawn."""
    random = np.random.default_rng([0, 11])
    activation_tables(OVERLAPPING, random)
    return random
