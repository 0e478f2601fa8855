from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from support.states_read import seeds_of
from support.synthetic_activations import (
    DISTINCT,
    OVERLAPPING,
    PAIRS,
    PROBES,
    UNDECIDED,
    write_hidden_seeds,
    write_hidden_study,
)
from support.synthetic_study import write_study

from safety_subspaces.findings.activations import overlap_cells
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.findings.probes import over_layers
from safety_subspaces.report.command import report
from safety_subspaces.report.pages.across import across_findings, across_tables
from safety_subspaces.report.pages.hidden_states import (
    across_state_findings,
    across_state_terminal_tables,
    read_hidden_states,
)
from safety_subspaces.report.sections.activations.across import space_across_figure, space_over_seeds
from safety_subspaces.report.sections.probes.across import probes_over_seeds
from safety_subspaces.report.sections.steering.across import selectivity_over_seeds

TOPICS = ("activations", "probes", "steering")


def test_intervals_over_seeds_are_those_of_the_means_over_layers(tmp_path):
    organism, states = seeds_of(write_hidden_seeds(tmp_path, replace(OVERLAPPING, seed_noise=0.05)))
    view = states.activations.views[0]
    row = space_over_seeds(states.activations, view).set_index(["model", "first", "second"]).loc[("base", *PAIRS[1])]
    cells = overlap_cells(states.activations, view)
    rows = cells[(cells["model"] == "base") & (cells["first"] == "harmful") & (cells["second"] == "utility")]
    values = rows.groupby("seed")["above"].mean()
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert row["above"] == pytest.approx(values.mean())
    assert row["above_reach"] == pytest.approx((high - low) / 2)
    assert row["above_seeds"] == 3
    probes = probes_over_seeds(states.probes)
    each = over_layers(states.probes.table)
    keys = ["model", "negative", "erasure", "probe"]
    left = each.set_index(keys).loc[("base", "benign", "leace", "mlp"), "left"].astype(float)
    low, high = stats.t.interval(0.95, 2, loc=left.mean(), scale=stats.sem(left))
    assert probes.set_index(keys).loc[("base", "benign", "leace", "mlp"), "left_reach"] == pytest.approx(
        (high - low) / 2
    )
    steered = selectivity_over_seeds(states.steering).set_index(["model", "intervention", "measure"])
    assert steered.loc[("base", "addition", "harm_score"), "selectivity_seeds"].item() == 3
    assert organism.name in across_state_findings(states, organism.name)[0].headline


@pytest.mark.parametrize(
    ("hidden", "verdicts"),
    [
        (OVERLAPPING, ["overlapping", "not shown", "differs"]),
        (DISTINCT, ["distinct", "left", "differs"]),
        (replace(UNDECIDED, seed_noise=0.05), ["undecided", "not shown", "undecided"]),
    ],
)
def test_each_outcome_can_come_out_over_seeds(tmp_path, hidden, verdicts):
    _, states = seeds_of(write_hidden_seeds(tmp_path, hidden))
    findings = across_state_findings(states, "organism")
    assert [finding.topic for finding in findings] == list(TOPICS)
    assert [finding.verdict for finding in findings] == verdicts
    assert "nan" not in " ".join(f.headline + f.sentence for f in findings).lower()


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    _, states = seeds_of(write_hidden_seeds(tmp_path, seeds=1))
    assert [finding.verdict for finding in across_state_findings(states, "organism")] == ["unknown"] * 3
    figure = space_across_figure(states.activations, states.activations.views[0])
    assert np.isnan(np.asarray(figure.data[0].error_y.array, float)).all()


def test_the_page_over_seeds_has_a_few_charts_of_each_and_says_its_seeds(tmp_path):
    folders = write_hidden_seeds(tmp_path, replace(OVERLAPPING, seed_noise=0.02))
    page = report(folders)
    text = page.path.read_text()
    for title in ("Activation space, across seeds", "Probes, across seeds", "Steering, across seeds"):
        assert title in text
    assert text.count('class="chart"') == 4
    assert "half the 95 % t interval over seeds" in text
    assert ">nan<" not in text
    assert max(map(len, str(page).splitlines()[:-1])) <= 110
    organisms = read_organisms(folders)
    assert {"Activation space", "Probes", "Selectivity of steering"} <= {
        t.split(",")[0] for t in across_tables(organisms)
    }
    assert len(across_state_terminal_tables(read_hidden_states(organisms[0].seeds.named))["Probes"].rows) == len(PROBES)


def test_a_seed_that_lacks_an_analysis_is_counted_as_missing(tmp_path):
    folders = write_hidden_seeds(tmp_path, seeds=2)
    folders.append(str(write_hidden_study(tmp_path / "organism-2", seed=2, commands=("activations",))))
    organism, states = seeds_of(folders)
    assert set(probes_over_seeds(states.probes)["left_seeds"]) == {2}
    assert set(space_over_seeds(states.activations, states.activations.views[0])["above_seeds"]) == {3}
    assert across_findings([organism])


def test_seeds_without_these_analyses_have_no_sections(tmp_path):
    folders = [str(write_study(tmp_path / f"organism-{seed}", analyses=("evaluate",))) for seed in (0,)]
    folders.append(str(write_hidden_study(tmp_path / "organism-1", seed=1, commands=())))
    text = report(folders).path.read_text()
    for word in ("Activation space", "Probes,", "Steering,"):
        assert word not in text
