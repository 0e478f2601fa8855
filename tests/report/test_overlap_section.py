"""The section on overlaps: above which chance they lie is said wherever the verdict stands."""

import pytest
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics.overlap import overlap_findings
from safety_subspaces.report.parts.section import Part
from safety_subspaces.report.sections.overlap import overlap

# What the seeds' overlaps are beside matched chance, where they are neither above nor below.
AROUND = {"0": 0.01, "1": -0.01, "2": 0.0}
EXPLAINED = ", not shown to be above that of a shared covariance"


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    worlds = [World(seed=seed, overlap_position=0.5) for seed in range(3)]
    return [read_study(write_study(folder / f"s{world.seed}", world, ("overlap",))) for world in worlds]


def said_of(studies, covariance=None, is_at_chance=False):
    """What stands in the tile, the clause and the headline, with a column as the chance of a shared covariance."""
    for study in studies:
        study.overlaps["covariance_chance"] = float("nan") if covariance is None else study.overlaps[covariance]
    seeds = together(studies)
    overlaps = seeds.overlaps
    if is_at_chance:
        overlaps = overlaps.assign(overlap=overlaps["matched_chance"] + overlaps["seed"].map(AROUND))
    section = overlap(Part("SFT", seeds, decide(overlap_findings(overlaps))))
    (tile,) = section.tiles
    return [tile.verdict, section.clause, section.headlines[0]]


def test_tile_clause_and_headline_name_the_chance_that_an_overlap_is_above(studies):
    for said in said_of(studies):
        assert "above matched chance" in said
        assert "covariance" not in said


def test_where_a_shared_covariance_explains_the_overlap_it_is_said_and_where_it_does_not_it_is_not(studies):
    for said in said_of(studies, "overlap"):
        assert f"above matched chance{EXPLAINED}" in said
    for said in said_of(studies, "matched_chance"):
        assert "above matched chance" in said
        assert EXPLAINED not in said


def test_of_an_overlap_that_is_above_no_chance_the_matched_one_alone_is_named(studies):
    for said in said_of(studies, "overlap", is_at_chance=True):
        assert "not shown to differ from matched chance" in said
        assert "covariance" not in said
