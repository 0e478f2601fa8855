import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.stats
import torch
from safetensors.torch import save_file
from support import oracle
from support.tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.overlap import tensors as overlap_tensors
from safety_subspaces.analysis.overlap.command import CovarianceUpdate, overlap
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError

COLUMNS = (
    "first second tensor layer type energy rank_first rank_second overlap chance p_haar matched_chance p_matched floor "
    "kind matched_sd covariance_chance covariance_sd p_covariance reference_overlap_first reference_overlap_second "
    "projection_distance grassmann_distance smallest_angle_radians largest_angle_radians mean_angle_radians "
    "stable_rank_first stable_rank_second effective_rank_first effective_rank_second k_margin_first k_margin_second"
)
ANGLES = [f"{size}_angle_radians" for size in ("smallest", "largest", "mean")]
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


def by_svd(study, label, share, name=Q):
    """An update's left basis at an energy share, and its spectrum, by a full SVD in float64."""
    reference, updates = study
    delta = (weights_of(updates[label])[name] - weights_of(reference)[name]).double()
    left, values = oracle.left_svd(delta)
    return left[:, : oracle.rank_at_energy(values, share)], values


def row_of(table, name=Q, energy=0.9, first="useful", second="harmful"):
    rows = table[(table["first"] == first) & (table["second"] == second) & (table["tensor"] == name)]
    return rows[rows["energy"] == energy].iloc[0]


def test_overlap_agrees_with_a_float64_svd(study, compared):
    bases, spectra = zip(*(by_svd(study, label, 0.9) for label in ("useful", "harmful")), strict=True)
    smaller = min(basis.shape[1] for basis in bases)
    expected = oracle.overlap(*bases)
    row = row_of(compared[0])
    assert row["overlap"] == pytest.approx(expected, abs=1e-5)
    assert (row["rank_first"], row["rank_second"]) == tuple(basis.shape[1] for basis in bases)
    assert row["chance"] == pytest.approx(max(basis.shape[1] for basis in bases) / 16)
    angles = scipy.linalg.subspace_angles(*(basis.numpy() for basis in bases))
    assert row[ANGLES].tolist() == pytest.approx([angles.min(), angles.max(), angles.mean()], abs=1e-4)
    assert row["grassmann_distance"] == pytest.approx(np.linalg.norm(angles), abs=1e-4)
    assert row["projection_distance"] == pytest.approx(math.sqrt(smaller * (1 - expected)), abs=1e-4)
    for word, values in zip(("first", "second"), spectra, strict=True):
        stable, effective = oracle.spectral_ranks(values)
        assert row[f"stable_rank_{word}"] == pytest.approx(stable, rel=1e-5)
        assert row[f"effective_rank_{word}"] == pytest.approx(effective, rel=1e-4)
        shares = values.square() / values.square().sum()
        assert row[f"k_margin_{word}"] == pytest.approx((shares.cumsum(0)[:-1] - 0.9).abs().min().item(), abs=1e-5)


def test_angles_can_be_left_out(study, compared, tmp_path):
    table = overlap(*study, out=str(tmp_path / "o"), energies=[0.5, 0.9], controls=0, angles=False)
    missing = ["grassmann_distance", *ANGLES]
    assert table[missing].isna().all().all()
    others = (*missing, "matched_chance", "matched_sd", "p_matched", "floor", "kind")
    kept = [name for name in COLUMNS.split() if name not in others]
    pd.testing.assert_frame_equal(table[kept], compared[0][kept])


def test_layers_types_and_pairs_are_means_of_their_tensors(study, compared):
    table, out = compared
    matrices = table[table["type"] != "norm"]
    blocks = matrices[matrices["layer"] >= 0]
    layers, types, pairs = (pd.read_parquet(out / f"{name}.parquet") for name in ("layers", "types", "pairs"))
    assert set(layers["layer"]) == {0, 1}
    assert set(types["type"]) == {"q", "k", "v", "o", "gate", "up", "down", "embeddings", "head", "norm"}
    assert set(types.loc[~types["is_matrix"], "type"]) == {"norm"}
    assert set(pairs["part"]) == {"blocks", "embeddings", "head"}
    assert (len(layers), len(types), len(pairs)) == (3 * 2 * 2, 3 * 2 * 10, 3 * 2 * 3)
    parts = {"blocks": blocks, **{part: matrices[matrices["type"] == part] for part in ("embeddings", "head")}}
    cells = [(row, blocks[blocks["layer"] == row["layer"]]) for _, row in layers.iterrows()]
    cells += [(row, table[table["type"] == row["type"]]) for _, row in types.iterrows()]
    cells += [(row, parts[row["part"]]) for _, row in pairs.iterrows()]
    for row, cell in cells:
        cell = cell[cell["energy"] == row["energy"]]
        group = cell[(cell["first"] == row["first"]) & (cell["second"] == row["second"])]
        assert (row["n"], row["n_undefined"]) == (len(group), 0)
        for name in ("overlap", "chance", "matched_chance"):
            assert row[name] == pytest.approx(group[name].mean())
        assert row["significant_share"] == pytest.approx((group["p_matched"] < 0.05).mean())
        assert row["floor_overlap"] == pytest.approx(cell.loc[cell["floor"], "overlap"].mean())
        assert row["floor"] == (row["second"] == "useful_again")


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
    layers, audit = (pd.read_parquet(out / f"{name}.parquet") for name in ("layers", "audit"))
    assert set(zip(layers["n"], layers["n_undefined"], strict=True)) == {(3, 4)}
    assert layers["floor_overlap"].isna().all()
    assert audit[audit["numerical_rank"] == 0][["rounding_share", "condition", "spectral_gap"]].isna().all().all()
    assert missing[["projection_distance", "grassmann_distance", *ANGLES, "stable_rank_first"]].isna().all().all()
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
    pd.testing.assert_series_equal(first["matched_chance"], other["matched_chance"])  # the mean over all signs
    assert not first["matched_sd"].equals(other["matched_sd"])
    assert not first["p_matched"].equals(other["p_matched"])


@pytest.fixture(scope="module")
def held_against_a_third(study, tmp_path_factory):
    """Broad updates: useful and useful_again share four directions, harmful and the third none with any."""
    reference, _ = study
    folder = tmp_path_factory.mktemp("third")
    labels = ("useful", "useful_again", "harmful", "third")
    updates = {label: save_perturbed(reference, folder / label, seed=seed) for seed, label in enumerate(labels, 11)}
    for seed, label in enumerate(labels[:2]):
        generator = torch.Generator().manual_seed(seed)

        def add(name, value, generator=generator):
            if value.ndim != 2:
                return value
            shared = torch.randn(value.shape[0], 4, generator=torch.Generator().manual_seed(len(name)))
            return value + 0.01 * shared @ torch.randn(4, value.shape[1], generator=generator)

        edit(Path(updates[label]), add)
    third = updates.pop("third")
    arguments = {"floors": [["useful_again", "useful"]], "energies": [0.5, 0.9], "controls": 19, "angles": False}
    covariance, out = CovarianceUpdate(third), folder / "o"
    table = overlap(reference, updates, str(out), **arguments, unrelated=["harmful"], covariance=covariance)
    return table, out, reference, updates, third


def test_overlaps_are_held_against_a_third_update(held_against_a_third):
    table, _, reference, updates, third = held_against_a_third
    delta = (weights_of(third)[Q] - weights_of(reference)[Q]).double()
    whole, spectrum = oracle.left_svd(delta)
    row = row_of(table)
    pair = [by_svd((reference, updates), label, 0.9) for label in ("useful", "harmful")]
    bases, spectra = zip(*pair, strict=True)
    ranks = [basis.shape[1] for basis in bases]
    levels, chance = [], max(ranks) / 16
    for word, basis, other, stand_in in zip(
        ("first", "second"), bases, reversed(ranks), reversed(spectra), strict=True
    ):
        shared = oracle.energy(whole[:, :other].T @ basis) / min(ranks)
        assert row[f"reference_overlap_{word}"] == pytest.approx(shared, abs=1e-4)
        ratio = min(1.0, oracle.spectral_ranks(spectrum)[1] / oracle.spectral_ranks(stand_in)[1])
        levels.append(chance + max(0.0, shared - chance) / ratio)
    assert row["covariance_chance"] == pytest.approx(sum(levels) / 2, abs=1e-3)
    wide = table[(table["rank_first"] >= 4) & (table["rank_second"] >= 4)]
    assert wide["p_covariance"].between(0, 1).all()
    assert table[(table["rank_first"] < 4) | (table["rank_second"] < 4)]["p_covariance"].isna().all()


def test_a_shared_part_is_seen_beside_a_third_update_and_independent_ones_are_not(held_against_a_third):
    table, out, *_ = held_against_a_third
    wide = table[table["p_covariance"].notna() & (table["energy"] == 0.9)]
    independent = wide[wide["kind"] != "same kind"]
    assert (independent["p_covariance"] <= 0.05).mean() < 0.2
    pairs = pd.read_parquet(out / "pairs.parquet")
    blocks = pairs[(pairs["part"] == "blocks") & (pairs["energy"] == 0.9)].set_index("kind")
    assert blocks.loc["same kind", "p_covariance"] < 1e-4
    assert (blocks.loc["unrelated", "p_covariance"] > 1e-3).all()


def test_pairs_say_of_which_kind_they_are(held_against_a_third, compared):
    table, out, *_ = held_against_a_third
    kinds = {(row.first, row.second): row.kind for row in table.itertuples()}
    assert kinds == {
        ("useful", "useful_again"): "same kind",
        ("useful", "harmful"): "unrelated",
        ("useful_again", "harmful"): "unrelated",
    }
    assert table["floor"].equals(table["kind"] == "same kind")
    assert set(compared[0]["kind"]) == {"same kind", "cross"}
    pairs = pd.read_parquet(out / "pairs.parquet")
    for row in pairs.to_dict("records"):
        cell = pairs[(pairs["energy"] == row["energy"]) & (pairs["part"] == row["part"])]
        assert row["unrelated_overlap"] == pytest.approx(cell.loc[cell["kind"] == "unrelated", "overlap"].mean())


@pytest.mark.parametrize("null", ["matched", "covariance"])
def test_a_pair_is_held_against_the_sum_of_its_tensors_nulls(held_against_a_third, null):
    table, out, *_ = held_against_a_third
    blocks = table[(table["layer"] >= 0) & (table["type"] != "norm")]
    pairs = pd.read_parquet(out / "pairs.parquet")
    for row in pairs[(pairs["part"] == "blocks") & (pairs["energy"] == 0.9)].to_dict("records"):
        named = ["first", "second", "energy"]
        cell = blocks[(blocks[named] == [row[name] for name in named]).all(axis=1)]
        cell = cell[cell[f"p_{null}"].notna()]
        assert row[f"n_{null}"] == len(cell) >= 10
        above = (cell["overlap"] - cell[f"{null}_chance"]).mean()
        deviation = math.sqrt((cell[f"{null}_sd"] ** 2).sum()) / len(cell)
        assert (row[f"above_{null}"], row[f"{null}_sd"]) == pytest.approx((above, deviation))
        assert row[f"{null}_chance"] == pytest.approx(cell[f"{null}_chance"].mean())
        mean, variance = row[f"{null}_chance"], deviation**2
        size = mean * (1 - mean) / variance - 1
        expected = scipy.stats.beta.sf(mean + above, mean * size, (1 - mean) * size)
        assert row[f"p_{null}"] == pytest.approx(expected, rel=1e-6)


def test_a_covariance_that_is_no_third_update_is_refused_or_reported(study, tmp_path):
    reference, updates = study
    arguments = {"out": str(tmp_path / "o"), "energies": [0.9], "controls": 0, "angles": False}
    for covariance, message in (
        (CovarianceUpdate(reference), "no update between a model and itself"),
        (CovarianceUpdate(updates["useful"]), "the update 'useful' itself"),
        (CovarianceUpdate("/nowhere"), "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            overlap(reference, updates, **arguments, covariance=covariance)
    with pytest.raises(InputError, match="unrelated names 'other', which is no update"):
        overlap(reference, updates, **arguments, unrelated=["other"])
    assert not list(tmp_path.iterdir())
    half = save_perturbed(reference, tmp_path / "half", seed=1, only="mlp")
    table = overlap(reference, updates, **arguments, covariance=CovarianceUpdate(half))
    assert table[table["type"].isin(["gate", "up", "down"])]["covariance_chance"].notna().all()
    assert table[~table["type"].isin(["gate", "up", "down"])]["covariance_chance"].isna().all()
    left_out = json.loads((tmp_path / "o" / "result.json").read_text())["left_out"]
    assert any(entry["name"] == Q and "whose covariance is kept is zero" in entry["reason"] for entry in left_out)


def test_a_subspace_file_stands_for_the_update_it_was_made_of(study, compared, tmp_path):
    reference, updates = study
    files = {label: str(tmp_path / f"{label}.safetensors") for label in ("useful", "harmful")}
    for label, file in files.items():
        subspace(reference, updates[label], file, RankRule(energy=1.0))
    mixed = {"useful": files["useful"], "useful_again": updates["useful_again"], "harmful": files["harmful"]}
    floors = [["useful", "useful_again"]]
    out = tmp_path / "o"
    table = overlap(reference, mixed, str(out), floors=floors, energies=[0.5, 0.9], controls=49)
    pd.testing.assert_frame_equal(table, compared[0], rtol=1e-4, atol=1e-5)
    audit = pd.read_parquet(out / "audit.parquet")
    assert audit[audit["update"] == "useful"]["rounding_share"].isna().all()
    assert audit[audit["update"] == "useful_again"]["rounding_share"].notna().all()


def test_an_energy_beyond_the_directions_of_a_subspace_file_is_missing(study, compared, tmp_path):
    reference, updates = study
    file, out = str(tmp_path / "useful.safetensors"), tmp_path / "o"
    made = subspace(reference, updates["useful"], file, RankRule(energy=0.6)).set_index("tensor")["rank"]
    mixed = {"useful": file, "harmful": updates["harmful"]}
    table = overlap(reference, mixed, str(out), energies=[0.5, 0.9], controls=9)
    expected = compared[0].merge(table[["first", "second", "tensor", "energy"]])
    beyond = table["rank_first"] > table["tensor"].map(made)
    assert not beyond[table["energy"] == 0.5].any()
    assert beyond[(table["energy"] == 0.9) & (table["layer"] >= 0)].sum() >= 10
    assert table["overlap"][~beyond].to_numpy() == pytest.approx(expected["overlap"][~beyond].to_numpy(), abs=1e-5)
    measures = ["overlap", "chance", "p_haar", "matched_chance", "p_matched", "projection_distance", *ANGLES]
    assert table[beyond][measures].isna().all().all()
    assert table["rank_first"].equals(expected["rank_first"])
    result = json.loads((out / "result.json").read_text())
    (reason,) = (entry["reason"] for entry in result["left_out"] if entry["name"] == f"useful: {Q}")
    assert "fewer than energy 0.9 takes" in reason
    blocks = result["summary"]["pairs"]["useful|harmful"]["0.9"]["blocks"]
    assert blocks["n_nan"] == beyond[(table["energy"] == 0.9) & (table["layer"] >= 0)].sum()


def test_a_tensor_that_a_subspace_file_lacks_is_missing(study, tmp_path):
    reference, updates = study
    half = save_perturbed(reference, tmp_path / "half", seed=1, only="mlp")
    file, out = str(tmp_path / "half.safetensors"), tmp_path / "o"
    subspace(reference, half, file, RankRule(count=4))
    table = overlap(reference, {"half": file, "harmful": updates["harmful"]}, str(out), energies=[0.1], controls=0)
    assert table[~table["tensor"].str.contains("mlp")]["overlap"].isna().all()
    assert table[table["tensor"].str.contains("mlp")]["overlap"].notna().all()
    result = json.loads((out / "result.json").read_text())
    assert any("has no subspace of it" in entry["reason"] for entry in result["left_out"])


def test_subspace_files_that_cannot_stand_for_an_update_are_refused(study, tmp_path):
    reference, updates = study
    narrow = {Q + ".basis": torch.eye(8, 2), Q + ".singular_values": torch.ones(2, dtype=torch.float64)}
    subspace(reference, updates["useful"], str(tmp_path / "right.safetensors"), RankRule(count=2), side="right")
    subspace(reference, updates["useful"], str(tmp_path / "drawn.safetensors"), RankRule(count=2), select="random-k")
    save_file(narrow, tmp_path / "narrow.safetensors", metadata={"side": "left", "provenance": "{}"})
    other = {name.replace("layers.0", "layers.7"): value for name, value in narrow.items()}
    save_file(other, tmp_path / "other.safetensors", metadata={"side": "left", "provenance": "{}"})
    for name, message in {
        "right": "of input space.*--side left",
        "drawn": "random-k directions.*--select top",
        "narrow": r"basis of shape \(8, 2\).*expected a file made from models of this shape",
        "other": "layers.7.self_attn.q_proj.weight, which .* does not have",
        "nowhere": "does not exist",
    }.items():
        mixed = {"a": str(tmp_path / f"{name}.safetensors"), "b": updates["useful"]}
        with pytest.raises(InputError, match=message):
            overlap(reference, mixed, str(tmp_path / "o"))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_audit_tells_rounding_from_updates(study, tmp_path):
    """Two bf16 copies of one float32 model differ by nothing but what they were moved by, and by rounding."""
    reference, _ = study
    for label, size in (("coarse", 3e-3), ("fine", 1e-4)):
        save_perturbed(reference, tmp_path / label, seed=1, size=size)
    shutil.copytree(reference, tmp_path / "origin")
    exact = {label: weights_of(tmp_path / label) for label in ("origin", "coarse", "fine")}
    for label in exact:
        edit(tmp_path / label, lambda _, value: value.bfloat16())
    updates = {label: str(tmp_path / label) for label in ("coarse", "fine")}
    out = tmp_path / "o"
    overlap(str(tmp_path / "origin"), updates, str(out), energies=[0.9], controls=0, tensors=["embed_tokens"])
    audit = pd.read_parquet(out / "audit.parquet").set_index("update")
    assert list(audit.columns) == (
        "tensor rounding_share numerical_rank full_rank condition ill_conditioned k_margin spectral_gap".split()
    )
    name = "model.embed_tokens.weight"
    for label in updates:
        stored = (weights_of(tmp_path / label)[name].double() - weights_of(tmp_path / "origin")[name].double()).numpy()
        meant = (exact[label][name].double() - exact["origin"][name].double()).numpy()
        actual = np.sum((stored - meant) ** 2) / np.sum(stored**2)
        assert audit.loc[label, "rounding_share"] == pytest.approx(actual, rel=0.25)
        assert (audit.loc[label, "numerical_rank"], audit.loc[label, "full_rank"]) == (16, 16)
        values = np.linalg.svd(stored, compute_uv=False)
        assert audit.loc[label, "condition"] == pytest.approx((values[-1] / values[0]) ** 2, rel=1e-4)
    summary = json.loads((out / "result.json").read_text())["summary"]["audit"]
    assert summary["updates"] == 2
    worst = summary["rounding"]["worst"]
    assert [entry["name"] for entry in worst] == [f"fine: {name}"]


def test_chosen_tensors_alone_are_compared_and_the_others_are_listed(study, tmp_path):
    out = tmp_path / "o"
    table = overlap(*study, out=str(out), energies=[0.5], controls=0, tensors=["down_proj"])
    assert set(table["tensor"]) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    result = json.loads((out / "result.json").read_text())
    assert result["summary"]["tensors"] == 2
    assert any(Q in entry["name"] for entry in result["left_out"])


def test_workers_change_no_number(study, tmp_path):
    one, two = (
        overlap(*study, out=str(tmp_path / str(workers)), energies=[0.5], controls=9, workers=workers)
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(one, two)


def test_an_interrupted_run_leaves_no_results_and_goes_on_where_it_stopped(study, tmp_path, monkeypatch):
    whole = overlap(*study, out=str(tmp_path / "whole"), energies=[0.5], controls=9)
    compare, seen = overlap_tensors.OverlapTensor.__call__, []

    def stop_at_the_fifth(task, name, device):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(name)
        return compare(task, name, device)

    settings = {"out": str(tmp_path / "o"), "energies": [0.5], "controls": 9, "workers": 1}
    monkeypatch.setattr(overlap_tensors.OverlapTensor, "__call__", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        overlap(*study, **settings)
    assert not (tmp_path / "o").exists()
    again = []
    monkeypatch.setattr(
        overlap_tensors.OverlapTensor,
        "__call__",
        lambda task, name, device: (again.append(name), compare(task, name, device))[1],
    )
    pd.testing.assert_frame_equal(overlap(*study, **settings), whole)
    assert len(again) == 21 - 4
    assert not set(again) & set(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "whole"]


def test_an_update_that_is_none_is_refused(study, tmp_path):
    reference, updates = study
    with pytest.raises(InputError, match=r"\(copy\).* there is no update"):
        overlap(reference, {**updates, "copy": str(shutil.copytree(reference, tmp_path / "copy"))}, str(tmp_path / "o"))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": {"a": "/nowhere"}}, "two updates or more, got 1"),
        ({"floors": [["useful", "usefull"]]}, "names 'usefull', which is no update"),
        ({"floors": [["useful", "useful"]]}, "pair of different labels"),
        ({"floors": [["useful"]]}, "pair of different labels"),
        ({"energies": []}, "no energy share"),
        ({"energies": [0.5, 1.5]}, r"must be in \(0, 1\], got 1\.5"),
        ({"energies": [0.5, 0.5]}, "given twice"),
        ({"controls": -1}, "must be 0 or more"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"aligned": "/nowhere"}, "does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(study, tmp_path, changes, message):
    reference, updates = study
    with pytest.raises(InputError, match=message):
        overlap(**{"aligned": reference, "tuned": updates, "out": str(tmp_path / "o"), **changes})
    assert not list(tmp_path.iterdir())


def test_non_finite_weights_leave_no_results(study, tmp_path):
    reference, updates = study
    broken = save_perturbed(reference, tmp_path / "broken", seed=1)
    edit(Path(broken), lambda _, value: value * math.nan, only="lm_head")
    with pytest.raises(InputError, match=r"lm_head\.weight of .*broken"):
        overlap(reference, {**updates, "broken": broken}, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
