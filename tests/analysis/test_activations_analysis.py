"""Overlaps of states equal those of a float64 SVD of all vectors, whatever was streamed, sampled or cached."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from support.tiny import ANALYZE, run_command, save_tiny_model, tiny_source
from transformers import T5Config

from safety_subspaces.analysis.activations.command import activations
from safety_subspaces.analysis.activations.run import COLUMNS
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.language.model import load_language_model
from safety_subspaces.states.capture import prompt_states

SETS = {"harmful": "organism:harmful", "benign": "organism:benign"}
ENERGIES = (0.9, 0.999)
QUICK = {"energies": ENERGIES, "controls": 9, "permutations": 19, "limit": 60}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {label: save_tiny_model(folder / label, seed) for seed, label in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def result(models, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    out = tmp_path_factory.mktemp("analysis") / "activations" / "states"
    return activations(models, SETS, str(out), **QUICK, position=["last", "mean"]), out


def table_of(out: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(out / f"{name}.parquet")


@pytest.mark.parametrize("center", [False, True])
def test_overlaps_are_those_of_a_float64_svd_of_every_vector(models, tmp_path, center) -> None:
    table = activations({"one": models["one"]}, SETS, str(tmp_path / "out"), **QUICK, center=center, sample=20)
    model, tokenizer = load_language_model(models["one"])
    bases = {}
    for label, source in SETS.items():
        states = torch.stack(prompt_states(model, tokenizer, read_prompt_list(source, "test", 60)))
        for layer in (0, 1):
            rows = states[:, layer].double().numpy()
            rows = rows - rows.mean(axis=0) if center else rows
            bases[label, layer] = np.linalg.svd(rows, full_matrices=False)[1:]
    compared = 0
    for row in table[~table["floor"] & ~table["matched"]].itertuples():
        found = []
        for label, rank in (("harmful", row.rank_first), ("benign", row.rank_second)):
            values, right = bases[label, row.layer]
            if rank == 0:  # the embedding of the last token is the same in every chat prompt
                assert center
                assert row.layer == 0
                continue
            assert np.sum(values[:rank] ** 2) >= row.energy * np.sum(values**2) * (1 - 1e-9)
            assert rank == 1 or np.sum(values[: rank - 1] ** 2) < row.energy * np.sum(values**2)
            found.append(right[:rank].T)
        if len(found) == 2:
            overlap = np.linalg.norm(found[0].T @ found[1]) ** 2 / min(row.rank_first, row.rank_second)
            assert row.overlap == pytest.approx(overlap, abs=1e-6)
            assert row.chance == pytest.approx(max(row.rank_first, row.rank_second) / 16)
            compared += 1
        else:
            assert np.isnan(row.overlap)
    assert compared == (2 if center else 4)


def test_tables_have_their_rows(result) -> None:
    table, out = result
    assert list(table.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(table, table_of(out, "table"))
    floors = table[table["floor"]]
    assert set(zip(floors["first"], floors["second"], strict=True)) == {("harmful",) * 2, ("benign",) * 2}
    assert (floors["n_first"] + floors["n_second"] == 60).all()
    assert set(table["position"]) == {"last", "mean"}
    assert set(table["layer"]) == {0, 1}
    matched = table[table["matched"]]
    assert (matched["n_first"] == matched["n_second"]).all()
    assert 8 <= matched["n_first"].iloc[0] < 60
    assert table["p_matched"].dropna().between(0.1, 1).all()
    equivalence = table_of(out, "equivalence")
    assert len(equivalence) == 2 * 2 * 2 * 2
    assert set(equivalence["verdict"]) <= {"overlapping", "distinct", "undecided", "undefined"}
    two_sample = table_of(out, "two_sample")
    assert two_sample["n_groups_first"].max() < 60  # prompts of one pair of words are one group
    assert two_sample.loc[two_sample["position"] == "mean", "mmd_p"].between(0.05, 1).all()
    assert set(table_of(out, "dimension")["set"]) == set(SETS)
    depth = table_of(out, "depth")
    assert set(depth["layers"]) == {"1 to 1"}


def test_states_of_one_model_are_alike_and_of_unrelated_ones_less(models, tmp_path) -> None:
    activations(models | {"again": models["one"]}, SETS, str(tmp_path / "out"), **QUICK, position="mean")
    cka = table_of(tmp_path / "out", "cka").set_index(["first_model", "second_model", "set", "layer"])
    for label in SETS:
        assert cka.loc[("one", "again", label, 1), "linear"] == pytest.approx(1, abs=1e-9)
        assert cka.loc[("one", "again", label, 1), "rbf"] == pytest.approx(1, abs=1e-9)
        assert cka.loc[("one", "two", label, 1), "linear"] < 0.98


def test_what_was_read_is_cached_by_content(models, result, tmp_path, monkeypatch) -> None:
    table, out = result
    files = list((out.parent / ".states").iterdir())
    assert len(files) == 4
    cache = {"cache": str(out.parent / ".states"), "position": ["last", "mean"]}
    monkeypatch.setattr("safety_subspaces.states.captured.stream_states", lambda *_, **__: pytest.fail("ran"))
    again = activations(models, SETS, str(tmp_path / "again"), **QUICK, **cache, batch_size=7)
    pd.testing.assert_frame_equal(again, table)
    for changed in ({"limit": 59}, {"seed": 1}, {"split": "dev"}, {"sample": 30}, {"position": "last"}):
        with pytest.raises(pytest.fail.Exception, match="ran"):
            activations(models, SETS, str(tmp_path / "other"), **{**QUICK, **cache, **changed})
    other = {"one": save_tiny_model(tmp_path / "model", 5)}
    with pytest.raises(pytest.fail.Exception, match="ran"):
        activations(other, SETS, str(tmp_path / "other"), **QUICK, **cache)
    assert not (tmp_path / "other").exists()


def test_a_broken_file_of_the_cache_is_computed_again(models, tmp_path, caplog) -> None:
    arguments = ({"one": models["one"]}, SETS)
    first = activations(*arguments, str(tmp_path / "a"), **QUICK)
    broken = min((tmp_path / ".states").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    second = activations(*arguments, str(tmp_path / "b"), **QUICK)
    pd.testing.assert_frame_equal(first, second)
    assert "computed again" in caplog.text
    activations(*arguments, str(tmp_path / "elsewhere" / "c"), **QUICK, cache="none")
    assert not (tmp_path / "elsewhere" / ".states").exists()


def test_samples_leave_overlaps_of_whole_sets_alone(models, result, tmp_path) -> None:
    table, _ = result
    few = activations(models, SETS, str(tmp_path / "out"), **QUICK, position=["last", "mean"], sample=16)
    whole = ~table["matched"]
    columns = ["model", "first", "second", "position", "layer", "energy", "overlap", "p_matched"]
    merged = table.loc[whole, columns].merge(few.loc[~few["matched"], columns], on=columns[:6])
    assert len(merged) == whole.sum()
    np.testing.assert_allclose(merged["overlap_x"], merged["overlap_y"])
    np.testing.assert_allclose(merged["p_matched_x"], merged["p_matched_y"])
    assert table_of(tmp_path / "out", "dimension")["n"].max() <= 16


def write_prompts(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": {"harmful": SETS["harmful"]}}, "two prompt sets or more"),
        ({"prompts": {"a": SETS["harmful"], "b": SETS["harmful"]}}, "a and b are the same 60 prompts"),
        ({"prompts": {**SETS, "c": "missing.jsonl"}}, "missing.jsonl"),
        ({"limit": 5}, "has 5 prompts; expected at least 8"),
        ({"layers": [2]}, r"layers \[2\] do not exist in one .* expected 0 to 1"),
        ({"layers": [0], "site": "mlp"}, "expected 1 to 1"),
        ({"energies": [0.5, 1.5]}, "shares in"),
        ({"energies": []}, "at least one"),
        ({"position": ["last", "last"]}, "different ones of last, mean, first_generated"),
        ({"permutations": 0}, "expected at least"),
        ({"models": {}}, "no model given"),
        ({"models": {"gone": "/nowhere/model"}}, "does not exist"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not there"),
        ({"template": "poem"}, "unknown prompt template 'poem'"),
    ],
)
def test_bad_input_is_refused_before_a_model_runs(models, tmp_path, monkeypatch, changed, message) -> None:
    monkeypatch.setattr("safety_subspaces.states.capture._forward", lambda *_: pytest.fail("the model ran"))
    arguments = {"models": {"one": models["one"]}, "prompts": SETS, "out": str(tmp_path / "out"), **QUICK, **changed}
    with pytest.raises(InputError, match=message):
        activations(**arguments)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_no_decoder_is_refused(tmp_path) -> None:
    folder = tmp_path / "encoder"
    T5Config(num_layers=1, d_model=8, vocab_size=30).save_pretrained(folder)
    save_file({"encoder.embed_tokens.weight": torch.zeros(30, 8)}, folder / "model.safetensors", {"format": "pt"})
    tiny_source().load_tokenizer().save_pretrained(folder)
    with pytest.raises(InputError, match=r"encoder cannot be read .* expected a causal language model"):
        activations({"t5": str(folder)}, SETS, str(tmp_path / "out"), **QUICK)


def test_sets_that_share_prompts_are_refused_or_lose_them(models, tmp_path) -> None:
    words = read_prompt_list("organism:harmful", "test", 60)
    sources = {
        "first": write_prompts(tmp_path / "a.jsonl", [*words[:40], words[0]]),
        "second": write_prompts(tmp_path / "b.jsonl", words[30:]),
    }
    arguments = ({"one": models["one"]}, sources, str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"first \(40\) and second \(30\) share 10 prompts"):
        activations(*arguments, **QUICK)
    activations(*arguments, **QUICK, shared="drop")
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"name": "prompts first", "reason": "1 of 41 prompts are repeats"} in found["left_out"]
    assert found["summary"]["prompts"]["first"]["prompts"] == 30
    assert found["summary"]["prompts"]["second"]["prompts"] == 20
    assert any("10 prompts are in both" in entry["reason"] for entry in found["left_out"])


def test_an_occupied_folder_is_refused_before_anything_is_read(models, tmp_path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    monkeypatch.setattr(
        "safety_subspaces.language.model.load_language_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(InputError, match="holds something else"):
        activations(models, SETS, str(tmp_path / "out"), **QUICK)


def test_the_command_line_runs_it_in_bfloat16_at_the_outputs_of_the_mlp(models, tmp_path) -> None:
    prompts = [word for label, source in SETS.items() for word in (f"--prompts.{label}", source)]
    done = run_command(
        *(ANALYZE, "activations", "--models.one", models["one"], *prompts, "--out", tmp_path / "out"),
        *("--site", "mlp", "--dtype", "bfloat16", "--limit", 30, "--energies", "[0.9]", "--permutations", 19),
        *("--position", "first_generated", "--controls", 9),
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(table["layer"]) == {1}
    assert set(table["position"]) == {"first_generated"}
