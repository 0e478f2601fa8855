"""Analyses checkpoints: ``python analyze.py project --help``. Subcommands are typed functions, for notebooks too."""

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace, auto_parser

from safety_subspaces import command_line
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.trust import check_trust, without_plugin_folders
from safety_subspaces.command_line.flags import allow_bare_flags
from safety_subspaces.command_line.output import VIEW, reserved_output, show
from safety_subspaces.programs.parser import ProgramParser, arguments_or_help

TRY = """try:
  python analyze.py evaluate --models.base runs/organism-0/base/model --out runs/organism-0/analysis/evaluate/base
  python analyze.py project --config configs/organism/analysis/project.yaml
  python analyze.py report --study runs/organism-0
a judge, template, section or subcommand of your own: --plugins <folder of its module>"""


class AnalyzeParser(ProgramParser):
    """A parser for which only the command line can trust what came with a file."""

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parse and check."""
        parsed = super().parse_args(*args, **options)
        check_trust(parsed.as_dict(), sys.argv)
        return parsed


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, run the subcommand and print its result.

    Args:
        arguments: The command line without the program; that of this process by default.
        program: How the program is called, for its messages; by its file by default.
    """
    asked, *options = without_plugin_folders(arguments_or_help(arguments, TRY))
    names = command_line.ANALYSES.names() if asked.startswith("-") else [asked]
    try:
        commands = {name.rpartition(".")[2]: command_line.ANALYSES.load(name) for name in names}
    except InputError as error:
        error.add_note("help: python analyze.py --help")
        raise
    command_line.configure()
    parser = auto_parser(
        commands, parser_class=AnalyzeParser, parser_mode=command_line.PARSER_MODE, as_positional=False,
        allow_abbrev=False, prog=program,
    )  # fmt: skip
    allow_bare_flags(parser)
    parsed = parser.instantiate(parser.parse_args([asked if asked.startswith("-") else next(iter(commands)), *options]))
    command, given = commands[parsed.subcommand], parsed[parsed.subcommand]
    given.pop("config", None)
    with reserved_output():
        result = command(**given)
    show(parsed.subcommand, result, given.get("out"), getattr(sys.modules[command.__module__], VIEW, None))
