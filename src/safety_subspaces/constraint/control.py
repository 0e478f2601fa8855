"""Random subspaces in the place of the alignment subspace, for a constraint's own control run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from safety_subspaces.algebra.factors import drawn_factors, haar_basis
from safety_subspaces.algebra.subspace import energy_matched_rank, seeded_generator
from safety_subspaces.algebra.update import DenseUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.targets import Target
from safety_subspaces.weights.compatibility import check_compatible
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.update_checkpoint import open_checkpoint

ControlKind = Literal["none", "random", "random-energy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """The targets with the bases that a run is held to.

    Args:
        targets: The constrained parameters.
        subspace_energy: Share of the finished run's update that the alignment subspace keeps; NaN where no finished run
            was compared with.
        control_energy: The share that the random subspaces really keep of it.
    """

    targets: list[Target]
    subspace_energy: float = float("nan")
    control_energy: float = float("nan")


def control_subspace(
    targets: Sequence[Target], kind: ControlKind, seed: int, unconstrained: str | None = None, start: str | None = None
) -> Control:
    """Replace each target's basis by a Haar-random one.

    ``random`` has the rank of the basis it replaces. ``random-energy`` has the rank at which it is expected to keep the
    share that the basis keeps of a finished run's update; the share that it really keeps is given beside it.

    Args:
        targets: The constrained parameters with the bases to replace.
        kind: ``none`` returns the targets as they are.
        seed: Seed of the draw; a tensor's draw depends on its name, not on the others.
        unconstrained: Model folder of the finished run (``random-energy``).
        start: Model that both runs start from (``random-energy``).

    Raises:
        InputError: ``random-energy`` for a model that starts from no checkpoint, or folders that do not fit.
    """
    if kind == "none":
        return Control(list(targets))
    ranks = {target.name: target.basis.shape[1] for target in targets}
    updates: dict[str, Update] = {}
    if kind == "random-energy":
        if unconstrained is None or start is None:
            raise InputError("control: random-energy compares a finished run with the checkpoint that it started from")
        finished, first = open_checkpoint(unconstrained), open_checkpoint(start)
        check_compatible(first, finished)
        for target in targets:
            update = DenseUpdate(update_of(finished, first, target.name).double().to(target.basis.device))
            updates[target.name] = update.on_side(target.side)
            total = updates[target.name].energy()
            share = _energy_inside(target, updates) / total if total > 0 else 0.0
            ranks[target.name] = energy_matched_rank(share, target.basis.shape[0])
    drawn = []
    for target in targets:
        generator = seeded_generator(seed, target.name, kind)
        basis = haar_basis(target.basis.shape[0], ranks[target.name], generator).to(target.basis.device)
        drawn.append(replace(target, basis=basis))
    if not updates:
        return Control(drawn)
    whole = sum(update.energy() for update in updates.values())
    basis_share, drawn_share = (
        sum(_energy_inside(target, updates) for target in chosen) / whole for chosen in (targets, drawn)
    )
    logger.info("random-energy: keeps %.4f of the finished run's update, the subspace %.4f", drawn_share, basis_share)
    return Control(drawn, basis_share, drawn_share)


def _energy_inside(target: Target, updates: Mapping[str, Update]) -> float:
    return float(updates[target.name].energies_along(drawn_factors(target.basis)).sum())
