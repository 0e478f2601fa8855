"""What is imported because a file names it: installed packages, this suite, and folders that the command line names."""

import os
import sys
from pathlib import Path

import pytest

from safety_subspaces.artefacts import trust
from safety_subspaces.artefacts.errors import InputError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone, a folder that a command runs in, and three that hold a module each; the process is as it was after."""
    for name in ("clone/runs/stranger", "clone/src/safety_subspaces", "here", "named", "relative", "flagged/spread"):
        (tmp_path / name).mkdir(parents=True)
    for place, name in (("here", "of_here"), ("named", "of_named"), ("here/relative", "of_relative")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{name}.py").touch()
    (tmp_path / "clone" / "loose.py").touch()
    for name in ("of_flagged", "code"):  # Python's own module of that name stays what it is
        (tmp_path / "flagged" / f"{name}.py").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(trust, "_importable", None)
    path = [str(tmp_path / "clone"), str(tmp_path / "named"), str(tmp_path / "here" / "relative"), *sys.path]
    monkeypatch.setattr(sys, "path", [*path, str(tmp_path / "here"), ""])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "named"), "relative", "", "."]))
    return tmp_path


def test_names_come_from_where_the_command_line_and_the_installation_say(places: Path) -> None:
    names = trust.import_only_trusted(places / "clone", [places / "flagged"])
    assert {"torch", "lightning", "safety_subspaces", "callbacks", "of_named", "of_flagged", "spread"} <= names
    # The folder that it runs in, what PYTHONPATH names from there, the clone's loose files and runs, Python itself.
    strange = {"of_here", "of_relative", "runs", "loose", "os", "subprocess", "code", "builtins", "pip", "jsonargparse"}
    assert not strange & names
    assert not {"", str(places / "here"), str(places / "here" / "relative")} & set(sys.path)
    assert str(places / "flagged") in sys.path
    for path in ("torch.nn.Linear", "callbacks.RunRecord", "of_flagged.Judge"):
        trust.check_importable(path, "judge")
    for path in ("of_here.Judge", "runs.stranger.evil.Judge", "subprocess.Popen"):
        with pytest.raises(InputError, match=rf"judge {path}: there is no module .* --plugins <folder that holds it>"):
            trust.check_importable(path, "judge")


def test_a_folder_that_pythonpath_names_in_full_counts_where_the_command_runs_too(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(places / "here"))
    assert "of_here" in trust.import_only_trusted(places / "clone")


def test_a_folder_of_plug_ins_has_to_be_there(places: Path) -> None:
    with pytest.raises(InputError, match=r"--plugins .*nowhere is no folder"):
        trust.import_only_trusted(places / "clone", [Path("nowhere")])


def test_the_option_of_plug_ins_is_read_and_taken_out_of_a_command_line() -> None:
    command = ["analyze.py", "--plugins", f"a{os.pathsep}b", "evaluate", "--plugins=c", "--out", "d"]
    assert trust.plugin_folders(command) == [Path("a"), Path("b"), Path("c")]
    assert trust.without_plugin_folders(command) == ["analyze.py", "evaluate", "--out", "d"]


@pytest.mark.parametrize(
    ("config", "said", "value"),
    [
        (
            {"fit": {"model": {"init_args": {"source": {"trust_remote_code": True}}}}},
            "model.source.trust_remote_code",
            "true",
        ),
        ({"list": [{"init_args": {"trust_checkpoint": True}}]}, "list.init_args.trust_checkpoint", "true"),
        ({"fit": {"weights_only": False}}, "weights_only", "false"),
        ({"unsafe_code": True}, "unsafe_code", "true"),
    ],
)
def test_a_file_cannot_trust_what_the_command_line_does_not(config: dict, said: str, value: str) -> None:
    name = said.rpartition(".")[2]
    other = {"true": "false", "false": "true"}[value]
    for command in ([], [f"--{said}", other], [f"--other.{name}", value], ["--config", said], [f"--not_{name}", value]):
        with pytest.raises(InputError, match=rf"says \S*{name}: {value}, which lets code run.*Only the command line"):
            trust.check_trust(config, command)
    trust.check_trust(config, [f"--{said}", value])
    trust.check_trust(config, [f"--{said}={value}"])
    trust.check_trust({"trust_remote_code": False, "weights_only": True, "plugins": None}, [])


def test_a_file_cannot_name_a_folder_of_plug_ins() -> None:
    for config in ({"plugins": "."}, {"fit": {"plugins": "."}}):
        with pytest.raises(InputError, match="which only the command line may: --plugins"):
            trust.check_trust(config, ["--config", "x.yaml"])
    trust.check_trust({"fit": {"plugins": ".", "trainer": {"plugins": ["x"]}}}, ["--plugins", "."])
