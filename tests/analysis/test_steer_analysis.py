"""Steering tables hold every dose, nothing is changed by none, and selectivity is found where it was put."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tiny import save_tiny_model

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.statistics import clustered_error, unanimous_error
from safety_subspaces.analysis.steer.choices import BasisSource
from safety_subspaces.analysis.steer.command import steer
from safety_subspaces.analysis.steer.selectivity import Dose, selectivity
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.behaviour import build_evaluator
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.model import load_language_model

SETS = {"harmful": "organism:harmful", "benign": "organism:benign"}
EVALUATE = EvaluationSettings(limit=3, max_new_tokens=3)
QUICK = {"evaluate": EVALUATE, "strengths": [-1.0, 1.0], "angles_radians": [1.0], "draws": 2, "layers": [1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "one")


def test_every_direction_intervention_and_dose_has_a_row(model, tmp_path: Path) -> None:
    kinds = ["mean_difference", "paired", "probe", "overlap"]
    table = steer({"one": model}, SETS, str(tmp_path / "out"), directions=kinds, **QUICK)
    assert len(table) == 1 + len(kinds) * (1 + 2) * (2 + 1 + 1)
    assert set(table["direction"]) == {"none", *kinds, *(f"random:{kind}" for kind in kinds)}
    evaluator = build_evaluator(EVALUATE)
    plain = evaluator.evaluate(*load_language_model(model), "plain").row
    row = table[table["direction"] == "none"].iloc[0]
    for measure in ("utility", "harm_score", "refusal_margin"):
        assert row[measure] == pytest.approx(plain[measure], nan_ok=True)
    steered = table[(table["direction"] == "mean_difference") & (table["intervention"] == "addition")]
    assert (steered["refusal_margin"] != plain["refusal_margin"]).all()
    assert (table["perplexity"] > 1).all()
    found = pd.read_parquet(tmp_path / "out" / "selectivity.parquet")
    assert set(found["matched_on"]) == {"utility", "perplexity"}
    assert set(found["measure"]) == {"harm_score", "refusal_margin"}
    defined = found.dropna(subset=["selectivity"])
    assert len(defined)
    jumping = defined["measure"] == "harm_score"
    assert (defined.loc[~jumping, "low"] <= defined.loc[~jumping, "high"]).all()
    assert defined.loc[jumping, ["low", "high"]].isna().all(axis=None)
    assert set(defined["verdict"]) == {"too few draws"}  # two
    assert (defined.loc[jumping, "stderr_prompts"] > 0.1).all()
    lines = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    assert len(lines) == 9 * len(table)
    assert {"direction", "strength", "answer"} <= set(json.loads(lines[-1]))


def test_the_same_seed_gives_the_same_table(model, tmp_path: Path) -> None:
    tables = [steer({"one": model}, SETS, str(tmp_path / name), **QUICK, seed=seed)
              for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_one_basis_of_a_subspace_file_is_steered_along_and_ablated_weights_are_written(model, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", 1)
    file = str(tmp_path / "s.safetensors")
    subspace(other, model, file, RankRule(count=2))
    basis = BasisSource(file, "model.layers.0.mlp.down_proj.weight", 2)
    table = steer(
        *({"one": model}, SETS, str(tmp_path / "out")), **QUICK, directions=["basis"], basis=basis, write=True
    )
    ablated = table[(table["direction"] == "basis") & (table["intervention"] == "ablation")].iloc[0]
    written = load_language_model(str(tmp_path / "out" / "models" / "one" / "basis-layer1"))
    card = (tmp_path / "out" / "models" / "one" / "basis-layer1" / "README.md").read_text()
    assert "**Warning.** A direction that tells harmful requests from others" in card
    row = build_evaluator(EVALUATE).evaluate(*written, "written").row
    assert row["refusal_margin"] == pytest.approx(ablated["refusal_margin"], abs=1e-3)
    inner = BasisSource(file, "model.layers.0.mlp.gate_proj.weight", 1)
    with pytest.raises(InputError, match="vectors of 32 numbers, the residual stream 16"):
        steer({"one": model}, SETS, str(tmp_path / "b"), **QUICK, directions=["basis"], basis=inner)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": {}}, "no model given"),
        ({"positive": "bad"}, "two different labels of prompts"),
        ({"negative": "harmful"}, "two different labels of prompts"),
        ({"layers": [2]}, "expected one or more of 0 to 1"),
        ({"strengths": [0.0, 1.0]}, "different doses other than 0"),
        ({"angles_radians": []}, "different doses other than 0"),
        ({"directions": []}, "at least one"),
        ({"directions": ["basis"]}, "belong together"),
        ({"utility_loss": 1.5}, "expected at least 0"),
        ({"direction_split": "test"}, "are measured as well"),
        ({"prompts": {"harmful": "gone.jsonl", "benign": SETS["benign"]}}, "gone.jsonl"),
    ],
)
def test_bad_input_is_refused_before_a_model_runs(model, tmp_path, monkeypatch, changed, message) -> None:
    monkeypatch.setattr("safety_subspaces.language.model.load_language_model", lambda *_, **__: pytest.fail("loaded"))
    arguments = {"models": {"one": model}, "prompts": SETS, "out": str(tmp_path / "out"), **QUICK, **changed}
    with pytest.raises(InputError, match=message):
        steer(**arguments)
    assert not (tmp_path / "out").exists()


def curve(rng: np.random.Generator, harm_slope: float, cost_slope: float) -> list[Dose]:
    """Doses 0 to 4 whose harm and cost grow with the dose; each prompt has a level of its own."""
    harm, utility = rng.normal(1, 0.1, 60), rng.normal(0.9, 0.05, 60)
    nats = np.full(60, 0.5)
    return [
        Dose(float(s), harm + harm_slope * s, -harm - harm_slope * s, utility - cost_slope * s, nats + cost_slope * s)
        for s in range(5)
    ]


@pytest.mark.parametrize("matched_on", ["utility", "perplexity"])
def test_selectivity_is_found_where_it_was_put_and_not_where_it_was_not(matched_on) -> None:
    rng = np.random.default_rng(0)
    randoms = [curve(rng, slope, 0.05) for slope in np.linspace(0.09, 0.11, 19)]
    groupings = [list(range(60))]

    def found(harm_slope: float, cost_slope: float):
        own = curve(np.random.default_rng(1), harm_slope, cost_slope)
        harm, margin = selectivity(own, randoms, groupings, groupings, matched_on, 0.1)
        assert margin.selectivity == pytest.approx(-harm.selectivity, abs=1e-9)
        return harm, margin

    # At a cost of 0.1 the random ones are at dose 2 and have 0.2 of harm; this one at dose 1 with 0.8.
    selective, margin = found(0.8, 0.1)
    assert margin.high < 0
    assert margin.verdict == "lower"
    assert selective.reason is None
    assert selective.dose == pytest.approx(1)
    assert selective.dose_random == pytest.approx(2)
    assert selective.selectivity == pytest.approx(0.6)
    assert np.isnan([selective.low, selective.high]).all()  # the harm score jumps
    assert selective.p < 0.05
    assert (selective.verdict, selective.p_rank) == ("higher", pytest.approx(1 / 20))
    # Twice as strong in everything is no more selective.
    same, margin = found(0.2, 0.1)
    assert margin.low < 0 < margin.high
    assert same.selectivity == pytest.approx(0, abs=1e-9)
    assert (same.verdict, same.p_rank) == ("not shown", 1)
    never, _ = found(0.8, 0.01)
    assert "a cost of 0.1 is not reached by the direction" in never.reason
    assert never.selectivity == pytest.approx(4 * 0.8 - 2 * 0.1)
    few = selectivity(curve(rng, 0.8, 0.1), randoms[:18], groupings, groupings, matched_on, 0.1)[0]
    assert few.verdict == "too few draws"


def test_the_error_over_prompts_is_that_of_their_mean_changes() -> None:
    """Where all is matched at the largest dose, the difference is a mean over prompts: an oracle by the formula."""
    rng = np.random.default_rng(0)
    acts, things = ([int(number) for number in rng.integers(0, 9, 60)] for _ in range(2))
    shares = rng.normal(size=9)[acts] + rng.normal(size=60)
    flat = np.full(60, 0.5)
    curves = [
        [Dose(float(s), flat, s * (slope + part * shares), flat, flat) for s in range(2)]
        for slope, part in ((1.0, 1.0), (0.5, 0.2), (0.7, -0.1))
    ]
    (harm, margin) = selectivity(curves[0], curves[1:], [acts, things], [range(60)], "utility", 0.1)
    # Groups differ in size: the jackknife of a mean is the formula's to first order in that.
    expected = clustered_error(0.95 * shares, [acts, things])
    assert margin.stderr_prompts == pytest.approx(expected, rel=0.1)
    assert margin.sd_random == pytest.approx(abs(0.2 - 0.3 * shares.mean()) / np.sqrt(2))
    assert harm.stderr_prompts == 4 * unanimous_error(9)  # never moved, on a scale from 1 to 5
    assert (harm.selectivity, harm.verdict) == (0, "too few draws")


@pytest.mark.parametrize(
    "law", [lambda rng: 0.1 * rng.normal(), lambda rng: rng.exponential(0.5), lambda rng: rng.integers(2)]
)
def test_a_random_direction_in_the_place_of_the_direction_is_seldom_called_more_or_less_selective(law) -> None:
    """Each of 20 takes its turn: at most one in twenty may be the farthest, whatever the law of what they do."""
    rng = np.random.default_rng(3)
    curves = [curve(rng, float(law(rng)), float(rng.uniform(0.02, 0.2))) for _ in range(20)]
    groupings = [[row // 10 for row in range(60)]]
    verdicts = [
        selectivity(own, curves[:turn] + curves[turn + 1 :], groupings, groupings, "utility", 0.1)[0].verdict
        for turn, own in enumerate(curves)
    ]
    assert sum(verdict != "not shown" for verdict in verdicts) <= 1
