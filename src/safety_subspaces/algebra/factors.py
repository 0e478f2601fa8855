"""Factorise once, use many times: every rank, share and control is read off the left singular factors.

Only the left side is kept: a subspace of updates lives in a weight's output space. The factors come from the
smaller Gram matrix, because a full SVD of every weight matrix is what makes the ordinary way slow.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import gram_of_blocks, numerical_rank_of, symmetric_eigenvalues, symmetric_eigh
from safety_subspaces.algebra.streamed import StreamedUpdate, blocks_of
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
# Columns of U = D V / sigma leave orthonormality by the Gram's noise over sigma^2; above a few roundings of a
# float32 inner product they are orthonormalised once more.
ORTHONORMAL_TOLERANCE = 1e-5


@runtime_checkable
class Directions(Protocol):
    """The singular directions of a matrix's output space, however they are held."""

    @property
    def rows(self) -> int:
        """Dimension of the output space."""

    @property
    def singular_values(self) -> Float64[Tensor, " rank"]:
        """Within the numerical rank, in descending order."""

    @property
    def numerical_rank(self) -> int:
        """Number of directions."""


@dataclass(frozen=True)
class LeftFactors:
    """The left singular vectors of a matrix that its numbers define, in descending order of singular value.

    Args:
        basis: Orthonormal columns ``(out, rank)``, one for each direction within the numerical rank.
        singular_values: Their singular values ``(rank,)``.
    """

    basis: Float32[Tensor, "out rank"]
    singular_values: Float64[Tensor, " rank"]

    @property
    def rows(self) -> int:
        """Dimension of the output space."""
        return self.basis.shape[0]

    @property
    def numerical_rank(self) -> int:
        """Number of directions: singular values above ``RANK_TOLERANCE`` of the largest."""
        return self.singular_values.numel()


@dataclass(frozen=True)
class LeadingFactors:
    """The leading left singular vectors of a matrix whose whole spectrum is known.

    Args:
        basis: Orthonormal columns, in descending order of singular value.
        singular_values: Those of all directions within the numerical rank.
    """

    basis: Float32[Tensor, "out held"]
    singular_values: Float64[Tensor, " rank"]

    @property
    def rows(self) -> int:
        """Dimension of the output space."""
        return self.basis.shape[0]

    @property
    def held(self) -> int:
        """Number of directions that the basis holds."""
        return self.basis.shape[1]

    @property
    def numerical_rank(self) -> int:
        """Number of directions, of which the basis holds the first."""
        return self.singular_values.numel()


def left_factors(delta: Float[Tensor, "out in"] | StreamedUpdate) -> LeftFactors:
    """Factorise a matrix by ``eigh`` of its smaller Gram matrix.

    ``D D^T = L S^2 L^T`` when ``out <= in``; otherwise ``D^T D = R S^2 R^T`` and ``L = D R S^-1``. The Gram
    matrix is float32 (float64 where that loses the small end of the spectrum), its eigendecomposition always
    float64. Energies agree with a float64 SVD to 1e-7 of the whole, and to a few 1e-6 on spectra just short of being
    ill-conditioned.

    Returns:
        The factors within the numerical rank; a zero matrix has none, and an empty basis.

    Raises:
        InputError: ``delta`` holds a NaN or an infinity; the caller can name the tensor.
    """
    found = leading_factors(delta, 1.0)
    return LeftFactors(found.basis, found.singular_values)


def leading_factors(delta: Float[Tensor, "out in"] | StreamedUpdate, share: float) -> LeadingFactors:
    """Factorise as :func:`left_factors`, keeping the leading directions that hold a share of the energy.

    All singular values are there; on a CPU the vectors that are not asked for are not made, which is a third of the
    cost at a tenth of them.

    Raises:
        InputError: As there.
    """
    rows, columns = delta.shape
    matrix = delta
    if not isinstance(delta, StreamedUpdate):
        matrix = delta.detach() if delta.dtype == torch.float64 else delta.detach().float()
    scale = scale_of(matrix)
    if scale == 0:
        device = next(iter(blocks_of(matrix)), torch.zeros(())).device
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        return LeadingFactors(torch.zeros(rows, 0, device=device), empty)
    eigenvalues, vectors, working = gram_eigh(matrix, scale, share=share)
    values = eigenvalues[: numerical_rank_of(eigenvalues)].sqrt()
    if rows > columns:
        vectors = _orthonormalise(_in_blocks(matrix, vectors / values[: vectors.shape[1]], scale, working))
    return LeadingFactors(vectors.float(), values * scale)


def drawn_factors(basis: Float32[Tensor, "out rank"]) -> LeftFactors:
    """Return a basis as factors: its directions have no singular values of their own, and all count alike."""
    return LeftFactors(basis, torch.ones(basis.shape[1], dtype=torch.float64, device=basis.device))


def singular_values(delta: Float[Tensor, "out in"] | StreamedUpdate) -> Float64[Tensor, " rank"]:
    """Return the singular values within the numerical rank, in descending order: those of :func:`left_factors`.

    Without the vectors this costs a fraction of the factorisation, and beside the matrix only its smaller Gram matrix.

    Raises:
        InputError: ``delta`` holds a NaN or an infinity.
    """
    scale = scale_of(delta)
    if scale == 0:
        return torch.zeros(0, dtype=torch.float64)
    eigenvalues = _gram_eigenvalues(delta, scale)
    return eigenvalues[: numerical_rank_of(eigenvalues)].sqrt() * scale


def haar_basis(dim: int, rank: int, generator: torch.Generator) -> Float32[Tensor, "{dim} {rank}"]:
    """Draw an orthonormal basis of a uniformly random ``rank``-dimensional subspace of ``R^dim``.

    The QR of a Gaussian matrix, signs fixed by the diagonal of R so that the frame itself is Haar. The
    Gaussian is drawn column by column: with equally seeded generators the basis of a smaller rank is a prefix
    of a larger one's, so that one draw is nested over ranks.

    Raises:
        InputError: ``rank`` is not between 0 and ``dim``.
    """
    if not 0 <= rank <= dim:
        raise InputError(f"a subspace of R^{dim} has between 0 and {dim} dimensions, got {rank}")
    if rank == 0:
        return torch.zeros(dim, 0)
    return orthonormal_frame(torch.stack([torch.randn(dim, generator=generator) for _ in range(rank)], dim=1))


def orthonormal_frame(matrix: Float[Tensor, "dim rank"]) -> Float[Tensor, "dim rank"]:
    """Orthonormalise columns by QR with a positive diagonal of R: Haar where the matrix is Gaussian."""
    frame, triangle = torch.linalg.qr(matrix)
    return frame * torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(frame.dtype)


def squared_row_norms(matrix: Float[Tensor, "rank in"]) -> Float64[Tensor, " rank"]:
    """Return ``||row_i||^2``: the matrix's own precision within a row, float64 from there on."""
    return torch.linalg.vector_norm(matrix, dim=1).double().square()


def squared_norm(tensor: Float[Tensor, "..."]) -> float:
    """Return the squared Frobenius norm, summed over rows in float64."""
    return squared_row_norms(as_matrix(tensor)).sum().item()


def inner_product(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> float:
    """Return the sum of the elementwise product, in float64 across rows."""
    return (as_matrix(first) * as_matrix(second)).sum(dim=1).double().sum().item()


def as_matrix(tensor: Float[Tensor, "..."]) -> Float[Tensor, "out in"]:
    """Return a matrix as it is, a tensor that is not 2-D as one column: its subspace is the line it spans."""
    return tensor if tensor.ndim == 2 else tensor.reshape(-1, 1)


def scale_of(matrix: Float[Tensor, "out in"] | StreamedUpdate) -> float:
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
    matrix: Tensor | StreamedUpdate, scale: float, least: float = ILL_CONDITIONED, share: float = 1.0
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


def scaled_gram(matrix: Tensor | StreamedUpdate, scale: float, working: torch.dtype) -> Float[Tensor, "dim dim"]:
    """Return the smaller Gram matrix of a matrix over a scale: of its rows where they are not more than its columns."""
    rows, columns = matrix.shape
    longer = 1 if rows <= columns else 0
    blocks = ((block if scale == 1 else block / scale).to(working) for block in blocks_of(matrix, longer))
    return gram_of_blocks(block if longer else block.T for block in blocks)


def _gram_eigenvalues(matrix: Tensor | StreamedUpdate, scale: float) -> Tensor:
    """The eigenvalues of :func:`gram_eigh`."""
    gram, _ = _conditioned_gram(matrix, scale, ILL_CONDITIONED)
    return symmetric_eigenvalues(gram)


def _conditioned_gram(matrix: Tensor | StreamedUpdate, scale: float, least: float) -> tuple[Tensor, torch.dtype]:
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


def _working_types(matrix: Tensor | StreamedUpdate) -> list[torch.dtype]:
    """Types to form a Gram matrix in: the matrix's own, and float64 where that has lost the small end."""
    return list(dict.fromkeys((torch.promote_types(matrix.dtype, torch.float32), torch.float64)))


def _in_blocks(matrix: Tensor | StreamedUpdate, vectors: Tensor, scale: float, working: torch.dtype) -> Tensor:
    """The scaled matrix times vectors, in the type that its Gram matrix was formed in."""
    vectors = vectors.to(working)
    return torch.cat([(block if scale == 1 else block / scale).to(working) @ vectors for block in blocks_of(matrix)])


def _orthonormalise(columns: Tensor) -> Tensor:
    """One step of Cholesky QR where needed; leading columns keep their span, every rank its subspace."""
    gram = (columns.T @ columns).double()
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    if (gram - identity).abs().amax() <= ORTHONORMAL_TOLERANCE:
        return columns
    triangle = torch.linalg.cholesky(gram)
    return torch.linalg.solve_triangular(triangle.to(columns.dtype), columns.T, upper=False).T
