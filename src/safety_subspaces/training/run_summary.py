"""What a run ends with, for the one who started it: what it leaks of its constraint, and where its model is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.description import facts_about, read_manifest
from safety_subspaces.constraint.held import HeldLeakage, read_leakage

# What SubspaceProjection logs, of a run that exports no model whose weights could be measured.
LEAKAGE_METRIC = "projection/leakage"


@dataclass(frozen=True)
class RunSummary:
    """What a finished run has come to.

    Args:
        path: The model that it has exported, or the run folder where it exports none.
        run: The run folder.
        steps: Optimizer steps.
        metrics: The last value of each metric.
        constraints: What held the update: the facts that the manifest has.
        leakage: Of each constraint, measured on the exported weights.
    """

    path: Path
    run: Path
    steps: int
    metrics: dict[str, float]
    constraints: tuple[dict[str, Any], ...] = ()
    leakage: tuple[HeldLeakage, ...] = ()

    def __str__(self) -> str:
        name = self.run.name  # several runs may share a terminal
        lines = [f"{name}: held {leak}" for leak in self.leakage]
        if self.constraints and not self.leakage and LEAKAGE_METRIC in self.metrics:
            lines = [f"{name}: {self.metrics[LEAKAGE_METRIC]:.2g} of the update's energy is forbidden"]
        return "\n".join([*lines, f"{name}: the {'run' if self.path == self.run else 'model'} is {self.path}"])


def summarise_run(run: Path) -> RunSummary:
    """Return what a finished run has come to, by its manifest and its model.

    Args:
        run: The run folder.

    Raises:
        InputError: The manifest is missing or cannot be read.
    """
    manifest = read_manifest(run / "manifest.json")
    models = [run / str(facts["folder"]) for facts in facts_about("export", manifest)]
    model = next((path for path in models if path.is_dir()), None)
    return RunSummary(
        model or run,
        run,
        int(manifest.get("global_step", 0)),
        dict(manifest.get("metrics", {})),
        tuple(facts_about("constraint", manifest)),
        () if model is None else read_leakage(model),
    )
