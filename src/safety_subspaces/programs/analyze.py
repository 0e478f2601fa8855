"""Analyses checkpoints: ``python analyze.py project --help``. Subcommands are typed functions, for notebooks too."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, auto_cli

from safety_subspaces import command_line
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

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parse and check."""
        parsed = super().parse_args(*args, **options)
        check_trust(parsed.as_dict(), sys.argv)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a few lines; a parser of a class inside this one raises."""
        if not self.exit_on_error:
            super().error(message, ex)
        refuse(self, message, ex, sys.argv)


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, run the subcommand and print its result.

    Args:
        arguments: The command line without the program; that of this process by default.
        program: How the program is called, for its messages; by its file by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        arguments = ["--help"]
        print(command_line.as_called(TRY), end="\n\n")
    asked, *options = without_plugin_folders(arguments)
    names = command_line.ANALYSES.names() if asked.startswith("-") else [asked]
    try:
        commands = {name.rpartition(".")[2]: command_line.ANALYSES.load(name) for name in names}
    except InputError as error:
        error.add_note("help: python analyze.py --help")
        raise
    command_line.configure()
    result = auto_cli(
        commands,
        args=[asked if asked.startswith("-") else next(iter(commands)), *options],
        parser_class=AnalyzeParser,
        parser_mode=command_line.PARSER_MODE,
        as_positional=False,
        prog=program,
    )
    pandas = sys.modules.get("pandas")  # a result is a table only where it was imported
    if pandas and isinstance(result, pandas.DataFrame):
        rows = result.head(ROWS_SHOWN)
        print(rows.to_string(index=False, float_format="%.4g", line_width=160, max_colwidth=CELL_CHARACTERS))
        if len(result) > ROWS_SHOWN:
            print(f"... and {len(result) - ROWS_SHOWN} more rows in the table on disk")
    else:
        print(result)
