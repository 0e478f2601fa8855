"""Analyse checkpoints: ``python analyze.py project --help``. Each subcommand is a typed function, for notebooks too."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

import pandas as pd
from jsonargparse import auto_cli

from safety_subspaces import command_line

# Each is the function of its name in the package of its name.
COMMANDS = (
    "subspace",
    "project",
    "overlap",
    "atlas",
    "activations",
    "probe",
    "steer",
    "evaluate",
    "utility",
    "judge",
    "convert",
    "export",
    "report",
    "trajectory",
)
ROWS_SHOWN = 40
TRY = """try:
  python analyze.py evaluate --models.base runs/organism-0/base/model --out runs/organism-0/analysis/evaluate/base
  python analyze.py project --config configs/organism/analysis/project.yaml
  python analyze.py report --study runs/organism-0"""


def load(name: str) -> Callable[..., Any]:
    """Import a subcommand."""
    package = "safety_subspaces" if name == "report" else "safety_subspaces.analysis"
    return getattr(import_module(f"{package}.{name}.command"), name)


def main() -> None:
    """Parse the command line, run the subcommand and print its result."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
        print(TRY, end="\n\n")
    # A report takes a second to start, what loads models several: only what is asked for is imported.
    asked = [name for name in COMMANDS if name == sys.argv[1]] or COMMANDS
    commands = {name: load(name) for name in asked}
    command_line.configure()
    result = auto_cli(commands, parser_mode=command_line.PARSER_MODE, as_positional=False)
    if isinstance(result, pd.DataFrame):
        print(result.head(ROWS_SHOWN).to_string(index=False, float_format="%.4g", line_width=160))
        if len(result) > ROWS_SHOWN:
            print(f"... and {len(result) - ROWS_SHOWN} more rows in the table on disk")
    else:
        print(result)


if __name__ == "__main__":
    command_line.run(main)
