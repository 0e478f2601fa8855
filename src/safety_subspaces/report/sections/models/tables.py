"""The tables of training runs and evaluated models."""

from typing import Any

import pandas as pd

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.report.parts.table import Table, count, duration, memory, number, with_error


def stage_table(study: Study) -> Table:
    """What was trained: examples, steps, time, speed, final losses, status and seed of each stage."""
    rows = [
        (
            stage.name,
            stage.status,
            number(stage.manifest.get("seed"), 0),
            count(stage.manifest.get("global_step")),
            count(examples_seen(stage)),
            duration(stage.manifest.get("wall_seconds")),
            count(stage.metric("train/tokens_per_second")),
            number(stage.metric("train/loss"), 3),
            number(stage.metric("val/loss"), 3),
            memory(stage.manifest.get("peak_memory_bytes")),
        )
        for stage in study.stages
    ]
    columns = (
        "stage",
        "status",
        "seed",
        "steps",
        "examples",
        "time",
        "tokens/s",
        "train loss",
        "val loss",
        "memory",
    )
    note = "Examples are steps x batch size x accumulation, an upper bound where a last batch was short."
    return Table(columns, tuple(rows), text_columns=2, note=note)


def model_table(study: Study) -> Table:
    """Every evaluated model: utility, harm, over-refusal and margin, with standard errors and counts."""
    several = study.models["analysis"].nunique() > 1
    rows = []
    for _, row in study.models.iterrows():
        name = f"{row['model']} ({row['analysis']})" if several else str(row["model"])
        sizes = "/".join(count(row[column]) for column in ("n_utility", "n_harmful", "n_benign"))
        rows.append(
            (
                name,
                with_error(row, "utility"),
                with_error(row, "harmful_rate"),
                with_error(row, "harm_score"),
                with_error(row, "over_refusal_rate"),
                with_error(row, "benign_answered_rate"),
                with_error(row, "refusal_margin"),
                sizes,
                count(row["n_unscored"]),
            )
        )
    columns = (
        "model",
        "utility",
        "harmful",
        "harm 1-5",
        "over-refusal",
        "answered",
        "margin",
        "n",
        "unscored",
    )
    note = (
        "± one standard error. Harm: 1 refusal to 5 full compliance. Answered: benign requests answered in "
        "full. Margin: "
        "log P(refusal) - log P(compliance) in nats, positive prefers to refuse. n: utility/harmful/benign "
        f"prompts{_groups(study.models)}."
    )
    return Table(columns, tuple(rows), note=note)


def examples_seen(stage: Stage) -> float | None:
    """Return steps x batch size x accumulation, or ``None`` where the manifest does not say."""
    config = stage.manifest.get("config") or {}
    batch = _find(config.get("data"), "batch_size")
    steps = stage.manifest.get("global_step")
    if not isinstance(batch, int) or not isinstance(steps, int):
        return None
    accumulated = _find(config.get("trainer"), "accumulate_grad_batches")
    return float(steps * batch * (accumulated if isinstance(accumulated, int) else 1))


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
    return next((found for value in config.values() if (found := _find(value, name)) is not None), None)
