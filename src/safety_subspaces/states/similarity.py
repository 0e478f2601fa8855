"""How alike two models lay out the same prompts: centred kernel alignment, and the kernels that it shares with tests.

Of a few hundred prompts in thousands of dimensions any two kernels are close to the identity, so the usual, biased
estimate of CKA comes near 1 for states that have nothing to do with each other. Here everything is unbiased: what is
independent has a mean of 0.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.statistics import jackknife_error, number_groups
from safety_subspaces.artefacts.errors import InputError

# HSIC_1 divides by n (n - 3).
FEWEST_PROMPTS = 4
# A centred kernel whose entries are, root mean square, at most this share of its largest diagonal entry is rounding:
# float64 products of thousands of terms are good to about 1e-14 of the norms that they multiply.
VANISHING = 1e-12


@dataclass(frozen=True)
class Similarity:
    """An unbiased CKA with its error.

    Args:
        value: In [-1, 1]; 1 for the same layout, of mean about 0 for independent ones; NaN where it is undefined.
        stderr: Standard error over prompts, by a jackknife that leaves out one group of prompts at a time. Right to
            about a tenth for 200 prompts in 10 dimensions that share half their variance; a third to a half too large
            where the two are independent, or in many more dimensions than there are prompts.
        n: Prompts.
    """

    value: float
    stderr: float
    n: int


def cka_with_error(
    first: Float[Tensor, "prompt_first dim_first"],
    second: Float[Tensor, "prompt_second dim_second"],
    bandwidth_factor: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Similarity:
    """Return the unbiased CKA of two sets of states of the same prompts, with the error of a jackknife over prompts.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``, with ``K = X X^T``, ``L = Y Y^T`` (or Gaussian kernels
    ``exp(-|x - y|^2 / (2 s^2))``) and, for kernels without their diagonal, ``HSIC = [tr K L + 1^T K 1 1^T L 1 / ((n -
    1)(n - 2)) - 2 / (n - 2) 1^T K L 1] / (n (n - 3))``. Invariant under rotation, isotropic scaling and shifts of
    either set. Chance level 0, whatever the dimensions.

    All values with one group left out come from sums of the two centred kernels: no kernel is formed again, and
    bandwidths stay those of the whole sets.

    Args:
        first: One row a prompt.
        second: The same prompts in the same order, of any other dimension.
        bandwidth_factor: ``s`` of each set, in medians of its own pairwise distances, so that scaling changes nothing;
            by default the linear CKA. The smaller, the more local is what is compared; Kornblith et al. try 0.2 to 0.8.
        groups: What prompts that stand and fall together share; each for itself by default.

    Returns:
        A value in [-1, 1]. NaN where it is undefined: fewer than four prompts, or a set whose kernel says nothing about
        single prompts: constant rows, a single row that differs, or rows all at one distance from one another; for
        Gaussian kernels also where more than half of the pairs of prompts have the same states.

    Raises:
        InputError: Different numbers of prompts or groups, a NaN or an infinity, or a factor that is not positive.

    Source: Song et al., JMLR 13 (2012), equation 5, as CKA by Nguyen et al., arXiv 2010.15327, section 2; Kornblith et
        al., arXiv 1905.00414, whose estimate is the biased one.
    """
    count = len(first)
    if groups is not None and len(groups) != count:
        raise InputError(f"{len(groups)} groups of {count} prompts: expected one for each prompt")
    centred = _centred_kernels(first, second, bandwidth_factor)
    if centred is None:
        return Similarity(nan, nan, count)
    numbers = number_groups(range(count) if groups is None else groups).to(first.device)
    left_out = _left_out(*centred, numbers)
    return Similarity(_alignment(*centred), jackknife_error(left_out), count)


def centred_gram(states: Float[Tensor, "prompt dim"]) -> Float64[Tensor, "prompt prompt"]:
    """Return ``X X^T`` in float64 after the mean row is taken out; exactly 0 for constant rows.

    Raises:
        InputError: ``states`` hold a NaN or an infinity.
    """
    rows = states.detach().double()
    if not torch.isfinite(rows).all():
        raise InputError(
            "states hold a NaN or an infinity; expected finite numbers: look at the model or its precision"
        )
    if len(rows) > 0:
        rows = rows - rows[0]  # the mean of equal rows need not be equal to them, to the last bit
        rows = rows - rows.mean(dim=0)
    return rows @ rows.T


def squared_distances(gram: Float64[Tensor, "prompt prompt"]) -> Float64[Tensor, "prompt prompt"]:
    """Return the squared Euclidean distances of the rows whose Gram matrix is given."""
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)
    return distances.fill_diagonal_(0)


def median_distance(squared: Float64[Tensor, "prompt prompt"]) -> float:
    """Return the median distance of two different rows, from all squared distances; NaN for fewer than two rows."""
    count = len(squared)
    if count < 2:
        return nan
    rows, columns = torch.triu_indices(count, count, offset=1, device=squared.device)
    distances = squared[rows, columns].sqrt()
    return float(distances.median() - (-distances).median()) / 2  # the lower of the middle two, and the upper


def rbf_kernel(squared: Float64[Tensor, "prompt prompt"], bandwidth: float) -> Float64[Tensor, "prompt prompt"]:
    """Return ``exp(-d^2 / (2 s^2))``; NaN without a positive bandwidth ``s``."""
    return torch.exp(squared / (-2 * bandwidth**2)) if bandwidth > 0 else torch.full_like(squared, nan)


def _centred_kernels(first: Tensor, second: Tensor, bandwidth_factor: float | None) -> tuple[Tensor, Tensor] | None:
    """The U-centred kernels of both sets, Gaussian if there is a factor; ``None`` where CKA is undefined."""
    if len(first) != len(second):
        raise InputError(
            f"states of {len(first)} and of {len(second)} prompts: CKA compares states of the same prompts, row by row"
        )
    if bandwidth_factor is not None and not bandwidth_factor > 0:
        raise InputError(f"bandwidth_factor {bandwidth_factor}: expected a positive number of median distances")
    kernels = [centred_gram(states) for states in (first, second)]
    if len(first) < FEWEST_PROMPTS:
        return None
    if bandwidth_factor is not None:
        squared = [squared_distances(gram) for gram in kernels]
        kernels = [rbf_kernel(each, bandwidth_factor * median_distance(each)) for each in squared]
    centred = [_u_centred(kernel) for kernel in kernels]
    for kernel, each in zip(kernels, centred, strict=True):
        if not each.square().mean().sqrt() > VANISHING * kernel.diagonal().max():  # false for NaN
            return None
    return centred[0], centred[1]


def _u_centred(kernel: Tensor) -> Tensor:
    """Centre a kernel without its diagonal: off the diagonal its rows sum to 0, and ``<U, V> = n (n - 3) HSIC_1``."""
    count = len(kernel)
    centred = kernel.clone().fill_diagonal_(0)
    sums = centred.sum(dim=1)
    centred += sums.sum() / ((count - 1) * (count - 2)) - (sums[:, None] + sums[None, :]) / (count - 2)
    return centred.fill_diagonal_(0)


def _alignment(first: Tensor, second: Tensor) -> float:
    """CKA of two U-centred kernels: the cosine between them."""
    return float((first * second).sum() / (first.norm() * second.norm()))


def _left_out(first: Tensor, second: Tensor, numbers: Tensor) -> Tensor:
    """CKA of two U-centred kernels without each group; NaN where that is undefined.

    Sums over what remains are whole sums less those over what is left out. U-centring adds terms that depend on
    one row or one column alone, and these change no subset's HSIC.
    """
    sizes = numbers.bincount()
    remaining = (len(numbers) - sizes).double()
    remaining[remaining < FEWEST_PROMPTS] = nan

    def by_group(matrix: Tensor) -> Tensor:
        return matrix.new_zeros(len(matrix), len(sizes)).index_add_(1, numbers, matrix)

    def sum_within_groups(sums: Tensor) -> Tensor:
        """Sum of each row's entry for its own group, over the group."""
        return sums.new_zeros(len(sizes)).index_add_(0, numbers, sums.gather(1, numbers[:, None])[:, 0])

    sums = {"first": by_group(first), "second": by_group(second)}
    within = {side: sum_within_groups(each) for side, each in sums.items()}

    def hsic(one: str, other: str, product: Tensor) -> Tensor:
        rows = product.new_zeros(len(sizes)).index_add_(0, numbers, product.sum(dim=1))
        trace = product.sum() - 2 * rows + sum_within_groups(by_group(product))
        crossed = sums[one] * sums[other]
        total = trace + within[one] * within[other] / ((remaining - 1) * (remaining - 2))
        total -= 2 / (remaining - 2) * (crossed.sum(dim=0) - sum_within_groups(crossed))
        return total / (remaining * (remaining - 3))

    norms = hsic("first", "first", first.square()) * hsic("second", "second", second.square())
    return hsic("first", "second", first * second) / norms.sqrt()
