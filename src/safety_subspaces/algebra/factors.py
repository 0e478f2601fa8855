"""Factorise once, use many times: every rank, share and control is read off the left singular factors.

Only the left side is kept: a subspace of updates lives in a weight's output space. The factors come from the
smaller Gram matrix, because a full SVD of every weight matrix is what makes the ordinary way slow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.blocks import Blocks, blocks_of, rows_in_block
from safety_subspaces.algebra.eigen import numerical_rank_of, symmetric_eigenvalues
from safety_subspaces.algebra.gram import ILL_CONDITIONED, _conditioned_gram, gram_eigh, scale_of
from safety_subspaces.artefacts.errors import InputError

# A float32 Gram matrix errs by about 1e-7 of its largest eigenvalue, and nothing orthonormalises the columns of D T of
# a tall matrix: below this ratio they would leave orthonormality by over 1e-4, and the matrix is taken in float64.
TALL_ILL_CONDITIONED = 1e-3
# Float32 bases from a float64 eigendecomposition are orthonormal to a few 1e-6; beyond this they do not project.
ORTHONORMAL_WITHIN = 1e-4
# Columns of U = D V / sigma miss orthonormality by the Gram's noise over sigma^2; where that exceeds a few roundings of
# a float32 inner product, they are orthonormalised again.
ORTHONORMAL_TOLERANCE = 1e-5


@final
@dataclass(frozen=True)
class Factors:
    """Left singular vectors ``L`` of a matrix, its *directions*, with its whole spectrum; in descending order.

    Orthonormal by construction: every maker of them in this package decomposes or draws, and a basis from a file is
    checked (:func:`check_orthonormal`) before it comes here. Of a tall matrix D, with more rows than columns, L may be
    as large as D: then ``L = D T`` with ``T = R S^-1`` of the small Gram matrix ``D^T D = R S^2 R^T``, and is formed a
    block at a time, or not at all: ``L^T U = T^T (D^T U)`` reads both matrices once.

    Args:
        matrix: L, or the tall matrix D.
        singular_values: All within the numerical rank; L may hold the directions of the first alone.
        turn: T, in the type that products with D are made in; ``None`` where ``matrix`` is L itself.
        scale: A power of two by which D is divided before anything is made of it.
    """

    matrix: Float[Tensor, "out columns"] | Blocks
    singular_values: Float64[Tensor, " rank"]
    turn: Float[Tensor, "columns held"] | None = None
    scale: float = 1.0

    @property
    def rows(self) -> int:
        """Dimension of the output space."""
        return self.matrix.shape[0]

    @property
    def numerical_rank(self) -> int:
        """Number of directions: singular values above ``RANK_TOLERANCE`` of the largest."""
        return self.singular_values.numel()

    @property
    def held(self) -> int:
        """Number of directions in L, at most the numerical rank."""
        return (self.matrix if self.turn is None else self.turn).shape[1]

    @cached_property
    def basis(self) -> Float32[Tensor, "out held"]:
        """L as one matrix, as large as D."""
        return self.matrix if isinstance(self.matrix, Tensor) and self.turn is None else torch.cat(list(self.blocks()))

    def blocks(self, rows: int | None = None) -> Iterator[Float32[Tensor, "part held"]]:
        """Yield L so many rows at a time; by default in blocks of D."""
        blocks = blocks_of(self.matrix) if rows is None else self.matrix.split(rows)
        yield from blocks if self.turn is None else ((self._scaled(block) @ self.turn).float() for block in blocks)

    def columns(self, order: Tensor) -> Float32[Tensor, "out chosen"]:
        """Return some of the directions; of a tall matrix no more than these are in memory."""
        return self.basis[:, order] if self.turn is None else torch.cat([block[:, order] for block in self.blocks()])

    def coordinates(self, matrix: Float[Tensor, "out any"] | Blocks) -> Float[Tensor, "held any"]:
        """Return ``L^T M``; of a tall L both matrices are read some rows at a time."""
        if self.turn is None:
            assert isinstance(matrix, Tensor), "a matrix in memory"
            return self.basis.to(matrix.dtype).T @ matrix
        total = torch.zeros(())
        step = rows_in_block(self.matrix.shape[1])
        for number, (block, other) in enumerate(zip(self.matrix.split(step), matrix.split(step), strict=True)):
            product = self._scaled(block).T @ other.to(self.turn)
            total = total.add_(product) if number else product
        return self.turn.T @ total

    def products(self, other: "Factors", widest: tuple[int, int]) -> Float[Tensor, "first second"]:
        """Return ``L^T L'`` of so many leading directions of each; of two tall matrices, ``T^T (D^T D') T'``."""
        if self.turn is None or other.turn is None:
            return self.basis[:, : widest[0]].T @ other.basis[:, : widest[1]]
        along = self.coordinates(other.matrix)
        turn = other.turn if other.scale == 1 else other.turn / other.scale
        working = torch.promote_types(along.dtype, turn.dtype)
        return (along.to(working) @ turn.to(working))[: widest[0], : widest[1]]

    def _scaled(self, block: Tensor) -> Tensor:
        assert self.turn is not None
        return (block if self.scale == 1 else block / self.scale).to(self.turn.dtype)


def left_factors(matrix: Float[Tensor, "out in"] | Blocks, share: float = 1.0) -> Factors:
    """Factorise a matrix by ``eigh`` of its smaller Gram matrix.

    ``D D^T = L S^2 L^T`` when ``out <= in``; otherwise ``D^T D = R S^2 R^T`` and ``L = D R S^-1``. The Gram
    matrix is float32 (float64 where that loses the small end of the spectrum), its eigendecomposition always
    float64. Energies agree with a float64 SVD to 1e-7 of the whole, and to a few 1e-5 on spectra just short of being
    ill-conditioned.

    Args:
        matrix: The matrix.
        share: Share of the energy that the directions are to hold; all singular values are there. On a CPU the vectors
            that are not asked for are not made, which is a third of the cost at a tenth of them.

    Returns:
        The factors within the numerical rank; a zero matrix has none, and an empty basis.

    Raises:
        InputError: The matrix holds a NaN or an infinity; the caller can name the tensor.
    """
    rows, columns = matrix.shape
    if isinstance(matrix, Tensor):
        matrix = matrix.detach() if matrix.dtype == torch.float64 else matrix.detach().float()
    scale = scale_of(matrix)
    if scale == 0:
        device = next(iter(blocks_of(matrix)), torch.zeros(())).device
        return no_factors(rows, device)
    eigenvalues, vectors, working = gram_eigh(matrix, scale, share=share)
    values = eigenvalues[: numerical_rank_of(eigenvalues)].sqrt()
    if rows > columns:
        vectors = _orthonormalise(_in_blocks(matrix, vectors / values[: vectors.shape[1]], scale, working))
    return Factors(vectors.float(), values * scale)


def tall_factors(matrix: Float[Tensor, "out in"] | Blocks, share: float = 1.0) -> Factors:
    """Factorise a matrix with more rows than columns by ``eigh`` of ``D^T D``, without forming its directions.

    Args:
        matrix: The matrix.
        share: Share of the energy that the directions are to hold.

    Raises:
        ValueError: It has no more rows than columns: its smaller Gram matrix is ``D D^T``.
        InputError: The matrix holds a NaN or an infinity.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        raise ValueError(f"expected more rows than columns, got {tuple(matrix.shape)}; left_factors serves this shape")
    scale = scale_of(matrix)
    if scale == 0:
        return no_factors(matrix.shape[0], next(iter(blocks_of(matrix))).device)
    eigenvalues, vectors, working = gram_eigh(matrix, scale, TALL_ILL_CONDITIONED, share)
    values = eigenvalues[: numerical_rank_of(eigenvalues)].sqrt()
    turn = vectors / values[: vectors.shape[1]]
    if working == torch.float64 and eigenvalues[-1] >= ILL_CONDITIONED * eigenvalues[0]:
        working = torch.float32  # the Gram matrix needed float64; products of this matrix do not yet
    return Factors(matrix, values * scale, turn.to(working), scale)


def drawn_factors(basis: Float32[Tensor, "out rank"]) -> Factors:
    """Return a basis as factors: its directions have no singular values of their own, and all count alike."""
    return Factors(basis, torch.ones(basis.shape[1], dtype=torch.float64, device=basis.device))


def no_factors(rows: int, device: torch.device | None = None) -> Factors:
    """Return the factors of a zero matrix: no direction."""
    return Factors(torch.zeros(rows, 0, device=device), torch.zeros(0, dtype=torch.float64, device=device))


def check_orthonormal(basis: Tensor, name: str) -> None:
    """Refuse a basis that would not project.

    Raises:
        InputError: It is not a matrix, has more columns than rows, or its columns are not orthonormal.
    """
    if basis.ndim != 2 or basis.shape[1] > basis.shape[0]:
        raise InputError(f"basis of {name} has shape {tuple(basis.shape)}; expected (dim, rank) with rank at most dim")
    working = basis.double()
    error = (working.T @ working - torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)).abs()
    worst = float(error.max()) if error.numel() else 0.0
    if not worst <= ORTHONORMAL_WITHIN:  # also where it is NaN
        raise InputError(
            f"basis of {name} is not orthonormal (largest deviation {worst:.2g}, allowed {ORTHONORMAL_WITHIN:g}): "
            "projecting with it would not be a projection; make it with python analyze.py subspace"
        )


def singular_values(matrix: Float[Tensor, "out in"] | Blocks) -> Float64[Tensor, " rank"]:
    """Return the singular values within the numerical rank, in descending order: those of :func:`left_factors`.

    Without the vectors this costs a fraction of the factorisation, and beside the matrix only its smaller Gram matrix.

    Raises:
        InputError: The matrix holds a NaN or an infinity.
    """
    scale = scale_of(matrix)
    if scale == 0:
        return torch.zeros(0, dtype=torch.float64)
    gram, _ = _conditioned_gram(matrix, scale, ILL_CONDITIONED)
    eigenvalues = symmetric_eigenvalues(gram)
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


def as_matrix(tensor: Float[Tensor, "..."]) -> Float[Tensor, "out in"]:
    """Return a matrix as it is, a tensor that is not 2-D as one column: its subspace is the line it spans."""
    return tensor if tensor.ndim == 2 else tensor.reshape(-1, 1)


def _in_blocks(matrix: Tensor | Blocks, vectors: Tensor, scale: float, working: torch.dtype) -> Tensor:
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
