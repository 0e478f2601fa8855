"""Writing a safetensors file one tensor at a time: memory follows the largest tensor, not the file.

The library's own writer wants every tensor at once. The format is a length, a JSON header of names, types, shapes and
offsets, then the numbers: https://github.com/huggingface/safetensors#format. A header may end in spaces, so room for it
is kept at the start of the file and it is written last, when ranks and measured errors are known.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

# Numbers that are written at once: 8 MB of float32.
BLOCK = 2**21


@runtime_checkable
class Splittable(Protocol):
    """A tensor, or what is made some rows at a time and splits as one does."""

    @property
    def shape(self) -> torch.Size:
        """Its whole shape."""

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Yield so many rows at a time."""


@final
class TensorStream:
    """A context that writes tensors as they come, under a temporary name in the same folder; then renames the file.

    Leaving it by an error removes what was written.

    Args:
        path: The ``.safetensors`` file.
        largest: The largest shape that each tensor may have, by name. Not all of them have to be written.
        dtype: Type of all tensors in the file, or of each by name.
        metadata_room: Bytes kept for ``metadata`` as JSON; what is longer is an error.
    """

    def __init__(
        self,
        path: Path,
        largest: Mapping[str, Sequence[int]],
        dtype: torch.dtype | Mapping[str, torch.dtype],
        metadata_room: int,
    ) -> None:
        self.metadata: dict[str, str] = {}
        self._path = path
        self._dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(largest, dtype)
        self._partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        self._entries: dict[str, object] = {}
        self._end = 0
        total = sum(torch.Size(s).numel() * self._dtypes[name].itemsize for name, s in largest.items())
        worst = {name: self._entry(name, shape, total, total) for name, shape in largest.items()}
        room = len(json.dumps({"__metadata__": {}, **worst})) + metadata_room
        self._room = room + (-room % 8)  # the numbers start at a multiple of eight

    def __enter__(self) -> "TensorStream":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        try:
            self._file.write(b" " * (8 + self._room))
        except OSError:
            self.discard()
            raise
        return self

    def write(self, name: str, tensor: Splittable) -> None:
        """Append one tensor, some rows at a time."""
        start, self._end = self._end, self._end + tensor.shape.numel() * self._dtypes[name].itemsize
        self._entries[name] = self._entry(name, tensor.shape, start, self._end)
        for block in tensor.split(max(1, BLOCK // max(1, tensor.shape[1:].numel()))):
            stored = block.detach().to("cpu", self._dtypes[name]).contiguous()
            self._file.write(stored.reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Close the file and remove what has not been renamed; a disk that is full refuses the last flush too."""
        try:
            self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        header = json.dumps({"__metadata__": self.metadata, **self._entries}).encode()
        assert len(header) <= self._room, f"the header has {len(header)} bytes, room was kept for {self._room}"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self._path)

    def _entry(self, name: str, shape: Sequence[int], start: int, end: int) -> object:
        return {"dtype": DTYPE_NAMES[self._dtypes[name]], "shape": list(shape), "data_offsets": [start, end]}


def stream_tensors(
    path: Path | None,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors of known shapes in turn, then give the file its name.

    Args:
        path: The ``.safetensors`` file. ``None`` reads each tensor and writes nothing: a rank whose part in gathering
            them is all that is wanted of it.
        shapes: Shape of each tensor by name, in the order in which they are read.
        read: Gives a tensor by name; called once for each.
        dtype: Type of all tensors in the file, or of each by name.
        metadata: Texts for the header.
    """
    if path is None:
        for name in shapes:
            read(name)
        return
    with TensorStream(path, shapes, dtype, len(json.dumps(dict(metadata or {})))) as stream:
        stream.metadata = dict(metadata or {})
        for name, shape in shapes.items():
            tensor = read(name)
            assert tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)}, expected {tuple(shape)}"
            stream.write(name, tensor)
