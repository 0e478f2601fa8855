"""What two updates overlap by that share an output covariance, told by a third update: the *reference*.

Updates of one model move along the same directions of output space whatever they are trained on, because gradients do:
``U = M^{1/2} G``, with a covariance M that is no matter of single rows. Random signs of rows do not keep it: two
*independent* updates of one M exceed the matched control always. Nor do random signs in the eigenbasis of the M that
one reference R gives: its eigenvectors are noisy, so that most of M is lost (60 to 100 % rejected at a nominal 5 %, and
5 % where M is known). What needs no M is that under the null the three updates are alike: the two overlap as much as
each of them does with R.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import spectral_ranks
from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.nulls import Moments, beta_p_value, overlap_moments
from safety_subspaces.algebra.overlap import Overlap, prefix_sums

# With fewer directions on a side no p is given: the level would stand on two cosines. At ranks of 1 to 3 it rejected
# 8 to 16 % of independent pairs at a nominal 5 % (eigenvalues of M^{1/2} lognormal with 0.8), from 4 on at most 6 %.
LEAST_DIRECTIONS = 4


@dataclass(frozen=True)
class CovarianceControl:
    """What an overlap is where two updates share no more than each shares with the reference.

    NaN throughout where the overlap is undefined, or the reference has fewer directions than it takes.

    Args:
        with_first: Overlap of the first update with the reference, cut at the rank of the second.
        with_second: Overlap of the second with the reference, cut at the rank of the first.
        level: The mean of the two, each lifted for a reference that is narrower than the update whose place it takes.
        deviation: Standard deviation of the overlap minus the level.
        p_value: Of this much overlap or more; NaN as well below ``LEAST_DIRECTIONS`` on a side.
    """

    with_first: float = nan
    with_second: float = nan
    level: float = nan
    deviation: float = nan
    p_value: float = nan


def covariance_control(
    first: Factors, second: Factors, reference: Factors, overlaps: Sequence[Overlap]
) -> list[CovarianceControl]:
    """Compare the overlaps of two updates with those that each has with a reference update.

    The null: ``U = M^{1/2} G_1``, ``H = M^{1/2} G_2``, ``R = M^{1/2} G_3`` with independent G of one law, invariant to
    rotations of their rows. Then ``O(U, H)``, ``O(U, R)`` and ``O(H, R)`` at the same ranks have one mean, whatever M,
    and ``T = O(U, H) - (O(U, R) + O(H, R)) / 2`` has mean 0. A small p says: they share more than the reference
    explains, as directions of their own or a part of M that R does not see.

    A reference of another law than the updates: a broader one (of larger effective rank) shows more of M, and the test
    is conservative. A narrower one shows less; the excess of its overlap over chance is divided by the ratio of
    effective ranks, which is more than it falls short by in all that was tried (ratios of 0.5 to 1), at the price of
    power.

    The deviation is closed: random signs of the second in the eigenbasis of ``R R^T``, a Haar rotation where R has no
    direction, the change of how much falls on each eigenvector, and three times half of it for the level's own two
    overlaps; p is from the Beta distribution of these moments. Nothing is factorised or drawn.

    Measured on independent updates (48 x 48 to 96 x 96, energies 0.5 and 0.9, eigenvalues of M^{1/2} lognormal with 0
    to 1.2, eight tenfold spikes, LoRA of rank 8): 0 to 6 % rejected at a nominal 5 %.

    Args:
        first: Factors of the first update.
        second: Factors of the second.
        reference: Factors of a third update of the same weight, with all its directions.
        overlaps: What :func:`safety_subspaces.algebra.overlap.mode_subspace_overlap` gave for the two.
    """
    served = [o for o in overlaps if o.reason is None and max(o.rank_first, o.rank_second) <= reference.held]
    if not served:
        return [CovarianceControl() for _ in overlaps]
    widest = [max(o.rank_first for o in served), max(o.rank_second for o in served)]
    along = [
        (reference.basis.T @ factors.basis[:, :width]).double()
        for factors, width in zip((first, second), widest, strict=True)
    ]
    breadths = [spectral_ranks(factors.singular_values)[1] for factors in (first, second, reference)]
    narrower = [min(1.0, breadths[2] / breadth) for breadth in breadths[:2]]
    controls = []
    for overlap in overlaps:
        is_served = overlap in served
        given = (overlap, reference.rows, along[0], along[1], narrower[0], narrower[1])
        controls.append(_control(*given) if is_served else CovarianceControl())
    return controls


def _control(
    overlap: Overlap,
    dim: int,
    along_first: Float64[Tensor, "held a"],
    along_second: Float64[Tensor, "held b"],
    narrower_first: float,
    narrower_second: float,
) -> CovarianceControl:
    """The control of one overlap, from both bases in that of the reference and its breadth beside theirs."""
    ku, kh = overlap.rank_first, overlap.rank_second
    smaller, chance = min(ku, kh), overlap_moments(dim, ku, kh).mean
    first, second = along_first[:, :ku], along_second[:, :kh]
    with_first = min(1.0, prefix_sums(first, [(kh, ku)])[0] / smaller)
    with_second = min(1.0, prefix_sums(second, [(ku, kh)])[0] / smaller)
    # In the first's overlap the reference has the place of the second, and the other way round.
    parts = (_lifted(with_first, chance, narrower_second), _lifted(with_second, chance, narrower_first))
    level = min(1.0, sum(parts) / 2)
    weights = (1 / (2 * narrower_second), 1 / (2 * narrower_first))
    variance = _variance(first, second, dim, level * smaller, weights) / smaller**2
    low = max(0, ku + kh - dim) / smaller
    p_value = beta_p_value(overlap.value, Moments(level, variance), low) if smaller >= LEAST_DIRECTIONS else nan
    return CovarianceControl(with_first, with_second, level, sqrt(variance), p_value)


def _lifted(overlap: float, chance: float, narrower: float) -> float:
    """What the overlap would be with a broader reference; never below chance, where a shared M cannot take it."""
    return chance + max(0.0, overlap - chance) / narrower


def _variance(
    first: Float64[Tensor, "held a"],
    second: Float64[Tensor, "held b"],
    dim: int,
    level: float,
    weights: tuple[float, float],
) -> float:
    """Variance of ``||U^T H||^2`` minus the level under the null, from both bases in that of the reference.

    With ``A``, ``B`` the two inside the reference's span and ``G = I - A^T A``, ``K = I - B^T B`` what lies in its
    complement of D dimensions: signs give ``2 sum_{i != j} (A A^T)_ij^2 (B B^T)_ij^2``, a Haar rotation of the
    complement ``4 / D sum_i (A G A^T)_ii (B K B^T)_ii + 2 |G'|^2 |K'|^2 / ((D - 1) (D + 2))`` with the traceless parts.
    """
    inside = first @ first.T, second @ second.T
    products = (inside[0] * inside[1]).square()
    rotated = 2 * float(products.sum() - products.diagonal().sum())
    outside = dim - first.shape[0]
    leverages = [part.diagonal() for part in inside]
    masses = [max(0.0, basis.shape[1] - float(p.sum())) for basis, p in zip((first, second), leverages, strict=True)]
    seen = float(leverages[0] @ leverages[1])
    if outside:
        grams = [torch.eye(basis.shape[1]).to(basis) - basis.T @ basis for basis in (first, second)]
        mixed = [((basis @ gram) * basis).sum(dim=1) for basis, gram in zip((first, second), grams, strict=True)]
        rotated += 4 / outside * float(mixed[0] @ mixed[1])
        seen += masses[0] * masses[1] / outside
    if outside > 1:
        traceless = [max(0.0, float(gram.square().sum()) - float(gram.trace()) ** 2 / outside) for gram in grams]
        rotated += 2 * traceless[0] * traceless[1] / ((outside - 1) * (outside + 2))
    moved = _moved(leverages, masses, outside, dim, (first.shape[1], second.shape[1]))
    # The noise of the reference's eigenvectors takes from both what it takes from the mean, and gets it back here.
    chance = first.shape[1] * second.shape[1] / dim
    if level > seen > 0:
        rotated *= level / seen
        moved *= (level - chance) / (seen - chance) if seen > chance else 1.0
    a, b = weights
    return rotated * (1 + a**2 + b**2) + moved * ((1 - a) ** 2 + (1 - b) ** 2 + (a + b) ** 2)


def _moved(
    leverages: Sequence[Float[Tensor, " held"]],
    masses: Sequence[float],
    outside: int,
    dim: int,
    ranks: tuple[int, int],
) -> float:
    """Variance that comes of how much of a subspace falls on each eigenvector: from how the two updates differ in it.

    ``(ku kh)^2 / 2 sum_i (f_i - 1 / dim)^2 (u_i - h_i)^2`` with the shares ``u``, ``h`` of each subspace along
    eigenvector i and their mean f; the reference's complement is one more direction, of the share of one in it.
    """
    shares = [
        torch.cat([part, part.new_tensor([mass if outside else 0.0])]) / rank
        for part, mass, rank in zip(leverages, masses, ranks, strict=True)
    ]
    common = (shares[0] + shares[1]) / 2
    common[-1] = common[-1] / outside if outside else 1 / dim
    spread = ((common - 1 / dim) * (shares[0] - shares[1])).square().sum()
    return (ranks[0] * ranks[1]) ** 2 / 2 * float(spread)
