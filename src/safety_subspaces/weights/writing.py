"""Writing model folders in Hugging Face format: every tensor has its place in its file from the start.

Tensors, and rows of a tensor, may then come in any order and from several processes, and memory follows what is
written at a time. A file gets its name when all are there.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.artefacts.files import read_json, write_json
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG
from safety_subspaces.artefacts.tensors import encoded_header
from safety_subspaces.language.weight_files import CONFIG, INDEX_FILE, SINGLE_FILE
from safety_subspaces.weights.checkpoint import COMPANION_SUFFIXES, Checkpoint, FullCheckpoint

# The Hub's own limit for a shard that transformers writes.
MAX_SHARD_BYTES = 5 * 10**9
PARTIAL = ".partial"


@dataclass(frozen=True)
class _Span:
    """Where the numbers of a stored tensor go."""

    file: str
    start: int
    size: int


@final
class CheckpointWriter:
    """Writes a model folder with another's names, types, configuration and tokenizer, and other weights.

    Values are equal in every process that is given the same arguments: one creates the folder, all write, one finishes.

    Args:
        folder: Where to; made if need be.
        like: The checkpoint that it resembles; tensors outside its ``names`` are copied, tied ones left away.
        max_shard_bytes: Size from which a shard is closed.
        apart: Whether weights that the other one ties have numbers of their own here; by default as the folder, where
            it is there already, and else where they have in the other one.
    """

    def __init__(
        self, folder: Path, like: Checkpoint, max_shard_bytes: int = MAX_SHARD_BYTES, apart: bool | None = None
    ) -> None:
        self.folder = folder
        self._like, self._source = like, like.full
        if apart is None:
            apart = _is_untied(folder)
        untied = self._source.ties if apart else [name for name in self._source.ties if name in like.names]
        self._apart = {name: self._source.slot(name).stored for name in untied}
        self._files: dict[str, dict[str, Any]] = {}  # header of each file
        self._spans: dict[str, _Span] = {}
        self._copied = [s for s, reason in self._source.left_out.items() if not reason.startswith("tied")]
        shards = _plan_shards(self._source, self._copied, self._apart, max_shard_bytes)
        for number, shard in enumerate(shards, start=1):
            file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._plan_file(file, shard)

    def create(self) -> None:
        """Make the folder with everything but the weights, and room for those.

        Raises:
            OSError: There is no room on the disk; nothing is left of the folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for parent in self._like.folders:
                for file in parent.iterdir():
                    if file.suffix in COMPANION_SUFFIXES and file.name not in (INDEX_FILE, ADAPTER_CONFIG):
                        shutil.copyfile(file, self.folder / file.name)
            if self._apart:
                _untie_config(self.folder / CONFIG)
            for name, header in self._files.items():
                self._make_file(name, header)
            for stored in self._copied:
                self._put(stored, self._source.stored_in[stored].read(stored), 0)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def write(self, name: str, value: Float[Tensor, "..."], first: int = 0) -> Tensor:
        """Write numbers of one tensor, and return them as they are stored.

        Args:
            name: Canonical name.
            value: The tensor, or a run of its numbers.
            first: Place of the first of them in the flattened tensor.
        """
        slot, dtype = self._source.slot(name), self._source.dtype(name)
        cast = value.detach().to("cpu", dtype)
        if slot.transposed and cast.shape != self._source.shape(name):
            raise ValueError(f"{name} is stored transposed: write it whole, got {tuple(cast.shape)}")
        before = 0 if slot.index is None else slot.index * torch.Size(self._source.shape(name)).numel()
        stored = name if name in self._apart else slot.stored
        self._put(stored, cast.T if slot.transposed else cast, (before + first) * dtype.itemsize)
        return cast

    def finish(self) -> None:
        """Give the files their names; those that have them already, as after an interruption, keep them."""
        for file in self._files:
            written = self._written(file)
            with written.open("rb") as stream:
                os.fsync(stream.fileno())
            written.replace(self.folder / file)
        if len(self._files) > 1:
            total = sum(span.size for span in self._spans.values())
            weight_map = {stored: span.file for stored, span in self._spans.items()}
            write_json(self.folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def _plan_file(self, file: str, stored_names: list[str]) -> None:
        entries: dict[str, Any] = {}
        end = 0
        for stored in stored_names:
            kept_as = self._apart.get(stored, stored)
            source = self._source.stored_in[kept_as]
            start, end = end, end + source.size(kept_as)
            shape = list(source.shapes[kept_as])
            entries[stored] = {"dtype": source.types[kept_as], "shape": shape, "data_offsets": [start, end]}
        self._files[file] = {"__metadata__": {"format": "pt"}, **entries}
        room = len(encoded_header(self._files[file]))
        for stored, entry in entries.items():
            start, end = entry["data_offsets"]
            self._spans[stored] = _Span(file, room + start, end - start)

    def _make_file(self, file: str, header: dict[str, Any]) -> None:
        encoded = encoded_header(header)
        size = max((p.start + p.size for p in self._spans.values() if p.file == file), default=len(encoded))
        with self._partial(file).open("wb") as stream:
            if hasattr(os, "posix_fallocate"):  # a disk that is too small says so now
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
            stream.write(encoded)

    def _put(self, stored: str, value: Tensor, first_byte: int) -> None:
        span = self._spans[stored]
        numbers = memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy().data).cast("B")
        if first_byte + len(numbers) > span.size:
            raise ValueError(f"{stored} has {span.size} bytes, got {len(numbers)} from {first_byte}")
        with self._written(span.file).open("r+b", buffering=0) as stream:
            stream.seek(span.start + first_byte)
            while len(numbers):
                numbers = numbers[stream.write(numbers) :]

    def _partial(self, file: str) -> Path:
        return self.folder / f".{file}{PARTIAL}"

    def _written(self, file: str) -> Path:
        """Return where a file is: under its temporary name, or finished."""
        partial = self._partial(file)
        return self.folder / file if (self.folder / file).is_file() else partial


def _is_untied(folder: Path) -> bool:
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("tie_word_embeddings") is False


def _untie_config(path: Path) -> None:
    config = read_json(path)
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    write_json(path, config | {"tie_word_embeddings": False})


def _plan_shards(
    source: FullCheckpoint, copied: list[str], apart: Mapping[str, str], max_shard_bytes: int
) -> list[list[str]]:
    """Deal the stored tensors to shards in their order; what is copied goes into the first one."""
    shards: list[list[str]] = [list(copied)]
    size = 0
    stored_of = dict.fromkeys(source.slot(name).stored for name in source.names)
    for stored, kept_as in ({name: name for name in stored_of} | dict(apart)).items():
        needed = source.stored_in[kept_as].size(kept_as)
        if size and size + needed > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(stored)
        size += needed
    return shards
