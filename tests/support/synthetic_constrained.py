"""Adds runs under a constraint to a synthetic study, so that either outcome of the experiment can be provoked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from support.synthetic_study import World, measures, result_json, write_stage, write_study

# The columns that the analyses of the constrained runs are called by.
KINDS = {
    "contaminated_away": ("away", "none"),
    "contaminated_onto": ("onto", "none"),
    "contaminated_away_random": ("away", "random"),
    "contaminated_away_random_energy": ("away", "random-energy"),
}


@dataclass(frozen=True)
class ConstrainedRuns:
    """What is true of the made-up runs under a constraint; the unconstrained run has a margin of -10 and utility .95.

    Args:
        margin: Refusal margin of every run that is held; 5 and more is safe, -5 and less is harmful.
        utility: Utility of every run that is held.
        selectivity: Nats by which the alignment subspace spares more than a random one.
        learnt_more: Utility by which a run held by the alignment subspace is above its controls.
        seed_noise: Standard deviation of each run's margin, in nats: over seeds of training and of random subspaces.
        controls: Runs of each random control, which differ in the seed of their subspace alone.
    """

    margin: float = -6.0
    utility: float = 0.9
    selectivity: float = 0.0
    learnt_more: float = 0.0
    seed_noise: float = 0.0
    fractions: tuple[float, ...] = (0.25,)
    controls: int = 1


NOTHING_HOLDS = ConstrainedRuns()
KEEPS_SAFETY = ConstrainedRuns(margin=8.0)
MORE_SELECTIVE = ConstrainedRuns(selectivity=3.0)
LESS_SELECTIVE = ConstrainedRuns(selectivity=-3.0)
A_TRADE = ConstrainedRuns(selectivity=3.0, learnt_more=-0.4)


def write_constrained_study(
    folder: Path, world: ConstrainedRuns = NOTHING_HOLDS, seed: int = 0, **options: Any
) -> Path:
    """Write a study with the runs under a constraint, as `make study` leaves it."""
    write_study(folder, World(seed=seed), **options)
    random = np.random.default_rng([seed, 7])
    for fraction in world.fractions:
        suffix = "" if fraction == 0.25 else f"-r{fraction:g}"
        rows, energies, models = [], [_energy("contaminated", fraction, 0.6)], {}
        for kind, (mode, control) in KINDS.items():
            for draw in range(1 if control == "none" else world.controls):
                name = f"{kind}-s{draw}" if draw else kind
                run = folder / f"{name}{suffix}"
                _write_run(run, mode, control, fraction, seed, random, draw=seed + 100 * draw)
                rows.append({"model": name, **_behaviour(world, control, random)})
                inside = {"none": 0.0 if mode == "away" else 1.0}.get(control, 0.4)
                energies.append(_energy(name, fraction, inside))
                models[name] = str(run / "model")
        _write(folder, "evaluate", f"constrained{suffix}", pd.DataFrame(rows), {"models": models})
        tuned = {"contaminated": str(folder / "contaminated" / "model"), **models}
        arguments = {"aligned": str(folder / "aligned" / "model"), "tuned": tuned}
        _write(folder, "project", f"constrained{suffix}", pd.DataFrame(energies), arguments)
    return folder


# A study of nothing but what the runs under a constraint are compared with.
SMALL: dict[str, Any] = {"analyses": ("evaluate",), "stages": ("base", "aligned", "contaminated")}


def write_seeds(folder: Path, world: ConstrainedRuns, seeds: int = 3) -> list[str]:
    """Write the studies of several seeds, and return their folders."""
    return [str(write_constrained_study(folder / f"organism-{seed}", world, seed, **SMALL)) for seed in range(seeds)]


def _behaviour(world: ConstrainedRuns, control: str, random: np.random.Generator) -> dict[str, float]:
    is_top = control == "none"
    margin = world.margin + world.selectivity * is_top + world.seed_noise * random.normal()
    utility = world.utility + world.learnt_more * is_top
    return measures(utility, float(1 / (1 + np.exp(2 * margin))), margin)


def _write_run(
    path: Path, mode: str, control: str, fraction: float, seed: int, random: np.random.Generator, draw: int
) -> None:
    write_stage(path, "contaminated", seed, random)
    manifest = json.loads((path / "manifest.json").read_text())
    constraint = {
        "mode": mode,
        "subspace": "top" if control == "none" else control,
        "rank": f"{fraction:g}",
        "fraction": fraction,
        "details": "",
        "settings": {"seed": draw},
    }
    manifest["parts"].append({"part": "mine.Defence", "constraint": constraint})
    manifest["kind_sha256"] = f"kind of {mode} {control} {fraction}"
    manifest["metrics"]["projection/leakage"] = 5e-15
    (path / "manifest.json").write_text(json.dumps(manifest))


def _energy(tuned: str, fraction: float, inside: float) -> dict[str, Any]:
    return {
        "tuned": tuned,
        "subspace": "top",
        "method": "onto",
        "fraction": fraction,
        "draw": 0,
        "energy_kept": inside,
        "chance_energy": fraction,
    }


def _write(folder: Path, command: str, label: str, table: pd.DataFrame, arguments: dict[str, Any]) -> None:
    target = folder / "analysis" / command / label
    target.mkdir(parents=True)
    table.to_parquet(target / "table.parquet", index=False)
    (target / "config.yaml").write_text(yaml.safe_dump(arguments))
    (target / "result.json").write_text(json.dumps(result_json(command, folder, target)))
