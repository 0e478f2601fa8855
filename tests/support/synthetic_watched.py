"""Adds watchers' values, kept answers and trajectories to a synthetic study, so that each way can come out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from safety_subspaces.artefacts.study import Study
from support.synthetic_study import HOSTILE, write_study

PARTS = ("lm_head", "layers.10", "layers.02", "norm", "embed_tokens", "layers.00")
PROMPTS = {
    "n_utility": 32,
    "n_harmful": 32,
    "n_benign": 32,
    "n_unscored": 0,
    "n_groups_utility": 24,
    "n_groups_harmful": 24,
    "n_groups_benign": 25,
}


@dataclass(frozen=True)
class Watched:
    """What the watchers of a made-up run have seen, a value a look; an empty measure was not watched."""

    steps: tuple[int, ...] = (0, 60, 120, 180, 240)
    harmful: tuple[float, ...] = (0.0, 0.0, 0.9, 1.0, 1.0)
    utility: tuple[float, ...] = (0.1, 0.1, 0.2, 0.8, 0.9)
    margin: tuple[float, ...] = (5.0, 3.0, -1.0, -4.0, -5.0)
    energy: tuple[float, ...] = (0.3, 0.4, 0.45, 0.45, 0.45)
    energy_chance: tuple[float, ...] = (0.15,) * 5
    activations: tuple[float, ...] = (0.5, 0.45, 0.4, 0.35, 0.3)
    overlap: tuple[float, ...] = ()
    layered: tuple[str, ...] = ("activation/overlap", "delta/energy_fraction", "delta/frobenius_norm")
    center: bool = False


LOST_BEFORE = Watched()
LOST_AFTER = Watched(harmful=(0.0, 0.0, 0.0, 0.1, 1.0), utility=(0.1, 0.8, 0.9, 0.9, 0.9))
LOST_TOGETHER = Watched(utility=(0.1, 0.2, 0.8, 0.8, 0.9))
LOST_FOR_NOTHING = Watched(utility=(0.1, 0.12, 0.1, 0.13, 0.12))
HELD = Watched(harmful=(0.0, 0.0, 0.03, 0.0, 0.03), margin=(5.0, 5.0, 4.9, 4.8, 4.5))
WORN = Watched(harmful=(0.0, 0.1, 0.2, 0.4, 0.3))
NEVER_SAFE = Watched(harmful=(0.9, 1.0, 1.0, 1.0, 1.0))


def scalars_of(watched: Watched) -> dict[str, dict[int, float]]:
    """Return every scalar that the watchers of such a run would log: tag to values by step."""
    measures = {
        "utility/accuracy": watched.utility,
        "safety/harmful_rate": watched.harmful,
        "safety/refusal_margin": watched.margin,
        "delta/energy_fraction": watched.energy,
        "delta/energy_fraction_chance": watched.energy_chance if watched.energy else (),
        "delta/overlap": watched.overlap,
        "delta/overlap_chance": [0.2 for _ in watched.overlap],
        "activation/overlap": watched.activations,
        "activation/overlap_chance": [0.1 for _ in watched.activations],
        "activation/drift_first": [0.1 * look for look, _ in enumerate(watched.activations)],
        "activation/drift_second": [0.05 * look for look, _ in enumerate(watched.activations)],
    }
    for tag in ("utility/accuracy", "safety/harmful_rate"):
        measures[f"{tag}_stderr"] = [float(np.sqrt(rate * (1 - rate) / 32)) for rate in measures[tag]]
    measures["safety/refusal_margin_stderr"] = [0.05 for _ in watched.margin]
    for tag in watched.layered:
        for number, part in enumerate(PARTS):
            moved = 0.0 if part == "norm" else 0.01
            measures[f"{tag}/{part}"] = [0.1 * number + moved * look for look, _ in enumerate(watched.steps)]
    return {tag: dict(zip(watched.steps, values, strict=True)) for tag, values in measures.items() if len(values)}


def watch_stage(folder: Path, watched: Watched = LOST_BEFORE, keeps_answers: bool = True) -> None:
    """Add to a stage what its watchers leave: events, ``behaviour/``, and their settings in the manifest."""
    write_events(folder, scalars_of(watched))
    if keeps_answers:
        (folder / "behaviour").mkdir()
        for step in watched.steps:
            content = {"step": step, "row": PROMPTS, "generations": [{"prompt": HOSTILE}]}
            (folder / "behaviour" / f"step={step:08d}.json").write_text(json.dumps(content))
    manifest = json.loads((folder / "manifest.json").read_text())
    compared = {"first": "organism:harmful", "second": "organism:utility", "center": watched.center}
    manifest["parts"].append({"part": "mine.Watcher", "compared_activations": compared})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_events(folder: Path, scalars: Mapping[str, Mapping[int, float]]) -> None:
    """Write scalars as one file of TensorBoard's events."""
    writer = EventFileWriter(str(folder))
    for step in sorted({step for values in scalars.values() for step in values}):
        at_step = {tag: values[step] for tag, values in scalars.items() if step in values}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in at_step.items()])
        writer.add_event(Event(wall_time=float(step), step=step, summary=summary))
    writer.close()


def watched_so(study: Study, *runs: Watched, **changes: Any) -> Study:
    """Return a study with the values of other runs in place of its watched one's, without a disk.

    Args:
        study: As :func:`write_watched_study` writes it.
        *runs: What the watchers saw; the first run keeps the name of the watched one, the others are run1, run2, ...
        **changes: Further fields of each stage.
    """
    stage = next(stage for stage in study.stages if stage.name == "contaminated")
    stages = [
        replace(
            stage,
            name=f"run{number}" if number else stage.name,
            scalars={
                tag: pd.DataFrame({"step": list(values), "value": list(values.values())})
                for tag, values in scalars_of(run).items()
            },
            **changes,
        )
        for number, run in enumerate(runs)
    ]
    return replace(study, stages=tuple(stages))


def write_watched_study(folder: Path, watched: Watched = LOST_BEFORE, stage: str = "contaminated") -> Path:
    """Write a small study with one watched run and its trajectory."""
    write_study(folder, analyses=("evaluate",), stages=("base", "aligned", "contaminated", "useful"))
    watch_stage(folder / stage, watched)
    write_trajectory(folder, str(folder / stage), stage)
    return folder


def write_trajectory(folder: Path, run: str, label: str, steps: Sequence[int] = (60, 120, 180, 240)) -> Path:
    """Write a result of ``analyze.py trajectory`` of a run, with the columns that this writes."""
    target = folder / "analysis" / "trajectory" / label
    target.mkdir(parents=True)
    rows = [
        {"step": step, "level": level, "part": part, **_moved(index, 1.0 if level == "all" else 0.5)}
        for level, part in (("all", "all"), ("place", "layers.00"))
        for index, step in enumerate(steps)
    ]
    overlaps = [
        {"step": step, "level": level, "part": level, "other": other, "overlap": value, "chance": 0.2}
        for level in ("all", "type")
        for other, value in (("useful", 0.6), ("harmful", 0.4))
        for step in steps
    ]
    shifts = (("step_norm_per_step", 1, -0.07), ("step_norm_per_step", 2, 0.004), ("overlap_useful", 1, 0.2))
    levels = {"mean_before": 0.1, "mean_after": 0.02}
    changes = [
        {"series": series, "step": steps[index], **levels, "move": move, "usual_move": 0.01, "n": len(steps)}
        for series, index, move in shifts
    ]
    for name, table in (("table", rows), ("overlaps", overlaps), ("change_points", changes)):
        pd.DataFrame(table).to_csv(target / f"{name}.csv", index=False)
    arguments: dict[str, Any] = {"run": run, "rank": {"count": None, "fraction": 0.25, "energy": None}}
    (target / "config.yaml").write_text(yaml.safe_dump(arguments))
    (target / "result.json").write_text(json.dumps({"analysis": "trajectory", "out": str(target), "summary": {}}))
    return target


def _moved(index: int, norm: float) -> dict[str, float]:
    first = index == 0
    return {
        "frobenius_norm": norm * (index + 1),
        "path_length": norm * (index + 1.5),
        "straightness": 0.9,
        "step_norm_per_step": 0.02,
        "cos_to_final": 0.8,
        "energy_fraction": 0.45,
        "energy_fraction_chance": 0.15,
        "stable_rank": 5.0,
        "effective_rank": 20.0,
        "rms_angle_radians": np.nan if first else 0.4,
        "rms_angle_chance_radians": np.nan if first else 1.2,
        "speed_radians_per_step": 0.01,
        "n_matrices": 30,
    }
