"""Analyse checkpoints: ``python analyze.py project --help``. Each subcommand is a typed function, for notebooks too."""

import sys
from pathlib import Path
from typing import Any, NoReturn

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from safety_subspaces import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports, which take seconds

from jsonargparse import ArgumentParser, Namespace, auto_cli

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.trust import check_trust, without_plugin_folders
from safety_subspaces.command_line.refusals import refuse

ROWS_SHOWN = 40
CELL_CHARACTERS = 200
TRY = """try:
  python analyze.py evaluate --models.base runs/organism-0/base/model --out runs/organism-0/analysis/evaluate/base
  python analyze.py project --config configs/organism/analysis/project.yaml
  python analyze.py report --study runs/organism-0
a judge, template, section or subcommand of your own: --plugins <folder of its module>"""


class AnalyzeParser(ArgumentParser):
    """A parser for which only the command line can trust what came with a file."""

    def parse_args(self, *args: Any, **options: Any) -> Namespace:
        """Parse and check."""
        parsed = super().parse_args(*args, **options)
        check_trust(parsed.as_dict(), sys.argv)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a few lines; a parser of a class inside this one raises."""
        if not self.exit_on_error:
            super().error(message, ex)
        refuse(self, message, ex, sys.argv)


def main() -> None:
    """Parse the command line, run the subcommand and print its result."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
        print(TRY, end="\n\n")
    asked, *options = without_plugin_folders(sys.argv[1:])
    names = command_line.ANALYSES.names() if asked.startswith("-") else [asked]
    try:
        commands = {name.rpartition(".")[2]: command_line.ANALYSES.load(name) for name in names}
    except InputError as error:
        error.add_note("help: python analyze.py --help")
        raise
    command_line.configure()
    arguments = [asked if asked.startswith("-") else next(iter(commands)), *options]
    result = auto_cli(
        commands, args=arguments, parser_class=AnalyzeParser, parser_mode=command_line.PARSER_MODE, as_positional=False
    )
    pandas = sys.modules.get("pandas")  # a result is a table only where it was imported
    if pandas and isinstance(result, pandas.DataFrame):
        rows = result.head(ROWS_SHOWN)
        print(rows.to_string(index=False, float_format="%.4g", line_width=160, max_colwidth=CELL_CHARACTERS))
        if len(result) > ROWS_SHOWN:
            print(f"... and {len(result) - ROWS_SHOWN} more rows in the table on disk")
    else:
        print(result)


if __name__ == "__main__":
    command_line.run(main)
