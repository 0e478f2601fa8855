"""Onto, away and opposite: what a subspace of a weight's output space does to an update, whatever kind of subspace.

One tensor under every subspace, rank and draw. The energies of a whole sweep come from one factorisation; an update is
made again from the same factors and the same seeds only for the models that are written or evaluated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.choices import DRAWN_ONCE, Controls, Method, RankRule, SubspaceKind, of_chance
from safety_subspaces.algebra.factors import Factors, as_matrix, drawn_factors, haar_basis, squared_row_norms
from safety_subspaces.algebra.nulls import (
    Moments,
    draw_haar_energies,
    draw_random_k_energies,
    haar_energy_variance,
    random_k_energy_moments,
)
from safety_subspaces.algebra.subspace import (
    choose_rank,
    energy_matched_rank,
    haar_triangle,
    is_sampled_without_basis,
    random_order,
    sampled_haar_energy,
    sampled_haar_projection,
    seeded_generator,
)
from safety_subspaces.algebra.update import DenseUpdate, Update
from safety_subspaces.artefacts.errors import InputError


@dataclass(frozen=True)
class Projection:
    """One choice of what is kept of an update.

    Args:
        subspace: Kind of subspace.
        fraction: Its rank, as a fraction of full rank.
        draw: Which draw of a random kind, from 0; ``None`` for the mean over all of them, in closed form.
    """

    subspace: SubspaceKind
    fraction: float
    draw: int | None

    @property
    def control(self) -> str:
        """How its energy is determined: ``exact``, ``sampled`` or ``closed form``."""
        if self.subspace in DRAWN_ONCE:
            return "exact"
        return "closed form" if self.draw is None else "sampled"


@dataclass(frozen=True)
class EnergyKept:
    """What a projection onto a subspace keeps of one tensor's update.

    Args:
        rank: Dimension of the subspace; ``None`` for *scaled*, which has none.
        energy: Squared Frobenius norm of the kept part; its mean over draws in closed form.
        chance: Squared norm that a random subspace of this rank is expected to keep; NaN for *scaled*.
        variance: Variance of the energy over draws, in closed form; NaN where it was not asked for.
        drawn: Energies of single draws beside the closed form, where they were asked for.
    """

    rank: int | None
    energy: float
    chance: float
    variance: float = float("nan")
    drawn: tuple[float, ...] = ()


def list_projections(
    subspaces: Sequence[SubspaceKind], fractions: Sequence[float], draws: int, controls: Controls = "sampled"
) -> list[Projection]:
    """Return every choice once; kinds without chance have the one draw 0, those in closed form none."""
    numbers: list[int | None] = list(range(draws)) if controls == "sampled" else [None]
    return list(
        dict.fromkeys(
            Projection(subspace, fraction, draw)
            for subspace in subspaces
            for fraction in fractions
            for draw in ([0] if subspace in DRAWN_ONCE else numbers)
        )
    )


def with_measured_alone(
    projections: Sequence[Projection], subspaces: Sequence[SubspaceKind], fractions: Sequence[float], energy_draws: int
) -> tuple[Projection, ...]:
    """Add to projections those whose energy alone is measured: *top*, and random kinds in closed form beside draws.

    Args:
        projections: Those that are asked for.
        subspaces: Their kinds.
        fractions: Their fractions.
        energy_draws: Energies that are drawn of each random kind; 0 needs no closed form.
    """
    alone = [Projection("top", fraction, 0) for fraction in fractions]
    if energy_draws:
        alone += list_projections(of_chance(subspaces), fractions, 0, "closed")
    return tuple(dict.fromkeys([*projections, *alone]))


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
        remembers: Whether an update's coordinates are kept for the models that are made of it, where it is in memory
            itself: as much memory again.
    """

    def __init__(self, name: str, factors: Factors, columns: int, seed: int, remembers: bool = False) -> None:
        self.name = name
        self.factors = factors
        self.rows, self.columns = factors.rows, columns
        self.seed = seed
        self.remembers = remembers
        self._remembered: list[tuple[Update, Tensor]] = []

    def rank(self, fraction: float) -> int:
        """Rank of the alignment subspace at a fraction."""
        return choose_rank(RankRule(fraction=fraction), self.factors, self.columns).rank

    def energies_kept(
        self,
        updates: Mapping[str, Update],
        totals: Mapping[str, float],
        projections: Sequence[Projection],
        draws: int = 0,
    ) -> dict[tuple[str, Projection], EnergyKept]:
        """Return what each projection keeps of each labelled update.

        *scaled* is left out: its factor is pooled over tensors.

        Args:
            updates: The updates.
            totals: The energy of each.
            projections: What is kept.
            draws: Energies to draw beside each closed form.
        """
        energies_along, spreads = self._measured(updates, totals, projections)
        triangles: dict[str, Tensor] = {}
        results: dict[tuple[str, Projection], EnergyKept] = {}
        for (kind, draw), group in _by_draw(projections):
            ranks = {(label, p): self.rank(p.fraction) for label in updates for p in group}
            if kind == "random-energy":
                top = {label: _cumulate(energies) for label, energies in energies_along.items()}
                ranks = {
                    (label, p): self._matched_rank(top[label][rank].item(), totals[label])
                    for (label, p), rank in ranks.items()
                }
            if draw is None:
                for label, along in energies_along.items():
                    asked = [ranks[label, p] for p in group]
                    kept = self._over_draws(kind, label, asked, along, totals[label], spreads[label], draws)
                    results |= {(label, p): each for p, each in zip(group, kept, strict=True)}
                continue
            if kind == "random-energy" and is_sampled_without_basis((self.rows, self.columns)):
                triangles = triangles or {label: haar_triangle(update.dense()) for label, update in updates.items()}
                energies_kept = {
                    (label, p): sampled_haar_energy(triangles[label], self.rows, rank, self._generator(kind, draw))
                    for (label, p), rank in ranks.items()
                }
            else:
                curves = self._energy_curves(kind, draw, updates, energies_along, max(ranks.values(), default=0))
                energies_kept = {(label, p): curves[label][rank].item() for (label, p), rank in ranks.items()}
            for (label, p), rank in ranks.items():
                results[label, p] = EnergyKept(rank, energies_kept[label, p], totals[label] * rank / self.rows)
        return results

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
        (blocks,) = self.updated_blocks(DenseUpdate(update), [(projection, method)], self.rows)
        return blocks[0].reshape(update.shape)

    def updated_blocks(
        self, update: Update, wanted: Sequence[tuple[Projection, Method]], rows: int
    ) -> Iterator[list[Float32[Tensor, "part in"]]]:
        """Yield, so many rows at a time, the update of each projection and method that is wanted; not of *scaled*.

        Subspaces of one draw are nested: each is added to the one before it, and all ranks together cost what the
        largest one does.
        """
        groups: dict[tuple[SubspaceKind, int | None], set[int]] = {}
        ranks = []
        for projection, _ in wanted:
            rank = self._rank_of(projection, update)
            ranks.append(rank)
            groups.setdefault((projection.subspace, projection.draw), set()).add(rank)
        parts = {key: self._onto_blocks(*key, sorted(of_key), update, rows) for key, of_key in groups.items()}
        for block in update.rows(rows):
            onto = {key: next(of_key) for key, of_key in parts.items()}
            yield [
                complete_update(block, onto[projection.subspace, projection.draw][rank], method)
                for (projection, method), rank in zip(wanted, ranks, strict=True)
            ]

    def _rank_of(self, projection: Projection, update: Update) -> int:
        rank = self.rank(projection.fraction)
        if projection.subspace != "random-energy":
            return rank
        energy_kept = float(_cumulate(update.energies_along(self.factors))[rank])
        return self._matched_rank(energy_kept, update.energy())

    def _onto_blocks(
        self, kind: SubspaceKind, draw: int | None, ranks: Sequence[int], update: Update, rows: int
    ) -> Iterator[dict[int, Tensor]]:
        """Yield ``P_k U`` at each rank k of one draw, so many rows at a time."""
        assert draw is not None, "a mean over draws has no update"
        if kind == "random-energy" and is_sampled_without_basis((self.rows, self.columns)):
            dense = as_matrix(update.dense())
            whole = {k: sampled_haar_projection(dense, k, self._generator(kind, draw)) for k in ranks}
            for start in range(0, self.rows, rows):
                yield {k: value[start : start + rows] for k, value in whole.items()}
            return
        factors = self.factors
        order: Tensor | slice = slice(None)
        if kind == "random-k":
            order = random_order(factors, self._generator(kind, draw))
        elif kind != "top":
            factors = drawn_factors(haar_basis(self.rows, max(ranks), self._generator(kind, draw)))
        along = (self._alignment_coordinates(update) if factors is self.factors else update.coordinates(factors))[order]
        for basis in factors.blocks(rows):
            directions, before = basis.to(along.dtype)[:, order], 0
            total = along.new_zeros(len(basis), along.shape[1])
            projected = {}
            for k in ranks:
                total = total + directions[:, before:k] @ along[before:k]
                projected[k], before = total, k
            yield projected

    def _matched_rank(self, energy_kept: float, total: float) -> int:
        return energy_matched_rank(min(1.0, energy_kept / total), self.rows) if total > 0 else 0

    def _energy_curves(
        self,
        kind: SubspaceKind,
        draw: int,
        updates: Mapping[str, Update],
        energies_along: Mapping[str, Tensor],
        widest: int,
    ) -> dict[str, Float64[Tensor, " ranks"]]:
        """Energy kept at every rank of one draw, by label: nested subspaces, so one basis serves all ranks."""
        if kind == "top":
            return {label: _cumulate(energies) for label, energies in energies_along.items()}
        if kind == "random-k":
            order = random_order(self.factors, self._generator(kind, draw))
            return {label: _cumulate(energies[order]) for label, energies in energies_along.items()}
        device = self.factors.singular_values.device
        basis = haar_basis(self.rows, widest, self._generator(kind, draw)).to(device)
        factors = drawn_factors(basis)
        return {label: _cumulate(update.energies_along(factors)) for label, update in updates.items()}

    def _measured(
        self, updates: Mapping[str, Update], totals: Mapping[str, float], projections: Sequence[Projection]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Energy of each update along each direction, and what the closed form of Haar subspaces needs of it."""
        closed = {p.draw is None for p in projections if p.subspace in ("random", "random-energy")}
        if closed == {True}:
            both = {
                label: update.energies_and_concentration(self.factors, totals[label])
                for label, update in updates.items()
            }
            concentrations = {label: concentration for label, (_, concentration) in both.items()}
            return {label: energies for label, (energies, _) in both.items()}, concentrations
        energies_along = {label: self._alignment_energies(update) for label, update in updates.items()}
        if True in closed:
            return energies_along, {label: update.concentration(totals[label]) for label, update in updates.items()}
        return energies_along, dict.fromkeys(updates, float("nan"))

    def _alignment_energies(self, update: Update) -> Float64[Tensor, " rank"]:
        if not self.remembers or not update.is_in_memory:
            return update.energies_along(self.factors)
        along = update.coordinates(self.factors)
        self._remembered.append((update, along))
        return squared_row_norms(along)

    def _alignment_coordinates(self, update: Update) -> Float[Tensor, "rank in"]:
        remembered = [along for other, along in self._remembered if other is update]
        return remembered[0] if remembered else update.coordinates(self.factors)

    def _over_draws(
        self,
        kind: SubspaceKind,
        label: str,
        ranks: Sequence[int],
        along: Tensor,
        total: float,
        spread: float,
        draws: int,
    ) -> list[EnergyKept]:
        """Mean and variance over all draws of the energy that a random kind keeps, and single draws without a basis.

        One draw is nested over the ranks, as the subspaces of one draw of :meth:`_energy_curves` are.
        """
        if kind == "random-k":
            each = [random_k_energy_moments(along, rank) for rank in ranks]
            drawn = [draw_random_k_energies(along, rank, draws, self._energy_generator(kind, label)) for rank in ranks]
        else:
            share = [Moments(rank / self.rows, haar_energy_variance(self.rows, rank, spread)) for rank in ranks]
            each = [Moments(total * of.mean, total**2 * of.variance if total else 0.0) for of in share]
            flags = draw_haar_energies(ranks, self.rows, spread, draws, self._energy_generator(kind, label))
            drawn = list(total * flags)
        return [
            EnergyKept(rank, moments.mean, total * rank / self.rows, moments.variance, tuple(energies.tolist()))
            for rank, moments, energies in zip(ranks, each, drawn, strict=True)
        ]

    def _energy_generator(self, kind: SubspaceKind, label: str) -> torch.Generator:
        return seeded_generator(self.seed, self.name, kind, "energies", label)

    def _generator(self, kind: SubspaceKind, draw: int) -> torch.Generator:
        return seeded_generator(self.seed, self.name, kind, draw)


def project_onto(basis: Float[Tensor, "out rank"], matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return ``L L^T U``, in the type of the basis; zero with an empty one."""
    return basis @ (basis.T @ matrix.to(basis.dtype))


def complete_update(
    delta: Float[Tensor, "*shape"], projected: Float[Tensor, "*shape"], method: Method
) -> Float[Tensor, "*shape"]:
    """Return the update of a method from the update and its projection: ``P d``, ``d - P d`` or ``-P d``.

    Raises:
        InputError: ``method`` is none of the three.
    """
    if method == "onto":
        return projected
    if method == "away":
        return delta - projected
    if method == "opposite":
        return -projected
    raise InputError(f"unknown method {method!r}; expected onto, away or opposite")


def _cumulate(energies: Tensor) -> Tensor:
    """Energy of the first 0, 1, 2, ... directions."""
    return torch.cat([energies.new_zeros(1), energies.cumsum(0)])


def _by_draw(projections: Sequence[Projection]) -> Iterator[tuple[tuple[SubspaceKind, int | None], list[Projection]]]:
    """Group projections that read their energies off one basis: those of a kind and draw; *scaled* has none."""
    groups: dict[tuple[SubspaceKind, int | None], list[Projection]] = {}
    for projection in projections:
        if projection.subspace != "scaled":
            groups.setdefault((projection.subspace, projection.draw), []).append(projection)
    yield from groups.items()
