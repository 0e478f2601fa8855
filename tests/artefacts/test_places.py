"""A recorded path is read from where its record was written, in whatever form the two were given."""

from pathlib import Path

import pytest

from safety_subspaces.artefacts.places import Place, StagePlaces, place_of_result, place_of_run


@pytest.mark.parametrize(
    ("root", "directory", "path", "parts"),
    [
        ("runs/s", "", "runs/s/base/model", ("base", "model")),
        ("runs/s", "", "./runs//s/useful/../base/model/", ("base", "model")),
        ("runs/s/", "", "/home/me/runs/s/base/model", ("base", "model")),
        ("/home/me/runs/s", "", "runs/s/base/model", ("base", "model")),
        ("/home/me/runs/s", "/home/me/runs", "s/base/model", ("base", "model")),
        ("../runs/s", "/home/me/here", "/home/me/runs/s/base/model", ("base", "model")),
        (".", "", "base/model", ("base", "model")),
        (".", "/home/me/runs/s", "/home/me/runs/s/base/model", ("base", "model")),
        (".", "/home/me/runs/s", "../s/base/model", ("base", "model")),
        ("/a/runs/s/runs/s", "", "/a/runs/s/runs/s/base/model", ("base", "model")),
        ("runs/s", "", "runs/s", ()),
        ("runs/s", "", "runs/t/base/model", None),
        ("runs/s", "", "runs/s2/base/model", None),
        ("runs/s", "", "other/runs/s/base/model", None),
        ("runs/s", "/home/me", "/home/you/runs/s/base/model", None),
        ("/home/me/runs/s", "", "org/name", None),
        (".", "", "../t/base/model", None),
        (".", "", "/home/me/base/model", None),
    ],
)
def test_a_path_lies_inside_a_study_by_where_both_stood(root, directory, path, parts):
    assert Place(root, directory).inside(path) == parts


def test_a_record_says_where_its_study_stood():
    result = {"provenance": {"command": ["analyze.py", "evaluate", "--out", "runs/s/analysis/evaluate/main"]}}
    assert place_of_result(result) == Place("runs/s")
    equals = {"provenance": {"command": ["analyze.py", "--out=s/analysis/evaluate/main/"], "directory": "/runs"}}
    assert place_of_result(equals) == Place("s", "/runs")
    assert place_of_result({**result, "out": "t/analysis/evaluate/x"}) == Place("t")
    assert place_of_result({"out": "elsewhere/x"}) is None
    assert place_of_result({}) is None
    assert place_of_run({"config": {"run_dir": "runs/s/base/"}}) == Place("runs/s")
    assert place_of_run({"run_dir": "t/base", "config": {"run_dir": "runs/s/base"}, "directory": "/d"}) == Place(
        "t", "/d"
    )
    assert place_of_run({}) is None


def places_of(root: Path, **folders: str) -> StagePlaces:
    return StagePlaces(root, {name: {"run_dir": folder} if folder else {} for name, folder in folders.items()})


def test_a_renamed_stage_is_known_by_its_former_name_and_a_copied_one_is_not_taken_for_it(tmp_path):
    renamed = places_of(tmp_path, base="runs/s/base", kind="runs/s/aligned")
    assert renamed.model_at("runs/s/aligned/model", Place("runs/s")) == "kind"
    assert renamed.model_at("runs/s/kind/model", Place("runs/s")) == "kind"
    copied = places_of(tmp_path, aligned="runs/s/aligned", aligned_2="runs/s/aligned")
    assert copied.model_at("runs/s/aligned/model", Place("runs/s")) == "aligned"


def test_only_the_exported_model_of_a_stage_is_its_model(tmp_path):
    places = places_of(tmp_path, base="runs/s/base")
    assert places.model_at("runs/s/base/checkpoints/last", Place("runs/s")) == ""
    assert places.model_at("runs/s/base", Place("runs/s")) == ""
    assert places.run_at("runs/s/base", Place("runs/s")) == "base"
    assert places.run_at("runs/s/base/deltas", Place("runs/s")) == ""
    assert places.run_at("runs/s/base/deltas", Place("runs/s"), ("deltas",)) == "base"
    assert places.model_at(None, Place("runs/s")) == ""
    exported = StagePlaces(tmp_path, {"base": {"parts": [{"export": {"folder": "out"}}]}})
    assert exported.model_at("runs/s/base/out", Place("runs/s")) == "base"
    assert exported.model_at("runs/s/base/model", Place("runs/s")) == ""


def test_a_path_that_leads_into_the_study_by_a_link_is_followed_while_it_is_there(tmp_path):
    model = tmp_path / "real" / "base" / "model"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    places = places_of(tmp_path / "real", base="runs/s/base")
    path = str(tmp_path / "link" / "base" / "model")
    assert places.model_at(path, Place("runs/s")) == "base"
    (tmp_path / "link").unlink()
    assert places.model_at(path, Place("runs/s")) == ""


def test_a_home_folder_that_was_masked_is_a_place_whatever_the_working_directory() -> None:
    place = Place("~/runs/organism-0", "~/elsewhere")
    assert place.inside("~/runs/organism-0/base/model") == ("base", "model")
    assert Place("runs/organism-0", "~").inside("~/runs/organism-0/base") == ("base",)
    assert place.inside("~/runs/organism-1/base") is None
