from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safety_subspaces.report.sections.overlap.figures import overlap_across_figure, overlap_caption
from safety_subspaces.report.sections.overlap.reading import read_overlaps_across
from safety_subspaces.report.sections.overlap.tables import overlaps_across_table, overlaps_by_cell_table
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

from safety_subspaces.findings.overlaps import (
    AS_NAMED,
    ONE_REPEATED,
    PARTS,
    distances_over_seeds,
)

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


def first_finding(overlaps):
    return read_overlaps_across(overlaps, "organism")[0]


@pytest.mark.parametrize(
    ("world", "verdict", "over_chance"),
    [
        (AS_THE_FLOORS, "as the same kind", "above chance"),
        (APART, "apart", "above chance"),
        (AT_CHANCE, "apart", "not above chance"),
        (IN_BETWEEN, "undecided", "above chance"),
        (Overlaps(position=-0.5), "apart", "not above chance"),
        (replace(APART, seeds=1), "unknown", "unknown"),
        (replace(APART, has_floors=False), "unknown", "above chance"),
    ],
)
def test_each_outcome_can_come_out_in_one_form(world, verdict, over_chance):
    findings = read_overlaps_across(overlaps_of(world), "organism")
    assert findings[0].verdict == verdict
    assert f": {over_chance}." in findings[0].sentence
    assert f": {over_chance}, " in findings[0].headline
    assert [f.verdict for f in findings if "matrices in the blocks" in f.sentence] == [verdict]
    assert {f.topic for f in findings} == {"overlap"}
    assert [bool(f.headline) for f in findings] == [True] + [False] * 3
    assert "nan" not in "".join(f.headline + f.sentence for f in findings).lower()
    for words in (
        "matched chance",
        "two of one kind (the floor)",
        f"{MATRICES} tensors a seed",
        "half-way",
        "undecided",
    ):
        assert words in findings[0].sentence + findings[-1].sentence


def test_adapters_are_read_after_weights_and_one_headline_leads():
    overlaps = overlaps_of(replace(APART, analyses=BOTH, energies=(0.5, 0.9)))
    findings = read_overlaps_across(overlaps, "organism")
    assert [f.sentence.split(", ")[1] for f in findings] == ["weights"] * 4 + ["adapters"] * 4
    assert [bool(f.headline) for f in findings] == [True] + [False] * 7
    assert "useful_lora and harmful_lora_again" in findings[4].sentence
    assert "energy 0.9" in findings[0].sentence


def test_floors_that_are_no_higher_than_chance_are_no_scale():
    overlaps = overlaps_of(APART)
    same = overlaps["floor"]
    overlaps.loc[same, "overlap"] = overlaps.loc[same, "matched_chance"] + 0.01 * (overlaps["seed"].astype(int) - 1)
    finding = first_finding(overlaps)
    assert finding.verdict == "unknown"
    assert "two of one kind are not shown to lie above matched chance" in finding.sentence


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
    assert first_finding(shifted).verdict == "apart"


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
    assert f"Undefined in {len(BLOCK)}" in first_finding(overlaps).sentence
    layer = placed(overlaps, ("weights", AS_NAMED, "layer", "1"))
    assert layer["overlap_seeds"] == 2


def test_a_floor_that_lacks_one_of_its_kinds_is_missing():
    overlaps = overlaps_of(APART)
    lost = (overlaps["seed"] == "1") & (overlaps["second"] == "harmful_again") & (overlaps["first"] == "harmful")
    row = placed(overlaps[~lost])
    assert (row["overlap_seeds"], row["floor_seeds"], row["from_midpoint_seeds"]) == (3, 2, 2)
    assert ", 2 seeds): apart" in first_finding(overlaps[~lost]).sentence


def test_overlaps_that_are_undefined_everywhere_are_no_numbers():
    overlaps = overlaps_of(APART)
    overlaps["overlap"] = np.nan
    findings = read_overlaps_across(overlaps, "organism")
    assert {f.verdict for f in findings} == {"unknown", "counted"}
    assert f"have no overlap in any of {3 * MATRICES} tensors" in findings[0].sentence
    assert distances_over_seeds(overlaps)["overlap"].isna().all()
    assert overlaps_across_table(overlaps).rows[0][3] == "-"
    overlap_across_figure(overlaps, "weights")


def test_without_overlaps_there_is_one_finding_and_nothing_to_draw():
    empty = overlaps_of(APART).iloc[:0]
    assert [f.verdict for f in read_overlaps_across(empty, "organism")] == ["unknown"]
    assert distances_over_seeds(empty).empty
    assert overlaps_across_table(empty).rows == ()
    assert "No overlap" in overlap_caption(empty, "weights")
    overlap_across_figure(empty, "weights")


def test_pairs_of_different_seeds_are_judged_beside_the_pair_that_shares_its_seed():
    overlaps = overlaps_of(Overlaps(position=0.9, repeated=0.2))
    row = placed(overlaps, ("weights", ONE_REPEATED, "part", "blocks"))
    values = (
        by_seed(in_weights(overlaps, "useful", "harmful_again"))
        + by_seed(in_weights(overlaps, "harmful", "useful_again"))
    ) / 2
    check_interval(row, "overlap", values)
    finding = first_finding(overlaps)
    assert finding.verdict == "as the same kind"
    assert finding.headline.endswith("of one: above chance, apart).")


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


def test_layers_and_types_are_counted_by_their_own_intervals():
    overlaps = overlaps_of(AT_CHANCE)
    head = (overlaps["type"] == "head") & ~overlaps["floor"]
    overlaps.loc[head, "overlap"] = 0.6 + 0.001 * overlaps.loc[head, "seed"].astype(int)
    text = next(f.sentence for f in read_overlaps_across(overlaps, "organism") if f.verdict == "counted")
    assert "of 2 layers of the blocks, 0 above matched chance, 0 nearer to the floor, 2 (0, 1) nearer to chance" in text
    assert "1 (head) nearer to the floor" in text
    assert first_finding(overlaps).verdict == "apart"


def test_tables_say_each_number_with_its_reach_and_what_it_is():
    overlaps = overlaps_of(replace(APART, analyses=BOTH))
    table, by_cell = overlaps_across_table(overlaps), overlaps_by_cell_table(overlaps)
    assert len(table.rows) == 2 * 2 * len(PARTS)  # analyses, pairings
    assert len(by_cell.rows) == 2 * (LAYERS + len(TYPES))
    assert {len(row) for row in (*table.rows, *by_cell.rows)} == {len(table.columns), len(by_cell.columns)}
    row = placed(overlaps)
    cells = next(r for r in table.rows if r[:3] == ("useful - harmful", "", "blocks"))
    assert cells[3] == f"{row['overlap']:.3f}±{row['overlap_reach']:.3f}"
    assert cells[7] == f"{row['from_matched']:+.3f}±{row['from_matched_reach']:.3f}"
    assert cells[-3:] == (str(MATRICES), "0", "3")
    for note in (table.note, by_cell.note):
        assert "± half the 95 % t interval over seeds" in note
        assert "Energy 0.9" in note
    single = overlaps_across_table(overlaps_of(replace(APART, seeds=1)))
    assert "±" not in "".join(map("".join, single.rows))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_chart_shows_the_means_with_their_intervals_in_two_panels(seeds):
    overlaps = overlaps_of(replace(APART, seeds=seeds, analyses=BOTH))
    figure = overlap_across_figure(overlaps, "weights")
    drawn = [t for t in figure.data if t.name == "useful - harmful"]
    assert [len(t.x) for t in drawn] == [LAYERS, len(TYPES)]
    rows = distances_over_seeds(overlaps).set_index(["analysis", "pairing", "by"]).loc[("weights", AS_NAMED, "type")]
    np.testing.assert_allclose(np.asarray(drawn[1].y, float), rows["overlap"])
    np.testing.assert_allclose(np.asarray(drawn[1].error_y.array, float), rows["overlap_reach"])
    floors = [t for t in figure.data if t.name == "useful - harmful: two of one kind"]
    np.testing.assert_allclose(np.asarray(floors[1].y, float), rows["floor"])
    assert {t.line.dash for t in figure.data if t.mode == "lines"} == {"dot", "dashdot", "dash"}
    assert not [t for t in figure.data if "lora" in (t.name or "")]
    text = overlap_caption(overlaps, "weights")
    for words in ("0.9", "3 a layer and seed", "1 to 3 a type and seed", "useful and useful_again"):
        assert words in text
    assert ("one seed" in text) == (seeds == 1)


def test_without_floors_the_chart_has_none():
    overlaps = overlaps_of(replace(APART, has_floors=False))
    assert not [t for t in overlap_across_figure(overlaps, "weights").data if "one kind" in (t.name or "")]
    assert "not measured" in overlap_caption(overlaps, "weights")


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
        wrong += first_finding(drawn).verdict != "undecided"
    assert wrong <= 3  # of 12: 0.6 expected, 3 standard deviations above
