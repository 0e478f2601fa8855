import shutil

import numpy as np
import pytest
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.comparisons import pool_draws
from safety_subspaces.report.sections.energy.figures import energy_figures, kept_energy_figure
from safety_subspaces.report.sections.models.figures import MOST_POINTS, _thinned, loss_figure
from safety_subspaces.report.sections.overlap.figures import overlap_figure, overlap_type_figure


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_study(tmp_path_factory.mktemp("runs") / "s"))


def test_there_is_one_energy_figure_a_fine_tune_with_every_configuration_in_three_panels(study):
    drawn = energy_figures(study)
    assert list(drawn) == ["useful", "harmful", "contaminated"]
    for figure in drawn.values():
        points = [len(trace.x) for trace in figure.data if not trace.showlegend and trace.customdata is not None]
        assert sum(points) == 3 * 5 * 2 * 4  # panels, subspaces, methods, fractions
        assert figure.layout.xaxis3.matches is None or figure.layout.xaxis.matches == "x3"


def test_points_and_error_bars_are_the_pooled_numbers(study):
    figure = energy_figures(study)["contaminated"]
    pooled = pool_draws(study.projections)
    rows = pooled[
        (pooled["group"] == "contaminated") & (pooled["subspace"] == "random-energy") & (pooled["method"] == "away")
    ].sort_values("energy_kept")
    trace = next(t for t in figure.data if t.name == "random-energy, away" and t.yaxis == "y3")
    np.testing.assert_allclose(np.asarray(trace.y, float), rows["refusal_margin"].astype(float))
    np.testing.assert_allclose(np.asarray(trace.error_y.array, float), rows["refusal_margin_error"].astype(float))


def test_reference_lines_stand_at_the_aligned_and_the_tuned_model(study):
    figure = energy_figures(study)["harmful"]
    levels = sorted(shape.y0 for shape in figure.layout.shapes if shape.yref.startswith("y2"))
    assert levels == pytest.approx([study.model("aligned")["harm_score"], study.model("harmful")["harm_score"]])


def test_without_evaluated_models_there_are_no_reference_lines(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("project",))
    for figure in energy_figures(read_study(folder)).values():
        assert not figure.layout.shapes


def test_measures_that_are_nan_everywhere_get_no_panel(tmp_path):
    study = read_study(write_study(tmp_path / "s"))
    study.projections["refusal_margin"] = np.nan
    figure = energy_figures(study)["useful"]
    assert "Refusal margin" not in str([axis.title.text for axis in figure.select_yaxes()])


def test_nan_rows_are_left_out_of_the_lines(tmp_path):
    study = read_study(write_study(tmp_path / "s", World(unscored_rows=60)))
    for figure in energy_figures(study).values():
        for trace in figure.data:
            if trace.customdata is not None:
                assert not np.isnan(np.asarray(trace.y, float)).any()


def test_unevaluated_projections_draw_energy_beside_chance(tmp_path):
    study = read_study(write_study(tmp_path / "s", evaluated=False))
    assert energy_figures(study) == {}
    figure = kept_energy_figure(study)
    assert sum(len(t.x) for t in figure.data if t.customdata is not None) == 3 * 5 * 2 * 4


def test_overlap_shows_one_energy_and_dashes_the_floors(study):
    for figure in (overlap_figure(study), overlap_type_figure(study)):
        shares = {trace.meta["energy"] for trace in figure.data if trace.meta}
        assert shares == {0.5, 0.9}
        assert {trace.meta["energy"] for trace in figure.data if trace.meta and trace.visible} == {0.9}
    lines = overlap_figure(study).data
    assert {t.line.dash for t in lines if "same kind" in (t.name or "")} == {"dash"}
    assert {t.line.dash for t in lines if t.name == "useful - harmful"} == {"solid", None} - {None}


def test_one_pair_has_one_colour_in_both_overlap_charts(study):
    by_layer = {t.name: t.line.color for t in overlap_figure(study).data if t.meta and t.name}
    by_type = {t.name: t.marker.color for t in overlap_type_figure(study).data if t.type == "bar"}
    assert by_type == by_layer
    assert len(set(by_type.values())) == len(by_type)


def test_embeddings_and_head_are_among_the_bars_and_not_among_the_layers(study):
    bars = overlap_type_figure(study).data[0]
    assert bars.x[0] == "embeddings"
    assert bars.x[-1] == "head"
    assert min(overlap_figure(study).data[0].x) == 0


def test_loss_curves_keep_their_last_point_however_long(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("base",))
    study = read_study(folder)
    curve = study.stages[0].scalars["train/loss"]
    thin = _thinned(curve.loc[curve.index.repeat(50)].reset_index(drop=True))
    assert len(thin) <= MOST_POINTS + 1
    assert thin["step"].iloc[-1] == curve["step"].iloc[-1]


def test_a_stage_without_events_is_no_curve(tmp_path):
    folder = write_study(tmp_path / "s", analyses=(), stages=("base", "aligned"))
    for path in (folder / "aligned").glob("events*"):
        path.unlink()
    shutil.rmtree(folder / "base" / "model")
    assert {trace.name for trace in loss_figure(read_study(folder).stages).data} == {"base", "base, validation"}
