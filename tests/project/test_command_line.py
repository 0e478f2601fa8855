"""A configuration that is wrong, or made to do harm, ends both entry points with one message, soon."""

import json
import re
from pathlib import Path

import pytest
from support.tiny import ANALYZE, ROOT, TRAIN, run_command

from safety_subspaces.command_line import ANALYSES

# What a help text need not wait for.
HEAVY = ("torch", "transformers", "pandas", "scipy", "sklearn", "lightning", "deepspeed")
HELP = """
import runpy, sys
sys.path.insert(0, ".")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print("imported:", *(name for name in {heavy} if name in sys.modules))
    raise
"""

BOMB = "k0: &k0 [x, x]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))
WRONG = {
    "bomb": BOMB.encode(),
    "bomb in a text": json.dumps({"limit": BOMB}).encode(),
    "latin": b"out: \xe9\n",
    "deep": b"[" * 5000,
    "endless": b"models: &a {b: *a}\n",
    "no number": b"limit: !!int word\n",
    "code": b"out: !!python/object/apply:os.system [true]\n",
    "circle": b"out: ${judge}\njudge: ${out}\n",
    "unclosed": b"out: ${judge\n",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", [(ANALYZE, "evaluate"), (TRAIN, "fit")], ids=["analyze", "train"])
def test_a_wrong_configuration_ends_with_one_message(tmp_path: Path, command: tuple[object, str], name: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(WRONG[name])
    done = run_command(*command, "--config", config, timeout=60)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["", *ANALYSES.names()])
def test_a_help_text_of_an_analysis_waits_for_no_library(name: str) -> None:
    program = (
        f"import sys; sys.argv = {[str(ANALYZE), *([name] if name else []), '--help']}\n{HELP.format(heavy=HEAVY)}"
    )
    done = run_command("-c", program, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: analyze.py")
    assert done.stdout.endswith("imported:\n")


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_a_help_text_of_training_is_that_of_all_that_is_imported(subcommand: str) -> None:
    """What stands in for the libraries changes nothing but which subclasses are known."""
    alone = run_command(TRAIN, subcommand, "--help", new_interpreter=True)
    among_all = run_command(TRAIN, subcommand, "--help")
    assert alone.returncode == among_all.returncode == 0, alone.stderr
    assert alone.stderr == ""
    for name in (
        "callbacks.SubspaceProjection",
        "modules.SupervisedFineTuning",
        "data.OrganismData",
        "torch.optim.AdamW",
    ):
        assert name in alone.stdout
    texts = [re.sub(r"known subclasses: [^)]*", "", " ".join(done.stdout.split())) for done in (alone, among_all)]
    assert texts[0] == texts[1]


def test_a_help_text_of_training_waits_for_no_library_that_only_a_run_needs() -> None:
    spared = ("transformers.modeling_utils", "pandas.core", "scipy.stats", "sklearn.base", "deepspeed", "sympy")
    program = f"import sys; sys.argv = {[str(TRAIN), 'fit', '--help']}\n{HELP.format(heavy=spared)}"
    done = run_command("-c", program, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported:\n")
