import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from support.synthetic_study import HOSTILE, write_study

from safety_subspaces.artefacts.archive import unpack, write_archive
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.bundle.alike import alike, same_page
from safety_subspaces.bundle.command import bundle
from safety_subspaces.bundle.contents import hashes_of
from safety_subspaces.report.parts.page import is_page

SECRET = "hf_abcdefghijklmnopqrstuvwx12"
HOME = "/home/alice"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in somebody's home folder, with a key, and with weights beside what is said of them."""
    folder = write_study(tmp_path_factory.mktemp("home") / "organism-0", analyses=("evaluate",))
    (folder / "base" / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "useful" / "checkpoints").mkdir()
    (folder / "useful" / "checkpoints" / "last.ckpt").write_bytes(b"pickle")
    look = {"step": 3, "row": {"n_harmful": 2}, "generations": [{"answer": "a harmful answer"}]}
    (folder / "useful" / "behaviour").mkdir()
    (folder / "useful" / "behaviour" / "step=00000003.json").write_text(json.dumps(look))
    (folder / "useful" / "config.yaml").write_text(f"out: {HOME}/runs\napi_key: wordless\nnote: {SECRET}\n")
    result = folder / "analysis" / "evaluate" / "main"
    pd.DataFrame({"path": [f"{HOME}/data"], "label": [HOSTILE]}).to_parquet(result / "extra.parquet", index=False)
    (result / "notes.json").symlink_to("/etc/hostname")
    (result / "linked.csv").symlink_to(result / "table.csv")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOME", str(folder.parent))
        yield folder


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """The study's bundle, what was said of it, and where it is unpacked."""
    out = tmp_path_factory.mktemp("out")
    said = str(bundle(str(study), out=str(out / "x.zip")))
    unpack(out / "x.zip", out / "unpacked")
    return out / "x.zip", said, out / "unpacked" / "organism-0"


def test_it_holds_what_the_study_says_and_no_weights_secrets_homes_or_answers(study, made):
    archive, said, root = made
    names = set(zipfile.ZipFile(archive).namelist())
    inside = "organism-0/studies/organism-0"
    assert {
        "organism-0/bundle.json", "organism-0/findings/findings.csv", "organism-0/findings/findings.parquet",
        "organism-0/report/index.html", f"{inside}/useful/manifest.json", f"{inside}/useful/scalars.parquet",
        f"{inside}/base/model/config.json", f"{inside}/analysis/evaluate/main/table.csv",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".safetensors", ".ckpt", ".jsonl")) or "events.out" in name]
    texts = "".join(path.read_text() for path in root.rglob("*") if path.suffix != ".parquet" and path.is_file())
    for secret in (SECRET, "wordless", HOME, str(study.parent), "a harmful answer"):
        assert secret not in texts, secret
    table = pd.read_parquet(root / "studies/organism-0/analysis/evaluate/main/extra.parquet")
    assert table.to_dict("records") == [{"path": "~/data", "label": HOSTILE}]
    assert json.loads((root / "studies/organism-0/base/model/files.json").read_text())["model.safetensors"] == 7
    assert is_page(root / "report" / "index.html")
    assert "left out organism-0/analysis/evaluate/main/linked.csv: it is a link" in said


def test_the_manifest_says_hashes_seeds_commits_and_versions(made):
    _, _, root = made
    manifest = json.loads((root / "bundle.json").read_text())
    assert manifest["files"] == hashes_of(root)
    (about,) = manifest["studies"]
    assert about["seeds"] == [0]
    assert about["commits"] == ["c0ffee" * 6 + "c0ff"]
    assert about["versions"]["torch"] == "2.13.0"
    assert manifest["versions"].keys() >= {"python", "torch"}


def test_the_same_study_gives_the_same_bytes_and_is_not_written_over(study, made, tmp_path):
    archive, _, _ = made
    copy = tmp_path / "copy.zip"
    shutil.copyfile(archive, copy)
    with pytest.raises(InputError, match="say --overwrite true"):
        bundle(str(study), out=str(copy))
    bundle(str(study), out=str(copy), overwrite=True)
    assert copy.read_bytes() == archive.read_bytes()
    (tmp_path / "mine.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match="is no bundle, and is not written over"):
        bundle(str(study), out=str(tmp_path / "mine.zip"), overwrite=True)
    assert (tmp_path / "mine.zip").read_bytes() == b"mine"


def test_unpacked_it_is_the_study_again(study, made):
    before, after = read_study(study), read_study(made[2] / "studies" / "organism-0")
    assert [stage.name for stage in before.stages] == [stage.name for stage in after.stages]
    assert_frame_equal(before.models, after.models)
    for one, other in zip(before.stages, after.stages, strict=True):
        assert one.scalars.keys() == other.scalars.keys()
        for tag, table in one.scalars.items():
            assert_frame_equal(table, other.scalars[tag])


def test_a_whole_bundle_agrees_with_its_tables(made):
    found = bundle(verify=str(made[0]))
    said = str(found)
    assert found.path == made[0]
    assert "all that was checked agrees" in said
    assert "page: the same bytes" in said


def test_a_study_that_changed_is_no_more_that_of_the_bundle(study, made, tmp_path):
    copy = tmp_path / "organism-0"
    shutil.copytree(study, copy, symlinks=True)
    manifest = json.loads((copy / "useful" / "manifest.json").read_text())
    (copy / "useful" / "manifest.json").write_text(json.dumps(manifest | {"global_step": 1}))
    with pytest.raises(InputError) as refused:
        bundle(str(copy), verify=str(made[0]))
    assert "useful/manifest.json not as in the bundle (1 of" in str(refused.value)
    assert "MISMATCH inputs" in str(refused.value)  # the study's hashes are made up


def tampered(root: Path, folder: Path, name: str, change, mends: bool) -> Path:
    """Pack a bundle anew with one file changed; ``mends`` puts its new hash into the manifest."""
    copy = folder / "organism-0"
    shutil.copytree(root, copy)
    change(copy / name)
    if mends:
        manifest = json.loads((copy / "bundle.json").read_text())
        (copy / "bundle.json").write_text(json.dumps(manifest | {"files": hashes_of(copy)}))
    write_archive(copy, folder / "x.zip")
    return folder / "x.zip"


def another_number(path: Path) -> None:
    table = pd.read_parquet(path)
    table["refusal_margin"] = table["refusal_margin"] * 2
    table.to_parquet(path, index=False)


def another_finding_and_sentence(path: Path) -> None:
    table = pd.read_parquet(path)
    table["estimate"] = table["estimate"] + 0.1
    table.to_parquet(path, index=False)
    page = path.parents[1] / "report" / "index.html"
    page.write_text(page.read_text().replace("<h1>", "<h1>Safe. "))


def a_column_of_lists(path: Path) -> None:
    table = pd.read_parquet(path)
    table["estimate"] = [[value] for value in table["estimate"]]
    table.to_parquet(path, index=False)


def a_study_without_a_name(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["studies"][0]["name"] = ["organism-0"]
    path.write_text(json.dumps(manifest))


FINDINGS, TABLE = "findings/findings.parquet", "studies/organism-0/analysis/evaluate/main/table.parquet"


@pytest.mark.parametrize(
    ("name", "change", "mends", "said"),
    [
        (TABLE, another_number, False, "files: studies/organism-0/analysis/evaluate/main/table.parquet is not as the"),
        (TABLE, another_number, True, "MISMATCH page: it does not say what follows"),
        (FINDINGS, another_finding_and_sentence, True, "do not follow from the tables"),
        (FINDINGS, a_column_of_lists, True, "do not follow from the tables"),
        ("bundle.json", a_study_without_a_name, False, "lacks the studies that it should name"),
        ("bundle.json", lambda path: path.write_text("{}"), False, "lacks format"),
        ("bundle.json", lambda path: path.unlink(), False, "holds no bundle.json"),
    ],
)
def test_what_was_tampered_with_is_found(made, tmp_path, name, change, mends, said):
    with pytest.raises(InputError) as refused:
        bundle(verify=str(tampered(made[2], tmp_path, name, change, mends)))
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 6


def test_small_numbers_are_compared_too_and_what_is_no_number_is_no_error():
    assert alike(2e-14 * (1 + 1e-9), 2e-14)
    assert alike(0.3 - 0.1 - 0.2, 0.0)  # what rounding leaves of a difference
    for one, other in ((1e-14, 9e-13), ("a", np.array([1, 2])), (np.array([1, 2]), np.array([1, 3])), (pd.NA, 3)):
        assert not alike(one, other)


def test_what_is_no_study_and_what_goes_not_together_is_refused(study, made, tmp_path):
    with pytest.raises(InputError, match="is no folder, expected a study"):
        bundle(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no stage"):
        bundle(str(tmp_path), out=str(tmp_path / "x.zip"))
    with pytest.raises(InputError, match="two have one name"):
        bundle([str(study), str(study)], out=str(tmp_path / "x.zip"))
    with pytest.raises(InputError, match="name the study"):
        bundle()
    with pytest.raises(InputError, match="writes nothing"):
        bundle(verify=str(made[0]), out=str(tmp_path / "x.zip"))
    with pytest.raises(InputError, match="say the same --sections and --topics"):
        bundle(verify=str(made[0]), topics=["mine.topic"])
    assert list(tmp_path.iterdir()) == []


def test_numbers_may_differ_in_their_last_digits_and_in_no_others():
    assert alike((1.0, "p 0.5", None, float("nan")), (1.0 + 1e-9, "p 0.5000000001", None, float("nan")))
    assert not alike((1.0, "x"), (1.001, "x"))
    assert not alike("2.13.0", "2.13.1")
    page = "<p class='a'>{} nats</p><script>{}</script>"
    assert same_page(page.format("1.5", "a"), page.format("1.5000000001", "b"))
    assert not same_page(page.format("1.5", ""), page.format("1.6", ""))
    assert not same_page(page.format("1.5", ""), page.format("1.5", "").replace("'a'", "'b'"))
