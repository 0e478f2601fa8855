"""What chance would give: the Haar null of overlaps and energies, and a null that keeps row scales.

The Haar null asks whether two subspaces are independent and uniformly random. Weight updates never are uniform: rows
that belong to large activations move more, in every fine-tune. So each overlap also gets a matched control, which keeps
the scale of every row and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.overlap import Overlap, prefix_sums

# Overlaps that differ by less are ties: rounding of float32 inner products.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a quantity under a null."""

    mean: float
    variance: float


@dataclass(frozen=True)
class MatchedControl:
    """An overlap's level and p-value under the matched control; NaN where the overlap is undefined."""

    mean: float
    p_value: float


def overlap_moments(dim: int, rank_first: int, rank_second: int) -> Moments:
    """Return mean and variance of the overlap of independent Haar subspaces.

    Mean ``max(ku, kh) / d``; variance ``2 ku kh (d - ku) (d - kh) / (d^2 (d - 1) (d + 2) min(ku, kh)^2)``.
    Both are NaN where a subspace is empty.
    """
    smaller, larger = sorted((rank_first, rank_second))
    if smaller == 0:
        return Moments(float("nan"), float("nan"))
    if dim == 1:
        return Moments(1.0, 0.0)
    spread = 2 * smaller * larger * (dim - smaller) * (dim - larger)
    return Moments(larger / dim, spread / (dim**2 * (dim - 1) * (dim + 2) * smaller**2))


def overlap_p_value(value: float, dim: int, rank_first: int, rank_second: int) -> float:
    """Return the probability that independent Haar subspaces overlap at least this much.

    From the Beta distribution on ``[max(0, ku + kh - d) / min(ku, kh), 1]`` matched in mean and variance;
    exact where a rank is 1 or ``d - 1`` on both sides, and calibrated to 1 % at nominal 1 % elsewhere (a
    normal z is far off at small ranks). 1 where the overlap cannot vary; NaN where it is undefined.
    """
    moments = overlap_moments(dim, rank_first, rank_second)
    if value != value or moments.mean != moments.mean:
        return float("nan")
    if moments.variance == 0:
        return 1.0
    low = max(0, rank_first + rank_second - dim) / min(rank_first, rank_second)
    mean, variance = (moments.mean - low) / (1 - low), moments.variance / (1 - low) ** 2
    concentration = mean * (1 - mean) / variance - 1
    position = min(max((value - low) / (1 - low), 0.0), 1.0)
    return float(stats.beta.sf(position, mean * concentration, (1 - mean) * concentration))


def haar_energy_variance(rows: int, rank: int, concentration: float) -> float:
    """Return the variance of the share of energy that a Haar subspace of ``R^rows`` keeps of an update.

    ``2 k (m - k) / (m (m - 1) (m + 2)) (c - 1 / m)``.

    Args:
        rows: m.
        rank: k.
        concentration: ``c = tr M^2 / tr^2 M`` of the update, with ``M = U U^T``.
    """
    if rows == 1:
        return 0.0
    return 2 * rank * (rows - rank) / (rows * (rows - 1) * (rows + 2)) * max(0.0, concentration - 1 / rows)


def random_k_energy_moments(energies: Float[Tensor, " rank"], count: int) -> Moments:
    """Return mean and variance of the energy in ``count`` directions drawn without replacement.

    Mean ``(k / r) sum E``; variance ``k (1 - k / r) S^2`` with the sample variance ``S^2`` of the r energies.

    Args:
        energies: ``||l_i^T U||^2`` of all r directions.
        count: How many are drawn, at most r.
    """
    total = energies.numel()
    if total == 0:
        return Moments(0.0, 0.0)
    values = energies.double()
    spread = values.var().item() if total > 1 else 0.0
    return Moments(count / total * values.sum().item(), count * (1 - count / total) * spread)


def matched_control(
    first: Factors,
    second: Factors,
    overlaps: Sequence[Overlap],
    draws: int,
    generator: torch.Generator,
    fixed_direction: Float[Tensor, " out"] | None = None,
) -> list[MatchedControl]:
    """Compare overlaps with those of the same pair after each row of the second is given a random sign.

    ``p = (1 + #{null >= observed}) / (1 + draws)``. The null: given how much of it falls on each row, the second update
    points anywhere. Its expectation is ``sum_i p_i q_i / min(ku, kh)``, with the leverage ``p_i``, ``q_i`` of row i in
    each subspace. Signs keep the norm of each row exactly. Permuting rows within strata of like norm keeps it only
    within the stratum: on 60 pairs of independent updates (96 x 96, energy 0.5) with lognormal row scales, strata of 16
    rows rejected 28 % at scale 0.3 and 100 % at scale 0.8 where 5 % is nominal, strata of 4 rows 5 % and 23 %; signs
    rejected 5 % at both.

    Signs of a matrix's rows are signs of its left singular vectors' rows and change no rank, so nothing is factorised
    again.

    Args:
        first: Factors of the first update.
        second: Factors of the second, whose rows get signs.
        overlaps: What :func:`safety_subspaces.algebra.overlap.mode_subspace_overlap` gave for the two.
        draws: Sets of signs; 0 gives NaN.
        generator: Source of the signs.
        fixed_direction: A direction that no sign turns: the mean that two sets of states share. The bases are reflected
            so that it is a coordinate axis; the other coordinates hardly move, as a mean is mostly spread over many.

    Returns:
        Mean and p-value for each overlap, NaN where it is undefined.
    """
    missing = MatchedControl(float("nan"), float("nan"))
    defined = [overlap for overlap in overlaps if overlap.reason is None]
    if draws == 0 or not defined:
        return [missing for _ in overlaps]
    ranks = [(overlap.rank_first, overlap.rank_second) for overlap in defined]
    width = [max(column) for column in zip(*ranks, strict=True)]
    left, right = first.basis[:, : width[0]], second.basis[:, : width[1]]
    axis = None
    if fixed_direction is not None and fixed_direction.any():
        axis = int(fixed_direction.abs().argmax())
        left, right = (_reflected(basis, fixed_direction, axis) for basis in (left, right))
    smaller = torch.tensor([min(pair) for pair in ranks], dtype=torch.float64)
    sums = []
    for _ in range(draws):
        signs = _random_signs(right.shape[0], generator).to(right)
        if axis is not None:
            signs[axis] = 1
        sums.append(prefix_sums(left.T @ (right * signs), ranks))
    null = torch.tensor(sums, dtype=torch.float64) / smaller
    observed = torch.tensor([overlap.value for overlap in defined], dtype=torch.float64)
    exceeding = (null >= observed - TIE_TOLERANCE).sum(dim=0)
    controls = iter(zip(null.mean(dim=0).tolist(), ((1 + exceeding) / (1 + draws)).tolist(), strict=True))
    return [MatchedControl(*next(controls)) if overlap.reason is None else missing for overlap in overlaps]


def matched_overlap(
    first: Float[Tensor, "out rank_first"],
    second: Float[Tensor, "out rank_second"],
    fixed_direction: Float[Tensor, " out"] | None = None,
) -> float:
    """Return the mean overlap under :func:`matched_control` over all signs: ``sum_i p_i q_i / min(ku, kh)``.

    Args:
        first: An orthonormal basis.
        second: Another.
        fixed_direction: As in :func:`matched_control`.
    """
    smaller = min(first.shape[1], second.shape[1])
    if smaller == 0:
        return float("nan")
    if fixed_direction is not None and fixed_direction.any():
        axis = int(fixed_direction.abs().argmax())
        first, second = (_reflected(basis, fixed_direction, axis) for basis in (first, second))
    leverages = [basis.double().square().sum(dim=1) for basis in (first, second)]
    return float(leverages[0] @ leverages[1]) / smaller


def _reflected(basis: Tensor, fixed_direction: Tensor, axis: int) -> Tensor:
    """Reflect a basis by the Householder map that takes a direction to a coordinate axis."""
    direction = fixed_direction.to(basis) / torch.linalg.vector_norm(fixed_direction.to(basis))
    normal = direction.clone()
    normal[axis] += torch.where(direction[axis] < 0, -1.0, 1.0)  # away from zero: no cancellation
    return basis - torch.outer(2 / (normal @ normal) * normal, normal @ basis)


def _random_signs(rows: int, generator: torch.Generator) -> Float[Tensor, "{rows} 1"]:
    return torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1.0
