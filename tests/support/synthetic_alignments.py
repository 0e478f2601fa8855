"""Writes studies that differ in how their models were aligned, each with the selectivity that is asked for."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from support.synthetic_study import World, write_study


@dataclass(frozen=True)
class Recipe:
    """How the made-up alignments were trained, and how selective and how large each came out."""

    objective: str = "SFT"
    corpus: str = "align"
    size: int = 3000
    rate: float = 1.5e-3
    nll_weight: float | None = None
    selectivity: float = 0.0
    norm: float = 10.0


SFT = Recipe()
DPO = Recipe("DPO", "preference", 1500, 5e-4, 1.0, selectivity=6.0, norm=4.0)


def write_aligned(folder: Path, recipe: Recipe, seed: int, *more: str) -> str:
    world = World(seed=seed, selectivity=recipe.selectivity * (1 + 0.1 * seed))
    write_study(folder, world, ("evaluate", "project", *more), ("aligned",))
    manifest = json.loads((folder / "aligned" / "manifest.json").read_text())
    settings = {} if recipe.nll_weight is None else {"beta": 0.1, "likelihood term": recipe.nll_weight}
    objective = {"name": recipe.objective, "learning_rate": recipe.rate, "settings": settings}
    data = {"name": recipe.corpus, "examples": recipe.size}
    manifest["parts"] = [{"part": "mine.Module", "objective": objective}, {"part": "mine.Data", "data": data}]
    (folder / "aligned" / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {"tensor": "lm_head.weight", "layer": -1, "type": "head", "energy": 0.2 * recipe.norm**2, "stable_rank": 1.3},
        {"tensor": "model.layers.0.q", "layer": 0, "type": "q", "energy": 0.6 * recipe.norm**2, "stable_rank": 4.0},
        {"tensor": "model.layers.0.v", "layer": 0, "type": "v", "energy": 0.2 * recipe.norm**2, "stable_rank": 8.0},
    ]
    table = pd.DataFrame(rows).assign(effective_rank=9.0, numerical_rank=96)
    table.to_parquet(folder / "analysis" / "project" / "main" / "alignment.parquet", index=False)
    return str(folder)


def write_all(folder: Path, recipes: list[Recipe], seeds: int = 3, more: tuple[str, ...] = ()) -> list[str]:
    return [
        write_aligned(folder / f"{number}-{seed}", recipe, seed, *more)
        for number, recipe in enumerate(recipes)
        for seed in range(seeds)
    ]
