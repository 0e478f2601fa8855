"""Files of named tensors: read one tensor at a time, and written one at a time, so that memory follows the largest.

safetensors keeps texts beside its tensors: here a header of plain values, texts as they are and all else as JSON. Its
own writer wants every tensor at once. The format is a length, a JSON header of names, types, shapes and offsets, then
the numbers: https://github.com/huggingface/safetensors#format. A header may end in spaces, so room for it is kept at
the start of the file and it is written last, when ranks and measured errors are known.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json, replacing
from safety_subspaces.artefacts.foreign import parse_json, reading

# Types by the name that the format gives them.
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}
# How many numbers are written in one go: 8 MB of float32.
BLOCK = 2**21


@final
class TensorFile:
    """A file of tensors of which only the header was read.

    Each read opens the file anew: a mapping that stays open keeps in memory every page that was read of it.

    Args:
        path: The ``.safetensors`` file.
        remedy: What to do about a file that cannot be read.

    Attributes:
        path: The file.
        header: What the file says beside its tensors, as plain values.
        shapes: Shape of each tensor by name.
        types: Type of each, as the format names it.

    Raises:
        InputError: The file is missing, damaged or cut short.
    """

    def __init__(self, path: Path, remedy: str = "copy or download it again") -> None:
        self.path, self._remedy = path, remedy
        with self._opened() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - a handle, no dict
            self.header = _unpacked(file.metadata() or {})
            self.shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}
            self.types: dict[str, str] = {name: str(part.get_dtype()) for name, part in slices.items()}

    def size(self, name: str) -> int:
        """Return the bytes of a tensor's numbers."""
        return torch.Size(self.shapes[name]).numel() * TYPES[self.types[name]].itemsize

    def read(self, name: str, index: int | None = None) -> Shaped[Tensor, "..."]:
        """Read one tensor in the type that it is stored in, or one entry along its first dimension.

        Raises:
            InputError: There is no such tensor, or it cannot be read.
        """
        with self._opened(name) as file:
            return file.get_tensor(name) if index is None else file.get_slice(name)[index]

    def open_slice(self, name: str) -> Any:
        """Return a tensor as safetensors opens it: rows are read when they are taken, and let go with it.

        Raises:
            InputError: There is no such tensor, or it cannot be read.
        """
        with self._opened(name) as file:
            return file.get_slice(name)

    def read_all(self) -> dict[str, Shaped[Tensor, "..."]]:
        """Read every tensor."""
        with self._opened() as file:
            return {name: file.get_tensor(name) for name in self.shapes}

    @contextmanager
    def _opened(self, name: str | None = None) -> Iterator[Any]:
        if name is not None and name not in self.shapes:
            raise InputError(f"{self.path} has no tensor {name}; it has {', '.join(list(self.shapes)[:3])}, ...")
        with reading(self.path, "a whole safetensors file", self._remedy), safe_open(self.path, "pt") as file:
            yield file


def read_index(path: Path) -> dict[str, str]:
    """Read which file beside it holds each tensor, as the index of a checkpoint in shards says.

    The names are those of files in the same folder, which may be links; none leads out of it.

    Raises:
        InputError: It is no such index.
    """
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{path} has no weight_map of names to files; copy or download the checkpoint again")
    for file in dict.fromkeys(map(str, listed.values())):
        if file != Path(file).name or not file.endswith(".safetensors"):
            raise InputError(
                f"{path} places tensors in {file!r}; expected names of .safetensors files beside it: "
                "download the checkpoint again, from someone you trust"
            )
    return {name: str(file) for name, file in listed.items()}


@final
class StoredTensors(Mapping[str, Tensor]):
    """Tensors that stay in their files; each is read when it is taken.

    Args:
        stored: The file of each, and its name there.
    """

    def __init__(self, stored: Mapping[str, tuple[TensorFile, str]]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._stored[name]
        return file.read(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@runtime_checkable
class Splittable(Protocol):
    """A tensor, or something that computes its rows some at a time; both are split in the same way."""

    @property
    def shape(self) -> torch.Size:
        """Its whole shape."""

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Yield so many rows at a time."""


@final
class TensorStream:
    """A context that writes tensors as they come; the file gets its name when the context ends without an error.

    Args:
        path: The ``.safetensors`` file.
        largest: The largest shape that each tensor may have, by name. Not all of them have to be written.
        dtype: Type of all tensors in the file, or of each by name.
        header: What the file says beside its tensors, as plain values.
        spare: Bytes kept for what ``header`` grows by until the end; what is longer is an error.
    """

    def __init__(
        self,
        path: Path,
        largest: Mapping[str, Sequence[int]],
        dtype: torch.dtype | Mapping[str, torch.dtype],
        header: Mapping[str, Any],
        spare: int = 0,
    ) -> None:
        self.header = header
        self._path = path
        self._dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(largest, dtype)
        self._entries: dict[str, object] = {}
        self._end = 0
        self._open = ExitStack()
        total = sum(torch.Size(s).numel() * self._dtypes[name].itemsize for name, s in largest.items())
        worst = {name: self._entry(name, shape, total, total) for name, shape in largest.items()}
        room = len(json.dumps({"__metadata__": {}, **worst})) + len(json.dumps(_packed(header))) + spare
        self._room = room + (-room % 8)

    def __enter__(self) -> "TensorStream":
        with ExitStack() as opened:
            partial = opened.enter_context(replacing(self._path))
            self._file = opened.enter_context(partial.open("wb"))
            self._file.write(b" " * (8 + self._room))
            self._open = opened.pop_all()
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
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        with self._open:
            start = encoded_header({"__metadata__": _packed(self.header), **self._entries}, self._room)
            assert len(start) == 8 + self._room, f"the header has {len(start)} bytes, room was kept for {self._room}"
            self._file.seek(0)
            self._file.write(start)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _entry(self, name: str, shape: Sequence[int], start: int, end: int) -> object:
        return {"dtype": TYPE_NAMES[self._dtypes[name]], "shape": list(shape), "data_offsets": [start, end]}


def stream_tensors(
    path: Path | None,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors of known shapes in turn, then give the file its name.

    Args:
        path: The ``.safetensors`` file. ``None`` reads each tensor and writes nothing: a rank whose part in gathering
            them is all that is wanted of it.
        shapes: Shape of each tensor by name, in the order in which they are read.
        read: Gives a tensor by name; called once for each.
        dtype: Type of all tensors in the file, or of each by name.
        header: What the file says beside its tensors, as plain values.
    """
    if path is None:
        for name in shapes:
            read(name)
        return
    with TensorStream(path, shapes, dtype, header or {}) as stream:
        for name, shape in shapes.items():
            tensor = read(name)
            assert tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)}, expected {tuple(shape)}"
            stream.write(name, tensor)


def write_tensors(
    path: Path, tensors: Mapping[str, Shaped[Tensor, "..."]], header: Mapping[str, Any] | None = None
) -> None:
    """Write tensors in the types that they have, then give the file its name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    stream_tensors(path, shapes, tensors.__getitem__, types, header)


def encoded_header(header: Mapping[str, Any], room: int = 0) -> bytes:
    """Return how a file starts: the header's length, the header, and spaces so that numbers start at a multiple of 8.

    Args:
        header: Type, shape and offsets of each tensor by name, and ``__metadata__``.
        room: Bytes that the header has at least.
    """
    text = json.dumps(header).encode()
    size = max(room, len(text))
    size += -size % 8
    return struct.pack("<Q", size) + text.ljust(size)


def _packed(header: Mapping[str, Any]) -> dict[str, str]:
    """Plain values as the texts that the format keeps."""
    packed = {name: v if isinstance(v, str) else json.dumps(v, default=str) for name, v in header.items()}
    for name, value in _unpacked(packed).items():
        if isinstance(header[name], str) and value != header[name]:
            raise ValueError(f"{name} is the text {header[name]!r}, which would be read as {value!r}; expected a word")
    return packed


def _unpacked(stored: Mapping[str, str]) -> dict[str, Any]:
    header: dict[str, Any] = dict(stored)
    for name, text in stored.items():
        with suppress(ValueError):
            header[name] = parse_json(text)
    return header
