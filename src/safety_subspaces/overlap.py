"""How much two updates share: the mode subspace overlap at every energy share, each factorised once."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.errors import InputError
from safety_subspaces.linalg import LeftFactors, rank_of_energy


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


def mode_subspace_overlap(first: LeftFactors, second: LeftFactors, energies: Sequence[float]) -> list[Overlap]:
    """Compare the spaces that two updates write to, at several energy shares.

    ``MSO = ||Qu^T Qh||_F^2 / min(ku, kh)``, with ``Qu``, ``Qh`` the left singular vectors of each update up
        to the energy share: the mean squared cosine of the principal angles, in
        ``[max(0, ku + kh - out) / min(ku, kh), 1]``. Its chance level is ``max(ku, kh) / out``
        (:func:`safety_subspaces.nulls.overlap_moments`). All shares come from prefix sums of the squared
        entries of one ``Qu^T Qh``.

    Returns:
        One overlap for each share; NaN with a reason where an update is zero and has no direction.

    Raises:
        InputError: The updates have different numbers of rows, or a share is not in (0, 1].

    Source: arXiv 2505.14185; there two zero updates overlap by 1, here by nothing.
    """
    if first.basis.shape[0] != second.basis.shape[0]:
        raise InputError(
            f"updates of {first.basis.shape[0]} and {second.basis.shape[0]} rows share no space; "
            "expected two updates of one tensor"
        )
    zero = [word for word, factors in (("first", first), ("second", second)) if factors.numerical_rank == 0]
    if zero:
        reason = f"the {' and the '.join(zero)} update is zero"
        return [Overlap(share, *ranks_of(first, second, share), float("nan"), reason) for share in energies]
    ranks = [ranks_of(first, second, share) for share in energies]
    sums = overlap_sums(first.basis, second.basis, ranks)
    return [
        Overlap(share, *pair, min(1.0, total / min(pair)))  # rounding may pass 1 by 1e-7
        for share, pair, total in zip(energies, ranks, sums, strict=True)
    ]


def ranks_of(first: LeftFactors, second: LeftFactors, share: float) -> tuple[int, int]:
    """Return the ranks at which each update reaches the energy share."""
    return rank_of_energy(first.singular_values, share), rank_of_energy(second.singular_values, share)


def overlap_sums(
    first: Float[Tensor, "out rank_first"],
    second: Float[Tensor, "out rank_second"],
    ranks: Sequence[tuple[int, int]],
) -> list[float]:
    """Return ``||Qu[:, :ku]^T Qh[:, :kh]||_F^2`` for each pair of ranks."""
    if not ranks:
        return []
    widest_first, widest_second = (max(column) for column in zip(*ranks, strict=True))
    squares: Float64[Tensor, "a b"] = (first[:, :widest_first].T @ second[:, :widest_second]).square().double()
    prefix = squares.cumsum(0).cumsum(1)
    return [prefix[ku - 1, kh - 1].item() for ku, kh in ranks]
