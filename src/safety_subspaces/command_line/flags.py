"""One vocabulary of options over all subcommands: what is called what, and what yes and no are said by."""

import argparse
from collections.abc import Mapping

from jsonargparse import ArgumentParser

from safety_subspaces.artefacts.earlier_names import RENAMED
from safety_subspaces.command_line import COMMAND

# Options that one entry point has and the other does not, with what to do there.
INSTEAD = {
    "analyze": {
        "resume": "the same command goes on where it was interrupted",
        "archive": "an earlier result of the same command is replaced with --overwrite",
    },
    "train": {"overwrite": "a run is never written over: --resume goes on with it, --archive moves it aside"},
}


def other_way(prog: str, name: str) -> str | None:
    """Tell of an option that goes by another name, or that the other entry point has.

    Args:
        prog: The command: ``analyze.py overlap``, or as it is installed ``safety-subspaces analyze overlap``.
        name: The option, without its dashes.
    """
    first, dot, rest = name.partition(".")
    words = prog.removeprefix(COMMAND).split()
    renamed = RENAMED.get(words[-1], {}).get(first)
    if renamed is not None:
        return f"{prog} takes no --{name}: it is called --{renamed}{dot}{rest}"
    instead = INSTEAD.get(words[0].removesuffix(".py"), {}).get(name)
    return None if instead is None else f"{prog} takes no --{name}: {instead}"


def allow_bare_flags(parser: ArgumentParser) -> None:
    """Have an option of yes or no mean yes where it stands alone, in every subcommand: ``--overwrite``."""
    for each in (parser, *subcommands_of(parser).values()):
        for action in each._actions:
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True


def subcommands_of(parser: ArgumentParser) -> Mapping[str, ArgumentParser]:
    """Return the parser of each subcommand."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}
