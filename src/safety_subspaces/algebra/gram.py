"""Gram matrices that keep the small end of a spectrum: scaled into range, in float64 where float32 would lose it."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.blocks import Blocks, blocks_of
from safety_subspaces.algebra.eigen import gram_of_blocks, symmetric_eigh
from safety_subspaces.artefacts.errors import InputError

# Below this ratio of the extreme eigenvalues a float32 Gram matrix, whose noise is near 1e-7 of the largest
# eigenvalue (2^-24 an entry), no longer carries the small end of the spectrum: it is formed again in float64.
ILL_CONDITIONED = 1e-6
# Squares of numbers above it, and of a millionth of them, are normal numbers of float32.
LEAST_SCALED = 1e-12
# Noise alone gives a matrix of less than this ratio of its sides a least eigenvalue under a hundredth of the largest;
# and in a spectrum that decays besides, float32 would lose it: not worth a try.
NEARLY_SQUARE = 1.5
# Steps of a power iteration: the largest eigenvalue to a few per cent, which a threshold of 1e-6 does not feel.
POWER_STEPS = 12


def scale_of(matrix: Float[Tensor, "out in"] | Blocks) -> float:
    """Return a power of two to divide a matrix by, so that its squares stay in float32's range; 0 of a zero matrix.

    1 where they do by themselves, else the one below the largest entry.

    Raises:
        InputError: An entry is NaN or infinite.
    """
    blocks = (block for block in blocks_of(matrix) if block.numel())
    # A maximum of the maxima would lose a NaN.
    peaks = [float(torch.linalg.vector_norm(block, torch.inf)) for block in blocks]
    if not all(math.isfinite(peak) for peak in peaks):
        raise InputError("the matrix to factorise holds NaN or infinite entries; expected finite numbers")
    largest = max(peaks, default=0.0)
    if largest == 0 or LEAST_SCALED < largest < 1 / LEAST_SCALED:
        return float(largest > 0)
    return 2.0 ** (math.frexp(largest)[1] - 1)


def gram_eigh(
    matrix: Tensor | Blocks, scale: float, least: float = ILL_CONDITIONED, share: float = 1.0
) -> tuple[Float64[Tensor, " dim"], Float64[Tensor, "dim rank"], torch.dtype]:
    """Decompose the smaller Gram matrix of a matrix over a scale, always in float64.

    Args:
        matrix: The matrix.
        scale: Of :func:`scale_of`.
        least: Ratio of the extreme eigenvalues below which the Gram matrix is formed again in float64.
        share: Share of energy that the eigenvectors are to hold.

    Returns:
        All its eigenvalues (descending, not negative), its eigenvectors within the numerical rank and the share as
        columns, and the type that it was formed in.
    """
    gram, working = _conditioned_gram(matrix, scale, least)
    return *symmetric_eigh(gram, share), working


def scaled_gram(matrix: Tensor | Blocks, scale: float, working: torch.dtype) -> Float[Tensor, "dim dim"]:
    """Return the smaller Gram matrix of a matrix over a scale: of its rows where they are not more than its columns."""
    rows, columns = matrix.shape
    longer = 1 if rows <= columns else 0
    blocks = ((block if scale == 1 else block / scale).to(working) for block in blocks_of(matrix, longer))
    return gram_of_blocks(block if longer else block.T for block in blocks)


def _conditioned_gram(matrix: Tensor | Blocks, scale: float, least: float) -> tuple[Tensor, torch.dtype]:
    """Form the Gram matrix, in float64 where float32 would lose the small end; and return it in float64.

    That ``lambda_min >= least lambda_1`` is told by whether ``G - least lambda_1 I`` has a Cholesky factor, for a
    fiftieth of what the eigenvalues cost; lambda_1 by a power iteration, which is never above it.
    """
    *first, last = _working_types(matrix)
    if max(matrix.shape) >= NEARLY_SQUARE * min(matrix.shape):
        for working in first:
            gram = scaled_gram(matrix, scale, working)
            vector = gram.sum(dim=0)
            for _ in range(POWER_STEPS):
                vector = gram @ (vector / torch.linalg.vector_norm(vector))
            shifted = gram.clone()
            shifted.diagonal().sub_(least * torch.linalg.vector_norm(vector))
            if int(torch.linalg.cholesky_ex(shifted).info) == 0:
                return gram.double(), working
    return scaled_gram(matrix, scale, last).double(), last


def _working_types(matrix: Tensor | Blocks) -> list[torch.dtype]:
    """Types to form a Gram matrix in: the matrix's own, and float64 where that has lost the small end."""
    return list(dict.fromkeys((torch.promote_types(matrix.dtype, torch.float32), torch.float64)))
