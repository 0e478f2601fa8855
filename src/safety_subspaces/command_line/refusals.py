"""What an argument parser refuses, in a few lines: the thing, what was expected, what was meant, where to read.

A parser tells of everything that it tried: the usage, each type of a union, each form that a class may have. Here its
message is read for the one thing that was wrong.
"""

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn, get_origin

from jsonargparse import ArgumentParser

from safety_subspaces.artefacts.foreign import QUOTED
from safety_subspaces.artefacts.plugins import did_you_mean
from safety_subspaces.artefacts.secrets import masked
from safety_subspaces.artefacts.trust import unknown_module

# What a parser says of a class path that may not be imported.
DENIED = re.compile(
    r"Importing '([^'.]+)[^']*' is not allowed, denied by the '[^']+' entry of the import path denylist\. "
    r"Add the import path to import_path_allowlist in set_parsing_settings to allow it\."
)
UNKNOWN = re.compile(r"(?:does not accept option|Option) '([^']+)'")
UNRECOGNISED = re.compile(r"unrecognized arguments: (--[^\s=]+)")
REQUIRED = re.compile(r"the following arguments are required: (.+)")
INVALID_CHOICE = re.compile(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.+)\)")
KEY = re.compile(r'Parser key "([^"]+)"')
CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)':\s*(.+?)(?=\n\s*- |\n\s*Given value|\Z)", re.DOTALL)
NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
NO_PATH = re.compile(r"Expected a dot import path string: (\S+)")
SUBTYPES = re.compile(r"Subtypes: \[(.+)\]")
EXPECTED = re.compile(r"Expected a (?:<class '([^']+)'>|(.+?))[.\n]")
GIVEN = re.compile(r"(?:Got value|Given value): (.+)")
A_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
# Modules whose classes a configuration names without their paths.
EXPORTING = (
    "callbacks", "safety_subspaces.training.modules", "safety_subspaces.training.data", "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers", "torch.optim", "torch.optim.lr_scheduler",
)  # fmt: skip
# How much of two names has to be the same for one to be meant by the other: `bsae` and `base` have three quarters.
NEAR = 0.7
# Names of a class or module that a message lists where none of them is near to what was said.
LISTED = 16


def refuse(parser: ArgumentParser, message: str, error: Exception | None, arguments: Sequence[str]) -> NoReturn:
    """End the process as a parser does, with what it says in a few lines.

    Args:
        parser: The parser of the command, or of its subcommand.
        message: What it says.
        error: What made it say so.
        arguments: The command line, with the entry point.
    """
    concerned = getattr(error, "subcommand_parser", None) or _subparser(parser, arguments)
    print("\n".join(explain(concerned, message, arguments)), file=sys.stderr)  # noqa: T201
    sys.exit(2)


def explain(parser: ArgumentParser, message: str, arguments: Sequence[str]) -> list[str]:
    """Return what is wrong, and the command that tells more."""
    prog = parser.prog.replace(" [options]", "")
    called = f"python {prog}" if ".py" in prog else prog
    text = masked(message)
    denied = DENIED.search(text)
    if denied is not None:
        return [f"error: {unknown_module(denied[1])}", f"help: {called} --help"]
    for reader in (_of_option, _of_required, _of_choice, _of_class, _of_type):
        said = reader(parser, text, arguments)
        if said is not None:
            return [f"error: {said}", f"help: {called} {_help_option(parser, text)}"]
    return [f"error: {_in_a_line(text)}", f"help: {called} --help"]


def _of_option(parser: ArgumentParser, text: str, arguments: Sequence[str]) -> str | None:
    """Tell of an option that nothing takes."""
    found = UNRECOGNISED.search(text) or UNKNOWN.search(text)
    if found is None:
        return None
    name = found[1].removeprefix("--")
    classes = [match for match in CLASS_PATH.finditer(text) if match.start() < found.start() < match.end()]
    owner = _innermost_class(text, found.start()) if classes else None
    known = _options(parser) if owner is None else _options_of_class(owner)
    meant = _nearest(name, known)
    is_said = any(word.partition("=")[0].endswith(name) and word.startswith("--") for word in arguments)
    dashes = "--" if is_said and owner is None else ""
    taker = _where(text, found.start()) + (_short(owner) if owner else parser.prog.replace(" [options]", ""))
    listed = f"; it takes {', '.join(sorted(known)[:LISTED])}" if owner and known and meant is None else ""
    return f"{taker} takes no {dashes}{name}{listed}{did_you_mean(meant and dashes + meant)}"


def _of_required(parser: ArgumentParser, text: str, arguments: Sequence[str]) -> str | None:
    """Tell of options that are missing."""
    found = REQUIRED.search(text)
    if found is None:
        return None
    prog = parser.prog.replace(" [options]", "")
    prefix = f"{prog.rpartition(' ')[2]}."
    names = [f"--{name.strip().removeprefix(prefix)}" for name in found[1].split(",")]
    if names == ["--subcommand"]:
        return f"{prog} needs a subcommand: {', '.join(_subcommands(parser))}"
    return f"{prog} needs {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} as well"


def _of_choice(parser: ArgumentParser, text: str, arguments: Sequence[str]) -> str | None:
    """Tell of a word that is none of those that there are."""
    found = INVALID_CHOICE.search(text)
    if found is None:
        return None
    known = [word.strip(" '") for word in found[3].split(",")]
    what = "subcommand" if found[1] == "subcommand" else found[1]
    meant = _nearest(found[2], known)
    return f"unknown {what} {found[2]!r}; expected one of {', '.join(known)}{did_you_mean(meant)}"


def _of_class(parser: ArgumentParser, text: str, arguments: Sequence[str]) -> str | None:
    """Tell of a class that is not there, or of what one says of its arguments."""
    missing = NO_ATTRIBUTE.search(text)
    if missing is not None:
        module, name = missing[1], missing[2]
        known = _public_names(module)
        meant = _nearest(name, known)
        listed = f"; it has {', '.join(sorted(known)[:LISTED])}" if known and meant is None else ""
        path = did_you_mean(meant and f"{module}.{meant}")
        return f"{_where(text, missing.start())}{module} has no {name}{listed}{path}"
    bare = NO_PATH.search(text)
    if bare is not None:
        paths = {name: module for module in EXPORTING if module in sys.modules for name in _public_names(module)}
        meant = _nearest(bare[1], paths)
        expected = "; expected the import path of a class, as in callbacks.SubspaceProjection"
        path = did_you_mean(meant and f"{paths[meant]}.{meant}")
        return f"{_where(text, bare.start())}there is no class {bare[1]}{path or expected}"
    problems = list(CLASS_PATH.finditer(text))
    if not problems or 'Parser key "' in problems[-1][2]:
        return None
    return f"{_where(text, problems[-1].start())}{_short(problems[-1][1])}: {_in_a_line(problems[-1][2])}"


def _of_type(parser: ArgumentParser, text: str, arguments: Sequence[str]) -> str | None:
    """Tell of a value of another type."""
    keys, given = KEY.findall(text), GIVEN.findall(text)
    subtypes, expected = SUBTYPES.findall(text), EXPECTED.findall(f"{text}\n")
    if not keys or not given or not (subtypes or expected):
        return None
    name, value = ".".join(_plain_keys(keys)), _in_a_line(given[-1])
    said = f"--{name} {value}"
    origin = get_origin(_type_of(parser, keys[0]))
    if len(keys) == 1 and origin is not None and isinstance(origin, type) and not subtypes:
        if issubclass(origin, Mapping):
            return f"{said}: expected a label with each value, --{name}.<label> {value}"
        if issubclass(origin, Collection):
            return f"{said}: expected a list, --{name} [{value}]"
    types = subtypes[-1] if subtypes else next(filter(None, expected[-1]))
    return f"{said}: expected {_in_a_line(A_CLASS.sub(lambda found: found[1], types)).replace('NoneType', 'null')}"


def _help_option(parser: ArgumentParser, text: str) -> str:
    """Return the option that explains what a message is about: of a class where it is of one's arguments."""
    key, classes = KEY.search(text), CLASS_PATH.search(text)
    option = None if key is None else f"--{key[1]}.help"
    action = parser._option_string_actions.get(option or "")
    if option is None or action is None or NO_ATTRIBUTE.search(text) or NO_PATH.search(text):
        return "--help"
    return option if action.nargs == 0 or classes is None else f"{option} {classes[1]}"


def _subparser(parser: ArgumentParser, arguments: Sequence[str]) -> ArgumentParser:
    """Return the parser of the subcommand that a command line names, if there is one."""
    known = _subcommands(parser)
    return next((known[word] for word in arguments[1:] if word in known), parser)


def _subcommands(parser: ArgumentParser) -> Mapping[str, ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}


def _options(parser: ArgumentParser) -> list[str]:
    return [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]


def _options_of_class(path: str) -> list[str]:
    """Return what a class is made with; the parser has imported it."""
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
    return [name for name in _options(parser) if name != "help" and not name.endswith(("+", ".help"))]


def _public_names(module: str) -> list[str]:
    loaded = sys.modules.get(module)
    return [name for name in dir(loaded) if isinstance(getattr(loaded, name, None), type)] if loaded else []


def _type_of(parser: ArgumentParser, key: str) -> Any:
    return next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)


def _innermost_class(text: str, end: int) -> str:
    return re.findall(r"Problem with given class_path '([^']+)'", text[:end])[-1]


def _where(text: str, end: int) -> str:
    """Return the setting that a place in a message is about, dotted, with a colon behind; empty where it names none."""
    keys = _plain_keys(KEY.findall(text[:end]))
    return f"{'.'.join(keys)}: " if keys else ""


def _plain_keys(keys: Iterable[str]) -> list[str]:
    return [key.removeprefix("fit.") for key in keys]


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest to one that is not known; what follows a wrong part of it is kept."""
    known = list(known)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        start = ".".join(parts[:count])
        found = [] if start in known else get_close_matches(start, known, 1, NEAR)
        if found:
            return ".".join([found[0], *parts[count:]])
    return None


def _in_a_line(text: str) -> str:
    return " ".join(A_CLASS.sub(lambda found: found[1], text).split())[:QUOTED]
