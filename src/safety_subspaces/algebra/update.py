"""What was added to one weight, in one of three forms, and everything that is computed of it whatever its form.

Dense as a tensor, made a block at a time where it is large, or in factors as LoRA has it and a compressed snapshot
keeps it: callers ask an :class:`Update`, and none asks which form it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import fsum
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.blocks import Blocks, blocks_of, rows_in_block
from safety_subspaces.algebra.choices import Side
from safety_subspaces.algebra.eigen import RANK_TOLERANCE
from safety_subspaces.algebra.factors import (
    Factors,
    as_matrix,
    left_factors,
    singular_values,
    squared_norm,
    squared_row_norms,
    tall_factors,
)
from safety_subspaces.algebra.gram import LEAST_SCALED, scale_of, scaled_gram

# What the factors of an update are called where it is stored.
LEFT, RIGHT = ".left", ".right"


class Update(ABC):
    """The update of a weight, seen as a matrix ``U (out, in)``; of a weight that is not 2-D as one column.

    Attributes:
        shape: Shape of the weight.
        scale: Factor of the product of its factors; 1 without factors.
    """

    shape: torch.Size
    scale: float = 1.0

    @property
    def is_matrix(self) -> bool:
        """Whether the weight is 2-D."""
        return len(self.shape) == 2

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of U."""
        return (self.shape[0], self.shape[1]) if self.is_matrix else (self.shape.numel(), 1)

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Blocks]:
        """What it is stored as: itself under an empty name, or its factors as ``LEFT`` and ``RIGHT``."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "..."]:
        """Return it as one tensor, in the shape of the weight."""

    @abstractmethod
    def rows(self, count: int) -> Iterable[Float[Tensor, "part in"]]:
        """Yield U so many rows at a time."""

    @abstractmethod
    def to(self, device: torch.device) -> "Update":
        """Return it on a device; one that streams from disk stays there on a CPU, and is read whole for a GPU."""

    @abstractmethod
    def transposed(self) -> "Update":
        """Return the transposed matrix."""

    @abstractmethod
    def energy(self) -> float:
        """Return the squared Frobenius norm, in float64 across rows."""

    @abstractmethod
    def factors(self, share: float = 1.0, formed: bool = False) -> Factors:
        """Factorise U once for every rank.

        Args:
            share: Only the directions that hold this share of the energy are sure to be there.
            formed: Whether the directions of a tall matrix are formed, and orthonormalised, at once.

        Raises:
            InputError: It holds a NaN or an infinity.
        """

    @abstractmethod
    def singular_values(self) -> Float64[Tensor, " rank"]:
        """Return those within the numerical rank, in descending order."""

    @abstractmethod
    def left_product(self, columns: Float[Tensor, "out count"]) -> Float[Tensor, "count in"]:
        """Return ``M^T U`` of any columns M."""

    @abstractmethod
    def coordinates(self, factors: Factors) -> Float[Tensor, "rank in"]:
        """Return ``L^T U``."""

    @abstractmethod
    def energies_along(self, factors: Factors, side: Side = "left") -> Float64[Tensor, " rank"]:
        """Return ``||l_i^T U||^2`` for each direction: their cumulative sum is the energy kept at every rank.

        Args:
            factors: Directions of output space, or of input space (``||U r_i||^2``) on the right side.
            side: Which of the two; a weight that is not 2-D is one column, whatever the side.
        """

    @abstractmethod
    def concentration(self, total: float) -> float:
        """Return ``tr M^2 / tr^2 M`` with ``M = U U^T``, what the variance of a random projection's energy needs.

        It lies between 1 over the rank and 1, of an update of rank one; NaN of a zero update.

        Args:
            total: The energy of U.
        """

    @abstractmethod
    def inner(self, other: "Update") -> float:
        """Return the sum of the elementwise product with another update of the weight, in float64 across rows."""

    @property
    def is_in_memory(self) -> bool:
        """Whether its numbers are all there, dense."""
        return False

    def energies_and_concentration(self, factors: Factors, total: float) -> tuple[Float64[Tensor, " rank"], float]:
        """Return :meth:`energies_along` and :meth:`concentration`."""
        return self.energies_along(factors), self.concentration(total)

    def on_side(self, side: Side) -> "Update":
        """Return it as a matrix whose output space is the side that is asked for; a vector has one side."""
        return self.transposed() if side == "right" and self.is_matrix else self

    def minus(self, other: "Update") -> "Update":
        """Return its difference from another update of the weight."""
        return DenseUpdate(self.dense() - other.dense())


class _BlockUpdate(Update):
    """What dense and streamed updates share: both are read by their blocks."""

    @property
    @abstractmethod
    def _source(self) -> Blocks:
        """The numbers in the shape of the weight."""

    @abstractmethod
    def _matrix(self) -> Float[Tensor, "out in"] | Blocks:
        """The numbers as a matrix: a tensor, or what splits as one."""

    @property
    def parts(self) -> Mapping[str, Blocks]:
        """Itself."""
        return {"": self._source}

    def rows(self, count: int) -> Iterable[Float[Tensor, "part in"]]:
        """Yield U so many rows at a time."""
        return self._matrix().split(count)

    def energy(self) -> float:
        """Return the squared Frobenius norm."""
        return fsum(squared_norm(block) for block in blocks_of(self._source))

    def factors(self, share: float = 1.0, formed: bool = False) -> Factors:
        """Factorise U by its smaller Gram matrix."""
        rows, columns = self.matrix_shape
        if formed:
            return left_factors(as_matrix(self.dense()), share)
        return tall_factors(self._matrix(), share) if rows > columns > 1 else left_factors(self._matrix(), share)

    def singular_values(self) -> Float64[Tensor, " rank"]:
        """Return those of the smaller Gram matrix."""
        return singular_values(self._matrix())

    def left_product(self, columns: Float[Tensor, "out count"]) -> Float[Tensor, "count in"]:
        """Return ``M^T U``."""
        return torch.cat(list(self._products(columns, "left")), dim=1)

    def coordinates(self, factors: Factors) -> Float[Tensor, "rank in"]:
        """Return ``L^T U``."""
        return self.left_product(factors.basis) if factors.turn is None else factors.coordinates(self._matrix())

    def energies_along(self, factors: Factors, side: Side = "left") -> Float64[Tensor, " rank"]:
        """Return the energies; nothing as large as U is made beside it."""
        if factors.turn is not None and side == "left":
            return squared_row_norms(self.coordinates(factors))
        total = torch.zeros(factors.held, dtype=torch.float64, device=factors.singular_values.device)
        for part in self._products(factors.basis, side if self.is_matrix else "left"):
            total += squared_row_norms(part)
        return total

    def concentration(self, total: float) -> float:
        """Return it from the smaller Gram matrix."""
        return _concentration(self._gram(total)) if total else float("nan")

    def energies_and_concentration(self, factors: Factors, total: float) -> tuple[Float64[Tensor, " rank"], float]:
        """Return both; of a wide update from its one Gram matrix."""
        rows, columns = self.matrix_shape
        if factors.turn is not None or total == 0 or rows >= columns:
            return super().energies_and_concentration(factors, total)
        gram = self._gram(total)
        along = (factors.basis * (gram @ factors.basis.to(gram))).sum(dim=0, dtype=torch.float64)
        return along.clamp_min(0) * (total / _trace(gram)), _concentration(gram)

    def inner(self, other: Update) -> float:
        """Return the sum over blocks."""
        if not isinstance(other, _BlockUpdate):
            return other.inner(self)
        pairs = zip(blocks_of(self._source), blocks_of(other._source), strict=True)
        return fsum(float((as_matrix(a) * as_matrix(b)).sum(dim=1).double().sum()) for a, b in pairs)

    def _gram(self, total: float) -> Tensor:
        """The smaller Gram matrix in the update's own precision, over a power of two where its numbers need that."""
        matrix = self._matrix()
        # No entry is larger than the square root of the total energy.
        safe = LEAST_SCALED < total < 1 / LEAST_SCALED
        return scaled_gram(matrix, 1.0 if safe else scale_of(matrix), matrix.dtype)

    def _products(self, basis: Tensor, side: Side) -> Iterator[Float[Tensor, "rank part"]]:
        """Yield ``L^T U``, or ``R^T U^T`` on the right, some columns at a time: blocks lie across the longer side of U.

        All columns at once where each block holds a part of every vector of the basis.
        """
        rows, columns = self.matrix_shape
        dim = 1 if rows <= columns else 0
        total, start = None, 0
        for block in self._across(dim):
            matrix = block if side == "left" else block.T
            if dim != (0 if side == "left" else 1):
                yield basis.to(matrix).T @ matrix
                continue
            stop = start + block.shape[dim]
            product = basis[start:stop].to(matrix).T @ matrix
            total, start = product if total is None else total.add_(product), stop
        if total is not None:
            yield total

    def _across(self, dim: int) -> Iterable[Tensor]:
        return blocks_of(self._matrix(), dim)


@final
class DenseUpdate(_BlockUpdate):
    """An update as a tensor.

    Args:
        tensor: In the shape of the weight.
    """

    def __init__(self, tensor: Float[Tensor, "..."]) -> None:
        self.tensor = tensor
        self.shape = tensor.shape

    @property
    def _source(self) -> Blocks:
        return self.tensor

    def _matrix(self) -> Float[Tensor, "out in"]:
        return as_matrix(self.tensor)

    def _across(self, dim: int) -> Iterable[Tensor]:
        return (self._matrix(),)

    @property
    def is_in_memory(self) -> bool:
        """It is."""
        return True

    def dense(self) -> Float[Tensor, "..."]:
        """Return the tensor."""
        return self.tensor

    def to(self, device: torch.device) -> "DenseUpdate":
        """Return it on a device."""
        return DenseUpdate(self.tensor.to(device))

    def transposed(self) -> "DenseUpdate":
        """Return the transposed matrix."""
        return DenseUpdate(self._matrix().T.contiguous())


@final
class StreamedUpdate(_BlockUpdate):
    """``weight - reference``, subtracted when a block is taken; splits as a tensor of that shape does.

    Args:
        open_weight: Opens the weight for one block: what it returns is indexed as a tensor is. Opened anew for each
            block, so that no more of a mapped file than that stays in memory; of a tensor in memory, that tensor.
        open_reference: The same of the reference.
        shape: Shape of both.
        dtype: Type to subtract in.
        check: Is given every block, to refuse it.
    """

    def __init__(
        self,
        open_weight: Callable[[], Any],
        open_reference: Callable[[], Any],
        shape: Sequence[int],
        dtype: torch.dtype,
        check: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._open_weight, self._open_reference, self._check = open_weight, open_reference, check
        self.shape, self.dtype = torch.Size(shape), dtype

    @property
    def _source(self) -> Blocks:
        return self

    def _matrix(self) -> Float[Tensor, "out in"] | Blocks:
        return self if self.is_matrix else as_matrix(self.dense())

    def split(self, size: int, dim: int = 0, /) -> Iterator[Tensor]:
        """Yield the difference in blocks of so many rows (0) or columns (1)."""
        # Columns of a memory-mapped file touch all its pages: read some rows at a time, and close the file in between.
        rows = rows_in_block(self.shape[1:].numel())
        for start in range(0, self.shape[dim], size):
            index = (slice(None),) * dim + (slice(start, start + size),)
            top, bottom = (0, self.shape[0]) if dim else (start, min(start + size, self.shape[0]))
            parts = []
            for first in range(top, bottom, rows):
                part = (slice(first, min(first + rows, bottom)), *index[1:])
                difference = self._open_weight()[part].to(self.dtype, copy=True)
                parts.append(difference.sub_(self._open_reference()[part].to(difference)))
            block = torch.cat(parts) if len(parts) > 1 else parts[0]
            if self._check is not None:
                self._check(block)
            yield block

    def dense(self) -> Float[Tensor, "..."]:
        """Return the whole difference."""
        whole, start = torch.empty(0), 0
        for block in blocks_of(self):
            whole = block.new_empty(self.shape) if start == 0 else whole
            whole[start : start + len(block)] = block
            start += len(block)
        return whole

    def to(self, device: torch.device) -> Update:
        """Return it as it is on a CPU, whole on a GPU."""
        return self if device.type == "cpu" else DenseUpdate(self.dense().to(device))

    def transposed(self) -> DenseUpdate:
        """Return the transposed matrix, whole."""
        return DenseUpdate(self.dense().T.contiguous())


@final
class FactorUpdate(Update):
    """``scale * left @ right``, never made dense unless asked for.

    Args:
        left: ``(out, inner)``.
        right: ``(inner, in)``.
        scale: A factor of the product.
    """

    def __init__(self, left: Float[Tensor, "out inner"], right: Float[Tensor, "inner in"], scale: float = 1.0) -> None:
        self.left, self.right, self.scale = left, right, scale
        self.shape = torch.Size((left.shape[0], right.shape[1]))

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Its factors."""
        return {LEFT: self.left, RIGHT: self.right}

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product, in the factors' type, from a float64 multiplication."""
        return (self.scale * (self.left.double() @ self.right.double())).to(self.left.dtype)

    def rows(self, count: int) -> Iterator[Float[Tensor, "part in"]]:
        """Yield the product so many rows at a time."""
        for part in self.left.split(count):
            yield FactorUpdate(part, self.right, self.scale).dense()

    def to(self, device: torch.device) -> "FactorUpdate":
        """Return the factors on a device."""
        return FactorUpdate(self.left.to(device), self.right.to(device), self.scale)

    def transposed(self) -> "FactorUpdate":
        """Return the transposed product."""
        return FactorUpdate(self.right.T, self.left.T, self.scale)

    def energy(self) -> float:
        """Return ``||scale left right||_F^2 = scale^2 <left^T left, right right^T>``, in float64."""
        left = self.left.double()
        # Where equal updates were subtracted, rounding may leave a small negative number.
        return max(0.0, self.scale**2 * float(((left.T @ left) * self._right_gram()).sum()))

    def factors(self, share: float = 1.0, formed: bool = False) -> Factors:
        """Factorise the product: QR of each factor, then an SVD of the small core; every direction is formed."""
        core, frame = self._core()
        vectors, values, _ = torch.linalg.svd(core)
        rank = _numerical_rank(values)
        return Factors((frame @ vectors[:, :rank]).float(), values[:rank])

    def singular_values(self) -> Float64[Tensor, " rank"]:
        """Return those of the small core."""
        values = torch.linalg.svdvals(self._core()[0])
        return values[: _numerical_rank(values)]

    def left_product(self, columns: Float[Tensor, "out count"]) -> Float[Tensor, "count in"]:
        """Return ``M^T U``, in the type of the columns."""
        return self.scale * ((columns.T @ self.left.to(columns)) @ self.right.to(columns))

    def coordinates(self, factors: Factors) -> Float[Tensor, "rank in"]:
        """Return ``L^T U``, in the type of the factors."""
        along = factors.coordinates(self.left.to(factors.singular_values.device))
        return self.scale * (along @ self.right.to(along))

    def energies_along(self, factors: Factors, side: Side = "left") -> Float64[Tensor, " rank"]:
        """Return ``scale^2 diag(B right right^T B^T)`` with ``B = L^T left``, in float64."""
        if side == "right":
            return self.transposed().energies_along(factors)
        along = factors.coordinates(self.left.double().to(factors.singular_values.device)).double()
        return self.scale**2 * ((along @ self._right_gram().to(along)) * along).sum(dim=1)

    def concentration(self, total: float) -> float:
        """Return it from the singular values."""
        values = self.singular_values().square()
        return float(values.square().sum() / values.sum() ** 2) if values.numel() else float("nan")

    def inner(self, other: Update) -> float:
        """Return ``scale <left^T U', right>``."""
        return self.scale * float((other.left_product(self.left.double()).double() * self.right.double()).sum())

    def minus(self, other: Update) -> Update:
        """Return the difference; of two updates in factors in factors as well."""
        if not isinstance(other, FactorUpdate):
            return super().minus(other)
        left = torch.cat([self.scale * self.left.double(), -other.scale * other.left.double()], dim=1)
        return FactorUpdate(left, torch.cat([self.right.double(), other.right.double()]))

    def _right_gram(self) -> Float64[Tensor, "inner inner"]:
        right = self.right.double()
        return right @ right.T

    def _core(self) -> tuple[Float64[Tensor, "a b"], Float64[Tensor, "out a"]]:
        frame, left = torch.linalg.qr(self.left.double())
        right = torch.linalg.qr(self.right.double().T, mode="r").R
        return self.scale * (left @ right.T), frame


def _numerical_rank(values: Tensor) -> int:
    return int((values > RANK_TOLERANCE * values[0]).sum()) if values.numel() and values[0] > 0 else 0


def _trace(gram: Tensor) -> float:
    return float(gram.diagonal().double().sum())


def _concentration(gram: Tensor) -> float:
    trace = _trace(gram)
    return squared_norm(gram) / trace**2 if trace > 0 else float("nan")
