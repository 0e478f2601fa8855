import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of

from safety_subspaces.analysis.overlap import overlap
from safety_subspaces.errors import InputError

COLUMNS = (
    "first second tensor layer type energy rank_first rank_second overlap chance p_haar matched_chance p_matched floor"
)
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reference; useful and harmful are independent, useful_again shares a low-rank part with useful."""
    folder = tmp_path_factory.mktemp("study")
    reference = save_llama(folder / "aligned")
    updates = {
        label: save_perturbed(reference, folder / label, seed=seed)
        for label, seed in (("useful", 1), ("useful_again", 2), ("harmful", 3))
    }
    for label, seed in (("useful", 4), ("useful_again", 5)):
        generator = torch.Generator().manual_seed(seed)

        def add(name, value, generator=generator):
            if value.ndim != 2:
                return value
            shared = torch.randn(value.shape[0], 2, generator=torch.Generator().manual_seed(len(name)))
            return value + 0.1 * shared @ torch.randn(2, value.shape[1], generator=generator)

        edit(Path(updates[label]), add)
    return reference, updates


@pytest.fixture(scope="module")
def compared(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("overlap") / "out"
    floors = [["useful_again", "useful"]]
    return overlap(*study, out=str(out), floors=floors, energies=[0.5, 0.9], controls=49), out


def test_table_has_the_agreed_columns_for_all_pairs(compared):
    table, out = compared
    assert list(table.columns) == COLUMNS.split()
    assert len(table) == 3 * 21 * 2
    pairs = set(zip(table["first"], table["second"], strict=True))
    assert pairs == {("useful", "useful_again"), ("useful", "harmful"), ("useful_again", "harmful")}
    pd.testing.assert_frame_equal(pd.read_parquet(out / "table.parquet"), table)


def test_overlap_agrees_with_a_float64_svd(study, compared):
    reference, updates = study
    origin, first, second = (weights_of(path)[Q] for path in (reference, updates["useful"], updates["harmful"]))
    bases = []
    for weight in (first, second):
        left, values, _ = torch.linalg.svd((weight - origin).double())
        cumulative = values.square().cumsum(0)
        bases.append(left[:, : int((cumulative < 0.9 * cumulative[-1]).sum()) + 1])
    expected = (bases[0].T @ bases[1]).square().sum().item() / min(basis.shape[1] for basis in bases)
    table = compared[0]
    row = table[(table["first"] == "useful") & (table["second"] == "harmful")]
    row = row[(row["tensor"] == Q) & (row["energy"] == 0.9)].iloc[0]
    assert row["overlap"] == pytest.approx(expected, abs=1e-5)
    assert (row["rank_first"], row["rank_second"]) == tuple(basis.shape[1] for basis in bases)
    assert row["chance"] == pytest.approx(max(basis.shape[1] for basis in bases) / 16)


def test_shared_directions_are_seen_and_independent_updates_are_at_chance(compared):
    table = compared[0]
    matrices = table[(table["type"] != "norm") & (table["energy"] == 0.5)]
    shared = matrices[matrices["floor"]]
    independent = matrices[~matrices["floor"]]
    assert set(zip(shared["first"], shared["second"], strict=True)) == {("useful", "useful_again")}
    for p in ("p_haar", "p_matched"):
        assert (shared[p] <= 0.05).mean() > 0.9
        assert (independent[p] <= 0.05).mean() < 0.25  # 34 values of which 5 % are expected
    assert shared["overlap"].mean() > 2 * shared["chance"].mean()
    assert independent["overlap"].mean() == pytest.approx(independent["chance"].mean(), abs=0.06)
    assert independent["matched_chance"].mean() == pytest.approx(independent["chance"].mean(), abs=0.06)


def test_vectors_count_as_one_column(study, compared):
    reference, updates = study
    origin, first, second = (
        weights_of(path)["model.norm.weight"] for path in (reference, updates["useful"], updates["harmful"])
    )
    cosine = torch.nn.functional.cosine_similarity(first - origin, second - origin, dim=0).item()
    table = compared[0]
    rows = table[(table["tensor"] == "model.norm.weight") & (table["second"] == "harmful")]
    rows = rows[rows["first"] == "useful"]
    assert rows["overlap"].to_numpy() == pytest.approx(cosine**2, abs=1e-5)
    assert rows["chance"].to_numpy() == pytest.approx(1 / 16)


def test_summary_has_means_beside_chance(compared):
    table, out = compared
    summary = json.loads((out / "result.json").read_text())["summary"]
    entry = summary["pairs"]["useful|harmful"]["0.9"]["blocks"]
    rows = table[(table["first"] == "useful") & (table["second"] == "harmful") & (table["energy"] == 0.9)]
    rows = rows[(rows["layer"] >= 0) & (rows["type"] != "norm")]
    assert entry["overlap"] == pytest.approx(rows["overlap"].mean())
    assert entry["chance"] == pytest.approx(rows["chance"].mean())
    assert (entry["n"], entry["n_nan"], entry["floor"]) == (14, 0, False)
    assert summary["pairs"]["useful|useful_again"]["0.9"]["head"]["floor"] is True


def test_zero_updates_are_missing_counted_and_never_one(study, tmp_path):
    reference, _ = study
    first = save_perturbed(reference, tmp_path / "first", seed=1, only="mlp")
    second = save_perturbed(reference, tmp_path / "second", seed=2, only="mlp")
    out = tmp_path / "o"
    table = overlap(reference, {"a": first, "b": second}, str(out), energies=[0.5], controls=9)
    missing = table[~table["tensor"].str.contains("mlp")]
    assert missing[["overlap", "chance", "p_haar", "matched_chance", "p_matched"]].isna().all().all()
    assert table[table["tensor"].str.contains("mlp")]["overlap"].notna().all()
    result = json.loads((out / "result.json").read_text())
    entry = result["summary"]["pairs"]["a|b"]["0.5"]
    assert (entry["blocks"]["n"], entry["blocks"]["n_nan"]) == (6, 8)
    assert entry["head"]["overlap"] is None
    assert any(left["name"] == f"a: {Q}" for left in result["left_out"])


def test_adapters_are_compared_in_their_own_rank(study, tmp_path):
    reference, _ = study
    adapters = {name: save_adapter(reference, tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    table = overlap(reference, adapters, str(tmp_path / "o"), energies=[1.0], controls=0)
    rows = table[table["type"].isin(["q", "down"])]
    assert set(rows["rank_first"]) == set(rows["rank_second"]) == {2}
    assert rows["p_matched"].isna().all()


def test_equal_seeds_give_equal_controls(study, tmp_path):
    def compare(name, seed):
        return overlap(*study, out=str(tmp_path / name), energies=[0.5], controls=9, seed=seed)

    first, second, other = compare("a", 0), compare("b", 0), compare("c", 1)
    pd.testing.assert_frame_equal(first, second)
    assert not first["matched_chance"].equals(other["matched_chance"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": {"a": "/nowhere"}}, "two updates or more, got 1"),
        ({"floors": [["useful", "usefull"]]}, "names 'usefull', which is no update"),
        ({"floors": [["useful", "useful"]]}, "pair of different labels"),
        ({"floors": [["useful"]]}, "pair of different labels"),
        ({"energies": []}, "no energy share"),
        ({"energies": [0.5, 1.5]}, r"must be in \(0, 1\], got 1\.5"),
        ({"controls": -1}, "must be 0 or more"),
        ({"reference": "/nowhere"}, "does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(study, tmp_path, changes, message):
    reference, updates = study
    with pytest.raises(InputError, match=message):
        overlap(**{"reference": reference, "updates": updates, "out": str(tmp_path / "o"), **changes})
    assert not list(tmp_path.iterdir())


def test_non_finite_weights_leave_no_results(study, tmp_path):
    reference, updates = study
    broken = save_perturbed(reference, tmp_path / "broken", seed=1)
    edit(Path(broken), lambda _, value: value * math.nan, only="lm_head")
    with pytest.raises(InputError, match=r"lm_head\.weight of .*broken"):
        overlap(reference, {**updates, "broken": broken}, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
