"""The constraint that a run was trained under, as its manifest has it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.errors import InputError

OBSERVE = "observe"  # the mode that only measures
ALIGNMENT = "top"  # the subspace that is no random control


@dataclass(frozen=True)
class Constraint:
    """What an update was held to: the facts that a part of a run writes about the topic ``constraint``.

    Beside them it may write ``settings``, by which runs are told apart on TensorBoard; a ``seed`` among them is that of
    a random subspace: runs that differ in it alone are draws of one control.

    Args:
        mode: ``away`` from the subspace, ``onto`` it, or ``observe``, which holds nothing.
        subspace: ``top`` for the alignment subspace, else the kind of its random control.
        rank: How many directions it has, in words: a fraction as ``0.25``.
        fraction: The rank as a fraction of the whole; NaN (in the manifest ``null``) where it was chosen otherwise.
        details: What narrows or weakens it, empty for a whole one.
    """

    mode: str
    subspace: str
    rank: str
    fraction: float
    details: str


# What every part that holds an update says of its constraint.
FACTS = tuple(field.name for field in fields(Constraint))


def read_constraint(manifest: Mapping[str, Any]) -> Constraint | None:
    """Return the constraint of a run; ``None`` without one, and with several at once.

    Raises:
        InputError: A part leaves out a fact.
    """
    holding = [facts for facts in facts_about("constraint", manifest) if facts.get("mode") != OBSERVE]
    if len(holding) != 1:
        return None
    (facts,) = holding
    if not facts.keys() >= set(FACTS):
        raise InputError(f"a part of the run says of its constraint {facts}; expected {', '.join(FACTS)}")
    fraction = float("nan") if facts["fraction"] is None else float(facts["fraction"])
    return Constraint(**{name: facts[name] for name in FACTS} | {"fraction": fraction})


def subspace_seed(manifest: Mapping[str, Any]) -> int | None:
    """Return the seed of the random subspace that held a run; ``None`` where that is not said, or none was drawn."""
    holding = [facts for facts in facts_about("constraint", manifest) if facts.get("mode") != OBSERVE]
    if len(holding) != 1 or holding[0].get("subspace") == ALIGNMENT:
        return None
    seed = (holding[0].get("settings") or {}).get("seed")
    return seed if isinstance(seed, int) else None
