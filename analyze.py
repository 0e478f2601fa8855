"""Analyse checkpoints: ``python analyze.py project --help``. Each subcommand is a typed function, for notebooks too."""

import sys
from pathlib import Path

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from safety_subspaces import command_line

if __name__ == "__main__":
    command_line.use_utf8()  # before imports that take a second

import pandas as pd
from jsonargparse import auto_cli

ROWS_SHOWN = 40
CELL_CHARACTERS = 200
TRY = """try:
  python analyze.py evaluate --models.base runs/organism-0/base/model --out runs/organism-0/analysis/evaluate/base
  python analyze.py project --config configs/organism/analysis/project.yaml
  python analyze.py report --study runs/organism-0"""


def main() -> None:
    """Parse the command line, run the subcommand and print its result."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
        print(TRY, end="\n\n")
    # A report takes a second to start, what loads models several: only what is asked for is imported.
    asked, *options = sys.argv[1:]
    names = command_line.ANALYSES.names() if asked.startswith("-") else [asked]
    commands = {name.rpartition(".")[2]: command_line.ANALYSES.load(name) for name in names}
    command_line.configure()
    arguments = [asked if asked.startswith("-") else next(iter(commands)), *options]
    result = auto_cli(commands, args=arguments, parser_mode=command_line.PARSER_MODE, as_positional=False)
    if isinstance(result, pd.DataFrame):
        rows = result.head(ROWS_SHOWN)
        print(rows.to_string(index=False, float_format="%.4g", line_width=160, max_colwidth=CELL_CHARACTERS))
        if len(result) > ROWS_SHOWN:
            print(f"... and {len(result) - ROWS_SHOWN} more rows in the table on disk")
    else:
        print(result)


if __name__ == "__main__":
    command_line.run(main)
