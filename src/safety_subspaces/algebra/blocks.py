"""Matrices that are read a block at a time: what is larger than memory likes need never stand in it whole."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# How many numbers make a block, 8 MB of float32: 512 rows of a 4096-wide matrix, whose products run at full speed.
BLOCK = 2**21


@runtime_checkable
class Blocks(Protocol):
    """A tensor, or something that computes its numbers one block at a time; both are split in the same way."""

    @property
    def shape(self) -> torch.Size:
        """Its whole shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""

    def split(self, size: int, dim: int = 0, /) -> Iterable[Tensor]:
        """Yield blocks of so many rows (0) or columns (1)."""


def rows_in_block(columns: int) -> int:
    """Return how many rows of a matrix make a block."""
    return max(1, BLOCK // max(1, columns))


def blocks_of(matrix: Blocks, dim: int = 0) -> Iterable[Tensor]:
    """Split into blocks of whole rows (0) or columns (1), of about ``BLOCK`` numbers each."""
    return matrix.split(rows_in_block(matrix.shape.numel() // max(1, matrix.shape[dim])), dim)
