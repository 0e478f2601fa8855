"""Products of a matrix with itself and their eigendecompositions, by SciPy's BLAS and LAPACK on a CPU.

``torch``'s own need a quarter to a half more time on CPUs that MKL was not written for; on another device they are
used as they are.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Float64
from scipy.linalg import blas, lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError

# Directions with sigma at most this share of sigma_1 are rounding, not data: weights in float32 are good to
# 2^-24 = 6e-8 of their size, and the square root of a float64 Gram's noise (1e-16) is 1e-8.
RANK_TOLERANCE = 1e-6
# BLAS's product of a matrix with itself, by precision.
SELF_PRODUCT = {torch.float32: blas.ssyrk, torch.float64: blas.dsyrk}
# Matrices of fewer rows are decomposed as a whole: leaving vectors out would save less than a millisecond.
LEAST_LEADING = 64
# Where at most one in so many eigenvectors is wanted, each is computed on its own (MRRR), which takes a tenth of
# the time of computing all.
FEW_VECTORS = 8
BY_NUMBER = 2  # dstemr's word for a range of indices
# How many columns LAPACK applies reflections to in one call: enough for its blocked algorithm.
REFLECTION_BLOCK = 64


def rank_of_energy(singular_values: Float[Tensor, " rank"], share: float) -> int:
    """Return the smallest k with ``sum_{i<=k} sigma_i^2 >= share * sum_i sigma_i^2``; 0 without directions.

    Args:
        singular_values: All of them, in descending order: shares of a truncated spectrum would be too large.
        share: In (0, 1].

    Raises:
        InputError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"an energy share must be in (0, 1], got {share}")
    if singular_values.numel() == 0:
        return 0
    cumulative = singular_values.double().square().cumsum(0)
    return min(int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1, singular_values.numel())


def numerical_rank_of(eigenvalues: Float64[Tensor, " dim"]) -> int:
    """Return how many directions eigenvalues of a Gram matrix, in descending order, define."""
    return int((eigenvalues > RANK_TOLERANCE**2 * eigenvalues[0]).sum())


def spectral_ranks(spectrum: Float64[Tensor, " rank"]) -> tuple[float, float]:
    """Return the stable rank and the effective rank of a spectrum; NaN where it is empty.

    Source:
        Effective rank: Roy and Vetterli, EUSIPCO 2007, of the squared singular values.
    """
    if spectrum.numel() == 0:
        return float("nan"), float("nan")
    energies = spectrum.double().square()
    shares = energies / energies.sum()
    entropy = -(shares * shares.log()).sum()
    return float(energies.sum() / energies[0]), float(entropy.exp())


def gram_of_rows(matrix: Float[Tensor, "dim any"]) -> Float[Tensor, "dim dim"]:
    """Return ``A A^T``, symmetric to the bit; on a CPU half of it is computed and the other copied."""
    return gram_of_blocks([matrix])


def gram_of_blocks(blocks: Iterable[Float[Tensor, "dim _"]]) -> Float[Tensor, "dim dim"]:
    """Return the sum of ``A A^T`` over one block or more: :func:`gram_of_rows` of a matrix some columns at a time."""
    total: Tensor | None = None
    half: np.ndarray | None = None
    for block in blocks:
        if block.device.type != "cpu" or not block.numel():
            total = block @ block.T if total is None else total.addmm_(block, block.T)
        else:
            half = _add_half(half, block)
    if half is None:
        assert total is not None, "no block"
        return total
    lower = torch.from_numpy(half.T).tril_()  # what BLAS calls the upper half is the lower one in rows
    product = lower.T.contiguous().add_(lower)
    product.diagonal().mul_(0.5)
    return product


def _add_half(half: np.ndarray | None, block: Tensor) -> np.ndarray:
    """Add a product with itself to the upper half, as BLAS sees it."""
    # BLAS stores columns: rows that follow one another in memory are the columns of what it is given.
    numbers, in_rows = block.numpy(), block.stride(1) == 1
    sums = {} if half is None else {"beta": 1.0, "c": half, "overwrite_c": True}
    with _threads_of_torch():
        return SELF_PRODUCT[block.dtype](1.0, numbers.T if in_rows else numbers, trans=in_rows, **sums)


def symmetric_eigh(
    gram: Float64[Tensor, "dim dim"], share: float = 1.0
) -> tuple[Float64[Tensor, " dim"], Float64[Tensor, "dim rank"]]:
    """Decompose a positive semidefinite matrix, whose memory it uses up on a CPU.

    The steps of LAPACK's divide and conquer are taken one by one where not all vectors are wanted: only those are
    turned back from the tridiagonal form.

    Args:
        gram: The matrix.
        share: Share of the sum of eigenvalues that the vectors are to hold.

    Returns:
        All eigenvalues, descending and not negative, and the eigenvectors within numerical rank that hold the share.
    """
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
        return _leading(values, vectors, share)
    with _threads_of_torch():
        if share == 1 or gram.shape[0] < LEAST_LEADING:
            ascending, columns = scipy.linalg.eigh(gram.numpy().T, driver="evd", overwrite_a=True, check_finite=False)
            return _leading(torch.from_numpy(ascending), torch.from_numpy(columns), share)
        return _leading_eigh(gram.numpy().T, share)


def symmetric_eigenvalues(gram: Float64[Tensor, "dim dim"]) -> Float64[Tensor, " dim"]:
    """Return the eigenvalues of a positive semidefinite matrix, descending; its memory is used up on a CPU."""
    if gram.device.type != "cpu":
        return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    with _threads_of_torch():
        values = scipy.linalg.eigh(gram.numpy().T, eigvals_only=True, overwrite_a=True, check_finite=False)
    return torch.from_numpy(values).flip(0).clamp_min(0)


def _leading_eigh(gram: np.ndarray, share: float) -> tuple[Tensor, Tensor]:
    dim = gram.shape[0]
    work = int(lapack.dsytrd_lwork(dim, lower=1)[0])
    reduced, diagonal, beside, factors, failed = lapack.dsytrd(gram, lower=1, lwork=work, overwrite_a=1)
    ascending, unfinished = lapack.dsterf(diagonal, beside)
    _check_done(dim, dsytrd=failed, dsterf=unfinished)
    values = torch.from_numpy(ascending).flip(0).clamp_min(0)
    turned = _tridiagonal_vectors(diagonal, beside, _rank_of(values, share))[:, ::-1]
    columns = np.array(turned, order="F")  # a single column would be taken as it lies, its stride negative
    # Reflection i acts on the rows below i: those of a QR decomposition of what is below the diagonal.
    below = np.asfortranarray(reduced[1:, :-1])
    columns[1:], _, failed = lapack.dormqr(
        "L", "N", below, factors, np.asfortranarray(columns[1:]), REFLECTION_BLOCK * columns.shape[1]
    )
    _check_done(dim, dormqr=failed)
    # Products of what lies across vector registers round otherwise, and NumPy puts it elsewhere in each process.
    return values, torch.from_numpy(columns).clone()


def _tridiagonal_vectors(diagonal: np.ndarray, beside: np.ndarray, rank: int) -> np.ndarray:
    """Eigenvectors of the largest eigenvalues, in ascending order: a few one by one, many by divide and conquer."""
    dim = len(diagonal)
    if rank <= dim // FEW_VECTORS:
        padded = np.append(beside, 0.0)
        count, _, vectors, failed = lapack.dstemr(diagonal, padded, BY_NUMBER, 0.0, 1.0, dim - rank + 1, dim)
        if failed == 0 and count == rank:
            return vectors[:, :rank]
    _, vectors, failed = lapack.dstevd(diagonal, beside, compute_v=1)
    _check_done(dim, dstevd=failed)
    return vectors[:, dim - rank :]


def _check_done(dim: int, **codes: int) -> None:
    for routine, code in codes.items():
        if code:
            raise RuntimeError(f"LAPACK could not decompose a matrix of {dim} rows ({routine} {code})")


def _rank_of(values: Tensor, share: float) -> int:
    """How many of the descending eigenvalues lie within numerical rank and hold the share."""
    rank = numerical_rank_of(values)
    return rank if share == 1 else rank_of_energy(values[:rank].sqrt(), share)


def _leading(values: Tensor, vectors: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Put ascending eigenvalues into descending order, and keep the vectors of those that hold the share."""
    values = values.flip(0).clamp_min(0)
    rank = _rank_of(values, share)
    return values, vectors[:, vectors.shape[1] - rank :].flip(1)


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Give SciPy's BLAS as many threads as torch has."""
    with _blas_threads().limit(limits=torch.get_num_threads(), user_api="blas"):
        yield


@cache
def _blas_threads() -> ThreadpoolController:
    return ThreadpoolController()
