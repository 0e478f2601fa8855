"""The weights of a network under one constraint, wherever their masters are: held after a step, and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.constraint.collectives import sum_over_ranks
from safety_subspaces.constraint.held import check_held, read_reference, save_held
from safety_subspaces.constraint.master import open_master
from safety_subspaces.constraint.matrix import (
    MatrixConstraint,
    Mode,
    SumOverRanks,
    factor_energies,
    hold_all,
    rounding_floor,
)
from safety_subspaces.constraint.targets import Target


@dataclass(frozen=True)
class UpdateEnergies:
    """Squared Frobenius norms of the constrained weights' update, in float64 on their masters.

    Args:
        forbidden: Of the part where the constraint forbids it.
        whole: Of the whole update.
        rounding_floor: The share that float32 rounding of the weights explains.
    """

    forbidden: float
    whole: float
    rounding_floor: float

    @property
    def leakage(self) -> float:
        """Forbidden share of the update's energy, 0 to 1; 0 where nothing has moved."""
        return self.forbidden / self.whole if self.whole > 0 else 0.0


@final
class ConstrainedWeights:
    """Masters and constraints of the targets, anchored to a file of the run; made after the strategy was set up.

    All ranks must make it and call its methods together.

    Args:
        targets: The constrained parameters.
        mode: The constraint's mode.
        path: The run's file of bases and reference weights; without one the run cannot go on after it has ended.
        held_sha256: Hash of that file where the run goes on; without it the present weights are the reference, and the
            file is written. A LoRA factor counts from zero.
        weakens: Whether the strength is ever below 1.
        writes: Whether this rank reads, checks and writes the file.

    Raises:
        InputError: The file of a run that goes on is missing or is another one.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        mode: Mode,
        path: Path | None,
        held_sha256: str | None,
        weakens: bool,
        writes: bool,
    ) -> None:
        self.targets = list(targets)
        self.mode = mode
        self.masters = [open_master(target.parameter) for target in targets]
        self.held_sha256, start_file = held_sha256, None
        if path is not None and held_sha256:
            check_held(path, held_sha256, self.targets, checks=writes)
            start_file = TensorFile(path) if any(target.partner is None for target in targets) else None
        elif path is not None:
            self.held_sha256 = save_held(path, self.targets, self.masters, mode, writes)
        self.constraints = []
        for target, master in zip(self.targets, self.masters, strict=True):
            present = master.read()
            if target.partner is not None:
                reference = torch.zeros_like(present)
            elif start_file is not None:
                reference = read_reference(start_file, target, master.piece).to(present)
            else:
                reference = present.clone()
            basis = target.basis.to(present.device)
            constraint = MatrixConstraint(basis, mode, reference, master.piece, target.transposed, weakens)
            self.constraints.append(constraint)
        sharded = any(master.is_sharded for master in self.masters)
        self._total: SumOverRanks = sum_over_ranks if sharded else list
        if mode != "observe" and not held_sha256 and not weakens:
            # lora_A starts at random values, which have a forbidden part.
            random_starts = [i for i, t in enumerate(self.targets) if t.partner is not None and t.transposed]
            self.project(random_starts, 1.0)
            for i in random_starts:
                self.masters[i].publish()

    @property
    def let_through(self) -> dict[str, Tensor]:
        """Coordinates of what strengths below 1 have let through, by name; the same on every rank."""
        pairs = zip(self.targets, self.constraints, strict=True)
        return {target.name: c.let_through for target, c in pairs if c.let_through is not None}

    def restore_let_through(self, coordinates: dict[str, Tensor]) -> None:
        """Restore the coordinates that a checkpoint has stored."""
        for name, present in self.let_through.items():
            if name in coordinates:
                present.copy_(coordinates[name])

    def project(self, indices: Sequence[int], strength: float, measures: bool = False) -> float:
        """Take the forbidden part of the last step out of some of the weights.

        Args:
            indices: Which ones, as indices into the targets; the same on all ranks.
            strength: Share of the forbidden part that is taken out.
            measures: Whether to return what was taken out.

        Returns:
            Squared norm of what was taken out; NaN unless it was measured.
        """
        weights = [self.masters[i].read() for i in indices]
        before = [weight.clone() for weight in weights] if measures else []
        hold_all([self.constraints[i] for i in indices], weights, strength, self._total)
        for i, weight in zip(indices, weights, strict=True):
            self.masters[i].write(weight)
        if not before:
            return float("nan")
        taken = [(new - old).double().square().sum() for new, old in zip(weights, before, strict=True)]
        return float(self._total([torch.stack(taken).sum()])[0])

    def coordinates(self, indices: Sequence[int]) -> list[Float[Tensor, "rank columns"]]:
        """Return the coordinates of the update of some of the weights in their subspaces."""
        shares = [
            self.constraints[i].coordinates(self.masters[i].read() - self.constraints[i].reference) for i in indices
        ]
        return self._total(shares)

    def measure(self) -> UpdateEnergies:
        """Measure the whole update; of LoRA the product of its factors, up to the scale."""
        energies, weights = torch.zeros(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for target, master, constraint in zip(self.targets, self.masters, self.constraints, strict=True):
            if target.partner is not None:
                factor, partner = master.whole(), open_master(target.partner).whole()
                pair = (factor.T, partner.T) if target.transposed else (factor, partner)
                measured = factor_energies(constraint.basis, self.mode, *pair)
                weight = measured[1]
            else:
                piece = master.read().double()
                measured = constraint.energies(piece - constraint.reference.double(), self._total)
                (weight,) = self._total([piece.square().sum()])
            energies, weights = energies + measured.cpu(), weights + weight.cpu()
        forbidden, whole = energies.tolist()
        return UpdateEnergies(forbidden, whole, rounding_floor(float(weights) ** 0.5, whole**0.5))
