import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from support import oracle
from support.tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of

from safety_subspaces.analysis.atlas.bootstrap import (
    Statistic,
    Term,
    aggregate,
    bootstrap,
    estimate,
    interval,
    resample,
)
from safety_subspaces.analysis.atlas.command import atlas
from safety_subspaces.analysis.atlas.conclusions import MARGIN, conclude, kinds_of
from safety_subspaces.analysis.atlas.measures import COLUMNS as TENSOR_COLUMNS
from safety_subspaces.analysis.atlas.measures import ENERGY_KEPT, OVERLAP, beta_median
from safety_subspaces.analysis.atlas.run import expand_seeds
from safety_subspaces.analysis.atlas.summary import read_counts, summarise
from safety_subspaces.analysis.atlas.tensors import AtlasTensor, Choice, SeedModels
from safety_subspaces.analysis.overlap.command import overlap
from safety_subspaces.analysis.project.command import project
from safety_subspaces.artefacts.errors import InputError

COLUMNS = (
    "conclusion subject rule rank side aggregation layer type seed estimate low high margin n_tensors n_undefined "
    "n_seeds verdict"
).split()
Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
EMBEDDINGS = "model.embed_tokens.weight"
CHOICES = (Choice("fraction", 0.25), Choice("energy", 0.5), Choice("count", 2))
SMALL = {"fractions": [0.25], "energies": [0.5], "counts": [2], "bootstrap": 60}


def share_directions(folder, seed, size=0.1):
    """Add to every matrix a part of rank two whose output directions are the same whatever the seed."""
    generator = torch.Generator().manual_seed(seed)

    def add(name, value):
        if value.ndim != 2:
            return value
        shared = torch.randn(value.shape[0], 2, generator=torch.Generator().manual_seed(len(name)))
        return value + size * shared @ torch.randn(2, value.shape[1], generator=generator)

    edit(Path(folder), add)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of a base, an aligned model, and fine-tunes: useful and useful_again share directions, harmful none."""
    folder = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        here = folder / f"organism-{seed}"
        base = save_llama(here / "base", seed=seed)
        aligned = save_perturbed(base, here / "aligned", seed=10 + seed)
        for number, label in enumerate(("useful", "useful_again", "harmful")):
            save_perturbed(aligned, here / label, seed=100 * (number + 1) + seed)
            if label != "harmful":
                share_directions(here / label, 7 * number + seed)
    return folder


def paths(study, seed="{seed}", labels=("useful", "useful_again", "harmful")):
    here = f"{study}/organism-{seed}"
    return {
        **{"base": f"{here}/base", "aligned": f"{here}/aligned"},
        **{"tuned": {label: f"{here}/{label}" for label in labels}, "floors": [["useful", "useful_again"]]},
    }


@pytest.fixture(scope="module")
def mapped(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("atlas") / "out"
    return atlas(**paths(study), seeds=[0, 1], out=str(out), **SMALL), out


# What is measured of one tensor


def svd_of(study, label, name, side, seed=0):
    """An update's left vectors on a side and its squared singular values, in float64, and the update itself."""
    folder = Path(f"{study}/organism-{seed}")
    start = "base" if label == "aligned" else "aligned"
    delta = oracle.as_matrix(weights_of(folder / label)[name].double() - weights_of(folder / start)[name].double())
    delta = delta.T if side == "right" else delta
    left, values = oracle.left_svd(delta)
    return left.numpy(), values.square().numpy(), delta.numpy()


def rank_by_hand(rule, value, energies):
    if rule == "fraction":
        return max(1, round(value * len(energies)))
    if rule == "count":
        return min(int(value), len(energies))
    return int(np.searchsorted(np.cumsum(energies), value * energies.sum())) + 1


@pytest.mark.parametrize(
    ("name", "side"),
    [(Q, "left"), (Q, "right"), (EMBEDDINGS, "left"), (EMBEDDINGS, "right"), (NORM, "left")]
    + [(f"model.layers.1.mlp.{kind}_proj.weight", side) for kind in ("up", "down") for side in ("left", "right")],
)
def test_measures_agree_with_a_float64_svd(study, mapped, name, side):
    table = pd.read_parquet(mapped[1] / "tensors.parquet")
    rows = table[(table["tensor"] == name) & (table["side"] == side) & (table["seed"] == "0")]
    assert len(rows) == 3 * (3 + 3)
    alignment, spectrum, _ = svd_of(study, "aligned", name, side)
    dim = len(alignment)
    for row in rows.to_dict("records"):
        first, energies, delta = svd_of(study, row["first"], name, side)
        if row["measure"] == ENERGY_KEPT:
            k = rank_by_hand(row["rule"], row["rank"], spectrum)
            assert (row["rank_first"], row["dim"]) == (k, dim)
            total = np.sum(delta**2)
            assert row["energy_first"] == pytest.approx(total, rel=1e-5)
            assert row["value"] == pytest.approx(np.sum((alignment[:, :k].T @ delta) ** 2) / total, abs=1e-5)
            assert row["ceiling"] == pytest.approx(energies[:k].sum() / total, abs=1e-5)
            assert row["chance"] == pytest.approx(k / dim)
            leverages = (alignment[:, :k] ** 2).sum(axis=1)
            expected = (leverages @ (delta**2).sum(axis=1)) / total
            assert row["matched_chance"] == pytest.approx(expected, abs=1e-4)
        else:
            second, others, _ = svd_of(study, row["second"], name, side)
            ku, kh = (rank_by_hand(row["rule"], row["rank"], values) for values in (energies, others))
            assert (row["rank_first"], row["rank_second"]) == (ku, kh)
            one, other = first[:, :ku], second[:, :kh]
            # Directions next to the cut turn by 3e-4 where two singular values nearly agree, as those of noise do.
            assert row["value"] == pytest.approx(np.sum((one.T @ other) ** 2) / min(ku, kh), abs=1e-4)
            expected = np.sum((one**2).sum(axis=1) * (other**2).sum(axis=1)) / min(ku, kh)
            assert row["matched_chance"] == pytest.approx(expected, abs=1e-4)
            assert row["chance"] == pytest.approx(max(ku, kh) / dim)
            assert row["energy_second"] == pytest.approx(others.sum(), rel=1e-5)


def test_right_is_left_of_the_transposed(tmp_path):
    """Square weights are transposed in every model; whatever the left side was, the right one now is."""
    found = {}
    for turned in (False, True):
        folder = tmp_path / str(turned)
        base = save_llama(folder / "base")
        aligned = save_perturbed(base, folder / "aligned", seed=1)
        tuned = {label: save_perturbed(aligned, folder / label, seed=seed) for seed, label in enumerate("ab", 2)}
        if turned:
            for path in (base, aligned, *tuned.values()):
                edit(Path(path), lambda _, value: value.T.contiguous(), only="q_proj")
        task = AtlasTensor((SeedModels("0", base, aligned, tuned),), ("left", "right"), CHOICES)
        record = task(Q, torch.device("cpu"))
        found[turned] = {table: {row["side"]: row for row in record[table]} for table in ("energies", "overlaps")}
    for table, lists in (("energies", ("share", "ceiling", "rank")), ("overlaps", ("overlap", "matched"))):
        for side, other in (("left", "right"), ("right", "left")):
            for name in lists:
                assert found[True][table][side][name] == pytest.approx(found[False][table][other][name], abs=1e-5)


def test_an_adapter_measures_as_the_same_update_merged(study, tmp_path):
    aligned = f"{study}/organism-0/aligned"
    adapters = {label: save_adapter(aligned, tmp_path / label, seed=seed) for seed, label in enumerate(("a", "b"))}
    merged = {}
    for label, path in adapters.items():
        from peft import PeftModel
        from transformers import LlamaForCausalLM

        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(aligned), path).merge_and_unload()
        merged[label] = str(tmp_path / f"{label}_merged")
        model.save_pretrained(merged[label])
    base = f"{study}/organism-0/base"
    records = [
        AtlasTensor((SeedModels("0", base, aligned, tuned),), ("left", "right"), CHOICES)(Q, torch.device("cpu"))
        for tuned in (adapters, merged)
    ]
    for table, name in (("energies", "share"), ("overlaps", "overlap"), ("overlaps", "matched")):
        for one, other in zip(records[0][table], records[1][table], strict=True):
            assert one[name] == pytest.approx(other[name], abs=1e-3)


def test_numbers_are_those_of_project_and_overlap(study, mapped, tmp_path):
    given = paths(study, seed=1)
    swept = project(
        given["base"], given["aligned"], given["tuned"], str(tmp_path / "project"), ["top"], ["onto"], [0.25]
    ).set_index("tuned")
    table = pd.read_parquet(mapped[1] / "tensors.parquet")
    table = table[(table["seed"] == "1") & (table["side"] == "left")]
    kept = table[(table["measure"] == ENERGY_KEPT) & (table["rule"] == "fraction")]
    for label, rows in kept.groupby("first"):
        pooled = (rows["value"] * rows["energy_first"]).sum() / rows["energy_first"].sum()
        assert pooled == pytest.approx(swept.loc[label, "energy_kept"], abs=1e-6)
    compared = overlap(
        given["aligned"], given["tuned"], str(tmp_path / "overlap"), energies=[0.5], controls=0, angles=False
    )
    shared = table[(table["measure"] == OVERLAP) & (table["rule"] == "energy")]
    both = shared.merge(compared, on=["first", "second", "tensor"], suffixes=("", "_there"))
    assert len(both) == len(compared)
    assert both["value"].to_numpy() == pytest.approx(both["overlap"].to_numpy(), abs=1e-6)
    assert both["chance"].to_numpy() == pytest.approx(both["chance_there"].to_numpy())


@pytest.mark.parametrize("dim", [16, 96])
def test_the_median_under_chance_is_that_of_squared_cosines(dim):
    exact = stats.beta.ppf(0.5, 0.5, (dim - 1) / 2)
    found = beta_median(np.array([1 / dim, 1.0, math.nan]), np.array([2 * (dim - 1) / (dim**2 * (dim + 2)), 0.0, 0.1]))
    assert found[0] == pytest.approx(exact, rel=1e-6)
    assert found[1] == 1
    assert math.isnan(found[2])


# Aggregation and the bootstrap


def one_column(values, weight=None):
    """A plain mean of numbers of seeds and tensors, as a statistic of one column."""
    values = np.asarray(values, float)[..., None]
    weight = np.ones_like(values) if weight is None else np.asarray(weight, float)[..., None]
    return Statistic((Term(values, np.ones_like(values), weight),), (1.0,), values)


def test_aggregations_of_a_resample_are_those_of_the_tensors_it_took():
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=(1, 7)), generator.uniform(0.1, 5, (1, 7))
    statistic = one_column(values, weights)
    for counts in generator.multinomial(7, np.full(7, 1 / 7), size=20):
        taken, weight = np.repeat(values[0], counts), np.repeat(weights[0], counts)
        found = {how: aggregate(statistic, 0, counts[None], how).item() for how in ("pooled", "mean", "median")}
        assert found["mean"] == pytest.approx(taken.mean())
        assert found["median"] == pytest.approx(np.median(taken))
        assert found["pooled"] == pytest.approx(np.average(taken, weights=weight))


def test_undefined_tensors_are_left_out_of_every_aggregation():
    statistic = one_column([[1.0, math.nan, 2.0, 6.0]], [[1.0, 100.0, 1.0, 2.0]])
    assert [estimate(statistic, [0], how).item() for how in ("mean", "median", "pooled")] == [3, 2, 3.75]
    nothing = one_column([[math.nan, math.nan]])
    assert all(math.isnan(estimate(nothing, [0], how).item()) for how in ("mean", "median", "pooled"))


def intervals(values, seeds, generator, count=200):
    statistic = one_column(values)
    samples = bootstrap(statistic, resample(seeds, values.shape[1], count, generator), "mean")
    units = len(seeds) if len(seeds) > 1 else values.shape[1]
    return [bound.item() for bound in interval(samples, np.array([units]))]


@pytest.mark.parametrize(
    ("seeds", "tensors", "spread", "least", "most"), [(1, 12, 0.0, 0.91, 0.98), (5, 8, 1.0, 0.91, 1.0)]
)
def test_intervals_cover_a_known_mean_at_about_their_rate(seeds, tensors, spread, least, most):
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        values = 0.3 + spread * generator.normal(size=(seeds, 1)) + generator.normal(size=(seeds, tensors))
        low, high = intervals(values, list(range(seeds)), generator)
        covered.append(low <= 0.3 <= high)
    assert least <= np.mean(covered) <= most


def test_seeds_that_differ_widen_the_interval_that_their_tensors_do_not():
    """Tensors alone would claim a difference that another training would not show: a negative control."""
    values = np.array([[-1.0], [1.0], [4.0]]) + 0.01 * np.random.default_rng(0).normal(size=(3, 20))
    low, high = intervals(values, [0, 1, 2], np.random.default_rng(0))
    assert low < 0 < high
    own = intervals(values, [2], np.random.default_rng(0))
    assert 3.9 < own[0] < own[1] < 4.1


def test_too_few_tensors_have_no_interval():
    assert all(math.isnan(bound) for bound in intervals(np.ones((1, 2)), [0], np.random.default_rng(0)))


# Verdicts


def synthetic(values, seeds=("0",), floors=True, layers=1, types="q"):
    """A table of eight matrices with numbers of our choosing, a little noise, and all else plain.

    Args:
        values: Share kept of useful and of harmful, overlaps of useful and harmful and of two of one kind.
    """
    generator = np.random.default_rng(0)
    labels = ("useful", "harmful", "useful_again") if floors else ("useful", "harmful")
    rows = []
    for seed in seeds:
        for number in range(8):
            place = {
                "seed": seed,
                "tensor": f"t{number}",
                "layer": number % layers,
                "type": types[number * len(types) // 8],
            }
            place |= {"is_matrix": True, "side": "left", "rule": "count", "rank": 4.0, "dim": 16}
            level = {"chance": 0.25, "matched_chance": 0.25, "chance_median": 0.25}
            for label in labels:
                kept = values.get(label, values.get("useful", 0.3)) + 0.01 * generator.normal()
                own = {"measure": ENERGY_KEPT, "first": label, "second": "", "energy_first": 1.0 + number}
                rows.append(place | own | level | {"value": kept, "ceiling": 0.85})
            for first, second in [(a, b) for at, a in enumerate(labels) for b in labels[at + 1 :]]:
                same = {first, second} == {"useful", "useful_again"}
                shared = values.get("floor" if same else "overlap", 0.3) + 0.01 * generator.normal()
                own = {"measure": OVERLAP, "first": first, "second": second, "energy_first": 1.0, "energy_second": 2.0}
                rows.append(place | own | level | {"value": shared})
    return pd.DataFrame(rows).reindex(columns=list(TENSOR_COLUMNS))


def verdicts(table, conclusion, subject, floors=(("useful", "useful_again"),), **where):
    found = conclude(table, floors, 100, 0)
    found = found[(found["conclusion"] == conclusion) & (found["subject"] == subject)]
    for column, value in where.items():
        found = found[found[column] == value]
    return found


PAIR = "useful - harmful"


@pytest.mark.parametrize(
    ("conclusion", "subject", "values", "verdict"),
    [
        ("alignment_above_chance", "useful", {"useful": 0.5}, "holds"),
        ("alignment_above_chance", "useful", {"useful": 0.1}, "opposite"),
        ("alignment_above_chance", "useful", {"useful": 0.25}, "undecided"),
        ("alignment_above_matched_chance", "useful", {"useful": 0.5}, "holds"),
        ("alignment_above_matched_chance", "useful", {"useful": 0.1}, "opposite"),
        ("same_alignment_energy", PAIR, {"useful": 0.5, "harmful": 0.45}, "holds"),
        ("same_alignment_energy", PAIR, {"useful": 0.45, "harmful": 0.5}, "holds"),
        ("same_alignment_energy", PAIR, {"useful": 0.8, "harmful": 0.4}, "opposite"),
        ("same_alignment_energy", PAIR, {"useful": 0.4, "harmful": 0.8}, "opposite"),
        ("same_alignment_energy", PAIR, {"useful": 0.5, "harmful": 0.5 - MARGIN * 0.6}, "undecided"),
        ("overlap_above_matched_chance", PAIR, {"overlap": 0.4}, "holds"),
        ("overlap_above_matched_chance", PAIR, {"overlap": 0.1}, "opposite"),
        ("overlap_above_matched_chance", PAIR, {"overlap": 0.25}, "undecided"),
        ("overlap_nearer_to_same_kind", PAIR, {"overlap": 0.6, "floor": 0.65}, "holds"),
        ("overlap_nearer_to_same_kind", PAIR, {"overlap": 0.3, "floor": 0.65}, "opposite"),
        ("overlap_nearer_to_same_kind", PAIR, {"overlap": 0.45, "floor": 0.65}, "undecided"),
        ("overlap_nearer_to_same_kind", PAIR, {"overlap": 0.45, "floor": 0.25}, "unknown"),
    ],
)
def test_each_conclusion_has_every_verdict(conclusion, subject, values, verdict):
    whole = verdicts(synthetic(values), conclusion, subject, layer="all", type="all")
    assert list(whole["aggregation"]) == ["pooled", "mean", "median", "blocks"]
    if verdict == "undecided":  # a tie of all four by chance is not asked for
        assert (whole["verdict"] == verdict).sum() >= 3
    else:
        assert set(whole["verdict"]) == {verdict}


def test_the_margin_is_a_quarter_of_the_room_above_chance():
    rows = verdicts(synthetic({"useful": 0.5, "harmful": 0.5}), "same_alignment_energy", PAIR)
    assert rows["margin"].to_numpy() == pytest.approx((0.85 - 0.25) / 4)


def test_cells_are_all_tensors_each_layer_and_each_type():
    table = synthetic({}, layers=2, types="qkvo")
    rows = verdicts(table, "overlap_above_matched_chance", PAIR, aggregation="mean")
    cells = list(zip(rows["layer"], rows["type"], rows["n_tensors"], strict=True))
    layers = [("0", "all", 4), ("1", "all", 4)]
    assert cells == [("all", "all", 8), *layers, *[("all", kind, 2) for kind in "qkvo"]]
    few = rows[rows["n_tensors"] == 2]
    assert set(few["verdict"]) == {"unknown"}
    assert few[["low", "high"]].isna().all().all()
    assert few["estimate"].notna().all()


def test_seeds_stand_for_themselves_and_together():
    rows = verdicts(synthetic({}, seeds=("0", "1", "2")), "alignment_above_chance", "useful", aggregation="mean")
    whole = rows[(rows["layer"] == "all") & (rows["type"] == "all")].set_index("seed")
    assert list(whole.index) == ["all", "0", "1", "2"]
    assert (whole.loc["all", "n_tensors"], whole.loc["all", "n_seeds"], whole.loc["1", "n_seeds"]) == (24, 3, 1)
    assert whole.loc["all", "estimate"] == pytest.approx(whole["estimate"].iloc[1:].mean())


def test_fine_tunes_without_floors_have_no_place_between():
    found = conclude(synthetic({}, floors=False), (), 100, 0)
    assert set(found["conclusion"]) == {
        "alignment_above_chance",
        "alignment_above_matched_chance",
        "same_alignment_energy",
        "overlap_above_matched_chance",
    }


def test_a_whole_space_or_an_empty_one_decides_nothing():
    table = synthetic({"useful": 0.5})
    for name, chance in (("t0", 1.0), ("t2", 0.0)):
        table.loc[table["tensor"] == name, ["chance", "value"]] = chance
    for conclusion, subject in (("alignment_above_chance", "useful"), ("same_alignment_energy", PAIR)):
        rows = verdicts(table, conclusion, subject, layer="all", type="all")
        assert set(zip(rows["n_tensors"], rows["n_undefined"], strict=True)) == {(6, 2)}
    whole = table.assign(chance=1.0)
    assert set(conclude(whole, [["useful", "useful_again"]], 100, 0)["verdict"]) == {"unknown"}


def test_equal_seeds_give_equal_intervals():
    table = synthetic({})
    first, second, other = (conclude(table, (), 100, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, second)
    assert not first["low"].equals(other["low"])
    assert first["estimate"].equals(other["estimate"])


def test_floors_make_kinds():
    kinds = kinds_of(["a", "b", "c", "d"], [["c", "b"], ["d", "c"]])
    assert kinds == {"a": "a", "b": "b", "c": "b", "d": "b"}


@pytest.mark.parametrize(
    ("counts", "reading"),
    [
        ((9, 0, 0, 0), "holds throughout"),
        ((9, 0, 0, 50), "holds throughout"),
        ((18, 0, 2, 0), "holds mostly"),
        ((1, 19, 0, 0), "opposite mostly"),
        ((0, 0, 5, 0), "undecided throughout"),
        ((8, 1, 1, 0), "depends"),
        ((0, 0, 0, 4), "unknown"),
    ],
)
def test_readings_say_what_the_counts_come_to(counts, reading):
    assert read_counts(dict(zip(("holds", "opposite", "undecided", "unknown"), counts, strict=True))) == reading


def test_the_summary_names_the_factor_whose_levels_differ_most():
    table = conclude(synthetic({"useful": 0.5}, layers=2, types="qkvo"), (), 100, 0)
    of_one = table[(table["conclusion"] == "alignment_above_chance") & (table["subject"] == "useful")]
    turned = of_one.assign(side="right", verdict=of_one["verdict"].replace("holds", "opposite"))
    summary, found = summarise(pd.concat([of_one, turned]))
    (row,) = summary.to_dict("records")
    assert (row["reading"], row["factor"], row["holds"], row["opposite"]) == ("depends", "side", 12, 12)
    assert row["unknown"] == 2 * 16
    assert "most by side, from 0 % (right) to 100 % (left)" in row["sentence"]
    entry = found["alignment_above_chance"]["useful"]
    assert entry["holds_by"]["side"] == {"left": 1.0, "right": 0.0}
    assert entry["holds_by"]["type"]["q"] is None
    assert summarise(of_one)[0]["reading"].tolist() == ["holds throughout"]


# The command


def test_the_atlas_has_a_row_for_every_choice(mapped):
    summary, out = mapped
    table = pd.read_parquet(out / "table.parquet")
    assert list(table.columns) == COLUMNS
    keys = COLUMNS[:9]
    assert not table.duplicated(keys).any()
    own = table[(table["conclusion"] == "alignment_above_chance") & (table["subject"] == "useful")]
    # All tensors, two layers and nine types of matrices; blocks knows no embeddings or head; norms are on the left.
    sides = own[["side", "aggregation", "layer", "type"]].drop_duplicates()
    cells = sides.groupby(["side", "aggregation"]).size().to_dict()
    assert cells[("left", "mean")] == 1 + 2 + 10
    assert cells[("right", "mean")] == 1 + 2 + 9
    assert cells[("left", "blocks")] == cells[("right", "blocks")] == 1 + 2 + 7
    assert len(own) == len(sides) * 3 * 3  # choices of rank; seeds 0, 1 and all
    assert set(table["seed"]) == {"all", "0", "1"}
    assert set(table["verdict"]) <= {"holds", "opposite", "undecided", "unknown"}
    result = json.loads((out / "result.json").read_text())["summary"]
    assert result["choices"] == len(table)
    assert set(result["conclusions"]) == set(summary["conclusion"]) == set(table["conclusion"])
    counted = summary[["holds", "opposite", "undecided", "unknown"]].sum().sum()
    assert counted == len(table)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "summary.parquet"), summary, check_dtype=False)


def test_a_planted_common_subspace_is_found_and_independent_updates_are_not(study, tmp_path):
    """Controls: planted shares output directions with useful; harmful none, nor one with two (rows scaled alike)."""
    here = Path(f"{study}/organism-0")
    planted = save_perturbed(f"{here}/aligned", tmp_path / "planted", seed=9)
    share_directions(planted, 3)
    scaled = {}
    for seed, label in enumerate(("one", "two"), 20):
        scaled[label] = save_perturbed(f"{here}/aligned", tmp_path / label, seed=seed)
        origin = weights_of(here / "aligned")

        def stretch(name, value, origin=origin):
            if value.ndim != 2:
                return value
            rows = torch.randn(len(value), 1, generator=torch.Generator().manual_seed(len(name)))
            return origin[name] + (value - origin[name]) * (0.8 * rows).exp()

        edit(Path(scaled[label]), stretch)
    tuned = {"useful": f"{here}/useful", "planted": planted, "harmful": f"{here}/harmful", **scaled}
    out = tmp_path / "o"
    ranks = {"fractions": [0.25], "energies": [0.5], "counts": [2]}
    atlas(f"{here}/base", f"{here}/aligned", tuned, str(out), sides=["left"], bootstrap=200, **ranks)
    table = pd.read_parquet(out / "table.parquet")
    table = table[(table["conclusion"] == "overlap_above_matched_chance") & (table["type"] == "all")]
    table = table[table["layer"] == "all"].set_index(["rule", "aggregation"])
    found = table[table["subject"] == "useful - planted"]
    assert set(found["verdict"]) == {"holds"}
    for independent in ("useful - harmful", "one - two"):
        rows = table[table["subject"] == independent]
        assert (rows["verdict"] == "holds").mean() < 0.25
        assert (rows["estimate"].abs() < 0.5 * found["estimate"]).all()


def test_zero_updates_are_counted_and_named(study, tmp_path):
    here = Path(f"{study}/organism-0")
    frozen = save_perturbed(f"{here}/aligned", tmp_path / "frozen", seed=5, only="mlp")
    out = tmp_path / "o"
    tuned = {"a": f"{here}/useful", "b": frozen}
    atlas(f"{here}/base", f"{here}/aligned", tuned, str(out), sides=["left"], **SMALL)
    table = pd.read_parquet(out / "table.parquet")
    rows = table[(table["layer"] == "all") & (table["type"] == "all") & (table["side"] == "left")]
    rows = rows[(rows["aggregation"] == "mean") & (rows["rule"] == "count")].set_index(["conclusion", "subject"])
    assert tuple(rows.loc[("alignment_above_chance", "a"), ["n_tensors", "n_undefined"]]) == (21, 0)
    for conclusion, subject in (("alignment_above_chance", "b"), ("overlap_above_matched_chance", "a - b")):
        assert tuple(rows.loc[(conclusion, subject), ["n_tensors", "n_undefined"]]) == (6, 15)
    result = json.loads((out / "result.json").read_text())
    assert any(entry["name"].endswith(f"b: {Q}") for entry in result["left_out"])


def test_chosen_tensors_and_sides_alone_are_measured(study, tmp_path):
    out = tmp_path / "o"
    atlas(**paths(study, seed=0), out=str(out), tensors=["mlp", "norm"], sides=["right"], **SMALL)
    table, tensors = (pd.read_parquet(out / f"{name}.parquet") for name in ("table", "tensors"))
    assert set(tensors["type"]) == {"gate", "up", "down"}
    assert set(table["side"]) == {"right"}
    assert set(table["seed"]) == {"all"}
    assert set(tensors["seed"]) == {"given"}
    left_out = {entry["name"]: entry["reason"] for entry in json.loads((out / "result.json").read_text())["left_out"]}
    assert "left side alone" in left_out[NORM]
    assert f"base: {Q}" in left_out


def test_workers_change_no_number(study, tmp_path):
    one, two = (
        atlas(**paths(study, seed=0), out=str(tmp_path / str(n)), workers=n, **SMALL, tensors=["q"]) for n in (1, 2)
    )
    pd.testing.assert_frame_equal(one, two)


def test_a_place_for_the_seed_is_filled():
    first, second = expand_seeds("r/o-{seed}/b", "r/o-{seed}/a", {"x": "r/x-{seed}-{seed}"}, [3, 14])
    assert first == SeedModels("3", "r/o-3/b", "r/o-3/a", {"x": "r/x-3-3"})
    assert second.paths == ["r/o-14/b", "r/o-14/a", "r/x-14-14"]
    assert expand_seeds("b", "a", {"x": "t"}, []) == (SeedModels("given", "b", "a", {"x": "t"}),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": {}}, "no fine-tune was given"),
        ({"tuned": {"alignment": "/nowhere"}}, "take another label"),
        ({"floors": [["useful", "usefull"]]}, "names 'usefull', which is no fine-tune"),
        ({"floors": [["useful", "useful"]]}, "pair of different labels"),
        ({"floors": [["useful"]]}, "pair of different labels"),
        ({"seeds": []}, r"no seeds were given to stand for \{seed\}"),
        ({"seeds": [0, 0]}, "seed was given twice"),
        ({"base": "/nowhere"}, r"base is /nowhere, one model for 2 seeds; expected a path with \{seed\}"),
        ({"seeds": [0, 7]}, "does not exist"),
        ({"fractions": [], "energies": [], "counts": []}, "no rank was given"),
        ({"fractions": [1.0]}, "strictly between 0 and 1, got 1"),
        ({"energies": [1.5]}, r"must be in \(0, 1\], got 1\.5"),
        ({"counts": [0]}, "at least 1, got 0"),
        ({"counts": [2, 2]}, "given twice"),
        ({"sides": []}, "left, right or both"),
        ({"sides": ["left", "left"]}, "left, right or both"),
        ({"bootstrap": 10}, "at least 40 resamples"),
        ({"seed": -1}, "0 or more"),
        ({"tensors": ["nothing"]}, "no tensor matches"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(study, tmp_path, changes, message):
    settings = {**paths(study), "seeds": [0, 1], "out": str(tmp_path / "o"), **SMALL}
    with pytest.raises(InputError, match=message):
        atlas(**{**settings, **changes})
    assert not list(tmp_path.iterdir())


def test_models_that_are_one_are_refused(study, tmp_path):
    given = paths(study, seed=0)
    same = {**given, "tuned": {**given["tuned"], "harmful": given["aligned"]}}
    with pytest.raises(InputError, match="no update between a model and itself"):
        atlas(**same, out=str(tmp_path / "o"), **SMALL)
    copy = str(shutil.copytree(given["aligned"], tmp_path / "copy"))
    with pytest.raises(InputError, match=r"\(harmful\) has the weights of .* there is no update"):
        atlas(**{**given, "tuned": {**given["tuned"], "harmful": copy}}, out=str(tmp_path / "o"), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
