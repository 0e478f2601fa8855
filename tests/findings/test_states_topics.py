"""What is found of hidden states, probes and steering, in one study and over seeds."""

from dataclasses import replace

import numpy as np
import pytest
from support.synthetic_activations import (
    DISTINCT,
    LAYERS,
    MODELS,
    OVERLAPPING,
    PAIRS,
    UNDECIDED,
    Hidden,
    write_hidden_seeds,
    write_hidden_study,
)

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics.activations import BY_LAYER, CHANCE, DISTRIBUTIONS, MARGIN, activations
from safety_subspaces.findings.topics.probes import probes
from safety_subspaces.findings.topics.steering import steering

# One place is a layer of a model; the embedding is layer 0.
PLACES = len(MODELS) * (LAYERS + 1)


def found(topic, *folders):
    return decide(topic(together([read_study(folder) for folder in folders])))


def details_of(rows, **wanted):
    chosen = [all(details[name] == value for name, value in wanted.items()) for details in rows["details"]]
    return rows[chosen]


@pytest.mark.parametrize(
    ("hidden", "verdict", "is_above"),
    [(OVERLAPPING, "overlapping", True), (DISTINCT, "distinct", False), (UNDECIDED, "undecided", True)],
)
def test_in_one_study_every_place_is_tested_and_all_are_corrected_together(tmp_path, hidden, verdict, is_above):
    rows = found(activations, write_hidden_study(tmp_path / "s", hidden))
    near = asked(rows, MARGIN + BY_LAYER)
    assert set(near["verdict"]) == {verdict}
    above = asked(rows, CHANCE + BY_LAYER)
    assert set(above["verdict"]) == {"above chance" if is_above else "not shown above chance"}
    assert len(near) == len(above) == PLACES * len(PAIRS)
    assert set(near["tests"]) == set(above["tests"]) == {PLACES}
    assert near["family"].nunique() == len(PAIRS)


def test_layers_of_one_model_give_no_interval_and_no_p(tmp_path):
    rows = found(activations, write_hidden_study(tmp_path / "s"))
    for question in (CHANCE, MARGIN):
        over_layers = asked(rows, question)
        assert len(over_layers) == len(MODELS) * len(PAIRS)
        assert over_layers[["low", "high", "p"]].isna().all(axis=None)
        assert set(over_layers["verdict"]) == {"one seed: the layers of a model are no replicates"}


def test_too_few_draws_for_so_many_places_tell_nothing(tmp_path):
    few = replace(OVERLAPPING, controls=20 * PLACES - 2)
    rows = found(activations, write_hidden_study(tmp_path / "s", few))
    for question in (CHANCE + BY_LAYER, DISTRIBUTIONS["mmd"][1]):
        said = f"unknown: {few.controls} draws, {few.controls + 1} needed for {PLACES} tests"
        assert set(asked(rows, question)["verdict"]) == {said}
    rows = found(activations, write_hidden_study(tmp_path / "t", replace(few, controls=few.controls + 1)))
    assert set(asked(rows, CHANCE + BY_LAYER)["verdict"]) == {"above chance"}


def test_distributions_are_compared_for_the_pair_that_is_asked_first(tmp_path):
    for hidden, verdict in ((OVERLAPPING, "differ"), (DISTINCT, "not shown to differ")):
        rows = found(activations, write_hidden_study(tmp_path / verdict, hidden))
        for _, question in DISTRIBUTIONS.values():
            tested = asked(rows, question)
            assert len(tested) == PLACES
            assert set(tested["verdict"]) == {verdict}


@pytest.mark.parametrize(("hidden", "verdict"), [(OVERLAPPING, "overlapping"), (DISTINCT, "distinct")])
def test_over_seeds_a_seed_is_the_unit(tmp_path, hidden, verdict):
    folders = write_hidden_seeds(tmp_path, replace(hidden, seed_noise=0.01))
    rows = found(activations, *folders)
    near = asked(rows, MARGIN)
    assert set(near["verdict"]) == {verdict}
    assert set(near["n"]) == {3}
    assert set(near["unit"]) == {"seeds"}
    # 0.3 to 0.9 of the energy: half-way is 0.6 of it.
    expected = 0.9 * (0.3 + hidden.position * 0.6 - 0.6)
    assert near["estimate"].to_numpy() == pytest.approx(expected, abs=0.01)


def test_seeds_that_disagree_decide_nothing(tmp_path):
    rows = found(activations, *write_hidden_seeds(tmp_path, replace(OVERLAPPING, position=0.5, seed_noise=0.4)))
    assert set(asked(rows, MARGIN)["verdict"]) == {"undecided"}


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_a_probe_tells_after_an_erasure_is_beside_a_coin_or_control_labels(tmp_path, seeds):
    folders = write_hidden_seeds(tmp_path, replace(OVERLAPPING, seed_noise=0.005), seeds)
    rows = found(probes, *folders)
    left = {"linear": "not shown to differ from chance", "rbf_svm": "above chance", "mlp": "above chance"}
    for probe, verdict in left.items():
        of_probe = details_of(rows, erasure="leace", probe=probe)
        assert set(of_probe["verdict"]) == {verdict}
        assert set(of_probe["unit"]) == {"groups of prompts" if seeds == 1 else "seeds"}
    assert "control labels" in details_of(rows, erasure="quadratic")["null"].iloc[0]
    assert "as a coin does" in details_of(rows, erasure="leace")["null"].iloc[0]
    assert rows["tests"].nunique() == 1  # models, erasures and probes of one pair of sets
    assert rows["tests"].iloc[0] == len(MODELS) * 9


def test_the_error_of_a_mean_over_layers_is_that_of_a_layer(tmp_path):
    rows = details_of(found(probes, write_hidden_study(tmp_path / "s")), erasure="none", probe="linear")
    assert (rows["high"] - rows["estimate"]).to_numpy() == pytest.approx(1.96 * 0.02, rel=1e-3)


def test_steering_has_a_verdict_from_nineteen_random_directions_on(tmp_path):
    few = found(steering, write_hidden_study(tmp_path / "few", replace(OVERLAPPING, directions=4)))
    scored = few[few["estimate"].notna()]
    assert set(scored["verdict"]) == {"unknown: 4 random directions, 19 needed"}
    assert scored["p"].isna().all()
    (missing,) = few[few["estimate"].isna()]["verdict"]
    assert missing == "unknown: no harmful prompt has this measure"


def test_steering_is_corrected_for_all_comparisons_and_says_where_directions_are_too_few_for_that(tmp_path):
    for directions, verdict in ((19, "unknown: 19 draws, 319 needed for 16 tests"), (319, "higher")):
        hidden = replace(OVERLAPPING, directions=directions)
        rows = found(steering, write_hidden_study(tmp_path / str(directions), hidden))
        scored = rows[rows["estimate"].notna()]
        assert set(scored["tests"]) == {16}
        assert set(scored["verdict"]) == {verdict}


@pytest.mark.parametrize(("effect", "verdict"), [(1.2, "higher"), (-1.2, "lower"), (0.0, "not shown to differ")])
def test_steering_over_seeds_is_judged_over_seeds(tmp_path, effect, verdict):
    folders = write_hidden_seeds(tmp_path, Hidden(effect=effect, seed_noise=0.05))
    rows = found(steering, *folders)
    scored = rows[rows["estimate"].notna()]
    assert set(scored["n"]) == {3}
    harm, margin = (scored[scored["measure"] == measure] for measure in ("harm_score", "refusal_margin"))
    assert set(margin["verdict"]) == {verdict}
    # It jumps: it is counted and not tested.
    assert harm[["low", "high", "p"]].isna().all(axis=None)
    in_every = {"not shown to differ": "higher in 0 of 3 seeds, lower in 0"}.get(verdict, f"{verdict} in every seed")
    assert set(harm["verdict"]) == {in_every}


def test_a_study_without_these_analyses_has_nothing_to_say(tmp_path):
    folder = write_hidden_study(tmp_path / "s", commands=())
    for topic in (activations, probes, steering):
        assert found(topic, folder).empty


def test_columns_that_are_missing_leave_what_can_be_said(tmp_path):
    folder = write_hidden_study(
        tmp_path / "s", without=("p_matched", "low", "p", "n_first", "permutations", "controls")
    )
    rows = found(activations, folder)
    assert asked(rows, CHANCE + BY_LAYER)["p"].isna().all()
    assert set(asked(rows, MARGIN + BY_LAYER)["verdict"]) == {"overlapping"}
    said = found(steering, folder)
    assert np.isnan(said["p"].to_numpy(float)).all()
