"""Writing a safetensors file one tensor at a time: memory follows the largest tensor, not the file.

The library's own writer wants every tensor at once. The format is a length, a JSON header of names, types, shapes and
offsets, then the numbers: https://github.com/huggingface/safetensors#format.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def stream_tensors(
    path: Path | None,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in turn under a temporary name in the same folder, then rename the file.

    Args:
        path: The ``.safetensors`` file. ``None`` reads each tensor and writes nothing: a rank whose part in gathering
            them is all that is wanted of it.
        shapes: Shape of each tensor by name, in the order in which they are read.
        read: Gives a tensor by name; called once for each.
        dtype: Type of all tensors in the file.
        metadata: Texts for the header.
    """
    if path is None:
        for name in shapes:
            read(name)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(_header(shapes, dtype, metadata or {}))
            for name, shape in shapes.items():
                tensor = read(name).detach().to("cpu", dtype).contiguous()
                assert tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)}, expected {tuple(shape)}"
                tensor.reshape(-1).view(torch.uint8).numpy().tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _header(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # the numbers start at a multiple of eight
    return struct.pack("<Q", len(header)) + header
