"""How far numbers about an update can be trusted: rounding of the stored weights, conditioning, ranks cut closely."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum, nan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.blocks import blocks_of
from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.gram import ILL_CONDITIONED

# The bits of the exponent in each type, and the integers that they are seen as.
EXPONENTS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}
# Where rounding makes up more than this share of an update's energy, its last directions are rounding noise.
ROUNDING_NOTABLE = 0.01
# Cumulative energy shares of two correct implementations differ by a few 1e-6 (see factors). Where a cut lies closer
# than this to the next rank, they may choose a different k.
CLOSE_K = 1e-5
# How many of the worst cases a summary names.
WORST = 5


@dataclass(frozen=True)
class UpdateAudit:
    """What is to be known of one tensor's update before its subspaces are believed.

    Args:
        rounding_share: Expected share of its energy that is rounding of the stored numbers; above 1 it is no more than
            rounding. An upper end where the tuned model was trained from the stored reference itself, whose numbers are
            then exact (half of it, if the types are one), and where numbers were never trained. NaN where it is no
            difference of stored weights (an adapter in factors, a subspace file) or is zero.
        numerical_rank: Directions that its numbers define.
        full_rank: The lesser of its numbers of rows and columns.
        condition: See :func:`condition`.
        ill_conditioned: Whether the condition lies below ``gram.ILL_CONDITIONED``: a float32 Gram matrix would have
            lost the small end of the spectrum, and it was formed in float64.
        k_margin: The least :func:`k_margin` over the energy shares.
        spectral_gap: The least :func:`spectral_gap` over the ranks that were used.
    """

    rounding_share: float
    numerical_rank: int
    full_rank: int
    condition: float
    ill_conditioned: bool
    k_margin: float
    spectral_gap: float

    def row(self) -> dict[str, Any]:
        """Return the columns of a table."""
        return asdict(self)


def audit_update(
    singular_values: Float[Tensor, " rank"],
    full_rank: int,
    rounding: float = nan,
    energies: Sequence[float] = (),
    ranks: Sequence[int] = (),
) -> UpdateAudit:
    """Audit one update.

    Args:
        singular_values: All within its numerical rank, in descending order.
        full_rank: The lesser of its numbers of rows and columns.
        rounding: Its expected energy of rounding, the sum of :func:`rounding_energy` of its two weights.
        energies: Energy shares at which its subspace was cut.
        ranks: Further ranks at which it was.
    """
    values = singular_values.double().cpu()
    energy = float(values.square().sum())
    used = [*ranks, *(rank_of_energy(values, share) for share in energies)]
    ratio = condition(values)
    return UpdateAudit(
        rounding_share=rounding / energy if energy > 0 else nan,
        numerical_rank=values.numel(),
        full_rank=full_rank,
        condition=ratio,
        ill_conditioned=is_ill_conditioned(values),
        k_margin=_least([k_margin(values, share) for share in energies]),
        spectral_gap=_least([spectral_gap(values, rank) for rank in used]),
    )


def rounding_energy(weights: Float[Tensor, "..."], dtype: torch.dtype | None = None) -> float:
    """Return the expected squared norm of what rounding to the nearest stored number took from weights.

    ``sum_i u_i^2 / 12``, with ``u_i`` the spacing of the type's numbers at weight i, an exact power of two; below the
    smallest normal number it no longer shrinks. (At a power of two itself the spacing is halved on one side: a quarter
    less, for one weight in ``2^(bits - 1)``.) Sums over blocks of a weight are that of the weight.

    Args:
        weights: As stored, or those numbers in a wider type.
        dtype: Type that they are stored in, where they came in a wider one.
    """
    stored = dtype or weights.dtype
    limits = torch.finfo(stored)
    kind, mask = EXPONENTS[stored]
    # Squares of float16's powers of two fit into float32; those of the other types may not.
    working = torch.float32 if stored == torch.float16 else torch.float64
    total = []
    for block in blocks_of(weights.detach().reshape(-1, 1) if weights.ndim != 2 else weights.detach()):
        # With the exponent's bits alone, a number becomes the power of two below it; zero and subnormals become zero.
        powers = (block.to(stored).view(kind) & mask).view(stored).clamp_min(limits.smallest_normal)
        total.append(float(torch.linalg.vector_norm(powers.to(working)).double().square()))
    return limits.eps**2 * fsum(total) / 12


def condition(singular_values: Float[Tensor, " rank"]) -> float:
    """Return ``(sigma_r / sigma_1)^2``, the ratio of the Gram matrix's extreme eigenvalues within the numerical rank.

    In (0, 1], near 1 is well-conditioned; NaN without a direction.
    """
    if singular_values.numel() == 0:
        return nan
    return float((singular_values[-1].double() / singular_values[0].double()).square())


def is_ill_conditioned(singular_values: Float[Tensor, " rank"]) -> bool:
    """Tell whether a float32 Gram matrix loses the small end of a spectrum."""
    return condition(singular_values) < ILL_CONDITIONED


def k_margin(singular_values: Float[Tensor, " rank"], share: float) -> float:
    """Return how close the rank of an energy share was to being another one, as a share of energy.

    ``min(c_k - share, share - c_(k-1))`` with the cumulative shares ``c``; a neighbour that is no rank (0, or above the
    numerical rank) does not count. NaN of fewer than two directions, which leave no choice.

    Args:
        singular_values: All of them, in descending order.
        share: In (0, 1].

    Raises:
        InputError: The share is not in (0, 1].
    """
    k = rank_of_energy(singular_values, share)
    cumulative = singular_values.double().square().cumsum(0)
    if cumulative.numel() < 2:
        return nan
    shares = cumulative / cumulative[-1]
    distances = [float(shares[k - 1]) - share] if k < shares.numel() else []
    distances += [share - float(shares[k - 2])] if k > 1 else []
    return max(0.0, min(distances))  # rounding of the division may leave less than nothing


def spectral_gap(singular_values: Float[Tensor, " rank"], k: int) -> float:
    """Return ``(sigma_k - sigma_(k+1)) / sigma_1``: near 0 the subspace of rank k is ill-defined.

    By how much the leading directions turn under a disturbance is bounded by its norm over the gap (Davis and Kahan).
    NaN at the ends: k is 0, or all directions there are.
    """
    if not 0 < k < singular_values.numel():
        return nan
    first, sigma_k, following = (float(singular_values[index]) for index in (0, k - 1, k))
    return (sigma_k - following) / first


def summarise_audit(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count what deserves a second look, and name the worst cases, for ``result.json``.

    Args:
        rows: Of each tensor and update: the columns of :class:`UpdateAudit` beside ``tensor`` and, where there are
            several, ``update``.

    Returns:
        For ``rounding`` (shares above the threshold), ``ill_conditioned``, ``rank_deficient`` and ``close_k`` (margins
        below it): the threshold, how many updates, of how many where it is known (``n``; ``n_unknown`` are not), and
        at most five of the worst.
    """
    ranked = [
        {**row, "rank_share": row["numerical_rank"] / row["full_rank"]} for row in rows if row["numerical_rank"] > 0
    ]
    return {
        "updates": len(rows),
        "rounding": _count(rows, "rounding_share", ROUNDING_NOTABLE, above=True),
        "ill_conditioned": _count(rows, "condition", ILL_CONDITIONED),
        "rank_deficient": _count(ranked, "rank_share", 1.0),
        "close_k": _count(rows, "k_margin", CLOSE_K),
    }


def _count(rows: Sequence[Mapping[str, Any]], column: str, threshold: float, above: bool = False) -> dict[str, Any]:
    """Count the rows whose value lies below (or above) a threshold, and name those that lie furthest."""
    known = [row for row in rows if row[column] == row[column]]
    notable = [row for row in known if (row[column] > threshold if above else row[column] < threshold)]
    notable.sort(key=lambda row: row[column], reverse=above)
    worst = [{"name": _name_of(row), column: row[column]} for row in notable[:WORST]]
    unknown = len(rows) - len(known)
    return {"threshold": threshold, "count": len(notable), "n": len(known), "n_unknown": unknown, "worst": worst}


def _name_of(row: Mapping[str, Any]) -> str:
    return f"{row['update']}: {row['tensor']}" if row.get("update") else str(row["tensor"])


def _least(values: Sequence[float]) -> float:
    return min((value for value in values if value == value), default=nan)
