"""How a program begins, as ``python train.py`` in a clone and as ``safety-subspaces train`` where it is installed."""

import sys
from difflib import get_close_matches
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import safety_subspaces
from safety_subspaces import command_line
from safety_subspaces.artefacts.plugins import did_you_mean
from safety_subspaces.command_line import COMMAND, shipped
from safety_subspaces.command_line.stand_ins import spare_help

USAGE = f"""usage: {COMMAND} train | analyze | configs
  {COMMAND} train fit --config organism/pretrain   train a model; {COMMAND} train --help
  {COMMAND} analyze project --help                 analyse checkpoints; {COMMAND} analyze --help
  {COMMAND} configs                                list the configurations that --config takes by their names"""
# The callbacks' name in a clone, and where an installation has them.
BESIDE, INSIDE = "callbacks", "safety_subspaces.callbacks"


def main() -> None:
    """Run one of the programs, as the installed command does."""
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if asked == "train":
        train(2, f"{COMMAND} train")
    elif asked == "analyze":
        analyze(2, f"{COMMAND} analyze")
    elif asked == "configs":
        print("\n".join(f"{name:<42} {about}" for name, about in shipped.described().items()))
    elif asked in ("--help", "-h"):
        print(USAGE)
    elif asked == "--version":
        print(f"{COMMAND} {safety_subspaces.__version__}")
    else:
        near = next(iter(get_close_matches(asked, ("train", "analyze", "configs"), 1)), None)
        print(f"error: unknown program {asked!r}{did_you_mean(near)}\nhelp: {COMMAND} --help", file=sys.stderr)
        sys.exit(2)


def train(first: int = 1, program: str | None = None) -> None:
    """Run the training program; its imports take seconds, so that signals are listened to before them.

    Args:
        first: Where its own arguments begin in this process's command line.
        program: How it is called, for its messages; by its file by default.
    """
    command_line.begin()
    spare_help([sys.argv[0], *sys.argv[first:]])

    def run() -> None:
        find_callbacks()
        from safety_subspaces.programs import train as training

        command_line.configure()
        training.main(sys.argv[first:], program)

    command_line.run(run)


def analyze(first: int = 1, program: str | None = None) -> None:
    """Run the analysing program; the arguments are those of :func:`train`."""
    command_line.begin()

    def run() -> None:
        from safety_subspaces.programs import analyze as analysing

        analysing.main(sys.argv[first:], program)

    command_line.run(run)


def find_callbacks() -> None:
    """Let the callbacks be found by both names, as one package.

    A clone has them beside ``src/``, by the name ``callbacks``; an installation has them inside this package.
    """
    inside = Path(safety_subspaces.__file__).parent
    clone = inside.parents[1]
    is_clone = inside.parent.name == "src" and (clone / BESIDE / "__init__.py").is_file()
    name, other = (BESIDE, INSIDE) if is_clone else (INSIDE, BESIDE)
    if name not in sys.modules:
        _import_from(clone if is_clone else inside, name)
    for known, module in list(sys.modules.items()):
        if f"{known}.".startswith(f"{name}."):
            sys.modules[f"{other}{known.removeprefix(name)}"] = module


def _import_from(folder: Path, name: str) -> ModuleType:
    """Import a package from a folder, whether or not that is on Python's path."""
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no callbacks in {folder}: the installation is incomplete", name=name)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
