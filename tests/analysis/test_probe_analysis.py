"""Probe tables hold every cell, and bad input is refused before a model runs."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support.tiny import save_tiny_model

from safety_subspaces.analysis.probe.command import probe
from safety_subspaces.artefacts.errors import InputError

SETS = {"harmful": "organism:harmful", "benign": "organism:benign", "utility": "organism:utility"}
QUICK = {"folds": 3, "controls": 2, "limit": 60, "learning_shares": [0.5], "probes": ["linear", "rbf_svm"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "one")


def test_every_layer_probe_and_erasure_has_a_row(model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = probe({"one": model}, SETS, str(out), **QUICK, position="mean")
    assert len(table) == 2 * 2 * 2 * 3
    assert set(table["negative"]) == {"benign", "utility"}
    assert table["accuracy"].between(0, 1).all()
    assert table["auc_stderr"].notna().all()
    assert (table["n_groups"] < 120).all()
    assert table["informative"].all()  # no prompt has the mean of another
    assert table["reason"].isna().all()
    assert table[["selectivity", "control_auc", "control_auc_sd"]].notna().all().all()
    # Word problems and requests have hardly a word in common: their means tell them apart until those are erased.
    sums = table[(table["negative"] == "utility") & (table["layer"] == 0) & (table["probe"] == "linear")]
    by_erasure = sums.set_index("erasure")["auc"]
    assert by_erasure["none"] > 0.95
    assert by_erasure["leace"] < 0.75
    learning = pd.read_parquet(out / "learning.parquet")
    assert (learning["n_train"] < 80).all()
    transfer = pd.read_parquet(out / "transfer.parquet")
    assert set(transfer["negative"]) == {"benign"}  # word problems have no template in common with requests
    assert "all others" in set(transfer["test_source"])
    assert (transfer["train_source"] != transfer["test_source"]).all()
    summary = json.loads((out / "result.json").read_text())["summary"]
    assert len(summary["means_over_layers"]) == 12
    assert summary["trained_on_fewer_than_dimensions"] == {}


def test_a_layer_whose_states_are_all_the_same_has_no_values_and_is_in_no_mean(model, tmp_path: Path) -> None:
    sets = {label: SETS[label] for label in ("harmful", "benign")}
    few = {**QUICK, "erasures": ["none", "leace"], "position": "last"}
    table = probe({"one": model}, sets, str(tmp_path / "out"), **few)
    embedding = table["layer"] == 0  # every prompt ends in the template's last token
    assert table["informative"].eq(~embedding).all()
    assert table.loc[embedding, ["auc", "auc_stderr", "accuracy", "control_auc", "selectivity"]].isna().all().all()
    assert table.loc[embedding, "reason"].str.contains("the same state").all()
    assert table.loc[~embedding, ["auc", "accuracy", "control_auc"]].notna().all().all()
    assert (table.loc[~embedding, "accuracy_stderr"] > 0).all()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["left_out"][0]["name"] == "layer 0 of one, harmful against benign"
    for mean in result["summary"]["means_over_layers"]:
        cells = table[(table["probe"] == mean["probe"]) & (table["erasure"] == mean["erasure"]) & ~embedding]
        assert mean["layers"] == len(cells) == 1
        assert mean["auc"] == pytest.approx(cells["auc"].mean())
    for name in ("learning", "transfer"):
        assert set(pd.read_parquet(tmp_path / "out" / f"{name}.parquet")["layer"]) == {1}


def test_the_same_seed_gives_the_same_table_and_splits_by_source_run(model, tmp_path: Path) -> None:
    sets = {label: SETS[label] for label in ("harmful", "benign")}
    few = {**QUICK, "probes": ["linear"], "erasures": ["none"], "layers": [1]}
    tables = [probe({"one": model}, sets, str(tmp_path / name), **few) for name in ("a", "b")]
    pd.testing.assert_frame_equal(*tables)
    by_source = probe({"one": model}, sets, str(tmp_path / "c"), **few, split_by="source")
    assert not by_source["accuracy"].equals(tables[0]["accuracy"])


def test_fewer_prompts_than_dimensions_are_said(model, tmp_path: Path, caplog) -> None:
    sets = {label: SETS[label] for label in ("harmful", "benign")}
    few = {**QUICK, "probes": ["linear"], "erasures": ["none"], "layers": [1], "folds": 2, "limit": 12}
    probe({"one": model}, sets, str(tmp_path / "few"), **few)
    assert "fewer prompts than the states have dimensions (benign: " in caplog.text
    summary = json.loads((tmp_path / "few" / "result.json").read_text())["summary"]
    assert 0 < summary["trained_on_fewer_than_dimensions"]["benign"] <= 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": {}}, "no model given"),
        ({"positive": "bad"}, "'bad' is no prompt set"),
        ({"probes": []}, "at least one"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"folds": 1}, "expected at least 2"),
        ({"folds": 58}, "fewer than 58 folds"),
        ({"learning_shares": [1.5]}, "shares in"),
        ({"layers": [4]}, "do not exist in one"),
        ({"split_by": "source"}, "some prompts have no source"),
        ({"prompts": {"harmful": SETS["harmful"]}}, "two prompt sets"),
    ],
)
def test_bad_input_is_refused_before_a_model_runs(model, tmp_path, monkeypatch, changed, message) -> None:
    monkeypatch.setattr("safety_subspaces.language.model.load_language_model", lambda *_, **__: pytest.fail("loaded"))
    arguments = {"models": {"one": model}, "prompts": SETS, "out": str(tmp_path / "out"), **QUICK, **changed}
    with pytest.raises(InputError, match=message):
        probe(**arguments)
    assert not (tmp_path / "out").exists()
