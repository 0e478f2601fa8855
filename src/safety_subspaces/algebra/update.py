"""What is computed of an update whatever its form: dense, made a block at a time, or in factors as LoRA has it."""

from collections.abc import Iterator
from math import fsum

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.factors import (
    LEAST_SCALED,
    LeadingFactors,
    LeftFactors,
    as_matrix,
    leading_factors,
    left_factors,
    scale_of,
    scaled_gram,
    squared_norm,
    squared_row_norms,
)
from safety_subspaces.algebra.lowrank import LowRank
from safety_subspaces.algebra.streamed import BLOCK, StreamedUpdate, blocks_of
from safety_subspaces.algebra.tall import TallFactors, tall_factors

Update = Tensor | StreamedUpdate | LowRank
Factors = LeftFactors | TallFactors


def matrix_of(update: Update) -> Update:
    """Return an update as a matrix: a tensor that is not 2-D as one column."""
    if isinstance(update, LowRank) or len(update.shape) == 2:
        return update
    return as_matrix(update.whole() if isinstance(update, StreamedUpdate) else update)


def on_device(update: Update, device: torch.device) -> Update:
    """Return an update on a device; one that streams from disk stays there on a CPU, and is read whole for a GPU."""
    if isinstance(update, LowRank):
        return LowRank(update.left.to(device), update.right.to(device), update.scale)
    if isinstance(update, StreamedUpdate):
        return update if device.type == "cpu" else update.whole().to(device)
    return update.to(device)


def factorise(update: Update) -> Factors:
    """Factorise an update once for every rank; of a tall one no singular vector is formed.

    Raises:
        InputError: It holds a NaN or an infinity.
    """
    matrix = matrix_of(update)
    if isinstance(matrix, LowRank):
        return matrix.left_factors()
    return tall_factors(matrix) if matrix.shape[0] > matrix.shape[1] > 1 else left_factors(matrix)


def factorise_leading(update: Update, share: float) -> LeftFactors | LeadingFactors | TallFactors:
    """Factorise as :func:`factorise`; only the directions that hold a share of the energy are sure to be there.

    Raises:
        InputError: As there.
    """
    matrix = matrix_of(update)
    if isinstance(matrix, LowRank) or share == 1:
        return factorise(update)
    if matrix.shape[0] > matrix.shape[1] > 1:
        return tall_factors(matrix, share)
    return leading_factors(matrix, share)


def energy(update: Update) -> float:
    """Return the squared Frobenius norm, its rows summed in float64."""
    if isinstance(update, LowRank):
        return update.squared_norm()
    return fsum(squared_norm(block) for block in blocks_of(update))


def coordinates(factors: Factors, update: Update) -> Float[Tensor, "rank in"]:
    """Return ``L^T U``."""
    matrix = matrix_of(update)
    if isinstance(matrix, LowRank):
        return matrix.scale * (coordinates(factors, matrix.left) @ matrix.right.to(factors.singular_values.device))
    if isinstance(factors, TallFactors):
        return factors.coordinates(matrix)
    return torch.cat(list(_column_coordinates(factors, matrix)), dim=1)


def direction_energies(factors: Factors, update: Update) -> Float64[Tensor, " rank"]:
    """Return ``||l_i^T U||^2`` for each direction: their cumulative sum is the energy kept at every rank."""
    matrix = matrix_of(update)
    if isinstance(factors, TallFactors) or isinstance(matrix, LowRank):
        return squared_row_norms(coordinates(factors, matrix))
    total = torch.zeros(factors.numerical_rank, dtype=torch.float64, device=factors.basis.device)
    for part in _column_coordinates(factors, matrix):
        total += squared_row_norms(part)
    return total


def inner_product_of(first: Update, second: Update) -> float:
    """Return the sum of the elementwise product, in float64 across rows."""
    if isinstance(second, LowRank):
        first, second = second, first
    if isinstance(first, LowRank):
        left = LeftFactors(first.left, torch.zeros(first.left.shape[1], dtype=torch.float64))
        return first.scale * float((coordinates(left, second).double() * first.right.double()).sum())
    assert not isinstance(second, LowRank)
    pairs = zip(blocks_of(first), blocks_of(second), strict=True)
    return fsum(float((as_matrix(a) * as_matrix(b)).sum(dim=1).double().sum()) for a, b in pairs)


def concentration(update: Update, total: float) -> float:
    """Return ``tr M^2 / tr^2 M`` with ``M = U U^T``, what the variance of a random projection's energy needs.

    It lies between 1 over the rank and 1, of an update of rank one; NaN of a zero update.

    Args:
        update: U.
        total: Its squared norm.
    """
    matrix = matrix_of(update)
    if isinstance(matrix, LowRank):
        values = matrix.singular_values().square()
        return float(values.square().sum() / values.sum() ** 2) if values.numel() else float("nan")
    return _concentration(_gram_of(matrix, total)) if total else float("nan")


def energies_and_concentration(
    factors: Factors, update: Update, total: float
) -> tuple[Float64[Tensor, " rank"], float]:
    """Return :func:`direction_energies` and :func:`concentration`; of a wide update both from its one Gram matrix.

    Args:
        factors: L.
        update: U.
        total: Its squared norm.
    """
    matrix = matrix_of(update)
    turned = isinstance(factors, TallFactors) or total == 0
    if isinstance(matrix, LowRank) or turned or matrix.shape[0] >= matrix.shape[1]:
        return direction_energies(factors, matrix), concentration(matrix, total)
    gram = _gram_of(matrix, total)
    along = (factors.basis * (gram @ factors.basis.to(gram))).sum(dim=0, dtype=torch.float64)
    return along.clamp_min(0) * (total / _trace(gram)), _concentration(gram)


def _gram_of(matrix: Tensor | StreamedUpdate, total: float) -> Tensor:
    """The smaller Gram matrix in the update's own precision, over a power of two where its numbers need that."""
    # No entry is above the root of the total.
    safe = LEAST_SCALED < total < 1 / LEAST_SCALED
    return scaled_gram(matrix, 1.0 if safe else scale_of(matrix), matrix.dtype)


def _trace(gram: Tensor) -> float:
    return float(gram.diagonal().double().sum())


def _concentration(gram: Tensor) -> float:
    trace = _trace(gram)
    return squared_norm(gram) / trace**2 if trace > 0 else float("nan")


def row_blocks(update: Update, rows: int) -> Iterator[Float[Tensor, "part in"]]:
    """Yield an update as matrices of so many rows."""
    matrix = matrix_of(update)
    if isinstance(matrix, LowRank):
        for part in matrix.left.split(rows):
            yield LowRank(part, matrix.right, matrix.scale).dense()
    else:
        yield from matrix.split(rows)


def basis_row_blocks(factors: Factors, rows: int) -> Iterator[Float[Tensor, "part rank"]]:
    """Yield the singular vectors L so many rows at a time."""
    yield from factors.basis.split(rows) if isinstance(factors, LeftFactors) else factors.basis_blocks(rows)


def _column_coordinates(factors: LeftFactors, matrix: Tensor | StreamedUpdate) -> Iterator[Tensor]:
    """Yield ``L^T U`` some columns at a time; of a tall U, which is taken in rows, all columns at once."""
    basis = factors.basis
    if matrix.shape[0] <= matrix.shape[1] or isinstance(matrix, Tensor):
        for block in blocks_of(matrix, 1) if isinstance(matrix, StreamedUpdate) else (matrix,):
            yield basis.to(block.dtype).T @ block
        return
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    total = torch.zeros(())
    for number, (part, block) in enumerate(zip(basis.split(step), matrix.split(step), strict=True)):
        product = part.to(block.dtype).T @ block
        total = total.add_(product) if number else product
    yield total
