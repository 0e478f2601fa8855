"""What was trained: a row for each run, with what it took and what it came to, and its losses as curves."""

from typing import Any, Final

import pandas as pd

from safety_subspaces.artefacts.study import Stage
from safety_subspaces.findings.models import Seeds

COLUMNS: Final = (
    "seed", "stage", "status", "own_seed", "steps", "examples", "seconds", "tokens_per_second", "train_loss",
    "val_loss", "memory_bytes",
)  # fmt: skip
# Points of a loss curve that a chart of 900 pixels can show, with room to spare; more only make the page
# heavy.
MOST_POINTS: Final = 400
# Batches of like length are alike in kind as well, and their losses jump from one to the next.
SMOOTHED_OVER: Final = 9


def trained_stages(studies: Seeds) -> pd.DataFrame:
    """Return a row for each training run of some studies, with ``COLUMNS``; what a manifest does not say is missing.

    ``seed`` is what its study is called, ``own_seed`` the seed it was trained with; losses are the last ones.
    """
    rows = [
        {
            "seed": seed,
            "stage": stage.name,
            "status": stage.status,
            "own_seed": stage.manifest.get("seed"),
            "steps": stage.manifest.get("global_step"),
            "examples": examples_seen(stage.manifest),
            "seconds": stage.manifest.get("wall_seconds"),
            "tokens_per_second": stage.metric("train/tokens_per_second"),
            "train_loss": stage.metric("train/loss"),
            "val_loss": stage.metric("val/loss"),
            "memory_bytes": stage.manifest.get("peak_memory_bytes"),
        }
        for seed, study in studies.named
        for stage in study.stages
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def examples_seen(manifest: dict[str, Any]) -> float | None:
    """Return steps x batch size x accumulation x processes; ``None`` where the manifest does not say one of them.

    The batch size is that of the data itself: an adapter, a callback or a data set inside it may have one of their own.
    """
    config = _mapping(manifest.get("config"))
    trainer, data = _mapping(config.get("trainer")), _mapping(config.get("data"))
    batch = _mapping(data.get("init_args")).get("batch_size")
    accumulated = trainer.get("accumulate_grad_batches") or 1
    factors = [manifest.get("global_step"), batch, accumulated, _processes(trainer)]
    seen = 1.0
    for factor in factors:
        if not isinstance(factor, int):
            return None
        seen *= factor
    return seen


def loss_curve(stage: Stage, tag: str, smoothed: bool) -> pd.DataFrame:
    """Return a loss as a chart shows it: ``step`` and ``value``, at most about ``MOST_POINTS`` rows, the last one kept.

    Args:
        stage: The run.
        tag: Its scalar.
        smoothed: Whether it is a running mean of ``SMOOTHED_OVER`` logged steps.
    """
    curve = stage.scalars.get(tag, pd.DataFrame(columns=["step", "value"]))
    if smoothed:
        curve = curve.assign(value=curve["value"].rolling(SMOOTHED_OVER, center=True, min_periods=1).mean())
    step = max(1, -(-len(curve) // MOST_POINTS))
    return pd.concat([curve.iloc[:-1:step], curve.iloc[-1:]])


def _processes(trainer: dict[str, Any]) -> int | None:
    """Return how many processes trained, each with batches of its own; ``None`` where that was left to the machine."""
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes") or 1
    if isinstance(devices, list):
        devices = len(devices)
    if devices == "auto" and trainer.get("accelerator") == "cpu":
        devices = 1  # what Lightning takes of a CPU
    known = isinstance(devices, int) and devices > 0
    return devices * nodes if known else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
