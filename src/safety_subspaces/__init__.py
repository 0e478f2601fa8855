"""Train and analyse language models where safety meets fine-tuning.

Each package is a wing, and knows only those below it: ``artefacts``; ``algebra`` and ``language``; ``weights``,
``states`` and ``organism``; ``constraint`` and ``evaluation``; ``training``; ``analysis`` and ``findings``; ``report``;
``compare`` and ``bundle``. The callbacks and the ``programs`` know all of them. What ``__all__`` names is imported
when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safety_subspaces.analysis.overlap.command import overlap
    from safety_subspaces.analysis.project.command import project
    from safety_subspaces.constraint.training_loop import hold
    from safety_subspaces.weights.subspace_file import Subspace

__version__ = "0.1.0"
__all__ = ["Subspace", "hold", "overlap", "project"]
# Importing PyTorch takes seconds, which `import safety_subspaces` need not.
_HOMES = {
    "Subspace": "weights.subspace_file",
    "hold": "constraint.training_loop",
    "overlap": "analysis.overlap.command",
    "project": "analysis.project.command",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
