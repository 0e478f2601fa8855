import errno
import json
import math
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from support import oracle
from support.tiny import save_tiny_model
from support.tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of, write_checkpoint
from torch.testing import assert_close

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import describe_input
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.weights.snapshots import SnapshotWriter
from safety_subspaces.weights.update_checkpoint import open_checkpoint

KEYS = ["tuned", "subspace", "method", "fraction", "draw"]
COLUMNS = [
    *(*KEYS, "energy_kept", "cos_task_projected", "cos_task_alignment", "chance_energy"),
    *("energy_kept_sd", "control", "energy_gap", "n_energy_draws", "n_model_draws"),
]
SUBSPACES = ["top", "random", "random-k", "random-energy", "scaled"]
METHODS = ["onto", "away", "opposite"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Base, aligned and two fine-tunes that each share part of the alignment update."""
    folder = tmp_path_factory.mktemp("study")
    base = save_llama(folder / "base")
    aligned = save_perturbed(base, folder / "aligned", seed=1)
    tuned = {name: save_perturbed(aligned, folder / name, seed=seed) for name, seed in (("useful", 2), ("harmful", 3))}
    return {"base": base, "aligned": aligned, "tuned": tuned}


@pytest.fixture(scope="module")
def swept(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    table = project(
        **study, out=str(out), subspaces=SUBSPACES, methods=METHODS, fractions=[0.25, 0.75], draws=2, write=True
    )
    return table, pd.read_parquet(out / "tensors.parquet"), out


def row_of(table, **keys):
    found = table[(table[list(keys)] == pd.Series(keys)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


def test_the_alignment_update_is_described_in_every_tensor(study, swept):
    found = pd.read_parquet(swept[2] / "alignment.parquet").set_index("tensor")
    base, aligned = (weights_of(study[name]) for name in ("base", "aligned"))
    assert set(found.index) == set(aligned)
    for name, weight in aligned.items():
        update = (weight - base[name]).double()
        stable, effective = oracle.spectral_ranks(oracle.left_svd(update)[1])
        assert found.loc[name, "energy"] == pytest.approx(oracle.energy(update), rel=1e-6)
        assert found.loc[name, "stable_rank"] == pytest.approx(stable, rel=1e-4)
        assert found.loc[name, "effective_rank"] == pytest.approx(effective, rel=1e-4)


def pooled_oracle(study, label, fraction):
    """Energy that top keeps, by full SVD in float64."""
    base, aligned, tuned = (weights_of(path) for path in (study["base"], study["aligned"], study["tuned"][label]))
    kept = total = 0.0
    for name, weight in aligned.items():
        update = tuned[name] - weight
        kept += oracle.energy_along(oracle.basis_at_fraction(weight - base[name], fraction), update)
        total += oracle.energy(update)
    return kept / total


def test_tables_have_the_agreed_columns_and_rows(swept):
    table, tensors, out = swept
    assert list(table.columns) == COLUMNS
    assert list(tensors.columns) == [
        *KEYS, *("tensor", "layer", "type", "rank", "energy_kept", "energy_total", "chance_energy", "energy_kept_sd")
    ]  # fmt: skip
    # two fine-tunes, three methods, two fractions; three kinds have two draws, two have one
    assert len(table) == 2 * 3 * 2 * (3 * 2 + 2)
    assert len(tensors) == len(table) * 21
    assert not table.duplicated(KEYS).any()
    assert set(table[table["subspace"].isin(["top", "scaled"])]["draw"]) == {0}
    for name in ("config.yaml", "result.json", "table.csv", "table.parquet", "tensors.csv"):
        assert (out / name).is_file()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("label", ["useful", "harmful"])
@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_top_keeps_the_energy_of_a_float64_svd(study, swept, label, fraction):
    expected = pooled_oracle(study, label, fraction)
    found = row_of(swept[0], tuned=label, subspace="top", method="onto", fraction=fraction)
    assert found["energy_kept"] == pytest.approx(expected, abs=1e-6)
    assert found["cos_task_projected"] == pytest.approx(expected**0.5, abs=1e-6)


def test_onto_and_away_share_the_energy_and_opposite_has_that_of_onto(swept):
    wide = swept[0].pivot(index=["tuned", "subspace", "fraction", "draw"], columns="method")
    energy, cosine, chance = (wide[key] for key in ("energy_kept", "cos_task_projected", "chance_energy"))
    assert (energy["onto"] + energy["away"]).to_numpy() == pytest.approx(1, abs=1e-6)
    assert energy["opposite"].to_numpy() == pytest.approx(energy["onto"].to_numpy())
    assert cosine["opposite"].to_numpy() == pytest.approx(-cosine["onto"].to_numpy())
    with_rank = chance.drop(index="scaled", level="subspace")
    assert (with_rank["onto"] + with_rank["away"]).to_numpy() == pytest.approx(1)


def test_pooled_energies_are_sums_over_tensors(swept):
    table, tensors, _ = swept
    sums = tensors.groupby(KEYS, sort=False)[["energy_kept", "energy_total"]].sum()
    share = (sums["energy_kept"] / sums["energy_total"]).reset_index(name="share")
    merged = table.merge(share, on=KEYS)
    assert merged["share"].to_numpy() == pytest.approx(merged["energy_kept"].to_numpy())


def test_random_subspaces_keep_what_chance_predicts(study, tmp_path):
    table = project(
        **study, out=str(tmp_path / "o"), subspaces=["random", "random-k"], methods=["onto"], fractions=[0.5], draws=40
    )
    for _, rows in table.groupby(["tuned", "subspace"]):
        error = rows["energy_kept"].std() / 40**0.5
        # the tuned updates are independent of the alignment update, so random-k is at chance as well
        assert rows["energy_kept"].mean() == pytest.approx(rows["chance_energy"].iloc[0], abs=4 * error + 0.01)


def test_energy_matched_controls_keep_the_energy_of_top(swept):
    table = swept[0]
    onto = table[table["method"] == "onto"].set_index(["tuned", "fraction"])
    top = onto[onto["subspace"] == "top"]["energy_kept"]
    scaled = onto[onto["subspace"] == "scaled"]["energy_kept"]
    assert scaled.to_numpy() == pytest.approx(top.to_numpy())
    drawn = onto[onto["subspace"] == "random-energy"].groupby(level=[0, 1])["energy_kept"].mean()
    assert drawn.loc[top.index].to_numpy() == pytest.approx(top.to_numpy(), abs=0.05)


def test_an_update_along_the_alignment_update_is_kept_whole_and_one_across_it_not_at_all(tmp_path):
    """The positive control, and its opposite: top can tell what lies in the subspace from what does not."""
    base = save_llama(tmp_path / "base")
    aligned = save_perturbed(base, tmp_path / "aligned", seed=1)
    inside, outside = (save_perturbed(aligned, tmp_path / name, seed=2) for name in ("inside", "outside"))
    w0, wa = weights_of(base), weights_of(aligned)

    def along(name, _):
        return wa[name] + 0.5 * (wa[name] - w0[name])

    def across(name, value):
        update = value - wa[name]
        inside = oracle.along(oracle.basis_at_fraction(wa[name] - w0[name], 0.9), update)
        return (wa[name] + update - inside.reshape(value.shape)).to(value.dtype)

    edit(Path(inside), along)
    edit(Path(outside), across)
    table = project(
        base, aligned, {"inside": inside, "outside": outside}, str(tmp_path / "o"), ["top"], ["onto"], [0.9]
    )
    kept = table.set_index("tuned")["energy_kept"]
    assert kept["inside"] > 0.95
    assert kept["outside"] < 1e-5
    assert table.set_index("tuned")["cos_task_alignment"]["inside"] == pytest.approx(1, abs=1e-5)


def test_equal_seeds_give_equal_tables_and_others_do_not(study, tmp_path):
    def sweep(seed, name):
        out = str(tmp_path / name)
        return project(**study, out=out, subspaces=["random-energy", "random"], fractions=[0.5], draws=1, seed=seed)

    first, second, other = sweep(0, "a"), sweep(0, "b"), sweep(1, "c")
    pd.testing.assert_frame_equal(first, second)
    assert not first["energy_kept"].equals(other["energy_kept"])


def test_one_draw_is_the_same_whatever_else_is_swept(study, swept, tmp_path):
    alone = project(
        **study,
        out=str(tmp_path / "o"),
        subspaces=["random", "random-energy"],
        methods=["onto"],
        fractions=[0.25],
        draws=1,
    )
    for _, row in alone.iterrows():
        found = row_of(swept[0], **row[KEYS].to_dict())
        assert row["energy_kept"] == pytest.approx(found["energy_kept"], abs=1e-6)


def test_written_models_hold_the_energies_of_the_table(study, swept):
    table, _, out = swept
    aligned = weights_of(study["aligned"])
    for _, row in table.iterrows():
        folder = out / "models" / "/".join(str(row[key]) for key in KEYS)
        tuned, written = weights_of(study["tuned"][row["tuned"]]), weights_of(folder)
        assert (folder / "config.json").is_file()
        kept = total = inner = 0.0
        for name, weight in aligned.items():
            update, task = (written[name] - weight).double(), (tuned[name] - weight).double()
            kept, total = kept + update.square().sum().item(), total + task.square().sum().item()
            inner += (update * task).sum().item()
        assert kept / total == pytest.approx(row["energy_kept"], abs=1e-4)
        assert inner / (kept * total) ** 0.5 == pytest.approx(row["cos_task_projected"], abs=1e-4)


def test_written_onto_and_away_add_up_to_the_fine_tune(study, swept):
    aligned, tuned = weights_of(study["aligned"]), weights_of(study["tuned"]["useful"])
    for kind in SUBSPACES[:-1]:
        onto, away = (weights_of(swept[2] / f"models/useful/{kind}/{how}/0.75/0") for how in ("onto", "away"))
        for name, weight in aligned.items():
            assert_close(onto[name] + away[name] - weight, tuned[name], rtol=0, atol=1e-6)


def test_adapters_are_projected_as_their_merged_updates(tmp_path, study):
    adapter = save_adapter(study["aligned"], tmp_path / "adapter")
    out = tmp_path / "o"
    project(study["base"], study["aligned"], {"lora": adapter}, str(out), ["top"], ["onto"], [0.5])
    tensors = pd.read_parquet(out / "tensors.parquet").set_index("tensor")
    touched = tensors[tensors["energy_total"] > 0]
    assert set(touched["type"]) == {"q", "down"}
    left_out = json.loads((out / "result.json").read_text())["left_out"]
    assert {"name": "lora: lm_head.weight", "reason": "the fine-tune did not change it"} in left_out


def test_zero_and_rank_deficient_alignment_updates_are_handled_and_reported(tmp_path):
    base = save_llama(tmp_path / "base")
    aligned = save_perturbed(base, tmp_path / "aligned", seed=1)
    w0 = weights_of(base)
    generator = torch.Generator().manual_seed(5)
    edit(Path(aligned), lambda name, _: w0[name], only="layers.0.mlp.up_proj")
    low = torch.randn(16, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    edit(Path(aligned), lambda name, _: w0[name] + low, only="layers.1.self_attn.q_proj")
    tuned = save_perturbed(aligned, tmp_path / "tuned", seed=2)
    out = tmp_path / "o"
    project(base, aligned, {"t": tuned}, str(out), ["top", "random-k", "random-energy"], ["onto", "away"], [0.5])
    tensors = pd.read_parquet(out / "tensors.parquet")
    zero = tensors[tensors["tensor"] == "model.layers.0.mlp.up_proj.weight"]
    assert set(zero["rank"]) == {0}
    assert zero[zero["method"] == "onto"]["energy_kept"].eq(0).all()
    away = zero[zero["method"] == "away"]
    assert away["energy_kept"].equals(away["energy_total"])
    capped = tensors[(tensors["tensor"] == "model.layers.1.self_attn.q_proj.weight") & (tensors["subspace"] == "top")]
    assert set(capped["rank"]) == {2}
    result = json.loads((out / "result.json").read_text())
    assert result["summary"]["capped_ranks"]["at_largest_fraction"] == {
        "model.layers.1.self_attn.q_proj.weight": {"wanted": 8, "rank": 2}
    }
    assert any(entry["name"] == "model.layers.0.mlp.up_proj.weight" for entry in result["left_out"])


def test_copies_of_one_model_are_refused_by_place_and_by_weights(study, tmp_path):
    copy = str(shutil.copytree(study["aligned"], tmp_path / "copy"))
    out = str(tmp_path / "o")
    with pytest.raises(InputError, match=r"aligned and tuned\.same are both"):
        project(study["base"], study["aligned"], {"same": study["aligned"]}, out)
    with pytest.raises(InputError, match="base and aligned are both"):
        project(study["aligned"], study["aligned"], study["tuned"], out)
    with pytest.raises(InputError, match=r"copy \(same\) has the weights of"):
        project(study["base"], study["aligned"], {"same": copy}, out)
    with pytest.raises(InputError, match="there is no alignment update"):
        project(copy, study["aligned"], study["tuned"], out)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_closed_form_is_the_mean_and_deviation_of_many_draws(study, tmp_path):
    kinds = {"subspaces": ["top", "random", "random-k", "random-energy"], "fractions": [0.25], "methods": ["away"]}
    closed = project(**study, **kinds, out=str(tmp_path / "c"), controls="closed")
    drawn = project(**study, **kinds, out=str(tmp_path / "d"), draws=40)
    assert dict(closed.groupby("subspace")["control"].first()) == {
        "top": "exact", **dict.fromkeys(("random", "random-k", "random-energy"), "closed form")
    }  # fmt: skip
    assert closed[closed["subspace"] != "top"]["draw"].isna().all()
    keys = ["tuned", "subspace", "fraction"]
    cells = drawn[drawn["subspace"] != "top"].groupby(keys)["energy_kept"].agg(["mean", "std"]).reset_index()
    for _, row in closed.merge(cells, on=keys).iterrows():
        assert row["energy_kept"] == pytest.approx(row["mean"], abs=4 * row["std"] / 40**0.5)
        # the deviation of 40 draws is good to 11 %
        assert row["energy_kept_sd"] == pytest.approx(row["std"], rel=0.45)


def test_energies_alone_are_drawn_many_times_and_models_few(study, swept):
    table, _, out = swept
    draws = pd.read_parquet(out / "draws.parquet")
    random = table[table["control"] != "exact"]
    assert set(random["n_energy_draws"]) == {99}
    assert set(random["n_model_draws"]) == {2}  # they were written
    assert table[table["control"] == "exact"][["n_energy_draws", "n_model_draws"]].eq(0).all().all()
    assert list(draws.columns) == [*KEYS, "energy_kept", "energy_gap"]
    cells = draws.groupby(KEYS[:-1])
    assert len(cells) == 2 * 3 * 3 * 2
    assert all(sorted(rows["draw"]) == list(range(99)) for _, rows in cells)
    wide = draws.pivot(index=["tuned", "subspace", "fraction", "draw"], columns="method", values="energy_kept")
    assert (wide["onto"] + wide["away"]).to_numpy() == pytest.approx(1)
    assert wide["opposite"].equals(wide["onto"])


def test_drawn_energies_have_the_mean_and_deviation_of_the_closed_form(study, tmp_path):
    kinds = {"subspaces": ["random", "random-k", "random-energy"], "fractions": [0.25, 0.5], "methods": ["away"]}
    closed = project(**study, **kinds, out=str(tmp_path / "o"), controls="closed", energy_draws=400)
    draws = pd.read_parquet(tmp_path / "o" / "draws.parquet")
    keys = ["tuned", "subspace", "fraction"]
    for _, row in closed.iterrows():
        rows = draws[(draws[keys] == row[keys]).all(axis=1)]["energy_kept"]
        assert rows.mean() == pytest.approx(row["energy_kept"], abs=4 * row["energy_kept_sd"] / 20)
        assert rows.std() == pytest.approx(row["energy_kept_sd"], rel=0.2)  # that of 400 is good to 3.5 %


def test_each_draw_has_its_own_gap_to_top(swept):
    table, _, out = swept
    keys = ["tuned", "method", "fraction"]
    top = table[table["subspace"] == "top"].set_index(keys)["energy_kept"].rename("top")
    for rows in (table, pd.read_parquet(out / "draws.parquet")):
        gaps = rows.join(top, on=keys)
        assert gaps["energy_gap"].to_numpy() == pytest.approx((gaps["energy_kept"] - gaps["top"]).to_numpy(), abs=1e-9)
    matched = table[table["subspace"] == "random-energy"]
    assert matched["energy_gap"].abs().max() > 1e-4  # they miss it, each by another much
    assert table[table["subspace"] == "scaled"]["energy_gap"].abs().max() < 1e-9


def test_drawn_energies_follow_from_the_seed_and_change_no_model(study, swept, tmp_path):
    arguments = {"subspaces": SUBSPACES, "methods": METHODS, "fractions": [0.25, 0.75], "draws": 2}

    def sweep(name, **more):
        table = project(**study, **arguments, out=str(tmp_path / name), **more)
        file = tmp_path / name / "draws.parquet"
        return table, pd.read_parquet(file) if file.is_file() else None

    (table, first), (_, other), (without, none) = sweep("a"), sweep("b", seed=1), sweep("c", energy_draws=0)
    pd.testing.assert_frame_equal(first, pd.read_parquet(swept[2] / "draws.parquet"))
    assert not first["energy_kept"].equals(other["energy_kept"])
    assert none is None
    assert without["n_energy_draws"].eq(0).all()
    assert table["n_model_draws"].eq(0).all()
    pd.testing.assert_frame_equal(
        without.drop(columns="n_energy_draws"), table.drop(columns="n_energy_draws"), rtol=1e-6
    )
    pd.testing.assert_frame_equal(table.drop(columns="n_model_draws"), swept[0].drop(columns="n_model_draws"))


def test_a_closed_form_has_no_model(study, tmp_path):
    with pytest.raises(InputError, match="random-energy has no draw whose model could be written"):
        project(**study, out=str(tmp_path / "o"), controls="closed", write=True)
    assert not list(tmp_path.iterdir())


def test_tables_by_layer_and_type_pool_their_tensors(swept):
    _, tensors, out = swept
    for cell, name in (("layer", "layers"), ("type", "types")):
        table = pd.read_parquet(out / f"{name}.parquet")
        sums = tensors.groupby([*KEYS, cell], dropna=False)[["energy_kept", "energy_total"]].sum().reset_index()
        merged = table.merge(sums.assign(share=sums["energy_kept"] / sums["energy_total"]), on=[*KEYS, cell])
        assert len(merged) == len(table)
        assert merged["energy_kept_x"].to_numpy() == pytest.approx(merged["share"].to_numpy())


def test_what_writing_rounds_is_measured(study, swept, tmp_path):
    exact = pd.read_parquet(swept[2] / "written.parquet")
    assert exact["rounding_share"].max() < 1e-6
    half = {}
    for name in ("base", "aligned"):
        half[name] = str(shutil.copytree(study[name], tmp_path / name))
        edit(half[name], lambda _, value: value.half())
    out = tmp_path / "o"
    project(**half, tuned=study["tuned"], out=str(out), subspaces=["top"], fractions=[0.5], write=True)
    written = pd.read_parquet(out / "written.parquet").set_index(["tuned", "method"])
    for (label, method), row in written.iterrows():
        folder = out / f"models/{label}/top/{method}/0.5/0"
        stored, aligned = weights_of(folder), weights_of(half["aligned"])
        assert {value.dtype for value in stored.values()} == {torch.float16}
        energy = sum((stored[n].double() - aligned[n].double()).square().sum().item() for n in stored)
        table = pd.read_parquet(out / "table.parquet").set_index(["tuned", "method"])
        total = pd.read_parquet(out / "types.parquet").query("tuned == @label and method == @method")["energy_total"]
        assert row["energy_stored"] == pytest.approx(energy / (table.loc[(label, method), "energy_kept"] * total.sum()))
        assert 1e-6 < row["rounding_share"] < 0.05


def test_an_adapter_and_a_snapshot_are_projected_in_factors(tmp_path, study):
    adapter = save_adapter(study["aligned"], tmp_path / "adapter")
    merged = tmp_path / "merged"
    write_checkpoint(merged, open_checkpoint(study["aligned"]), open_checkpoint(adapter).read)
    aligned, tuned = open_checkpoint(study["aligned"]), open_checkpoint(study["tuned"]["useful"])
    file = tmp_path / "deltas" / "step=00000007.safetensors"
    shapes = {name: aligned.shape(name) for name in aligned.names}
    reference = {"path": study["aligned"], "sha256": describe_input(study["aligned"])["sha256"]}
    with SnapshotWriter(file, shapes, torch.float32, 7, {"reference": reference}) as writer:
        for name in shapes:
            writer.write(name, DenseUpdate(tuned.read(name) - aligned.read(name)))
    models = {"adapter": adapter, "merged": str(merged), "snapshot": str(file), "useful": study["tuned"]["useful"]}
    table = project(
        study["base"], study["aligned"], models, str(tmp_path / "o"), ["top", "random-energy"], fractions=[0.25]
    )
    wide = table.pivot(index=["subspace", "method", "draw"], columns="tuned", values="energy_kept")
    assert wide["adapter"].to_numpy() == pytest.approx(wide["merged"].to_numpy(), abs=1e-5)
    assert wide["snapshot"].to_numpy() == pytest.approx(wide["useful"].to_numpy(), abs=1e-7)


def test_large_tensors_stream_to_the_same_numbers(study, tmp_path, monkeypatch):
    arguments = {**study, "subspaces": ["top", "random", "random-k"], "methods": METHODS, "fractions": [0.25, 0.75]}
    whole = project(**arguments, out=str(tmp_path / "whole"), draws=1, write=True)
    for module, constant in (("weights.delta", "STREAM_ABOVE"), ("analysis.project.tensors", "STREAM_ABOVE")):
        monkeypatch.setattr(f"safety_subspaces.{module}.{constant}", 200)
    monkeypatch.setattr("safety_subspaces.algebra.blocks.BLOCK", 300)
    streamed = project(**arguments, out=str(tmp_path / "streamed"), draws=1, write=True)
    pd.testing.assert_frame_equal(whole, streamed, rtol=1e-5, atol=1e-6)
    for row in whole.itertuples():
        folder = f"models/{row.tuned}/{row.subspace}/{row.method}/{row.fraction}/{row.draw}"
        first, second = (weights_of(tmp_path / name / folder) for name in ("whole", "streamed"))
        for name, value in first.items():
            assert_close(second[name], value, rtol=0, atol=2e-6)


def test_a_subspace_file_stands_for_the_pair_that_it_was_made_of(study, tmp_path):
    file = str(tmp_path / "a.safetensors")
    subspace(study["base"], study["aligned"], file, RankRule(fraction=0.5))
    arguments = {**study, "subspaces": ["top", "random-k"], "fractions": [0.25, 0.5], "draws": 1}
    direct = project(**arguments, out=str(tmp_path / "direct"))
    read = project(**arguments, subspace=file, out=str(tmp_path / "read"))
    of_top = direct["subspace"] == "top"
    pd.testing.assert_frame_equal(direct[of_top], read[of_top], rtol=1e-5)
    with pytest.raises(InputError, match=r"holds 8 directions of .*, fraction 0\.75 needs 12"):
        project(**{**arguments, "fractions": [0.75]}, subspace=file, out=str(tmp_path / "more"))
    right = str(tmp_path / "r.safetensors")
    subspace(study["base"], study["aligned"], right, RankRule(fraction=0.5), side="right")
    with pytest.raises(InputError, match="holds a right subspace"):
        project(**arguments, subspace=right, out=str(tmp_path / "more"))


def test_chosen_tensors_alone_are_projected_and_the_others_listed(study, tmp_path):
    out = tmp_path / "o"
    project(**study, out=str(out), fractions=[0.5], tensors=["q", "layers.01"])
    tensors = set(pd.read_parquet(out / "tensors.parquet")["tensor"])
    expected = {n for n in weights_of(study["aligned"]) if "layers.1." in n or "q_proj" in n}
    assert tensors == expected
    left_out = json.loads((out / "result.json").read_text())["left_out"]
    for label in ("base", "aligned", "useful", "harmful"):
        listed = {e["name"].removeprefix(f"{label}: ") for e in left_out if e["name"].startswith(f"{label}: ")}
        assert listed | expected == set(weights_of(study["aligned"]))
        assert not listed & expected


def test_every_projected_model_is_evaluated_in_memory(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    aligned = save_perturbed(base, tmp_path / "aligned", seed=1, size=0.2)
    tuned = save_perturbed(aligned, tmp_path / "tuned", seed=2, size=0.2)
    out = tmp_path / "o"
    settings = EvaluationSettings(limit=2, max_new_tokens=2)
    table = project(
        base,
        aligned,
        {"t": tuned},
        str(out),
        ["top", "scaled"],
        ["onto", "away"],
        [0.25],
        evaluate=settings,
        write=True,
    )
    assert set(COLUMNS) < set(table.columns)
    assert table["n_harmful"].eq(2).all()
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    labels = {f"t/{subspace}/{method}/0.25/0" for subspace in ("top", "scaled") for method in ("onto", "away")}
    assert {line["model"] for line in lines} == labels
    # the model in memory is the one on disk: the margin, which is continuous, agrees
    from safety_subspaces.analysis.evaluate.command import evaluate

    paths = {label: str(out / "models" / label) for label in labels}
    again = evaluate(paths, str(tmp_path / "e"), limit=2, max_new_tokens=2).set_index("model")
    for _, row in table.iterrows():
        label = f"t/{row['subspace']}/{row['method']}/0.25/0"
        assert again.loc[label, "refusal_margin"] == pytest.approx(row["refusal_margin"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": {}}, "no fine-tune was given"),
        ({"tuned": {"a/b": "x"}}, "label 'a/b'"),
        ({"fractions": []}, "no fraction"),
        ({"fractions": [0.5, 1.0]}, r"strictly between 0 and 1, got 1\.0"),
        ({"fractions": [0.0]}, r"strictly between 0 and 1, got 0\.0"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"energy_draws": -1}, "energy_draws must be 0 or more"),
        ({"subspaces": []}, "unknown subspace"),
        ({"methods": []}, "unknown method"),
        ({"base": "/nowhere"}, "does not exist"),
        ({"tensors": ["no_proj"]}, "no tensor matches 'no_proj'"),
        ({"tensors": ["q"], "write": True}, "a model of some tensors cannot be written"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"subspace": "/nowhere.safetensors"}, "does not exist"),
        ({"tuned": {"a": "/nowhere/else"}}, "/nowhere/else does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(study, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        project(**{**study, "out": str(tmp_path / "o"), **changes})
    assert not list(tmp_path.iterdir())


def test_earlier_results_are_not_written_over_unless_told(study, tmp_path):
    arguments = {**study, "out": str(tmp_path / "o"), "fractions": [0.5], "draws": 1}
    first = project(**arguments)
    with pytest.raises(InputError, match="already holds results"):
        project(**arguments)
    pd.testing.assert_frame_equal(first, project(**arguments, overwrite=True))


def test_non_finite_weights_leave_no_results(study, tmp_path):
    broken = save_perturbed(study["aligned"], tmp_path / "broken", seed=1)
    edit(Path(broken), lambda _, value: value * math.nan, only="layers.1.mlp.down_proj")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight of .*broken"):
        project(study["base"], study["aligned"], {"b": broken}, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_a_disk_without_room_is_told_before_anything_is_computed(study, tmp_path, monkeypatch):
    def without_room(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", without_room)
    with pytest.raises(InputError, match="no room on the disk"):
        project(**study, out=str(tmp_path / "o"), write=True)
    assert not list(tmp_path.iterdir())
