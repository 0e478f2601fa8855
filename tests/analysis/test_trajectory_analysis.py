"""Trajectories of synthetic snapshots against plain float64 algebra, and what they must be by construction."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
import yaml
from safetensors.torch import save_file
from support import oracle
from support.hostile_text import ALL, HALF, LONG
from support.tiny import ANALYZE, ROOT, run_command
from support.tiny_checkpoints import edit, save_llama, save_perturbed, weights_of

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate, Update
from safety_subspaces.analysis.subspace.command import subspace as make_subspace
from safety_subspaces.analysis.trajectory.command import trajectory
from safety_subspaces.analysis.trajectory.figure import draw_trajectory
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import describe_input, sha256_of_file
from safety_subspaces.weights.measures import compress
from safety_subspaces.weights.snapshots import START_FILE, SnapshotWriter, snapshot_path

COLUMNS = (
    "step level part frobenius_norm path_length straightness step_norm_per_step cos_to_final energy_fraction "
    "energy_fraction_chance stable_rank effective_rank rms_angle_radians rms_angle_chance_radians "
    "speed_radians_per_step n_matrices"
)
STEPS = (4, 10, 20, 28, 30)
Q, K = (f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer, kind in ((0, "q"), (1, "k")))
NORM = "model.norm.weight"
RANK, ENERGY = RankRule(fraction=0.25), 0.8
QUICK = {"draws": 2}


def walk(weights, seed: int, size: float = 0.01) -> list[dict[str, torch.Tensor]]:
    """Random walks; one matrix never moves, one not before the second snapshot."""
    generator = torch.Generator().manual_seed(seed)
    position = {name: torch.zeros_like(value) for name, value in weights.items()}
    found = []
    for place in range(len(STEPS)):
        for name, value in weights.items():
            if name != K and (name != Q or place > 0):
                position[name] = position[name] + size * torch.randn(value.shape, generator=generator)
        found.append(dict(position))
    return found


def write_snapshots(folder: Path, updates, reference, steps=STEPS, lost=None) -> None:
    for step, update in zip(steps, updates, strict=True):
        shapes = {name: tuple(value.shape) for name, value in update.items()}
        with SnapshotWriter(
            snapshot_path(folder, step), shapes, torch.float32, step, {"reference": reference}
        ) as writer:
            for name, value in update.items():
                made = value if isinstance(value, Update) else DenseUpdate(value)
                writer.write(name, made, (lost or {}).get(name, 0.0))


def keep_start(folder: Path, weights) -> dict[str, str]:
    """Write the weights that a run started with, and return what its snapshots say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "reference.safetensors")
    return {"path": START_FILE, "sha256": sha256_of_file(folder / "reference.safetensors")}


def plus(source: str, folder: Path, update) -> str:
    """Write a copy of a model with an update added."""
    save_perturbed(source, folder, seed=0, size=0.0)
    edit(folder, lambda name, value: value + update[name] if name in update else value)
    return str(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Base and aligned; a run from aligned; *useful* ends where the run does, *harmful* is independent."""
    folder = tmp_path_factory.mktemp("study")
    base = save_llama(folder / "base" / "model")
    aligned = save_perturbed(base, folder / "aligned" / "model", seed=1)
    weights = weights_of(aligned)
    updates = walk(weights, seed=2)
    run = folder / "contaminated"
    write_snapshots(run / "deltas", updates, keep_start(run / "deltas", weights))
    plus(aligned, folder / "useful" / "model", updates[-1])
    save_perturbed(aligned, folder / "harmful" / "model", seed=3)
    return folder, updates


def inputs(folder: Path) -> dict[str, object]:
    models = {name: str(folder / name / "model") for name in ("base", "aligned", "useful", "harmful")}
    others = {label: models[label] for label in ("useful", "harmful")}
    return {"base": models["base"], "aligned": models["aligned"], "others": others}


@pytest.fixture(scope="module")
def followed(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("trajectory") / "out"
    settings = {"rank": RANK, "energy": ENERGY, "draws": 300}
    return trajectory(str(study[0] / "contaminated"), str(out), **inputs(study[0]), **settings), out


def part_of(name: str, level: str) -> str:
    parts = name.split(".")
    if level == "place":
        return f"layers.0{parts[2]}" if parts[1] == "layers" else parts[-2]
    kinds = {"embed_tokens": "embeddings", "lm_head": "head"}
    return "norm" if "norm" in parts[-2] else kinds.get(parts[-2], parts[-2].removesuffix("_proj"))


def quarter(update: torch.Tensor) -> np.ndarray:
    return oracle.basis_at_fraction(update, 0.25).numpy()


def rows_by_hand(updates, weights, base, names) -> list[dict[str, float]]:
    """The columns of one part, from float64 numbers."""
    tracks = {name: [update[name].double() for update in updates] for name in names}
    matrices = [name for name in names if weights[name].ndim == 2]
    inside = {name: oracle.basis_at_fraction(weights[name] - base[name], 0.25) for name in names}
    rows, path, before = [], 0.0, 0
    for place, step in enumerate(STEPS):
        now = {name: track[place] for name, track in tracks.items()}
        last = {name: track[place - 1] if place else 0 * track[0] for name, track in tracks.items()}
        moved = math.sqrt(sum(oracle.energy(now[name] - last[name]) for name in names))
        energy = sum(map(oracle.energy, now.values()))
        final = sum(oracle.energy(track[-1]) for track in tracks.values())
        path += moved
        moving = [name for name in matrices if now[name].any()]
        ranks = [oracle.spectral_ranks(oracle.left_svd(now[name])[1]) for name in moving]
        angles = [
            np.sqrt(np.mean(scipy.linalg.subspace_angles(quarter(last[name]), quarter(now[name])) ** 2))
            for name in moving
            if last[name].any()
        ]
        products = sum((now[name] * tracks[name][-1]).sum().item() for name in names)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows.append(
                {
                    "frobenius_norm": np.sqrt(energy),
                    "path_length": path,
                    "straightness": np.divide(np.sqrt(energy), path),
                    "step_norm_per_step": moved / (step - before),
                    "cos_to_final": np.divide(products, np.sqrt(energy * final)),
                    "energy_fraction": np.divide(
                        sum(oracle.energy_along(inside[name], now[name]) for name in names), energy
                    ),
                    "energy_fraction_chance": np.divide(
                        sum(oracle.energy(now[n]) * inside[n].shape[1] / inside[n].shape[0] for n in names), energy
                    ),
                    "stable_rank": np.mean([stable for stable, _ in ranks]) if ranks else np.nan,
                    "effective_rank": np.mean([effective for _, effective in ranks]) if ranks else np.nan,
                    "rms_angle_radians": np.mean(angles) if angles else np.nan,
                    "speed_radians_per_step": np.mean(angles) / (step - before) if angles else np.nan,
                    "n_matrices": len(moving),
                }
            )
        before = step
    return rows


def test_every_column_agrees_with_float64_algebra(study, followed) -> None:
    folder, updates = study
    table = followed[0]
    assert list(table.columns) == COLUMNS.split()
    weights, base = (weights_of(folder / name / "model") for name in ("aligned", "base"))
    parts = {("all", "all"): list(weights)}
    for level in ("place", "type"):
        for name in weights:
            parts.setdefault((level, part_of(name, level)), []).append(name)
    assert set(zip(table["level"], table["part"], strict=True)) == set(parts)
    for (level, part), names in parts.items():
        rows = table[(table["level"] == level) & (table["part"] == part)]
        assert rows["step"].tolist() == list(STEPS)
        expected = pd.DataFrame(rows_by_hand(updates, weights, base, names))
        found = rows[list(expected.columns)].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, rtol=2e-5, atol=1e-6, check_dtype=False)
    tensors = pd.read_parquet(followed[1] / "tensors.parquet")
    for name in (Q, K, NORM, "model.embed_tokens.weight"):
        rows = tensors[tensors["tensor"] == name].reset_index(drop=True)
        expected = pd.DataFrame(rows_by_hand(updates, weights, base, [name])).drop(columns="n_matrices")
        pd.testing.assert_frame_equal(rows[list(expected.columns)], expected, rtol=2e-5, atol=1e-6, check_dtype=False)
        assert set(rows["rank"].dropna()) <= {0, 4}


def test_the_chance_of_an_angle_is_that_of_random_subspaces(followed) -> None:
    source = np.random.default_rng(0)
    drawn = [
        np.sqrt(np.mean(scipy.linalg.subspace_angles(*(source.standard_normal((16, 4)) for _ in range(2))) ** 2))
        for _ in range(300)
    ]
    queries = followed[0][followed[0]["part"] == "v"]
    assert queries["rms_angle_chance_radians"].to_numpy()[1:] == pytest.approx(np.mean(drawn), abs=0.03)
    assert math.isnan(queries["rms_angle_chance_radians"].iloc[0])


def test_overlaps_agree_with_a_float64_svd_and_are_one_with_the_same_update(study, followed) -> None:
    folder, updates = study
    overlaps = pd.read_parquet(followed[1] / "overlaps.parquet")
    assert list(overlaps.columns) == "step level part other overlap chance".split()
    weights = weights_of(folder / "aligned" / "model")
    harmful = weights_of(folder / "harmful" / "model")
    for place, update in enumerate(updates):
        values, chances = [], []
        for name, weight in weights.items():
            if weight.ndim == 2 and update[name].any():
                bases = [oracle.basis_at_energy(one, ENERGY) for one in (update[name], harmful[name] - weight)]
                values.append(oracle.overlap(*bases))
                chances.append(max(basis.shape[1] for basis in bases) / len(bases[0]))
        row = overlaps[(overlaps["level"] == "all") & (overlaps["other"] == "harmful")].iloc[place]
        assert (row["overlap"], row["chance"]) == pytest.approx((np.mean(values), np.mean(chances)), abs=1e-5)
        assert row["overlap"] == pytest.approx(row["chance"], abs=0.06)  # the random control
    last = overlaps[(overlaps["other"] == "useful") & (overlaps["step"] == STEPS[-1])].set_index("part")
    assert last["overlap"].dropna().to_numpy() == pytest.approx(1, abs=1e-5)
    assert set(last.index[last["overlap"].isna()]) == {"norm"}


def test_results_say_what_was_found_and_what_is_missing(followed) -> None:
    table, out = followed
    result = json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)
    summary, whole = result["summary"], table[table["level"] == "all"]
    assert summary["steps"] == list(STEPS)
    assert summary["reference"]["path"] == START_FILE
    assert summary["path_length"] == pytest.approx(whole["path_length"].iloc[-1])
    assert summary["straightness"] == pytest.approx(whole["straightness"].iloc[-1])
    fastest = whole.loc[whole["speed_radians_per_step"].idxmax(), "step"]
    assert summary["turned_fastest"]["step"] == fastest
    assert summary["turned_fastest"]["place"] in set(table["part"])
    left_out = {entry["name"]: entry["reason"] for entry in result["left_out"]}
    assert "step 4, 10, 20, 28, 30" in left_out[K]
    assert "(step 4)" in left_out[Q]
    assert f"useful: {K}" in left_out
    assert "change points of energy_fraction" not in left_out
    assert len(result["inputs"]) == len(STEPS) + 5
    changes = pd.read_csv(out / "change_points.csv")
    assert list(changes.columns) == "series step mean_before mean_after move usual_move n".split()
    assert set(summary["change_points"]) == {
        *("step_norm_per_step", "speed_radians_per_step", "energy_fraction", "overlap_useful", "overlap_harmful")
    }
    assert (out / "trajectory.png").read_bytes()[:4] == b"\x89PNG"
    pd.testing.assert_frame_equal(pd.read_parquet(out / "table.parquet"), table)


def small(seed: int, size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = (Q, K, "lm_head.weight")
    return {name: torch.randn(size, size, generator=generator) for name in names} | {
        NORM: torch.randn(size, generator=generator)
    }


def test_a_straight_line_is_straight(tmp_path) -> None:
    update, unknown = small(0), {"path": None}
    lines = [{name: step * value for name, value in update.items()} for step in STEPS]
    for name, reference in (("start", {"path": START_FILE}), ("folder", unknown)):
        write_snapshots(tmp_path / name / "deltas", lines, reference)
        table = trajectory(str(tmp_path / name), str(tmp_path / f"{name}-out"), **QUICK)
        defined = table[(table["step"] > STEPS[0]) & (table["part"] != "norm")]
        assert defined["straightness"].to_numpy() == pytest.approx(1, abs=1e-6)
        assert table["cos_to_final"].to_numpy() == pytest.approx(1, abs=1e-6)
        assert defined["rms_angle_radians"].to_numpy() == pytest.approx(0, abs=1e-3)
        whole = table[table["level"] == "all"]
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
        first = 0 if name == "start" else STEPS[0]
        assert whole["path_length"].to_numpy() == pytest.approx(norm * (np.array(STEPS) - first), rel=1e-6)
        speeds = whole["step_norm_per_step"].to_numpy()
        assert speeds[1:] == pytest.approx(norm, rel=1e-6)
        assert math.isnan(speeds[0]) == (name == "folder")
        assert math.isnan(whole["straightness"].iloc[0]) == (name == "folder")
        assert table["energy_fraction"].isna().all()
        left_out = json.loads((tmp_path / f"{name}-out" / "result.json").read_text())["left_out"]
        assert left_out[0]["name"] == "energy_fraction"


def test_independent_updates_turn_and_overlap_as_chance_has_it(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [{Q: torch.randn(120, 120, generator=generator)} for _ in STEPS]
    write_snapshots(tmp_path / "deltas", updates, {"path": None})
    table = trajectory(str(tmp_path), str(tmp_path / "out"), draws=50)
    whole = table[table["level"] == "all"].iloc[1:]
    chance = whole["rms_angle_chance_radians"].to_numpy()
    assert whole["rms_angle_radians"].to_numpy() == pytest.approx(chance, abs=0.05)  # four of their own deviations
    assert whole["rms_angle_radians"].mean() == pytest.approx(chance.mean(), abs=0.025)
    assert whole["cos_to_final"].to_numpy()[:-1] == pytest.approx(0, abs=0.05)


def factors(seed: int) -> dict[str, FactorUpdate]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {Q: (16, 16), K: (16, 12), "lm_head.weight": (40, 16)}
    return {
        name: FactorUpdate(
            torch.randn(out, 3, generator=generator), torch.randn(3, into, generator=generator), 0.5 + seed
        )
        for name, (out, into) in shapes.items()
    }


def test_updates_in_factors_give_the_table_of_their_products(tmp_path, study) -> None:
    in_factors = [factors(seed) for seed in range(len(STEPS))]
    dense = [{name: update.dense() for name, update in found.items()} for found in in_factors]
    mixed = [dense[0], *in_factors[1:3], *dense[3:]]
    tables = []
    for name, updates in (("factors", in_factors), ("dense", dense), ("mixed", mixed)):
        write_snapshots(tmp_path / name, updates, {"path": START_FILE})
        tables.append(trajectory(str(tmp_path / name), str(tmp_path / f"{name}-out"), rank=RankRule(count=2), **QUICK))
        tables[-1] = tables[-1].sort_values(["level", "part", "step"], ignore_index=True)
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-4, atol=1e-5)


def test_too_few_directions_are_followed_as_they_are_and_said(tmp_path) -> None:
    write_snapshots(tmp_path / "deltas", [factors(seed) for seed in range(5)], {"path": None})
    table = trajectory(str(tmp_path), str(tmp_path / "out"), rank=RankRule(count=4), **QUICK)
    assert table["rms_angle_radians"].iloc[1] > 0
    left_out = json.loads((tmp_path / "out" / "result.json").read_text())["left_out"]
    assert sum("3 directions" in entry["reason"] and "the 4 to follow" in entry["reason"] for entry in left_out) == 3


def test_shares_of_energy_of_a_compressed_update_are_of_the_whole(tmp_path) -> None:
    reference = save_llama(tmp_path / "reference")
    other = save_perturbed(reference, tmp_path / "other", seed=1)
    generator = torch.Generator().manual_seed(5)
    update = {"lm_head.weight": torch.randn(128, 16, generator=generator) * torch.logspace(0, -1, 16)}
    (kept, lost) = compress(update["lm_head.weight"], left_factors(update["lm_head.weight"]), RankRule(count=9))
    assert lost > 0.02
    found = {}
    for name, value in (("whole", update["lm_head.weight"]), ("kept", kept)):
        written = [{"lm_head.weight": value}] * 2
        losses = {"lm_head.weight": lost} if name == "kept" else None
        write_snapshots(tmp_path / name / "deltas", written, describe_input(reference), (1, 2), losses)
        for energy in (0.6, 0.999):
            out = tmp_path / f"{name}-{energy}"
            settings = {"rank": RankRule(energy=energy), "energy": energy, "others": {"other": other}}
            trajectory(str(tmp_path / name), str(out), **settings, **QUICK)
            (row, *_) = pd.read_parquet(out / "tensors.parquet").to_dict("records")
            reasons = [entry["reason"] for entry in json.loads((out / "result.json").read_text())["left_out"]]
            found[name, energy] = row["overlap_other"], row["rank"], sum("compressed" in reason for reason in reasons)
    assert found["kept", 0.6][:2] == pytest.approx(found["whole", 0.6][:2], abs=1e-5)
    assert found["kept", 0.999][1] == 9 < found["whole", 0.999][1]
    assert [found[key][2] for key in (("whole", 0.999), ("kept", 0.6), ("kept", 0.999))] == [0, 1, 2]


def test_a_subspace_file_measures_as_the_models_it_was_made_of(study, followed, tmp_path) -> None:
    folder, _ = study
    file = str(tmp_path / "s.safetensors")
    make_subspace(*(str(folder / name / "model") for name in ("base", "aligned")), file, RANK)
    run = str(folder / "contaminated" / "deltas")  # the folder of the snapshots does as well
    table = trajectory(run, str(tmp_path / "out"), subspace=file, rank=RankRule(count=1), **QUICK)
    for column in ("energy_fraction", "energy_fraction_chance", "frobenius_norm"):
        assert table[column].to_numpy() == pytest.approx(followed[0][column].to_numpy(), abs=1e-6, nan_ok=True)


def test_others_count_from_a_reference_folder_or_the_start_of_an_adapter(study, followed, tmp_path) -> None:
    folder, updates = study
    aligned, expected = str(folder / "aligned" / "model"), pd.read_parquet(followed[1] / "overlaps.parquet")
    weights = weights_of(aligned)
    write_snapshots(tmp_path / "folder" / "deltas", updates, describe_input(aligned))
    # As LoRA on the matrices leaves it: only what is trained in full is kept.
    start = keep_start(tmp_path / "lora" / "deltas", {name: w for name, w in weights.items() if w.ndim == 1})
    write_snapshots(tmp_path / "lora" / "deltas", updates, start)
    others = inputs(folder)["others"]
    with pytest.raises(InputError, match="leave others out"):
        trajectory(str(tmp_path / "lora"), str(tmp_path / "o"), others=others)
    manifest = {"parts": [{"starts_from": aligned}]}
    (tmp_path / "lora" / "manifest.json").write_text(json.dumps(manifest))
    for name in ("folder", "lora"):
        out = tmp_path / f"{name}-out"
        trajectory(str(tmp_path / name), str(out), rank=RANK, energy=ENERGY, others=others, **QUICK)
        pd.testing.assert_frame_equal(pd.read_parquet(out / "overlaps.parquet"), expected)
    recorded = describe_input(aligned) | {"sha256": {"model.safetensors": "another"}}
    (tmp_path / "lora" / "manifest.json").write_text(json.dumps({**manifest, "inputs": [recorded]}))
    with pytest.raises(InputError, match="has changed since the run counted from it"):
        trajectory(str(tmp_path / "lora"), str(tmp_path / "o"), others=others)


def test_a_reference_that_has_changed_is_refused_where_it_is_needed(study, tmp_path) -> None:
    folder, updates = study
    others = inputs(folder)["others"]
    model = save_perturbed(str(folder / "aligned" / "model"), tmp_path / "model", seed=0, size=0.0)
    write_snapshots(tmp_path / "folder" / "deltas", updates, describe_input(model))
    edit(Path(model), lambda _, value: value + 1)
    kept = tmp_path / "kept" / "deltas"
    write_snapshots(kept, updates, keep_start(kept, weights_of(model)))
    edited = {name: value + 1 for name, value in weights_of(model).items()}
    save_file(edited, kept / "reference.safetensors")
    for name in ("folder", "kept"):
        with pytest.raises(InputError, match="another sha256"):
            trajectory(str(tmp_path / name), str(tmp_path / "o"), others=others)
        trajectory(str(tmp_path / name), str(tmp_path / f"{name}-out"), **QUICK)
    (kept / "reference.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        trajectory(str(tmp_path / "kept"), str(tmp_path / "o"), others=others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "/nowhere"}, "run folder /nowhere does not exist"),
        ({"run": "EMPTY"}, "holds 0 snapshots .* needs 2 or more"),
        ({"run": "ONE"}, "holds 1 snapshots .* needs 2 or more"),
        ({"run": "MIXED"}, "not of the same weights"),
        ({"others": {"wide": "WIDE"}}, r"embed_tokens.* is \(128, 16\) in the run and \(160, 16\) there"),
        ({"base": "WIDE"}, "not of one shape"),
        ({"base": "WIDE", "aligned": "WIDE"}, r"of another shape than the run: .*\(160, 16\) there"),
        ({"base": None}, "only one of base and aligned"),
        ({"subspace": "x.safetensors"}, "both subspace and base"),
        ({"base": None, "aligned": None, "subspace": "OTHER"}, "has 16 dimensions in the run and 4 there"),
        ({"energy": 0.0}, r"in \(0, 1\], got 0\.0"),
        ({"energy": 1.2}, r"in \(0, 1\], got 1\.2"),
        ({"draws": 0}, "draws must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(study, tmp_path, changes, message) -> None:
    folder, updates = study
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "ONE", "MIXED", "WIDE")}
    if "OTHER" in changes.values():
        pair = save_llama(tmp_path / "a"), save_llama(tmp_path / "b", seed=1)
        for model in pair:
            edit(Path(model), lambda name, value: value[:4].clone())
        make_subspace(*pair, str(tmp_path / "s.safetensors"), RankRule(count=1))
        changes = changes | {"subspace": str(tmp_path / "s.safetensors")}
    if "WIDE" in str(changes):
        save_llama(places["WIDE"])
        edit(places["WIDE"], lambda _, value: torch.cat([value, value[:32]]), only="embed_tokens")
        paths = {key: str(places["WIDE"]) for key in ("base", "aligned") if changes.get(key) == "WIDE"}
        changes = changes | paths | ({"others": {"wide": str(places["WIDE"])}} if "others" in changes else {})
    places["EMPTY"].mkdir()
    write_snapshots(places["ONE"] / "deltas", updates[:1], {"path": None}, (3,))
    write_snapshots(places["MIXED"] / "deltas", [small(0), small(1, 8)], {"path": None}, (3, 4))
    if changes.get("run") in places:
        changes = {"run": str(places[changes["run"]])}
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        trajectory(**{"run": str(folder / "contaminated"), "out": str(out), **inputs(folder), **changes})
    assert not list(tmp_path.glob("*out*"))


def test_an_update_that_is_not_finite_is_named(tmp_path) -> None:
    updates = [small(seed) for seed in range(3)]
    updates[2][K][3, 3] = math.nan
    write_snapshots(tmp_path / "deltas", updates, {"path": None}, (1, 2, 3))
    with pytest.raises(InputError, match=rf"{K} in .*step=00000003\.safetensors is NaN"):
        trajectory(str(tmp_path), str(tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))


def test_the_command_of_the_yaml(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY", str(study[0]))
    config = ROOT / "configs" / "organism" / "analysis" / "trajectory.yaml"
    options = [f"--out={tmp_path / 'out'}", "--rank.fraction=null", "--rank.count=2", "--draws=2"]
    done = run_command(ANALYZE, "trajectory", "--config", config, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "frobenius_norm" in done.stdout
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["rank"]["count"] == 2
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == len(STEPS) * (1 + 5 + 10)  # all, places, types


def test_a_label_that_is_no_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    steps = [1, 2, 3]
    everything = {"level": "all", "part": "all", "step": steps}
    measured = "path_length frobenius_norm rms_angle_chance_radians speed_radians_per_step energy_fraction".split()
    table = pd.DataFrame({**everything, **dict.fromkeys([*measured, "energy_fraction_chance"], 0.5)})
    parts = [
        pd.DataFrame({**everything, "other": label, "overlap": 0.5, "chance": 0.1})
        for label in (r"$\foo$", "a $1 and $2", f"{ALL.replace(HALF, '')}{LONG}")
    ]
    changes = pd.DataFrame({"series": [], "step": [], "move": []}).astype({"series": str})
    draw_trajectory(tmp_path / "trajectory.png", table, pd.concat(parts), changes)
    assert (tmp_path / "trajectory.png").stat().st_size > 1000
