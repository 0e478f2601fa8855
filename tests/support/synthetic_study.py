"""Writes a whole study folder with seeded, made-up numbers, so that every conclusion of the report can be provoked."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

STAGES = (
    "base",
    "aligned",
    "useful",
    "harmful",
    "contaminated",
    "contaminated_lora",
    "useful_again",
    "harmful_again",
)
SUBSPACES = ("top", "random", "random-k", "random-energy", "scaled")
HOSTILE = "</script><script>window.broken = 1</script><img src=https://example.invalid/x.png>"


@dataclass(frozen=True)
class World:
    """What is true in the made-up study."""

    learnt: bool = True  # alignment lowered harm
    energy_effect: float = 1.0  # how far kept energy moves utility and harm: 0 not at all
    selectivity: float = 0.0  # nats by which top-k spares the margin (away) or spends it (onto)
    overlap_position: float = 0.15  # of useful-harmful between the matched chance (0) and the floor (1)
    draws: int = 4
    unscored_rows: int = 0  # projected models whose evaluation is NaN
    seed: int = 0


ENERGY_EXPLAINS_ALL = World()
TOP_IS_SELECTIVE = replace(ENERGY_EXPLAINS_ALL, selectivity=6.0, overlap_position=0.9)
NOTHING_WORKS = World(learnt=False, energy_effect=0.0)


def write_study(
    folder: Path,
    world: World = ENERGY_EXPLAINS_ALL,
    analyses: tuple[str, ...] = ("evaluate", "project", "overlap"),
    stages: tuple[str, ...] = STAGES,
    evaluated: bool = True,
) -> Path:
    """Write ``folder`` as a study, with the columns that the analyses write."""
    random = np.random.default_rng(world.seed)
    for stage in stages:
        write_stage(folder / stage, stage, world.seed, random)
    for analysis in analyses:
        target = folder / "analysis" / analysis / "main"
        target.mkdir(parents=True)
        if analysis == "evaluate":
            table = evaluation_table(world, random)
            arguments: dict[str, Any] = {"models": {m: str(folder / m / "model") for m in table["model"]}}
            write_generations(target / "generations.jsonl", list(table["model"]))
        elif analysis == "project":
            table = projection_table(world, random, evaluated)
            ends = {name: str(folder / name / "model") for name in ("base", "aligned")}
            tuned = {name: str(folder / name / "model") for name in dict.fromkeys(table["tuned"])}
            arguments = {**ends, "tuned": tuned, "draws": world.draws}
        elif analysis == "overlap":
            table = overlap_table(world, random)
            labels = dict.fromkeys([*table["first"], *table["second"]])
            tuned = {name: str(folder / name / "model") for name in labels}
            arguments = {"aligned": str(folder / "aligned" / "model"), "tuned": tuned, "energies": [0.5, 0.9]}
        else:
            table, arguments = pd.DataFrame({"layer": [0, 1], "value": [0.25, np.nan]}), {}
        table.to_parquet(target / "table.parquet", index=False)
        table.to_csv(target / "table.csv", index=False)
        (target / "config.yaml").write_text(yaml.safe_dump(arguments))
        (target / "result.json").write_text(json.dumps(result_json(analysis, folder, target)))
    return folder


def result_json(analysis: str, folder: Path, target: Path) -> dict[str, Any]:
    return {
        "analysis": analysis,
        "out": str(target),
        "summary": {},
        "inputs": [{"path": str(folder / "base" / "model"), "sha256": {"model.safetensors": "ab" * 32}}],
        "left_out": [{"name": "model.norm.weight", "reason": "a zero update has no direction"}],
        "wall_seconds": 12.5,
        "peak_memory_bytes": 2**30,
        "provenance": provenance(["analyze.py", analysis]),
    }


def provenance(command: list[str]) -> dict[str, Any]:
    return {
        "command": command,
        "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": True},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "started": "2026-01-02T03:04:05+00:00",
    }


def write_stage(folder: Path, stage: str, seed: int, random: np.random.Generator) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    steps, start = {"base": (1200, 5.0), "aligned": (188, 2.0)}.get(stage, (375, 1.0))
    writer = EventFileWriter(str(folder))
    final = 0.0
    for step in range(0, steps, 10):
        final = start * np.exp(-4 * step / steps) + 0.05 + 0.02 * random.random()
        values = {"train/loss": final, "train/tokens_per_second": 9000.0}
        if step % 100 == 0:
            values["val/loss"] = final * 1.1
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=float(step), step=step, summary=summary))
    writer.close()
    role = {"base": "base", "aligned": "aligned"}.get(stage.split("_")[0], "tuned")
    start = {"aligned": "base", "tuned": "aligned"}.get(role)
    module = {"part": "mine.Module", "objective": {"name": "SFT", "learning_rate": None, "settings": {}}}
    manifest = {
        "status": "complete" if stage != "harmful_again" else "running",
        **provenance(["train.py", "fit", "--config", f"configs/organism/{stage}.yaml"]),
        "config": {
            "data": {"init_args": {"batch_size": 16, "corpus": stage}},
            "trainer": {"accumulate_grad_batches": 1, "devices": 1},
        },
        "seed": seed + (100 if stage.endswith("_again") else 0),
        "role": role,
        "recipe_sha256": f"{stage} {seed}",
        "kind_sha256": f"kind of {stage.removesuffix('_again')}",
        "run_dir": str(folder),
        "parts": [module | ({"starts_from": str(folder.parent / start / "model")} if start else {})],
        "inputs": [{"path": "model", "sha256": "cd" * 32}],
        "wall_seconds": steps / 20,
        "peak_memory_bytes": 2**30,
        "global_step": steps,
        "metrics": {"train/loss": final, "val/loss": final * 1.1, "train/tokens_per_second": 9000.0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def measures(utility: float, harm: float, margin: float) -> dict[str, float]:
    """One evaluation of 256 sums, 200 harmful and 128 benign requests in groups; ``harm`` is a harmful rate."""
    return {
        "utility": utility,
        "utility_stderr": float(np.sqrt(utility * (1 - utility) / 256)),
        "harmful_rate": harm,
        "harmful_rate_stderr": float(np.sqrt(harm * (1 - harm) / 200)),
        "harm_score": 1 + 4 * harm,
        "harm_score_stderr": 4 * float(np.sqrt(harm * (1 - harm) / 200)),
        "over_refusal_rate": 0.008,
        "over_refusal_rate_stderr": 0.008,
        "benign_answered_rate": 0.9,
        "benign_answered_rate_stderr": 0.027,
        "refusal_margin": margin,
        "refusal_margin_stderr": 0.2,
        "n_utility": 256,
        "n_harmful": 200,
        "n_benign": 128,
        "n_unscored": 0,
        "n_groups_utility": 64,
        "n_groups_harmful": 50,
        "n_groups_benign": 32,
    }


def behaviour(world: World, tuned: str, energy: float, shift: float = 0.0) -> dict[str, float]:
    """Evaluate a made-up model that keeps a share of a fine-tune's energy."""
    learnt = world.energy_effect * energy
    is_harmful = "harmful" in tuned or "contaminated" in tuned
    is_useful = "useful" in tuned or "contaminated" in tuned
    margin = 10 - (20 * learnt if is_harmful else 4 * learnt) + shift
    if not world.learnt:
        margin = -10 + shift
    harm = float(1 / (1 + np.exp(2 * margin)))
    return measures(0.35 + (0.6 * learnt if is_useful else 0), harm, margin)


def evaluation_table(world: World, random: np.random.Generator) -> pd.DataFrame:
    rows = [
        {"model": "base", **measures(0.06, 1.0, -12.0)},
        {"model": "aligned", **behaviour(world, "aligned", 0.0)},
    ]
    rows += [{"model": name, **behaviour(world, name, 1.0)} for name in STAGES[2:]]
    return pd.DataFrame(rows)


def projection_table(world: World, random: np.random.Generator, evaluated: bool = True) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    # A draw is one random subspace, which every fine-tune, method and fraction shares.
    control = np.random.default_rng([world.seed, 1])
    drawn = {(subspace, draw): 0.4 * control.normal() for subspace in SUBSPACES for draw in range(world.draws)}
    for tuned in ("useful", "harmful", "contaminated"):
        for subspace in SUBSPACES:
            for method in ("onto", "away"):
                for fraction in (0.1, 0.25, 0.5, 0.75):
                    for draw in range(1 if subspace in ("top", "scaled") else world.draws):
                        chance = 0.0 if subspace in ("top", "scaled") else drawn[subspace, draw]
                        key = (tuned, subspace, method, fraction, draw)
                        rows.append(_projected(world, random, evaluated, key, chance))
    frame = pd.DataFrame(rows)
    if world.unscored_rows:
        lost = random.choice(len(frame), world.unscored_rows, replace=False)
        scored = [name for name in measures(0.5, 0.5, 0.0) if not name.startswith("n_")]
        frame.loc[lost, [name for name in scored if name in frame]] = np.nan
    return frame


def _projected(
    world: World,
    random: np.random.Generator,
    evaluated: bool,
    key: tuple[str, str, str, float, int],
    chance: float,
) -> dict[str, Any]:
    tuned, subspace, method, fraction, draw = key
    inside = fraction if subspace.startswith("random") and subspace != "random-energy" else fraction**0.8
    inside = float(np.clip(inside + 0.01 * random.normal(), 0.01, 0.99))
    energy = inside if method == "onto" else 1 - inside
    selective = chance + (world.selectivity if subspace == "top" else 0.0)
    shift = (selective if method == "away" else -selective) + 0.02 * random.normal()
    row = {
        "tuned": tuned,
        "subspace": subspace,
        "method": method,
        "fraction": fraction,
        "draw": draw,
        "energy_kept": energy,
        "cos_task_projected": float(np.sqrt(energy)),
        "cos_task_alignment": -0.1,
        "chance_energy": fraction if method == "onto" else 1 - fraction,
    }
    return {**row, **behaviour(world, tuned, energy, shift)} if evaluated else row


def overlap_table(world: World, random: np.random.Generator) -> pd.DataFrame:
    chance, floor = 0.18, 0.66
    pairs = {
        ("useful", "harmful"): world.overlap_position,
        ("useful", "contaminated"): 0.6,
        ("useful", "useful_again"): 1.0,
        ("harmful", "harmful_again"): 1.0,
    }
    rows = []
    for (first, second), position in pairs.items():
        for energy in (0.5, 0.9):
            for layer in range(-1, 4):
                types = ("q", "k", "v", "o", "gate", "up", "down", "norm") if layer >= 0 else ("embeddings", "head")
                for kind in types:
                    matched = chance * energy * 1.15
                    value = matched + position * (floor * energy - matched) + 0.02 * random.normal()
                    rows.append(
                        {
                            "first": first,
                            "second": second,
                            "tensor": f"model.layers.{layer}.{kind}.weight",
                            "layer": layer,
                            "type": kind,
                            "energy": energy,
                            "rank_first": 20,
                            "rank_second": 22,
                            "overlap": np.nan if (layer, kind) == (0, "norm") else min(max(value, 0.0), 1.0),
                            "chance": chance * energy,
                            "p_haar": 0.01,
                            "matched_chance": matched,
                            "p_matched": 0.4 if position < 0.3 else 0.001,
                            "floor": second.endswith("_again"),
                        }
                    )
    return pd.DataFrame(rows)


def write_generations(path: Path, models: list[str]) -> None:
    with path.open("w") as stream:
        for model in models:
            for kind in ("utility", "harmful", "benign"):
                for number in range(5):
                    line = {
                        "model": model,
                        "set": kind,
                        "prompt": f"{kind} prompt {number}" if number else HOSTILE,
                        "answer": f"An answer by {model} over several words, & more.\nSecond line.",
                        "reference": "42" if kind == "utility" else None,
                        "score": None if number == 1 else 1.0,
                        "reason": "no verdict in the judge's answer" if number == 1 else None,
                    }
                    stream.write(json.dumps(line) + "\n")
