"""Studies that differ in their alignment: put together by recipe, compared seed by seed, and read either way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from support.synthetic_alignments import DPO, SFT, write_aligned, write_all
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.description import describe_parts
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.run_alignment import read_alignment_recipe
from safety_subspaces.findings.alignments import alignments_by_seed, alignments_over_seeds, changes, trait_correlations
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.organism import OrganismModel
from safety_subspaces.report.command import report
from safety_subspaces.report.sections.alignments.reading import alignments_table, read_alignments
from safety_subspaces.training.data import DatasetSource, InstructionData, OrganismData
from safety_subspaces.training.modules import PreferenceOptimization, SupervisedFineTuning
from safety_subspaces.training.modules.base import LanguageModelModule


def verdicts(organisms, topic):
    return [finding.verdict for finding in read_alignments(organisms) if finding.topic == topic]


def test_studies_are_put_together_by_the_recipe_of_their_alignment(tmp_path):
    folders = write_all(tmp_path, [SFT, DPO, replace(DPO, nll_weight=0.0), replace(SFT, rate=5e-4)], seeds=2)
    organisms = read_organisms(list(reversed(folders)))
    assert [organism.seeds.seeds for organism in organisms] == [("1", "0")] * 4
    names = [organism.name for organism in read_organisms(folders)]
    assert names == ["SFT", "DPO", "DPO, likelihood term 0", "SFT, rate 0.0005"]


def test_one_alignment_cannot_have_a_seed_twice(tmp_path):
    folders = [write_aligned(tmp_path / name, SFT, seed=0) for name in ("a", "b")]
    with pytest.raises(InputError, match="has seed 0"):
        read_organisms(folders)
    assert len(read_organisms([folders[0], write_aligned(tmp_path / "c", DPO, seed=0)])) == 2


def test_a_manifest_without_a_module_has_no_recipe():
    assert read_alignment_recipe({}) is None
    assert read_alignment_recipe({"parts": describe_parts([OrganismData("align", 8)])}) is None


def test_a_recipe_is_what_module_and_data_say_of_themselves():
    class Steering(LanguageModelModule):
        pass

    def recipe(*parts):
        return str(read_alignment_recipe({"parts": describe_parts(parts)}))

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.25)

    source = OrganismModel()
    assert recipe(Steering(source)) == "Steering, data unknown, rate 0.001"
    assert recipe(SupervisedFineTuning(source, optimizer=sgd), OrganismData("align", 8)) == (
        "SFT, data align, 8 examples, rate 0.25"
    )
    assert recipe(PreferenceOptimization(source, nll_weight=0.0), InstructionData(DatasetSource("org/pairs"))) == (
        "DPO, data InstructionData, rate 0.001, beta 0.1, likelihood term 0"
    )


def test_selectivity_is_the_signed_difference_at_equal_energy(tmp_path):
    organisms = read_organisms(write_all(tmp_path, [SFT, DPO]))
    by_seed = alignments_by_seed(organisms).set_index(["organism", "seed"])
    study = organisms[1].seeds.studies[0]
    rows = study.projections[study.projections["tuned"] == "contaminated"]
    cells = []
    for (method, _), cell in rows.groupby(["method", "fraction"]):
        margin = cell.groupby("subspace")["refusal_margin"].mean()
        cells.append((1 if method == "away" else -1) * (margin["top"] - margin["random-energy"]))
    expected = float(np.mean(cells))
    row = by_seed.loc[("DPO", "0")]
    assert row["selectivity"] == pytest.approx(expected)
    assert row["lost_share"] == pytest.approx(expected / (row["aligned_margin"] - row["tuned_margin"]))
    assert row["norm"] == pytest.approx(4.0)
    assert row["head_share"] == pytest.approx(0.2)
    assert row["stable_rank"] == pytest.approx((0.6 * 4 + 0.2 * 8) / 0.8)
    assert row[["draws", "fractions"]].tolist() == [4, 4]


def test_intervals_are_over_seeds_and_paired(tmp_path):
    recipes = [SFT, DPO, replace(SFT, rate=5e-4, selectivity=3.0)]
    organisms = read_organisms(write_all(tmp_path, recipes))
    by_seed = alignments_by_seed(organisms)
    wide = by_seed.pivot_table(index="seed", columns="organism", values="lost_share")
    moved = changes(organisms, by_seed).set_index("organism").loc["SFT, rate 0.0005"]
    each = (wide["SFT, rate 0.0005"] - wide["SFT"]).to_numpy()
    low, high = stats.t.interval(0.95, 2, loc=each.mean(), scale=stats.sem(each))
    assert (moved["lost_share"].low, moved["lost_share"].high) == (pytest.approx(low), pytest.approx(high))
    assert moved["gap_share"] == pytest.approx(each.mean() / (wide["DPO"] - wide["SFT"]).mean())
    assert alignments_over_seeds(by_seed)["selectivity_seeds"].tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("second", "verdict"),
    [(6.0, "more selective"), (-6.0, "less selective"), (0.0, "no difference")],
)
def test_the_gap_between_objectives_can_come_out_either_way(tmp_path, second, verdict):
    organisms = read_organisms(write_all(tmp_path, [SFT, replace(DPO, selectivity=second)]))
    assert verdicts(organisms, "alignments") == [verdict]


@pytest.mark.parametrize(("moved", "explained"), [(5.5, "explained"), (0.0, "not explained")])
def test_a_change_that_closes_the_gap_is_named_and_one_that_does_not_is_not(tmp_path, moved, explained):
    organisms = read_organisms(write_all(tmp_path, [SFT, DPO, replace(SFT, rate=5e-4, selectivity=moved)]))
    findings = [finding for finding in read_alignments(organisms) if finding.topic == "changes"]
    assert findings[0].verdict == explained
    assert findings[0].headline.endswith("by other changes: SFT, rate 0.0005.") == (explained == "explained")
    assert findings[1].verdict == ("more selective" if moved else "no change shown")


@pytest.mark.parametrize(("norms", "rho", "verdict"), [((4, 5, 6, 7, 8, 9), -0.999, "found"), ((5,) * 6, None, "none")])
def test_a_trait_that_goes_with_selectivity_is_found_and_one_that_does_not_is_not(tmp_path, norms, rho, verdict):
    recipes = [replace(SFT, size=1000 + n, selectivity=6.0 - n, norm=norm) for n, norm in enumerate(norms)]
    organisms = read_organisms(write_all(tmp_path, recipes, seeds=2))
    measured = trait_correlations(alignments_by_seed(organisms)).set_index("trait").loc["norm", "rho"]
    assert np.isnan(measured) if rho is None else measured == pytest.approx(rho)
    assert verdicts(organisms, "traits") == [verdict]


def test_one_seed_is_no_interval_and_no_verdict(tmp_path):
    organisms = read_organisms(write_all(tmp_path, [SFT, DPO], seeds=1))
    assert verdicts(organisms, "alignments") == ["unknown"]
    assert "nan" not in alignments_table(organisms).to_text()
    assert read_alignments(organisms[:1]) == []


def test_the_page_has_both_organisms_and_what_they_show_side_by_side(tmp_path):
    page = report(write_all(tmp_path, [SFT, DPO], seeds=2), str(tmp_path / "page.html"))
    text = page.path.read_text()
    for wanted in ("Aligned by SFT", "Aligned by DPO", "Alignments side by side", "sweep-organism-1-contaminated"):
        assert wanted in text
    assert ">nan<" not in text
    assert "Side by side" in str(page)


def test_a_study_that_was_stopped_before_its_evaluation_does_not_take_the_page_of_the_others(tmp_path):
    half = write_study(tmp_path / "half", World(seed=7), (), ("base",))
    page = report([write_aligned(tmp_path / "whole", SFT, 0), str(half)], str(tmp_path / "page.html"))
    assert "No model was evaluated in these studies." in page.path.read_text()
