import shutil
from pathlib import Path

import pytest
import torch
from support import oracle
from support.tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of
from torch.testing import assert_close

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.subspace_file import read_subspace


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    base = save_llama(folder / "base")
    return base, save_perturbed(base, folder / "aligned", seed=1)


def deltas_of(pair):
    base, aligned = map(weights_of, pair)
    return {name: (aligned[name] - base[name]).double() for name in aligned}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rule", "energy"), [(RankRule(count=3), None), (RankRule(energy=0.8), 0.8)])
def test_bases_are_those_of_a_float64_svd(pair, tmp_path, side, rule, energy):
    table = subspace(*pair, str(tmp_path / "s.safetensors"), rule, side=side).set_index("tensor")
    stored = read_subspace(str(tmp_path / "s.safetensors"))
    assert stored.side == side
    for name, delta in deltas_of(pair).items():
        matrix = delta.T if side == "right" and delta.ndim == 2 else oracle.as_matrix(delta)
        left, values = oracle.left_svd(matrix)
        shares = values.square().cumsum(0) / values.square().sum()
        rank = min(3, len(values)) if energy is None else oracle.rank_at_energy(values, energy)
        basis = stored.bases[name].double()
        assert basis.shape == (matrix.shape[0], rank)
        assert_close(oracle.along(basis, matrix), oracle.along(left[:, :rank], matrix), rtol=0, atol=2e-4 * values[0])
        # the noise of a float32 Gram matrix, 1e-7 of sigma_1^2, in the least of them
        assert_close(stored.spectra[name], values, rtol=1e-5, atol=5e-6 * float(values[0]))
        assert table.loc[name, "energy"] == pytest.approx(shares[rank - 1].item(), abs=1e-5)


@pytest.mark.parametrize("select", ["random-k", "random"])
def test_drawn_subspaces_are_seeded_and_tell_the_energy_they_hold(pair, tmp_path, select):
    files = [str(tmp_path / f"{seed}-{turn}.safetensors") for seed, turn in ((0, 0), (0, 1), (1, 0))]
    tables = [
        subspace(*pair, file, RankRule(fraction=0.5), select=select, seed=int(Path(file).name[0])) for file in files
    ]
    first, again, other = map(read_subspace, files)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.bases[name], again.bases[name])
    assert not torch.allclose(first.bases[name], other.bases[name])
    delta = deltas_of(pair)[name]
    kept = oracle.energy_along(first.bases[name], delta) / oracle.energy(delta)
    assert tables[0].set_index("tensor").loc[name, "energy"] == pytest.approx(kept, abs=1e-5)
    assert first.provenance["select"] == select


def test_an_adapter_is_decomposed_in_its_own_rank(pair, tmp_path):
    adapter = save_adapter(pair[1], tmp_path / "adapter")
    table = subspace(pair[1], adapter, str(tmp_path / "s.safetensors"), RankRule(fraction=0.99)).set_index("tensor")
    adapted = table["rank"] > 0
    assert set(table.loc[adapted, "rank"]) == {2}
    assert all("q_proj" in name or "down_proj" in name for name in table.index[adapted])
    assert table.loc[adapted, "energy"].to_numpy() == pytest.approx(1)
    left_out = read_subspace(str(tmp_path / "s.safetensors")).provenance["left_out"]
    assert {"name": "lm_head.weight", "reason": "the update is zero"} in left_out


def test_workers_and_streaming_change_nothing(pair, tmp_path, monkeypatch):
    plain = str(tmp_path / "plain.safetensors")
    subspace(*pair, plain, RankRule(fraction=0.5))
    subspace(*pair, str(tmp_path / "two.safetensors"), RankRule(fraction=0.5), workers=2)
    for constant in ("weights.delta.STREAM_ABOVE", "algebra.blocks.BLOCK"):
        monkeypatch.setattr(f"safety_subspaces.{constant}", 100)
    subspace(*pair, str(tmp_path / "streamed.safetensors"), RankRule(fraction=0.5))
    expected = read_subspace(plain)
    for name in ("two", "streamed"):
        found = read_subspace(str(tmp_path / f"{name}.safetensors"))
        for tensor, basis in expected.bases.items():
            assert_close(found.bases[tensor] @ found.bases[tensor].T, basis @ basis.T, rtol=0, atol=1e-3)


def test_what_is_no_pair_is_refused_and_an_earlier_file_stays(pair, tmp_path):
    file = tmp_path / "s.safetensors"
    subspace(*pair, str(file), RankRule(count=1))
    before = file.read_bytes()
    copy = str(shutil.copytree(pair[0], tmp_path / "copy"))
    refused = [
        ((*pair, str(file), RankRule(count=2)), {}, "exists and is not written over"),
        ((*pair, str(tmp_path / "s.pt"), RankRule(count=2)), {}, "ends in .safetensors"),
        ((pair[0], pair[0], str(file), RankRule(count=2)), {"overwrite": True}, "base and aligned are both"),
        ((pair[0], copy, str(file), RankRule(count=2)), {"overwrite": True}, "have the same weights"),
        ((*pair, str(file), RankRule(count=2)), {"overwrite": True, "tensors": ["x"]}, "no tensor matches 'x'"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(InputError, match=message):
            subspace(*arguments, **options)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "s.safetensors"]


@pytest.mark.parametrize(("side", "column", "row"), [("left", (16, 1), (1, 1)), ("right", (1, 1), (16, 1))])
def test_a_matrix_of_one_column_or_row_has_the_side_that_is_asked_for(pair, tmp_path, side, column, row):
    """The file says one side for all its tensors: what is 2-D lies on it, whatever its shape."""
    folders = [tmp_path / name for name in ("base", "aligned")]
    for source, folder in zip(pair, folders, strict=True):
        shutil.copytree(source, folder)
        edit(folder, lambda _, value: value[:, :1].clone(), only="layers.0.self_attn.q_proj")
        edit(folder, lambda _, value: value[:1].clone(), only="layers.0.self_attn.k_proj")
    out = str(tmp_path / "s.safetensors")
    subspace(*map(str, folders), out, RankRule(count=1), side=side, tensors=["q", "k", "norm"])
    stored = read_subspace(out)
    bases = {name: stored.bases[f"model.layers.0.self_attn.{name}_proj.weight"] for name in ("q", "k")}
    assert (tuple(bases["q"].shape), tuple(bases["k"].shape)) == (column, row)
    assert stored.bases["model.norm.weight"].shape == (16, 1)  # a vector has one side
    delta = {name: value for name, value in deltas_of(list(map(str, folders))).items() if "layers.0" in name}
    long = delta[f"model.layers.0.self_attn.{'q' if side == 'left' else 'k'}_proj.weight"].reshape(-1)
    along = bases["q" if side == "left" else "k"].double()[:, 0] @ long
    assert abs(along.item()) == pytest.approx(long.norm().item(), rel=1e-5)
