"""What the parsers of both programs share."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from safety_subspaces import command_line
from safety_subspaces.command_line.output import add_output_options
from safety_subspaces.command_line.refusals import refuse


class ProgramParser(ArgumentParser):
    """A parser with the options of what is printed, whose errors are a few lines."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exit_on_error:  # no parser of a class inside this one
            add_output_options(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a few lines; a parser of a class inside this one raises."""
        if not self.exit_on_error:
            super().error(message, ex)
        refuse(self, message, ex, sys.argv)


def arguments_or_help(arguments: Sequence[str] | None, examples: str) -> list[str]:
    """Return a program's own arguments; where there are none print examples, and return those of its help.

    Args:
        arguments: The command line without the program; that of this process by default.
        examples: Commands to try, as a clone has them.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        print(command_line.as_called(examples), end="\n\n")
    return given or ["--help"]
