"""The package as a stranger has it: a wheel in an environment of its own, used from an empty folder."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support.refusal import refuse
from support.tiny import OFFLINE, ROOT, save_tiny_model

from safety_subspaces.artefacts import extras
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.command_line import as_called, shipped
from safety_subspaces.programs.console import find_callbacks

# What a source distribution is made of, from which the wheel is then built.
SOURCES = (
    "src", "callbacks", "configs", "setup.py", "pyproject.toml", "requirements.txt", "MANIFEST.in", "README.md",
    "LICENSE",
)  # fmt: skip
BUILD = "from setuptools.build_meta import build_{0}; build_{0}('.')"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, and beside it the environment that the wheel is installed in; what it needs is shared."""
    folder = tmp_path_factory.mktemp("installed")
    tree = folder / "tree"
    tree.mkdir()
    for name in SOURCES:  # not in the clone itself, where building leaves files and walks through every run
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tree / name)
    subprocess.run([sys.executable, "-c", BUILD.format("sdist")], cwd=tree, check=True, capture_output=True)
    (packed,) = tree.glob("*.tar.gz")
    shutil.unpack_archive(packed, folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    subprocess.run([sys.executable, "-c", BUILD.format("wheel")], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    (place,) = (folder / "env" / "lib").glob("python*/site-packages")
    (place / "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, pip)], check=True, capture_output=True)
    wheel.rename(folder / wheel.name)
    shutil.rmtree(tree)  # nothing of it may be used from here on
    shutil.rmtree(source)
    (folder / "empty").mkdir()
    return folder / "empty"


def call(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [folder.parent / "env" / "bin" / "safety-subspaces", *arguments]
    return subprocess.run(
        [*map(str, command)], cwd=folder, env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False
    )


def test_a_wheel_has_one_top_level_name_and_the_configurations(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"safety_subspaces"}
    assert "safety_subspaces/callbacks/subspace_projection.py" in names
    here = {path for path in shipped.shipped_configs() if not path.startswith("real/")}
    found = {name.removeprefix("safety_subspaces/configs/") for name in names if "/configs/" in name}
    assert found == {f"{name}.yaml" for name in here}


def test_an_empty_folder_is_enough_to_train_by_name_and_to_analyse(installed: Path) -> None:
    shown = call(installed, "analyze", "project", "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: safety-subspaces analyze [options] project")
    models = {name: save_tiny_model(installed / name / "model", seed) for seed, name in enumerate(("base", "aligned"))}
    trained = call(
        installed, "train", "fit", "--config", "organism/contaminated_away", "--study", ".", "--run_dir=run",
        "--data.init_args.size=32", "--data.init_args.heldout_size=4",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    folders = [f"--{name}={path}" for name, path in {**models, "tuned.held": installed / "run" / "model"}.items()]
    done = call(installed, "analyze", "project", *folders, "--out=projected", "--fractions=[0.25]", "--draws=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (installed / "projected" / "table.csv").is_file()


def test_what_is_wrong_is_said_in_the_words_of_the_installed_command(installed: Path) -> None:
    unknown = call(installed, "trian")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "did you mean train?" in unknown.stderr
    refused = call(installed, "analyze", "subspace", "--base=a", "--aligned=b")
    assert refused.returncode == 2
    assert "help: safety-subspaces analyze subspace --help" in refused.stderr


def test_configurations_are_found_by_name_and_files_of_ones_own_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(ROOT / "configs" / "organism" / "align.yaml")
    for name in ("organism/align", "organism/align.yaml", "configs/organism/align.yaml"):
        assert shipped.with_paths(["x", "--config", name, "--out", name]) == ["x", "--config", path, "--out", name]
        assert shipped.with_paths([f"--config={name}"]) == [f"--config={path}"]
    refuse(lambda: shipped.with_paths(["--config", "organism/algin"]), "did you mean organism/align\\?")
    for strange in ("../../etc/passwd", "mine.yaml", "{a: 1}"):
        assert shipped.with_paths(["--config", strange]) == ["--config", strange]
    own = tmp_path / "configs" / "organism" / "align.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert shipped.with_paths(["--config", "configs/organism/align.yaml"])[1] == "configs/organism/align.yaml"


def test_callbacks_are_the_same_classes_by_both_names() -> None:
    import callbacks

    find_callbacks()
    watcher = importlib.import_module("safety_subspaces.callbacks.watcher")
    assert watcher.Watcher is callbacks.watcher.Watcher
    assert importlib.import_module("safety_subspaces.callbacks").RunBoard is callbacks.RunBoard


def test_commands_in_messages_are_those_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "make it with python analyze.py subspace; then python train.py fit"
    assert as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["/bin/safety-subspaces"])
    assert as_called(text) == "make it with safety-subspaces analyze subspace; then safety-subspaces train fit"


@pytest.mark.parametrize("package", extras.EXTRAS)
def test_a_package_that_is_missing_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_extra(package, "this")
    monkeypatch.setitem(sys.modules, package, None)
    refuse(lambda: check_extra(package, "this"), f"this needs the package {package}", rf"\[{extras.EXTRAS[package]}\]")


def test_the_package_is_imported_at_once_and_its_names_when_they_are_used() -> None:
    program = (
        "import sys, safety_subspaces\n"
        "print(*(name for name in ('torch', 'pandas', 'scipy', 'lightning') if name in sys.modules))\n"
        "assert set(safety_subspaces.__all__) <= set(dir(safety_subspaces))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout == "\n"
    import safety_subspaces

    assert callable(safety_subspaces.project)
    assert callable(safety_subspaces.overlap)
    with pytest.raises(AttributeError, match="no attribute 'projct'"):
        _ = safety_subspaces.projct
