"""Every command in the README is run, the long ones by their smallest case or a dry run."""

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from support.documents import blocks_of, commands_of
from support.tiny import ROOT, run_command
from test_configs import smallest_case, study  # noqa: F401  (a fixture)

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.subspace.command import subspace as make_subspace
from safety_subspaces.findings.command import findings

README = (ROOT / "README.md").read_text(encoding="utf-8")
# test_installed.py installs a wheel.
COMMANDS = [command.split(" #")[0].strip() for command in commands_of(README) if not command.startswith("pip ")]
# Options that make an analysis small.
SMALL = {
    "project": ["--fractions=[0.5]", "--draws=1", "--evaluate.limit=2", "--evaluate.max_new_tokens=4"],
    "activations": ["--limit=20", "--controls=9", "--permutations=9"],
}


def test_the_readme_is_short_and_the_configurations_that_it_names_are_there() -> None:
    assert len(README.splitlines()) < 120
    for path in re.findall(r"configs/[\w/.]+\.yaml", README):
        assert (ROOT / path).is_file(), path


def without(arguments: list[str], *options: str) -> list[str]:
    """Leave options and their values away."""
    starts = [place for place, argument in enumerate(arguments) if argument in options]
    return [argument for place, argument in enumerate(arguments) if not {place, place - 1} & set(starts)]


def python_of(page: str) -> str:
    """The one piece of Python of a page."""
    (code,) = blocks_of((ROOT / page).read_text(encoding="utf-8"), "python")
    return code


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(
    command: str,
    study: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    elif arguments[0] == "train.py":
        config = ROOT / arguments[arguments.index("--config") + 1]
        small = smallest_case(config, study, tmp_path)
        extra = without(arguments[4:], "--run_dir")
        if any(".subspace=" in option for option in extra):  # the callback's file, made by the command before
            file = tmp_path / "s.safetensors"
            make_subspace(
                *(str(study / name / "model") for name in ("base", "aligned")), str(file), RankRule(fraction=0.25)
            )
            extra = [f"{option.split('=')[0]}={file}" if ".subspace=" in option else option for option in extra]
        done = run_command(
            ROOT / "train.py", arguments[1], "--config", config, *small, f"--run_dir={tmp_path / 'run'}", *extra
        )
    elif arguments[1] == "subspace":
        models = [f"--{name}={study / name / 'model'}" for name in ("base", "aligned")]
        done = run_command(
            ROOT / "analyze.py", "subspace", *models, "--rank.fraction=0.25", f"--out={tmp_path}/s.safetensors"
        )
        assert (tmp_path / "s.safetensors").is_file()
    elif arguments[1] == "compare":
        mine = {"--base": "base", "--aligned": "aligned", "--tuned.mine": "useful"}
        filled = {option: str(study / name / "model") for option, name in mine.items()}
        filled |= {"--prompts": "organism", "--out": str(tmp_path / "mine")}
        words = [filled.get(before, word) for before, word in pairwise(arguments[1:])]
        done = run_command(ROOT / "analyze.py", "compare", *words, "--limit=2", "--max_new_tokens=4")
        assert f"report: {tmp_path}/mine/report/index.html" in done.stdout
        (tmp_path / "runs" / "mine").mkdir(parents=True)  # what the tutorial looks at in a notebook
        (tmp_path / "runs" / "mine" / "compare").symlink_to(tmp_path / "mine")
        monkeypatch.chdir(tmp_path)
        exec(python_of("docs/tutorials/checkpoints.md"), {})
        assert re.search(r"energy_kept\s+chance_energy\n.*\bmine\b", capsys.readouterr().out)
    elif arguments[1] == "report":
        filled = tmp_path / "study"
        shutil.copytree(study, filled)
        done = run_command(ROOT / "analyze.py", "report", "--study", filled)
        assert f"report: {filled}/report/index.html" in done.stdout
    else:
        monkeypatch.setenv("STUDY", str(study))
        config = ROOT / arguments[arguments.index("--config") + 1]
        small = [*SMALL[arguments[1]], f"--out={tmp_path / 'out'}"]
        done = run_command(ROOT / "analyze.py", arguments[1], "--config", config, *small)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_python_of_the_readme_runs(
    study: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "runs" / "try").mkdir(parents=True)
    (tmp_path / "runs" / "organism-0").symlink_to(study)
    (tmp_path / "runs" / "try" / "alignment.safetensors").symlink_to(study / "alignment.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(python_of("README.md"), {})
    assert 0 < float(capsys.readouterr().out) < 1e-9


def test_the_python_of_the_pages_on_a_study_runs(
    study: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    shutil.copytree(study, tmp_path / "runs" / "organism-0")
    monkeypatch.chdir(tmp_path)
    exec(python_of("docs/analyses.md"), {})
    assert "energy_kept  chance_energy\n" in capsys.readouterr().out
    findings("runs/organism-0")
    exec(python_of("docs/tutorials/reading.md"), {})
    assert re.search(r"question\s.*verdict", capsys.readouterr().out, re.DOTALL)
