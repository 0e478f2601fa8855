"""What chance would give: the Haar null of overlaps and energies, and a null that keeps row scales.

The Haar null asks whether two subspaces are independent and uniformly random. Weight updates never are uniform: rows
that belong to large activations move more, in every fine-tune. So each overlap also gets a matched control, which keeps
the scale of every row and nothing else. What updates share by a covariance that is no matter of single rows is held
against a third update (:mod:`safety_subspaces.algebra.covariance`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.overlap import Overlap, prefix_sums
from safety_subspaces.algebra.statistics import permutation_p_value

# Overlaps that differ by less are ties: rounding of float32 inner products.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a quantity under a null."""

    mean: float
    variance: float


@dataclass(frozen=True)
class MatchedControl:
    """What an overlap would be under the matched control; all NaN where the overlap is undefined.

    Args:
        mean: Its mean over all signs, exact (:func:`matched_overlap`).
        deviation: Its standard deviation over signs, from the draws: good to ``1 / sqrt(2 draws)``, 5 % at 199.
        p_value: ``(1 + #{null >= observed}) / (1 + draws)``.
    """

    mean: float
    deviation: float
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
    return beta_p_value(value, moments, max(0, rank_first + rank_second - dim) / min(rank_first, rank_second))


def beta_p_value(value: float, moments: Moments, low: float = 0.0) -> float:
    """Return the probability of this much or more under the Beta distribution on ``[low, 1]`` of the given moments.

    1 where nothing varies, and where no distribution on the interval has these moments: nothing can be unlikely then.
    """
    if moments.variance == 0 or low >= 1:
        return 1.0
    mean, variance = (moments.mean - low) / (1 - low), moments.variance / (1 - low) ** 2
    if not variance < mean * (1 - mean):
        return 1.0
    concentration = mean * (1 - mean) / variance - 1
    position = min(max((value - low) / (1 - low), 0.0), 1.0)
    from scipy import stats  # its import takes a second, which whoever needs no p does not pay

    return float(stats.beta.sf(position, mean * concentration, (1 - mean) * concentration))


def pooled_p_value(overlaps: Iterable[float], levels: Iterable[float], deviations: Iterable[float]) -> float:
    """Return the one-sided p of the mean overlap of several tensors, from the nulls of each.

    The nulls of tensors are independent of one another (signs, rotations), so that the mean has the mean of their
    levels, and the root of the sum of their variances over n; p is from the Beta distribution of these moments, whose
    skewness falls with n as that of a mean does. It asks whether *these* tensors overlap more than their nulls: tensors
    of one training are no sample of trainings. NaN without a tensor.

    Args:
        overlaps: Of each tensor.
        levels: Mean of each under its null.
        deviations: Standard deviation of each under its null.
    """
    values, means, spreads = list(overlaps), list(levels), list(deviations)
    if not values:
        return float("nan")
    count = len(values)
    moments = Moments(math.fsum(means) / count, math.fsum(spread**2 for spread in spreads) / count**2)
    return beta_p_value(math.fsum(values) / count, moments)


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


def draw_haar_energies(
    ranks: Sequence[int], rows: int, concentration: float, draws: int, generator: torch.Generator
) -> Float64[Tensor, "ranks {draws}"]:
    """Draw shares of energy that nested Haar subspaces keep, from the law that has their means and covariances.

    A draw is one flag of subspaces, each inside the next as the leading directions of an update are, so that a mean
    over ranks varies as theirs does: what each rank adds is Dirichlet. Each share is then Beta with the exact mean and
    variance (:func:`haar_energy_variance`), and two shares at ranks j below k have the exact covariance, that of
    ``j (m - k)`` in the place of ``k (m - k)``.

    Without a basis: a draw costs nothing whatever the size of the tensor. The distribution is exact of an update of
    rank 1, ``Beta(k / 2, (m - k) / 2)``, and near for others. Of one tensor alone (16 to 96 rows, spectra from flat to
    one spike over noise) its 95 % quantile is exceeded by 4 to 6.5 % of Haar subspaces of a quarter to a half of all
    dimensions, by 3 to 8 % of those of one or two, or all but so many; sums over tensors are nearer still.

    Args:
        ranks: Of the subspaces, in any order.
        rows: m, the dimensions that they lie in.
        concentration: ``c`` of the update, as for :func:`haar_energy_variance`.
        draws: How many.
        generator: Source of the draws.
    """
    means = torch.tensor(ranks, dtype=torch.float64) / rows
    spread = haar_energy_variance(rows, 1, concentration) * rows**2 / max(1, rows - 1)
    if not 0 < spread < 1:  # an update that fills all rows alike, or one dimension: nothing varies
        return means[:, None].expand(-1, draws).clone()
    edges = sorted({0, rows, *ranks})
    added = torch.tensor([high - low for low, high in pairwise(edges)], dtype=torch.float64) / rows
    shapes = (added * (1 / spread - 1))[:, None].expand(-1, draws)
    # What torch.distributions.Dirichlet calls; the class itself takes no generator.
    gammas = torch._standard_gamma(shapes.contiguous(), generator=generator)
    kept = torch.cat([torch.zeros(1, draws, dtype=torch.float64), gammas.cumsum(dim=0)]) / gammas.sum(dim=0)
    return kept[[edges.index(rank) for rank in ranks]]


def draw_random_k_energies(
    energies: Float[Tensor, " rank"], count: int, draws: int, generator: torch.Generator
) -> Float64[Tensor, "{draws}"]:
    """Draw the energy in ``count`` directions chosen without replacement.

    Args:
        energies: ``||l_i^T U||^2`` of all directions.
        count: How many are chosen, at most all.
        draws: How many times.
        generator: Source of the draws.
    """
    values = energies.double().cpu()
    # The first of a random order: an order of its own for each draw.
    order = torch.rand(draws, values.numel(), generator=generator, dtype=torch.float64).argsort(dim=1)
    return values[order[:, :count]].sum(dim=1)


def matched_control(
    first: Factors,
    second: Factors,
    overlaps: Sequence[Overlap],
    draws: int,
    generator: torch.Generator,
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

    Returns:
        Mean, deviation and p-value for each overlap, NaN where it is undefined.
    """
    missing = MatchedControl(float("nan"), float("nan"), float("nan"))
    defined = [overlap for overlap in overlaps if overlap.reason is None]
    if draws == 0 or not defined:
        return [missing for _ in overlaps]
    ranks = [(overlap.rank_first, overlap.rank_second) for overlap in defined]
    width = [max(column) for column in zip(*ranks, strict=True)]
    left, right = first.basis[:, : width[0]], second.basis[:, : width[1]]
    smaller = torch.tensor([min(pair) for pair in ranks], dtype=torch.float64)
    sums = []
    for _ in range(draws):
        signs = _random_signs(right.shape[0], generator).to(right)
        sums.append(prefix_sums(left.T @ (right * signs), ranks))
    null = torch.tensor(sums, dtype=torch.float64) / smaller
    observed = torch.tensor([overlap.value for overlap in defined], dtype=torch.float64)
    means = torch.tensor([matched_overlap(left[:, :ku], right[:, :kh]) for ku, kh in ranks], dtype=torch.float64)
    deviations = (null - means).square().mean(dim=0).sqrt()
    exceeding = (null >= observed - TIE_TOLERANCE).sum(dim=0)
    p_values = [permutation_p_value(count, draws) for count in exceeding.tolist()]
    controls = iter(zip(means.tolist(), deviations.tolist(), p_values, strict=True))
    return [MatchedControl(*next(controls)) if overlap.reason is None else missing for overlap in overlaps]


def matched_overlap(first: Float[Tensor, "out rank_first"], second: Float[Tensor, "out rank_second"]) -> float:
    """Return the mean overlap under :func:`matched_control` over all signs: ``sum_i p_i q_i / min(ku, kh)``.

    Args:
        first: An orthonormal basis.
        second: Another.
    """
    smaller = min(first.shape[1], second.shape[1])
    if smaller == 0:
        return float("nan")
    leverages = [basis.double().square().sum(dim=1) for basis in (first, second)]
    return float(leverages[0] @ leverages[1]) / smaller


def _random_signs(rows: int, generator: torch.Generator) -> Float[Tensor, "{rows} 1"]:
    return torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1.0
