"""How much two updates share: overlap, principal angles and distances at every energy share, each factorised once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import Factors
from safety_subspaces.artefacts.errors import InputError

# From cos^2 = 1/2 on the sine tells an angle better than the cosine, whose slope vanishes at angle 0: there a rounding
# of 1e-16 is an angle of 1e-8.
SINE_FROM = 0.5


@dataclass(frozen=True)
class Overlap:
    """The overlap of two updates at one energy share.

    Args:
        energy: Share of each update's squared Frobenius norm that its subspace holds.
        rank_first: Dimension of the first subspace.
        rank_second: Dimension of the second.
        value: In [0, 1], higher is more in common; NaN where it is undefined.
        reason: Why it is undefined, or ``None``.
    """

    energy: float
    rank_first: int
    rank_second: int
    value: float
    reason: str | None = None

    @property
    def projection_distance(self) -> float:
        """``sqrt(min(ku, kh) - ||Qu^T Qh||_F^2)``: the root of the sum of squared sines of the principal angles.

        In ``[0, sqrt(min(ku, kh))]``, lower is more in common; NaN where the overlap is. The rounding of a float32
        overlap, 1e-7, is a distance of 3e-4 times the root of the rank where there should be none.

        Source: Edelman, Arias and Smith, SIAM J. Matrix Anal. 20 (1998), section 4.3: the chordal distance.
        """
        if self.reason is not None:
            return nan
        return sqrt(min(self.rank_first, self.rank_second) * (1 - self.value))


@dataclass(frozen=True)
class AngleSummary:
    """What the principal angles of two subspaces come to, in radians; NaN without an angle.

    Args:
        grassmann_distance: ``sqrt(sum theta_i^2)``, the length of the shortest path between the two on the
            Grassmannian (for different ranks: from the smaller one to its nearest in the larger).
        smallest: The smallest angle.
        largest: The largest.
        mean: Their mean.
    """

    grassmann_distance: float = nan
    smallest: float = nan
    largest: float = nan
    mean: float = nan


def mode_subspace_overlap(first: Factors, second: Factors, energies: Sequence[float]) -> list[Overlap]:
    """Compare the spaces that two updates write to, at several energy shares.

    ``MSO = ||Qu^T Qh||_F^2 / min(ku, kh)``, with ``Qu``, ``Qh`` the left singular vectors of each update up
        to the energy share: the mean squared cosine of the principal angles, in
        ``[max(0, ku + kh - out) / min(ku, kh), 1]``. Its chance level is ``max(ku, kh) / out``
        (:func:`safety_subspaces.algebra.nulls.overlap_moments`). All shares come from prefix sums of the squared
        entries of one ``Qu^T Qh``.

    Args:
        first: Factors of the first update.
        second: Factors of the second.
        energies: The shares.

    Returns:
        One overlap for each share; NaN with a reason where an update is zero and has no direction, or only its leading
        directions are known and the share takes more.

    Raises:
        InputError: The updates have different numbers of rows, or a share is not in (0, 1].

    Source: arXiv 2505.14185; there two zero updates overlap by 1, here by nothing.
    """
    if first.rows != second.rows:
        raise InputError(
            f"updates of {first.rows} and {second.rows} rows share no space; expected two updates of one tensor"
        )
    ranks = [ranks_of(first, second, share) for share in energies]
    reasons = [_why_undefined(first, second, pair) for pair in ranks]
    defined = [pair for pair, reason in zip(ranks, reasons, strict=True) if reason is None]
    totals = dict(zip(defined, overlap_sums(first, second, defined), strict=True))
    return [
        Overlap(share, *pair, min(1.0, totals[pair] / min(pair)))  # rounding may pass 1 by 1e-7
        if reason is None
        else Overlap(share, *pair, nan, reason)
        for share, pair, reason in zip(energies, ranks, reasons, strict=True)
    ]


def ranks_of(first: Factors, second: Factors, share: float) -> tuple[int, int]:
    """Return the ranks at which each update reaches the energy share."""
    return rank_of_energy(first.singular_values, share), rank_of_energy(second.singular_values, share)


def overlap_sums(first: Factors, second: Factors, ranks: Sequence[tuple[int, int]]) -> list[float]:
    """Return ``||Qu[:, :ku]^T Qh[:, :kh]||_F^2`` for each pair of ranks, none of them 0."""
    if not ranks:
        return []
    widest_first, widest_second = (max(column) for column in zip(*ranks, strict=True))
    return prefix_sums(first.products(second, (widest_first, widest_second)), ranks)


def prefix_sums(products: Float[Tensor, "a b"], ranks: Sequence[tuple[int, int]]) -> list[float]:
    """Return the sum of squares of the first rows and columns of a matrix of products, for each pair of numbers."""
    prefix: Float64[Tensor, "a b"] = products.square().double().cumsum(0).cumsum(1)
    return [prefix[ku - 1, kh - 1].item() for ku, kh in ranks]


def principal_angles(
    first: Float[Tensor, "dim rank_first"], second: Float[Tensor, "dim rank_second"]
) -> Float64[Tensor, " smaller"]:
    """Return the principal angles between the spans of two bases in ascending order: ``min(k1, k2)`` of them.

    In radians, in ``[0, pi / 2]``; 0 where one span contains the direction of the other. In float64: ``arccos`` of the
    singular values of ``Q1^T Q2``, and for small angles ``arcsin`` of those of ``Q2 - Q1 Q1^T Q2``, with Q2 the
    narrower, so that an angle of 1e-15 is not lost.

    Args:
        first: Linearly independent columns; they need not be orthonormal.
        second: The same, in the same space.

    Source: Bjorck and Golub, Math. Comp. 27 (1973); Knyazev and Argentati, SIAM J. Sci. Comput. 23 (2002), as
        ``scipy.linalg.subspace_angles``.
    """
    return nested_principal_angles(first, second, [(first.shape[1], second.shape[1])])[0]


def nested_principal_angles(
    first: Float[Tensor, "dim rank_first"],
    second: Float[Tensor, "dim rank_second"],
    ranks: Sequence[tuple[int, int]],
) -> list[Float64[Tensor, " smaller"]]:
    """Return the :func:`principal_angles` of the leading columns of two bases, for each pair of ranks.

    Each basis is orthonormalised in float64 once; each pair of ranks costs one singular value decomposition, and a
    second where an angle is small.

    Args:
        first: Linearly independent columns.
        second: The same, in the same space.
        ranks: How many leading columns of each.
    """
    if not ranks:
        return []
    widest_first, widest_second = (max(column) for column in zip(*ranks, strict=True))
    left = torch.linalg.qr(first[:, :widest_first].double()).Q
    right = torch.linalg.qr(second[:, :widest_second].double()).Q
    products = left.T @ right
    angles: dict[tuple[int, int], Tensor] = {}
    for ku, kh in dict.fromkeys(ranks):
        if ku >= kh:
            angles[ku, kh] = _angles_between(left[:, :ku], right[:, :kh], products[:ku, :kh])
        else:
            angles[ku, kh] = _angles_between(right[:, :kh], left[:, :ku], products[:ku, :kh].T)
    return [angles[pair] for pair in ranks]


def summarise_angles(angles: Float64[Tensor, " count"]) -> AngleSummary:
    """Return the distance on the Grassmannian, the extremes and the mean of principal angles in ascending order."""
    if angles.numel() == 0:
        return AngleSummary()
    values = angles.cpu()
    return AngleSummary(float(values.norm()), float(values[0]), float(values[-1]), float(values.mean()))


def _angles_between(wide: Tensor, narrow: Tensor, products: Tensor) -> Tensor:
    """The principal angles of two orthonormal bases, the first at least as wide, whose product is known."""
    if min(products.shape) == 0:
        return torch.zeros(0, dtype=torch.float64)
    cosines = torch.linalg.svdvals(products).clamp(max=1)
    angles = cosines.arccos()
    if cosines[0].square() < SINE_FROM:
        return angles
    sines = torch.linalg.svdvals(narrow - wide @ products).flip(0).clamp(max=1)
    return torch.where(cosines.square() >= SINE_FROM, sines.arcsin(), angles)


def _why_undefined(first: Factors, second: Factors, ranks: tuple[int, int]) -> str | None:
    """Say why two updates have no overlap at these ranks, if they have none."""
    updates = (("first", first, ranks[0]), ("second", second, ranks[1]))
    zero = [word for word, factors, _ in updates if factors.numerical_rank == 0]
    if zero:
        return f"the {' and the '.join(zero)} update is zero"
    short = [
        f"the basis of the {word} update holds {factors.held} directions, and this energy takes {rank}"
        for word, factors, rank in updates
        if rank > factors.held
    ]
    return "; ".join(short) or None
