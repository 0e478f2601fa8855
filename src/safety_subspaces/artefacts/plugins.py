"""Plug-ins: what a short name or a dotted import path stands for, so that a new judge or analysis is one new file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.trust import check_importable


@dataclass(frozen=True)
class Plugins:
    """One kind of plug-in.

    A short name is that of a module in our folder, or of an entry point of another package; anything with a dot is the
    import path of an object, or of a module that defines one. Nothing is imported before it is asked for, and a command
    imports only what :mod:`safety_subspaces.artefacts.trust` lets it.

    Args:
        kind: What one is called in messages.
        fits: Whether an object is one.
        folder: Package of ours that holds one in each module; empty where we have none.
        group: Group of entry points.
        within: Module of a package that holds it, where each is a package: ``.command``.
        beside: Packages elsewhere that are found by the last part of their names as well.
        reserved: Names that stand for something else, for messages.
    """

    kind: str
    fits: Callable[[Any], bool]
    folder: str
    group: str
    within: str = ""
    beside: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the short names that there are."""
        return sorted({*self._ours(), *(point.name for point in entry_points(group=self.group))})

    def load(self, name: str) -> Any:
        """Import what a name stands for.

        Raises:
            InputError: No such name, module or attribute, or it is of another kind.
        """
        points = [point.value.replace(":", ".") for point in entry_points(group=self.group, name=name)]
        path = self._ours().get(name, *points[:1])
        if path is None and ("." not in name or not all(part.isidentifier() for part in name.split("."))):
            known = ", ".join([*self.reserved, *self.names()])
            expected = f"one of {known}, or an import path" if known else "an import path"
            meant = did_you_mean(next(iter(get_close_matches(name, self.names(), 1)), None))
            raise InputError(f"unknown {self.kind} {name!r}; expected {expected}: my_package.my_module{meant}")
        path = path or name
        check_importable(path, self.kind)
        value = self._imported(path)
        if isinstance(value, ModuleType):
            return self._in(value, path.rpartition(".")[2])
        if not self.fits(value):
            raise InputError(f"{path} is {value!r}, which is no {self.kind}")
        return value

    def _ours(self) -> dict[str, str]:
        if not self.folder:
            return {}
        inside = iter_modules(import_module(self.folder).__path__, f"{self.folder}.")
        modules = [info.name for info in inside if info.ispkg or not self.within]
        return {
            module.rpartition(".")[2]: module
            for module in (*modules, *self.beside)
            if not self.within or find_spec(module + self.within)
        }

    def _imported(self, path: str) -> Any:
        """Import a module, or an attribute of one; what a module itself fails to import is raised as it is."""
        parts = path.split(".")
        for count in range(len(parts), 0, -1):
            module = ".".join(parts[:count])
            try:
                value = import_module(module)
            except ModuleNotFoundError as error:
                if not f"{module}.".startswith(f"{error.name}."):
                    raise
                continue
            for attribute in parts[count:]:
                if not hasattr(value, attribute):
                    raise InputError(f"{self.kind} {path}: {module} has no {attribute}")
                value = getattr(value, attribute)
            return value
        raise InputError(
            f"{self.kind} {path}: there is no module {parts[0]}; put its folder on PYTHONPATH, or name it by --plugins"
        )

    def _in(self, module: ModuleType, name: str) -> Any:
        """Return what a module defines: what has its name, else the only one."""
        if self.within and hasattr(module, "__path__") and find_spec(module.__name__ + self.within):
            module = import_module(module.__name__ + self.within)
        defined = {key: value for key, value in vars(module).items() if _defines(module, key) and self.fits(value)}
        if name not in defined and len(defined) != 1:
            got = f"more than one {self.kind}: {', '.join(defined)}" if defined else f"no {self.kind}"
            raise InputError(f"{module.__name__} defines {got}; name one by {module.__name__}.<its name>")
        return defined.get(name) or next(iter(defined.values()))


def _defines(module: ModuleType, key: str) -> bool:
    """Whether a name is public and of a module, or of one inside it, and not imported; a text is of where it stands."""
    source = getattr(getattr(module, key), "__module__", module.__name__)
    return not key.startswith("_") and f"{source}.".startswith(f"{module.__name__}.")


def did_you_mean(name: str | None) -> str:
    """Return the end of a message that asks whether a name was meant, or nothing without one."""
    return f"; did you mean {name}?" if name else ""


def build(plugin: type[Any], arguments: Mapping[str, Any], label: str) -> Any:
    """Make an object of a plug-in's class from values as a YAML has them, checked and cast by its signature.

    Raises:
        InputError: An argument that it does not take, that is missing, or that is of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(plugin, fail_untyped=False)
    try:
        return plugin(**parser.instantiate_classes(parser.parse_object(dict(arguments))).as_dict())
    except ArgumentError as error:
        takes = ", ".join(parser.get_defaults().keys()) or "no arguments"
        raise InputError(f"{label}: {error}; it takes {takes}") from error
