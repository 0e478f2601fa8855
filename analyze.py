"""Analyse checkpoints: ``python analyze.py project --help``. Each subcommand is a typed function, for notebooks too."""

import sys
from pathlib import Path

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

import pandas as pd
from jsonargparse import auto_cli

from safety_subspaces import command_line
from safety_subspaces.analysis.evaluate import evaluate
from safety_subspaces.analysis.export import export
from safety_subspaces.analysis.overlap import overlap
from safety_subspaces.analysis.project import project
from safety_subspaces.analysis.report import report
from safety_subspaces.analysis.subspace import subspace
from safety_subspaces.analysis.trajectory import trajectory

COMMANDS = {
    "subspace": subspace, "project": project, "overlap": overlap, "evaluate": evaluate, "export": export,
    "report": report, "trajectory": trajectory,
}  # fmt: skip
ROWS_SHOWN = 40
TRY = """try:
  python analyze.py evaluate --models.base runs/organism-0/base/model --out runs/organism-0/analysis/evaluate/base
  python analyze.py project --config configs/organism/analysis/project.yaml
  python analyze.py report --study runs/organism-0"""


def main() -> None:
    """Parse the command line, run the subcommand and print its result."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
        print(TRY, end="\n\n")
    result = auto_cli(COMMANDS, parser_mode=command_line.PARSER_MODE, as_positional=False)
    if isinstance(result, pd.DataFrame):
        print(result.head(ROWS_SHOWN).to_string(index=False, float_format="%.4g", line_width=160))
        if len(result) > ROWS_SHOWN:
            print(f"... and {len(result) - ROWS_SHOWN} more rows in the table on disk")
    else:
        print(result)


if __name__ == "__main__":
    command_line.configure()
    command_line.run(main)
