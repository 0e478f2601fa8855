"""Modules that a help text need not wait for: while one is made, empty ones stand in for them.

``train.py fit --help`` lists the arguments of Lightning's Trainer, and of the classes that are known. For these PyTorch
and Lightning have to be imported, and what they import is as much again: metrics of audio and text, plots, PyTorch's
compiler, and the libraries that our own classes use when they run.
"""

import gc
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any

# No option of the Trainer takes a type of these. Optimizers of transformers are then not among those that a help lists.
NOT_NEEDED = ("matplotlib", "pandas", "peft", "sklearn", "torch._dynamo", "torchmetrics", "transformers")


def spare_help(arguments: Sequence[str]) -> None:
    """Have empty modules stand in where a command line asks for a help text alone; the process ends with that.

    Args:
        arguments: The command line, with the entry point; without any it asks for help.
    """
    if len(arguments) <= 3 and (len(arguments) == 1 or arguments[-1] in ("--help", "-h")):
        sys.meta_path.insert(0, _Finder())
        gc.disable()  # it would pass over all that is imported, again and again, and find nothing


class _Class(type):
    """The class of stand-ins for classes: whatever one asks such a class for is another."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Class(name, (), {"__module__": cls.__module__})

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """Leave what it decorates as it is; else make an object of nothing."""
        return arguments[0] if arguments else super().__call__()


class _StandIn(ModuleType):
    """A module that has any class one asks for: to derive from, to name in a signature, and never to make."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return version(self.__name__.partition(".")[0])
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Class(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        is_spared = any(f"{name}.".startswith(f"{spared}.") for spared in NOT_NEEDED)
        return ModuleSpec(name, self, is_package=True) if is_spared else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""
