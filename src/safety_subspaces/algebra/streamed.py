"""A weight less its reference, made a block at a time: the difference of a large matrix need never stand in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
        self.shape, self.ndim, self.dtype = torch.Size(shape), len(shape), dtype

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """Yield the difference in blocks of so many rows (0) or columns (1)."""
        # Columns of a mapped file touch every page of it: some rows at once, and the file let go in between.
        rows = max(1, BLOCK // max(1, self.shape[1:].numel()))
        for start in range(0, self.shape[dim], size):
            place = (slice(None),) * dim + (slice(start, start + size),)
            top, bottom = (0, self.shape[0]) if dim else (start, min(start + size, self.shape[0]))
            parts = []
            for first in range(top, bottom, rows):
                part = (slice(first, min(first + rows, bottom)), *place[1:])
                made = self._open_weight()[part].to(self.dtype, copy=True)
                parts.append(made.sub_(self._open_reference()[part].to(made)))
            block = torch.cat(parts) if len(parts) > 1 else parts[0]
            if self._check is not None:
                self._check(block)
            yield block

    def whole(self) -> Float[Tensor, "..."]:
        """Return the whole difference."""
        made, start = torch.empty(0), 0
        for block in blocks_of(self):
            made = block.new_empty(self.shape) if start == 0 else made
            made[start : start + len(block)] = block
            start += len(block)
        return made


def blocks_of(update: Float[Tensor, "..."] | StreamedUpdate, dim: int = 0) -> Iterable[Tensor]:
    """Split an update into blocks of whole rows (0) or columns (1), of about ``BLOCK`` numbers each."""
    across = max(1, update.shape.numel() // max(1, update.shape[dim]))
    return update.split(max(1, BLOCK // across), dim)
