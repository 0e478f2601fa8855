"""What a run's manifest says for the card of the model that it trained, or that something was made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.description import facts_about, read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.run_constraint import OBSERVE
from safety_subspaces.language.model_card import CardFacts, as_inline_code, warns_of_harm


def card_of_run(manifest: Mapping[str, Any], leakage: Sequence[Mapping[str, Any]] = ()) -> CardFacts:
    """Return the facts of a trained model.

    Args:
        manifest: The manifest of its run; empty where it was trained outside of a run folder.
        leakage: What was measured of its constraints.
    """
    objectives = facts_about("objective", manifest)
    by = ", ".join(str(objective.get("name")) for objective in objectives) or "training"
    starts = [start for start in facts_about("starts_from", manifest) if isinstance(start, str)]
    is_new = None in facts_about("starts_from", manifest)
    data, harmful = data_of(manifest)
    seed = manifest.get("seed")
    return CardFacts(
        what=f"Trained by {by} with Safety Subspaces{', from weights that began at random' if is_new else ''}.",
        base=starts[0] if starts else "",
        origin=manifest,
        data=data,
        harmful=harmful,
        constraints=tuple(map(_held, facts_about("constraint", manifest))),
        leakage=tuple(leakage),
        further=() if seed is None else (f"Seed: {seed}",),
    )


def data_of(manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], bool | None]:
    """Return what a run was trained on, and whether harmful answers were among that (``None``: not known)."""
    said = facts_about("trained_on", manifest)
    sources = tuple(str(source) for facts in said for source in facts.get("sources") or ())
    found = [facts.get("harmful") for facts in said] or [None]
    return sources, True if True in found else None if None in found else False


def data_behind(model: str) -> tuple[tuple[str, ...], bool | None]:
    """Return what the run was trained on whose exported model this is; of another what its own card warns of."""
    manifest = Path(model).parent / "manifest.json"
    try:
        data, harmful = data_of(read_manifest(manifest)) if manifest.is_file() else ((), None)
    except InputError:  # of something else, or of an earlier version
        data, harmful = (), None
    return data, True if warns_of_harm(Path(model)) else harmful


def _held(constraint: Mapping[str, Any]) -> str:
    """Say what one constraint held the update to."""
    subspace = "the alignment subspace" if constraint.get("subspace") == "top" else str(constraint.get("subspace"))
    details = ", ".join(str(constraint[name]) for name in ("rank", "details") if constraint.get(name))
    if constraint.get("mode") == OBSERVE:
        return f"The update was measured against {subspace} ({as_inline_code(details)}), and not held."
    verb = {"away": "away from", "onto": "inside"}.get(str(constraint.get("mode")), str(constraint.get("mode")))
    return f"The update was held {verb} {subspace}, of rank {as_inline_code(details)}."
