import pytest
from support.refusal import refuse

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.artefacts.results import check_labels, recorded


def analysis(models, energies=(0.5, 0.9), floors=(("a", "b"),), rank=RankRule(count=3), out="o", workers=None):  # noqa: B008
    arguments = recorded(locals())
    computed = len(models)
    assert computed
    return arguments


def test_an_analysis_records_its_arguments_as_plain_values_and_nothing_that_it_computes():
    assert analysis({"one": "path"}) == {
        "models": {"one": "path"},
        "energies": [0.5, 0.9],
        "floors": [["a", "b"]],
        "rank": {"count": 3, "fraction": None, "energy": None},
    }


@pytest.mark.parametrize("label", ["../../x", "/abs", "a/b", ".hidden", ""])
def test_a_label_is_no_path(label):
    refuse(lambda: check_labels(["useful", label]), "names a folder and rows of tables")
    check_labels(["useful", "seed-1.0"])
