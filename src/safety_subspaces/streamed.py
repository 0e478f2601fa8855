"""A weight less its reference, made a block at a time: the difference of a large matrix need never stand in memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

# Numbers in a block, 8 MB of float32: 512 rows of a 4096-wide matrix, whose products still run at full speed.
BLOCK = 2**21


@final
class StreamedUpdate:
    """``weight - reference`` that can be split as a tensor can, and is subtracted when a block is taken.

    Args:
        weight: The weight; read, never changed.
        open_reference: Opens the reference for one block: what it returns is indexed as the weight is. Opened anew for
            each block, so that no more of a mapped file than that stays in memory.
        dtype: Type to subtract in.
    """

    def __init__(self, weight: Float[Tensor, "..."], open_reference: Callable[[], Any], dtype: torch.dtype) -> None:
        self._weight, self._open = weight, open_reference
        self.shape, self.ndim, self.dtype = weight.shape, weight.ndim, dtype

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """Yield the difference in blocks of so many rows (0) or columns (1)."""
        # Columns of a mapped file touch every page of it: some rows at once, and the file let go in between.
        rows = max(1, BLOCK // max(1, self._weight[:1].numel()))
        for start in range(0, self.shape[dim], size):
            place = (slice(None),) * dim + (slice(start, start + size),)
            block = self._weight[place].to(self.dtype, copy=True)
            top = 0 if dim else start
            for first in range(0, len(block), rows):
                part = block[first : first + rows]
                part -= self._open()[(slice(top + first, top + first + len(part)), *place[1:])].to(part)
            yield block

    def whole(self) -> Float[Tensor, "..."]:
        """Return the whole difference."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self._weight.device)
        start = 0
        for block in blocks_of(self):
            made[start : start + len(block)] = block
            start += len(block)
        return made


def blocks_of(update: Float[Tensor, "..."] | StreamedUpdate, dim: int = 0) -> Iterable[Tensor]:
    """Split an update into blocks of whole rows (0) or columns (1), of about ``BLOCK`` numbers each."""
    across = max(1, update.shape.numel() // max(1, update.shape[dim]))
    return update.split(max(1, BLOCK // across), dim)
