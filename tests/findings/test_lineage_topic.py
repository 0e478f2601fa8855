"""Models that are not in their places are said on the page before everything else, and others not at all."""

import json

import pytest
from support.synthetic_study import write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.finding import decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics.lineage import implausible, lineage
from safety_subspaces.report.command import report

SWAPPED = "base and aligned look swapped"


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study")


def say(folder, summary):
    path = folder / "analysis" / "project" / "main" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "summary": summary}))


def test_what_an_analysis_said_of_its_models_is_found_wherever_it_stands():
    by_seed = {"0": {"implausible": [SWAPPED]}, "1": {"implausible": []}, "2": {"implausible": ["x", SWAPPED]}}
    assert implausible({"lineage": by_seed}) == [SWAPPED, "x"]
    assert implausible({"lineage": {"implausible": [SWAPPED], "tuned": {}}}) == [SWAPPED]
    assert implausible({"implausible": [SWAPPED]}) == [SWAPPED]
    assert implausible({"tensors": 3}) == implausible(None) == []


def test_a_study_without_a_word_has_no_such_finding_and_no_section(folder):
    assert decide(lineage(together([read_study(folder)]))).empty
    say(folder, {"lineage": {"implausible": []}})
    page = report(str(folder))
    assert "Models that do not look" not in page.path.read_text()


def test_the_page_begins_with_it(folder):
    say(folder, {"lineage": {"implausible": [SWAPPED]}})
    row = decide(lineage(together([read_study(folder)]))).iloc[0]
    assert (row["subject"], row["verdict"]) == ("project main", "not plausible")
    text = report(str(folder)).path.read_text()
    assert text.index(f"project main: {SWAPPED}.") < text.index("<details")
