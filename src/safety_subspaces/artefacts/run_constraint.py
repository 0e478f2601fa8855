"""The constraint that a run was trained under, as its manifest has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLBACK = "SubspaceProjection"
# Modes that change training; ``observe`` only measures.
HOLDING = ("away", "onto")
# Settings that narrow or weaken a constraint, at the values where they do neither.
WHOLE = {
    "constrain": "update",
    "side": "left",
    "types": None,
    "layers": None,
    "patterns": None,
    "strength": 1.0,
    "start_step": 0,
    "ramp_steps": 0,
}


@dataclass(frozen=True)
class Constraint:
    """What an update was held to.

    Args:
        mode: ``away`` from the subspace, or ``onto`` it.
        subspace: ``top`` for the alignment subspace, else the kind of its random control.
        rank: How many directions it has, in words: a fraction as ``0.25``.
        fraction: The rank as a fraction of the whole; NaN where it was chosen otherwise.
        details: What narrows or weakens it, empty for a whole one.
    """

    mode: str
    subspace: str
    rank: str
    fraction: float
    details: str


def read_constraint(config: Mapping[str, Any]) -> Constraint | None:
    """Return the constraint of a run's configuration; ``None`` without one, and with several at once."""
    callbacks = (config.get("trainer") or {}).get("callbacks")
    settings = [
        entry.get("init_args") or {}
        for entry in (callbacks if isinstance(callbacks, list) else [])
        if isinstance(entry, dict) and str(entry.get("class_path")).split(".")[-1] == CALLBACK
    ]
    holding = [found for found in settings if found.get("mode", "away") in HOLDING]
    if len(holding) != 1:
        return None
    found = holding[0]
    rule = {name: value for name, value in (found.get("rank") or {}).items() if value is not None}
    fraction = rule.get("fraction")
    details = [f"{name} {found[name]}" for name, whole in WHOLE.items() if name in found and found[name] != whole]
    control = found.get("control") or "none"
    return Constraint(
        mode=found.get("mode", "away"),
        subspace="top" if control == "none" else str(control),
        rank=_rank_words(rule, found.get("subspace")),
        fraction=float("nan") if fraction is None else float(fraction),
        details=", ".join(details),
    )


def _rank_words(rule: Mapping[str, Any], file: Any) -> str:
    if "fraction" in rule:
        return f"{rule['fraction']:g}"
    if rule:
        name, value = next(iter(rule.items()))
        return f"{name} {value:g}"
    return f"of {Path(str(file)).name}"
