from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_overlaps import (
    APART,
    AS_THE_FLOORS,
    AT_CHANCE,
    BLOCK,
    IN_BETWEEN,
    LAYERS,
    TYPES,
    Overlaps,
    overlaps_of,
)

from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.overlaps import (
    AS_NAMED,
    ONE_REPEATED,
    PARTS,
    distances_over_seeds,
)
from safety_subspaces.findings.topics.overlap import CHANCES, MIDPOINT, overlap_findings

MATCHED = CHANCES["from_matched"][0]
MATRICES = len(BLOCK) * LAYERS
BOTH = ("adapters", "weights")
BLOCKS = ("weights", AS_NAMED, "part", "blocks")


def placed(overlaps, key=BLOCKS):
    return distances_over_seeds(overlaps).set_index(["analysis", "pairing", "by", "cell"]).loc[key]


def in_weights(overlaps, first="useful", second="harmful"):
    rows = overlaps[(overlaps["analysis"] == "weights") & (overlaps["energy"] == 0.9)]
    return rows[(rows["first"] == first) & (rows["second"] == second)]


def of_blocks(rows):
    return rows[(rows["layer"] >= 0) & (rows["type"] != "norm")]


def by_seed(rows, column="overlap"):
    return of_blocks(rows).groupby("seed")[column].mean().to_numpy()


def check_interval(row, measure, values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert row[measure] == pytest.approx(np.mean(values))
    assert row[f"{measure}_reach"] == pytest.approx((high - low) / 2)


def said_of_blocks(overlaps, question=MIDPOINT, repeated=False):
    rows = asked(decide(overlap_findings(overlaps)), question)
    wanted = {"cell": "blocks", "repeated": repeated, "analysis": "weights"}
    return next(row for _, row in rows.iterrows() if wanted.items() <= row["details"].items())


@pytest.mark.parametrize(
    ("world", "nearer", "over_chance"),
    [
        (AS_THE_FLOORS, "as the same kind", "above chance"),
        (APART, "apart", "above chance"),
        (AT_CHANCE, "apart", "not shown to differ from chance"),
        (IN_BETWEEN, "undecided", "above chance"),
        (Overlaps(position=-0.5), "apart", "below chance"),
        (replace(APART, seeds=1), "unknown: one seed has no interval", "unknown: the control has no spread"),
        (replace(APART, has_floors=False), "unknown: no two of one kind were measured", "above chance"),
    ],
)
def test_each_outcome_can_come_out(world, nearer, over_chance):
    overlaps = overlaps_of(world)
    assert said_of_blocks(overlaps)["verdict"] == nearer
    above = said_of_blocks(overlaps, MATCHED)
    assert above["verdict"] == over_chance
    assert above["tests"] == (
        0 if world.seeds == 1 else 6 if world.has_floors else 3
    )  # parts, with and without repeats


def test_floors_that_are_no_higher_than_chance_are_no_scale():
    overlaps = overlaps_of(APART)
    same = overlaps["floor"]
    overlaps.loc[same, "overlap"] = overlaps.loc[same, "matched_chance"] + 0.01 * (overlaps["seed"].astype(int) - 1)
    assert "two of one kind are not shown to lie above matched chance" in said_of_blocks(overlaps)["verdict"]


def test_in_one_study_tensors_are_no_replicates_and_the_null_is_summed_over_them():
    overlaps = overlaps_of(replace(APART, seeds=1)).assign(matched_sd=0.02)
    above = said_of_blocks(overlaps, MATCHED)
    cell = of_blocks(in_weights(overlaps))
    apart = cell["overlap"].mean() - cell["matched_chance"].mean()
    assert above["estimate"] == pytest.approx(apart)
    assert np.isnan([above["low"], above["high"]]).all()
    assert above["p"] == pytest.approx(2 * stats.norm.sf(apart / (0.02 / np.sqrt(MATRICES))))
    assert above["verdict"] == "above chance"
    random, wrong, few = np.random.default_rng(0), 0, in_weights(overlaps)
    few = few[few["type"] == "q"]
    for _ in range(60):  # at chance, each tensor as far from it as its signs would put it
        drawn = few.assign(overlap=few["matched_chance"] + 0.02 * random.normal(size=len(few)))
        wrong += decide(overlap_findings(drawn)[:1])["verdict"].iloc[0] != "not shown to differ from chance"
    assert wrong <= 9  # of 60: 3 expected, three and a half standard deviations above


def test_intervals_are_the_t_intervals_over_the_means_of_seeds():
    overlaps = overlaps_of(IN_BETWEEN)
    row = placed(overlaps)
    check_interval(row, "overlap", by_seed(in_weights(overlaps)))
    assert row["overlap_seeds"] == 3
    assert row["tensors"] == MATRICES
    matched = of_blocks(in_weights(overlaps))["matched_chance"].mean()
    assert row["matched_chance"] == pytest.approx(matched)


def test_distances_are_paired_within_a_seed():
    overlaps = overlaps_of(IN_BETWEEN)
    row = placed(overlaps)
    overlap, matched = (by_seed(in_weights(overlaps), name) for name in ("overlap", "matched_chance"))
    floor = (
        by_seed(in_weights(overlaps, "useful", "useful_again"))
        + by_seed(in_weights(overlaps, "harmful", "harmful_again"))
    ) / 2
    check_interval(row, "floor", floor)
    check_interval(row, "from_matched", overlap - matched)
    check_interval(row, "from_floor", overlap - floor)
    check_interval(row, "from_midpoint", overlap - (floor + matched) / 2)


def test_what_shifts_a_whole_seed_is_in_no_distance():
    still, moved = placed(overlaps_of(APART)), placed(overlaps_of(replace(APART, offset=0.1)))
    assert moved["overlap_reach"] > 3 * still["overlap_reach"]
    shifted = overlaps_of(APART)
    levels = ["overlap", "chance", "matched_chance"]
    shifted[levels] = shifted[levels].add(shifted["seed"].map({"0": -0.1, "1": 0.0, "2": 0.2}), axis=0)
    paired = placed(shifted)
    for name in ("from_matched", "from_floor", "from_midpoint"):
        assert paired[f"{name}_reach"] == pytest.approx(still[f"{name}_reach"])
    assert said_of_blocks(shifted)["verdict"] == "apart"


def test_the_seed_is_the_unit_and_every_tensor_counts_once_in_it():
    overlaps = overlaps_of(APART)
    lost = (overlaps["seed"] == "0") & (overlaps["layer"] == 1)
    overlaps.loc[lost, "overlap"] = np.nan
    row = placed(overlaps)
    check_interval(row, "overlap", by_seed(in_weights(overlaps)))  # seed 0 weighs as much as the others
    assert row["undefined"] == len(BLOCK)
    assert row["tensors"] == pytest.approx(MATRICES - len(BLOCK) / 3)
    # Tensor by tensor: what seed 0 lacks in the pair is not in its matched chance either.
    known = in_weights(overlaps).dropna(subset="overlap")
    check_interval(row, "from_matched", by_seed(known) - by_seed(known, "matched_chance"))
    assert said_of_blocks(overlaps)["details"]["undefined"] == len(BLOCK)
    layer = placed(overlaps, ("weights", AS_NAMED, "layer", "1"))
    assert layer["overlap_seeds"] == 2


def test_a_floor_that_lacks_one_of_its_kinds_is_missing():
    overlaps = overlaps_of(APART)
    lost = (overlaps["seed"] == "1") & (overlaps["second"] == "harmful_again") & (overlaps["first"] == "harmful")
    row = placed(overlaps[~lost])
    assert (row["overlap_seeds"], row["floor_seeds"], row["from_midpoint_seeds"]) == (3, 2, 2)
    found = said_of_blocks(overlaps[~lost])
    assert (found["n"], found["verdict"]) == (2, "apart")


def test_overlaps_that_are_undefined_everywhere_are_no_numbers():
    overlaps = overlaps_of(APART)
    overlaps["overlap"] = np.nan
    assert distances_over_seeds(overlaps)["overlap"].isna().all()
    assert said_of_blocks(overlaps)["verdict"] == "unknown: no overlap is defined"
    assert decide(overlap_findings(overlaps))["p"].isna().all()


def test_without_overlaps_nothing_is_found():
    empty = overlaps_of(APART).iloc[:0]
    assert overlap_findings(empty) == []
    assert distances_over_seeds(empty).empty


def test_pairs_of_different_seeds_are_judged_beside_the_pair_that_shares_its_seed():
    overlaps = overlaps_of(Overlaps(position=0.9, repeated=0.2))
    row = placed(overlaps, ("weights", ONE_REPEATED, "part", "blocks"))
    values = (
        by_seed(in_weights(overlaps, "useful", "harmful_again"))
        + by_seed(in_weights(overlaps, "harmful", "useful_again"))
    ) / 2
    check_interval(row, "overlap", values)
    assert said_of_blocks(overlaps)["verdict"] == "as the same kind"
    assert said_of_blocks(overlaps, repeated=True)["verdict"] == "apart"


def test_power_is_the_share_of_draws_at_the_floor_that_are_told():
    row = placed(overlaps_of(replace(IN_BETWEEN, noise=0.1)))
    margin, spread = row["scale"] / 2, row["from_midpoint_reach"] / stats.t.ppf(0.975, 2) * np.sqrt(3)
    draws = np.random.default_rng(0).normal(margin, spread, size=(40_000, 3))
    significant = draws.mean(axis=1) / stats.sem(draws, axis=1) > stats.t.ppf(0.975, 2)
    assert 0.1 < significant.mean() < 0.9
    assert row["power"] == pytest.approx(significant.mean(), abs=0.01)


def test_parts_are_cut_as_the_analysis_cuts_them_and_types_take_every_tensor():
    frame = distances_over_seeds(overlaps_of(APART))
    named = frame[frame["pairing"] == AS_NAMED]
    parts, layers, types = (named[named["by"] == by] for by in ("part", "layer", "type"))
    assert tuple(parts["cell"]) == PARTS
    assert parts["tensors"].tolist() == [MATRICES, 1, 1]
    assert layers["cell"].tolist() == [str(layer) for layer in range(LAYERS)]
    assert tuple(types["cell"]) == TYPES
    assert types.set_index("cell").loc["norm", "tensors"] == LAYERS + 1


def test_places_are_tested_together():
    overlaps = overlaps_of(AT_CHANCE)
    head = (overlaps["type"] == "head") & ~overlaps["floor"]
    overlaps.loc[head, "overlap"] = 0.6 + 0.001 * overlaps.loc[head, "seed"].astype(int)
    places = asked(decide(overlap_findings(overlaps)), f"{MATCHED}, place by place")
    above = [row["details"]["cell"] for _, row in places.iterrows() if row["verdict"] == "above chance"]
    assert above == ["head"]
    assert set(places["tests"]) == {LAYERS + len(TYPES)}


def test_in_the_middle_a_side_comes_out_by_chance_in_about_one_experiment_of_twenty():
    overlaps = overlaps_of(Overlaps(position=0.5, noise=0.0, seeds=3))
    overlaps = overlaps[(overlaps["analysis"] == "weights") & (overlaps["energy"] == 0.9) & (overlaps["type"] == "q")]
    is_pair = ~overlaps["floor"] & (overlaps["second"] == "harmful") & (overlaps["first"] == "useful")
    floors = overlaps[overlaps["floor"]].groupby(["seed", "tensor"])["overlap"].mean()
    middle = (overlaps.loc[is_pair].set_index(["seed", "tensor"])["matched_chance"] + floors).dropna() / 2
    random, wrong = np.random.default_rng(0), 0
    for _ in range(12):
        noise = pd.Series(0.02 * random.normal(size=3), index=["0", "1", "2"])
        values = middle.to_numpy() + noise[middle.index.get_level_values("seed")].to_numpy()
        drawn = overlaps[overlaps["floor"] | is_pair].copy()
        drawn.loc[is_pair, "overlap"] = values
        wrong += said_of_blocks(drawn)["verdict"] != "undecided"
    assert wrong <= 3  # of 12: 0.6 expected, 3 standard deviations above
