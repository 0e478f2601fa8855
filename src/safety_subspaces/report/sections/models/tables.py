"""The tables of training runs and evaluated models, and their means and differences over seeds."""

from typing import Any

import pandas as pd

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.findings.models import MEASURED, Seeds, models_over_seeds
from safety_subspaces.report.parts.columns import Cell, counts, means_over_seeds, outcomes, table_of, text
from safety_subspaces.report.parts.table import Table, count, duration, memory, number, sample_words
from safety_subspaces.report.sections.constraint.tables import REACH_NOTE

EVALUATED = ("utility", "harmful_rate", "harm_score", "over_refusal_rate", "benign_answered_rate", "refusal_margin")


def stage_table(study: Study) -> Table:
    """What was trained: examples, steps, time, speed, final losses, status and seed of each stage."""
    columns: dict[str, Cell] = {
        "stage": lambda stage: stage.name,
        "status": lambda stage: stage.status,
        "seed": lambda stage: number(stage.manifest.get("seed"), 0),
        "steps": lambda stage: count(stage.manifest.get("global_step")),
        "examples": lambda stage: count(examples_seen(stage)),
        "time": lambda stage: duration(stage.manifest.get("wall_seconds")),
        "tokens/s": lambda stage: count(stage.metric("train/tokens_per_second")),
        "train loss": lambda stage: number(stage.metric("train/loss"), 3),
        "val loss": lambda stage: number(stage.metric("val/loss"), 3),
        "memory": lambda stage: memory(stage.manifest.get("peak_memory_bytes")),
    }
    note = "Examples are steps x batch size x accumulation, an upper bound where a last batch was short."
    return table_of(study.stages, columns, 2, note)


def model_table(study: Study) -> Table:
    """Every evaluated model: utility, harm, over-refusal and margin, with standard errors and counts."""
    several = study.models["analysis"].nunique() > 1
    columns: dict[str, Cell] = {
        "model": lambda row: f"{row['model']} ({row['analysis']})" if several else str(row["model"]),
        **outcomes(EVALUATED),
        "n": counts("n_utility", "n_harmful", "n_benign"),
        "unscored": counts("n_unscored"),
    }
    note = (
        "± one standard error. Harm: 1 refusal to 5 full compliance. Answered: benign requests answered in full. "
        "Margin: log P(refusal) - log P(compliance) in nats, positive prefers to refuse. n: utility/harmful/benign "
        f"prompts{_groups(study.models)}."
    )
    return table_of(study.models, columns, note=note)


def examples_seen(stage: Stage) -> float | None:
    """Return steps x batch size x accumulation, or ``None`` where the manifest does not say."""
    config = stage.manifest.get("config") or {}
    batch = _find(config.get("data"), "batch_size")
    steps = stage.manifest.get("global_step")
    if not isinstance(batch, int) or not isinstance(steps, int):
        return None
    accumulated = _find(config.get("trainer"), "accumulate_grad_batches")
    return float(steps * batch * (accumulated if isinstance(accumulated, int) else 1))


def models_across_table(seeds: Seeds) -> Table:
    """Every model as a mean over seeds."""
    columns = {"model": text("model"), **means_over_seeds(MEASURED)}
    note = f"Means {REACH_NOTE} n: {sample_words(seeds.models)}."
    return table_of(models_over_seeds(seeds), columns, note=note)


def _groups(models: pd.DataFrame) -> str:
    """Return how many independent groups the prompts of the models lie in, nothing where that is not known."""
    counts = models[["n_groups_utility", "n_groups_harmful", "n_groups_benign"]].dropna(how="all")
    said = dict.fromkeys("/".join(map(count, row)) for row in counts.itertuples(index=False))
    return f", in {' or '.join(said)} independent groups, by which errors are reckoned" if said else ""


def _find(config: Any, name: str) -> Any:
    """Return the first value under ``name`` in nested mappings."""
    if not isinstance(config, dict):
        return None
    if name in config:
        return config[name]
    return next((setting for value in config.values() if (setting := _find(value, name)) is not None), None)
