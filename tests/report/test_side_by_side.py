"""The section on several alignments: what is said of them follows their findings, and its table has each."""

from dataclasses import replace

import pytest
from support.synthetic_alignments import DPO, SFT, write_all

from safety_subspaces.findings.between_alignments import between_alignments
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.report.pages.side_by_side import alignments, alignments_table


@pytest.fixture(scope="module")
def organisms(tmp_path_factory):
    """Two objectives, and of the first one with another rate that makes it nearly as selective as the second."""
    recipes = [SFT, DPO, replace(SFT, rate=5e-4, selectivity=5.5)]
    return read_organisms(write_all(tmp_path_factory.mktemp("studies"), recipes, seeds=2))


def test_the_section_says_gap_changes_and_table(organisms):
    section = alignments(organisms, decide(between_alignments(organisms)))
    assert section.place == 10
    assert section.headlines[0].startswith("Alignment's subspace is more selective under DPO than under SFT: +0.3")
    assert "of 1 test" in section.headlines[0]
    assert "In nats +6" in section.sentences[0]
    assert "judged harm" in section.sentences[0]
    assert any(
        said.startswith("SFT, rate 0.0005, beside SFT: ") and "% of the way" in said for said in section.sentences
    )
    table = section.tables["Alignments side by side"]
    assert [row[0] for row in table.rows] == ["SFT", "DPO", "SFT, rate 0.0005"]
    assert [row[3] for row in table.rows] == ["1.5", "0.5", "0.5"]
    assert "that all are judged by, contaminated" in table.note
    text = " ".join([*section.headlines, *section.sentences, table.to_text(300)])
    assert "nan" not in text
    assert "{" not in text
    (terminal,) = section.terminal.values()
    assert max(map(len, terminal.to_text(110).splitlines())) <= 110


def test_of_one_alignment_there_is_no_section(organisms):
    assert alignments(organisms[:1], decide(between_alignments(organisms[:1]))) is None


def test_one_seed_says_why_nothing_is_told(tmp_path):
    organisms = read_organisms(write_all(tmp_path, [SFT, DPO], seeds=1))
    section = alignments(organisms, decide(between_alignments(organisms)))
    assert "is not told: one seed" in section.headlines[0]
    assert "nan" not in alignments_table(organisms).to_text(300)


def test_with_six_alignments_what_goes_with_selectivity_is_said_with_its_p(tmp_path):
    recipes = [replace(SFT, size=1000 + n, selectivity=6.0 - n, norm=4.0 + n) for n in range(6)]
    organisms = read_organisms(write_all(tmp_path, recipes, seeds=1))
    section = alignments(organisms, decide(between_alignments(organisms)))
    size = "size of the alignment update"
    assert section.headlines == [f"Over 6 alignments selectivity goes with: {size} (falls with it, p .003, of 1 test)."]
    assert f"{size} -1.00 (-1.00 to -0.98, p .003" in section.sentences[-1]
    assert "stable rank in the blocks not known" in section.sentences[-1]
