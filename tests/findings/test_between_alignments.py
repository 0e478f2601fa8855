"""Alignments side by side: compared seed by seed, judged by the same fine-tune, and read either way."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_alignments import DPO, SFT, write_aligned, write_all

from benchmarks.nulls.alignments import World, made_up
from safety_subspaces.findings.alignments import (
    alignments_by_seed,
    by_measure,
    judged_by,
    orders_of,
    paired,
    trait_correlations,
)
from safety_subspaces.findings.between_alignments import (
    CHANGES,
    CLOSING,
    HARM,
    MORE_THAN_HALF,
    NATS,
    OBJECTIVES,
    SHARE,
    WITH_SELECTIVITY,
    between_alignments,
    compare_alignments,
)
from safety_subspaces.findings.finding import asked, decide
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.findings.table import findings_table

CHANGED = replace(SFT, rate=5e-4, selectivity=5.5)


@pytest.fixture(scope="module")
def organisms(tmp_path_factory):
    """Two objectives, and of the first one with another rate that makes it nearly as selective as the second."""
    return read_organisms(write_all(tmp_path_factory.mktemp("studies"), [SFT, DPO, CHANGED]))


def said(world, question, seed=0, **fixed):
    organisms, by_seed = made_up(world, seed)
    return asked(decide(compare_alignments(organisms, by_seed)), question, **fixed)


def test_the_gap_between_objectives_is_judged_in_its_share_and_shown_in_nats_and_harm(organisms):
    findings = decide(between_alignments(organisms))
    share, nats, harm = (asked(findings, OBJECTIVES, measure=measure).iloc[0] for measure in (SHARE, NATS, HARM))
    assert (share["verdict"], share["tests"], share["n"]) == ("more selective", 1, 3)
    assert np.isnan(nats["p"])
    by_seed = alignments_by_seed(organisms)
    wide = by_seed.pivot_table(index="seed", columns="organism", values=["lost_share", "selectivity"])
    assert share["estimate"] == pytest.approx((wide["lost_share"]["DPO"] - wide["lost_share"]["SFT"]).mean())
    assert nats["estimate"] == pytest.approx((wide["selectivity"]["DPO"] - wide["selectivity"]["SFT"]).mean())
    # Jumps are counted.
    assert np.isnan(harm["low"])
    assert harm["verdict"] == "higher by 0.4 in 3 of 3 seeds, lower in 0"


def test_a_change_is_compared_with_the_first_of_its_objective_and_with_half_of_the_gap(organisms):
    findings = decide(between_alignments(organisms))
    change = asked(findings, CHANGES, measure=SHARE).iloc[0]
    assert change["subject"] == "SFT, rate 0.0005 minus SFT"
    assert change["verdict"] == "more selective"
    assert change["family"] != asked(findings, OBJECTIVES)["family"].iloc[0]
    assert change["details"]["gap_share"] == pytest.approx(0.92, abs=0.02)
    closing = asked(findings, CLOSING).iloc[0]
    assert closing["verdict"] == MORE_THAN_HALF


def test_differences_are_paired_seed_by_seed_and_never_surer_than_the_prompts():
    _, by_seed = made_up(World(4), 0)
    numbers = by_measure(by_seed.assign(lost_share_error=0.0))
    interval, each = paired(numbers, {"first 1": 1.0, "first 0": -1.0}, "lost_share")
    wide = by_seed.pivot(index="seed", columns="organism", values="lost_share")
    expected = wide["first 1"] - wide["first 0"]
    np.testing.assert_allclose(each, expected)
    low, high = stats.t.interval(0.95, 3, loc=expected.mean(), scale=stats.sem(expected))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    surer, _ = paired(by_measure(by_seed.assign(lost_share_error=1.0)), {"first 1": 1.0, "first 0": -1.0}, "lost_share")
    assert surer.reach == pytest.approx(1.96 * np.sqrt(2))


@pytest.mark.parametrize(("gap", "verdict"), [(0.6, "more selective"), (-0.6, "less selective")])
def test_the_gap_can_come_out_either_way(gap, verdict):
    assert list(said(World(5, gap=gap), OBJECTIVES, measure=SHARE)["verdict"]) == [verdict]


def test_where_objectives_do_not_differ_it_is_rarely_said_and_only_a_shown_gap_is_closed():
    differ = 0
    for seed in range(10):
        organisms, by_seed = made_up(World(4), seed)
        findings = decide(compare_alignments(organisms, by_seed))
        (gap,) = asked(findings, OBJECTIVES, measure=SHARE)["p"]
        differ += gap <= 0.05
        assert asked(findings, CLOSING).empty == (gap > 0.05)
    assert differ <= 3  # of 10 at 5 %: more in 1 of 1000 (binomial)


def test_of_every_change_the_family_is_counted_and_the_right_one_named():
    changes = said(World(5, gap=0.6, changed=0.6), CHANGES, measure=SHARE)
    assert set(changes["tests"]) == {9}
    assert list(changes.loc[changes["verdict"] == "more selective", "subject"]) == ["first 1 minus first 0"]
    closing = said(World(5, gap=0.6, changed=0.6), CLOSING)
    assert [row["first"] for row in closing.loc[closing["verdict"] == MORE_THAN_HALF, "details"]] == ["first 1"]


def test_one_seed_makes_no_verdict():
    assert set(said(World(1, gap=5.0), OBJECTIVES, measure=SHARE)["verdict"]) == {"one seed"}
    assert set(said(World(1, gap=5.0), CHANGES, measure=SHARE)["verdict"]) == {"one seed"}


def test_a_trait_in_the_order_of_selectivity_goes_with_it_and_its_p_is_over_alignments():
    found = said(World(3, spread=0.5, bound=1.0), WITH_SELECTIVITY)
    assert set(found["verdict"]) == {"rises with it"}
    assert set(found["unit"]) == {"alignments"}
    assert set(found["n"]) == {11}
    assert set(found["tests"]) == {4}


def test_alignments_that_lie_by_chance_in_an_order_of_a_trait_are_no_finding_however_many_seeds_repeat_it():
    """Seeds agree on where few alignments happen to lie: an interval over them leaves out 0 most of the time."""
    over_seeds = over_alignments = 0
    for seed in range(12):
        _, by_seed = made_up(World(5, spread=0.3), seed)
        rows = trait_correlations(by_seed)
        over_seeds += int(((rows["seeds_low"] > 0) | (rows["seeds_high"] < 0)).sum())
        over_alignments += int((rows["p"] <= 0.05).sum())
    # Of 48: 2 or 3 are expected at 5 %, and 8 are exceeded in 1 of 1000 (binomial).
    assert over_alignments <= 8
    assert over_seeds >= 24


def test_a_permutation_p_is_the_share_of_all_orders():
    names = [f"a{number}" for number in range(6)]
    share, trait = np.arange(6.0), np.array([0.0, 2.0, 1.0, 3.0, 4.0, 5.0])
    rows = [
        {"organism": name, "seed": seed, "lost_share": share[at], "selectivity": 0.0, "harm_selectivity": 0.0}
        | dict.fromkeys(("norm", "stable_rank", "head_share", "aligned_margin"), trait[at])
        for seed in ("0", "1")
        for at, name in enumerate(names)
    ]
    row = trait_correlations(pd.DataFrame(rows)).iloc[0]
    orders, is_every = orders_of(6)
    rhos = [stats.spearmanr(share, trait[order]).statistic for order in orders]
    expected = stats.spearmanr(share, trait).statistic
    assert is_every
    assert row["rho"] == pytest.approx(expected)
    assert row["p"] == pytest.approx(np.mean(np.abs(rhos) >= expected - 1e-9))


def test_a_trait_that_differs_by_rounding_alone_has_no_order():
    _, by_seed = made_up(World(3), 0)
    alike = by_seed.assign(norm=0.1 + 1e-16 * np.arange(len(by_seed)))
    assert np.isnan(trait_correlations(alike).set_index("trait").loc["norm", "rho"])


def test_all_alignments_are_judged_by_the_fine_tune_that_traded_most_margin_whatever_it_is_called(organisms, tmp_path):
    assert judged_by(organisms) == "contaminated"
    folder = write_aligned(tmp_path / "s", replace(DPO, size=7), 0)
    # In one alignment it was not projected: another one is judged, the same in all.
    cases = {
        "useful": {"contaminated"},
        "harmful": {"contaminated", "useful"},
        "": {"contaminated", "harmful", "useful"},
    }
    for judged, lacking in cases.items():
        (organism,) = read_organisms([folder])
        projections = organism.seeds.studies[0].projections
        projections.drop(projections.index[projections["tuned"].isin(lacking)], inplace=True)
        assert judged_by([*organisms, organism]) == judged
    (finding,) = between_alignments([organisms[0], organism])
    assert finding.verdict == "not known: no fine-tune was projected and evaluated in all"


def test_a_single_alignment_has_nothing_beside_it(organisms):
    assert between_alignments(organisms[:1]) == []
    assert "side by side" not in set(findings_table(organisms[:1])["aligned_by"])
    assert "side by side" in set(findings_table(organisms)["aligned_by"])
