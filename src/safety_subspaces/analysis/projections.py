"""One tensor under every subspace, rank and draw: the energy each keeps, and the update that any one of them makes.

The energies of a whole sweep come from one factorisation; an update is made again from the same factors and
the same seeds only for the models that are written or evaluated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.linalg import LeftFactors, as_matrix, haar_basis, squared_norm
from safety_subspaces.projector import Method, Projector, complete_update
from safety_subspaces.subspace import (
    RankRule,
    SubspaceKind,
    energy_matched_rank,
    haar_triangle,
    is_tall,
    random_k_basis,
    random_order,
    sampled_haar_energy,
    sampled_haar_projection,
    seeded_generator,
    top_basis,
)

# Kinds of which every draw is the same.
DRAWN_ONCE: tuple[SubspaceKind, ...] = ("top", "scaled")


@dataclass(frozen=True)
class Projection:
    """One choice of what is kept of an update.

    Args:
        subspace: Kind of subspace.
        fraction: Its rank, as a fraction of full rank.
        draw: Which draw of a random kind, from 0.
    """

    subspace: SubspaceKind
    fraction: float
    draw: int


@dataclass(frozen=True)
class Kept:
    """What a projection onto a subspace keeps of one tensor's update.

    Args:
        rank: Dimension of the subspace; ``None`` for *scaled*, which has none.
        energy: Squared Frobenius norm of the kept part.
        chance: Squared norm that a random subspace of this rank is expected to keep; NaN for *scaled*.
    """

    rank: int | None
    energy: float
    chance: float


def list_projections(subspaces: Sequence[SubspaceKind], fractions: Sequence[float], draws: int) -> Iterator[Projection]:
    """Yield every choice; kinds without chance have the one draw 0."""
    for subspace in subspaces:
        for fraction in fractions:
            for draw in range(1 if subspace in DRAWN_ONCE else draws):
                yield Projection(subspace, fraction, draw)


class TensorProjections:
    """All projections of the updates of one tensor.

    A tensor that is not 2-D counts as one column: its subspace is the line of ``vec(delta_A)``, a random one
    the line of one random vector. All kinds have the rank of *top* (the numerical rank of ``delta_A`` caps
    it), but for *random-energy*, whose rank is ``round(share * out)`` with the share that *top* keeps of that
    very update.

    Args:
        name: Canonical name; with the seed, kind and draw it determines the random bases.
        factors: Left factors of the alignment delta.
        columns: Columns of the tensor as a matrix.
        seed: The user's seed.
    """

    def __init__(self, name: str, factors: LeftFactors, columns: int, seed: int) -> None:
        self.name = name
        self.factors = factors
        self.rows, self.columns = factors.basis.shape[0], columns
        self.seed = seed

    def rank(self, fraction: float) -> int:
        """Rank of the alignment subspace at a fraction."""
        return RankRule(fraction=fraction).choose(self.factors, self.columns).rank

    def kept(
        self, updates: Mapping[str, Float[Tensor, "..."]], projections: Sequence[Projection]
    ) -> dict[tuple[str, Projection], Kept]:
        """Return what each projection keeps of each labelled update.

        *scaled* is left out: its factor is pooled over tensors.
        """
        matrices = {label: as_matrix(update) for label, update in updates.items()}
        totals = {label: squared_norm(matrix) for label, matrix in matrices.items()}
        own = {label: Projector(self.factors.basis).energies(matrix) for label, matrix in matrices.items()}
        triangles: dict[str, Tensor] = {}
        if is_tall((self.rows, self.columns)) and any(p.subspace == "random-energy" for p in projections):
            triangles = {label: haar_triangle(matrix) for label, matrix in matrices.items()}
        found = {}
        for (kind, draw), group in _by_draw(projections):
            ranks = {(label, p): self.rank(p.fraction) for label in updates for p in group}
            if kind == "random-energy":
                top = {label: _cumulate(energies) for label, energies in own.items()}
                ranks = {
                    (label, p): self._matched_rank(top[label][rank].item(), totals[label])
                    for (label, p), rank in ranks.items()
                }
            if kind == "random-energy" and triangles:
                energies_kept = {
                    (label, p): sampled_haar_energy(triangles[label], self.rows, rank, self._generator(kind, draw))
                    for (label, p), rank in ranks.items()
                }
            else:
                curves = self._energy_curves(kind, draw, matrices, own, max(ranks.values(), default=0))
                energies_kept = {(label, p): curves[label][rank].item() for (label, p), rank in ranks.items()}
            for (label, p), rank in ranks.items():
                found[label, p] = Kept(rank, energies_kept[label, p], totals[label] * rank / self.rows)
        return found

    def updated(
        self, update: Float[Tensor, "*shape"], projection: Projection, method: Method, scale: float
    ) -> Float32[Tensor, "*shape"]:
        """Return the update to add to the aligned weight.

        Args:
            update: The fine-tune's own.
            projection: What is kept.
            method: What becomes of it.
            scale: Factor of the whole update under *scaled*.
        """
        if projection.subspace == "scaled":
            return -scale * update if method == "opposite" else scale * update
        return complete_update(update, self._onto(update, projection), method)

    def _onto(self, update: Tensor, projection: Projection) -> Tensor:
        rank = self.rank(projection.fraction)
        if projection.subspace == "top":
            basis = top_basis(self.factors, rank)
        elif projection.subspace == "random-k":
            basis = random_k_basis(self.factors, rank, self._generator("random-k", projection.draw))
        elif projection.subspace == "random":
            basis = haar_basis(self.rows, rank, self._generator("random", projection.draw))
        else:
            matrix = as_matrix(update)
            kept = Projector(top_basis(self.factors, rank)).energies(matrix).sum().item()
            rank = self._matched_rank(kept, squared_norm(matrix))
            generator = self._generator("random-energy", projection.draw)
            if is_tall(matrix.shape):
                return sampled_haar_projection(matrix, rank, generator).reshape(update.shape)
            basis = haar_basis(self.rows, rank, generator)
        return Projector(basis).onto(update)

    def _matched_rank(self, kept: float, total: float) -> int:
        return energy_matched_rank(min(1.0, kept / total), self.rows) if total > 0 else 0

    def _energy_curves(
        self, kind: SubspaceKind, draw: int, matrices: Mapping[str, Tensor], own: Mapping[str, Tensor], widest: int
    ) -> dict[str, Float64[Tensor, " ranks"]]:
        """Energy kept at every rank of one draw, by label: nested subspaces, so one basis serves all ranks."""
        if kind == "top":
            return {label: _cumulate(energies) for label, energies in own.items()}
        if kind == "random-k":
            order = random_order(self.factors, self._generator(kind, draw))
            return {label: _cumulate(energies[order]) for label, energies in own.items()}
        projector = Projector(haar_basis(self.rows, widest, self._generator(kind, draw)))
        return {label: _cumulate(projector.energies(matrix)) for label, matrix in matrices.items()}

    def _generator(self, kind: SubspaceKind, draw: int) -> torch.Generator:
        return seeded_generator(self.seed, self.name, kind, draw)


def _cumulate(energies: Tensor) -> Tensor:
    """Energy of the first 0, 1, 2, ... directions."""
    return torch.cat([energies.new_zeros(1), energies.cumsum(0)])


def _by_draw(projections: Sequence[Projection]) -> Iterator[tuple[tuple[SubspaceKind, int], list[Projection]]]:
    """Group projections that read their energies off one basis: those of a kind and draw; *scaled* has none."""
    groups: dict[tuple[SubspaceKind, int], list[Projection]] = {}
    for projection in projections:
        if projection.subspace != "scaled":
            groups.setdefault((projection.subspace, projection.draw), []).append(projection)
    yield from groups.items()
