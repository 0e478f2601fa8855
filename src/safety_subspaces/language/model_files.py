"""What the files of a model may ask for, checked before anything is built of them.

A configuration of a few bytes can ask for a billion layers. Here its counts are held to what any model has, and the
network to what the files of weights can fill.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, cached_file

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.tensors import read_index

# The most that a setting may say whose name holds the word: ten times what the largest models have, or more. Of each a
# list is made, or a module, before any weight is looked at.
COUNTS = {"layer": 2**12, "block": 2**12, "expert": 2**14, "label": 2**16}
# Settings that may name compiled code of the Hub in place of an implementation of transformers' own.
KERNELS = ("attn_implementation", "experts_implementation", "kernel_config")
# Bytes that the header of a safetensors file has for each tensor, at least.
BYTES_A_TENSOR = 50
# A parameter is registered when it is made, tied, converted and filled; a number of four bits is half a byte.
TIMES = 16
# Parameters and numbers that are not in the files, whatever their size.
SPARE_PARAMETERS, SPARE_NUMBERS = 2**10, 2**20


def check_model_files(path: str) -> None:
    """Refuse a model by its configuration and its index, before it is loaded.

    Args:
        path: Folder or Hub id.

    Raises:
        InputError: A count that no model has, code of the Hub, or shards that lie elsewhere.
    """
    folder = Path(path)
    if folder.is_dir():
        config = folder / CONFIG_NAME if (folder / CONFIG_NAME).is_file() else None
        if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            read_index(folder / SAFE_WEIGHTS_INDEX_NAME)
    else:
        quietly = dict.fromkeys(("missing_entries", "gated_repo", "connection_errors"), False)
        flags: Any = {f"_raise_exceptions_for_{name}": value for name, value in quietly.items()}
        config = cached_file(path, CONFIG_NAME, **flags)
    if config is not None:
        check_counts(read_json(Path(config)), str(config))


def check_counts(settings: dict[str, Any], where: str) -> None:
    """Refuse counts of layers, experts and the like that no model has, and code by the name of a repository.

    Raises:
        InputError: Names the setting.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            check_counts(value, where)
        if name.lstrip("_") in KERNELS and "/" in str(value):
            raise InputError(f"{where}: {name} is {value}, code that would be fetched; remove that line to use our own")
        limit = min((limit for word, limit in COUNTS.items() if word in name), default=None)
        if limit is not None and isinstance(value, int | float) and not value <= limit:
            raise InputError(f"{where}: {name} is {value}; expected at most {limit:,}. Download the model again")


@contextmanager
def bounded_by_files(folder: Path) -> Iterator[None]:
    """Let a network that is built inside the block have no more parameters than the files of weights can fill.

    Args:
        folder: The folder; where it is none, as of a Hub id, nothing is bounded.

    Raises:
        InputError: It would have more.
    """
    files = list(folder.glob("*.safetensors"))
    if not files:
        yield
        return
    tensors = sum(map(_header_bytes, files)) // BYTES_A_TENSOR
    with bounded_network(tensors, sum(file.stat().st_size for file in files), str(folder)):
        yield


@contextmanager
def bounded_network(tensors: int, size: int, where: str) -> Iterator[None]:
    """Let a network that is built inside the block have no more parameters than its weights can fill.

    Args:
        tensors: How many weights there are at most.
        size: Their bytes.
        where: The file or folder that they are in.

    Raises:
        InputError: It would have more.
    """
    parameters, numbers = TIMES * tensors + SPARE_PARAMETERS, TIMES * size + SPARE_NUMBERS

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters, numbers
        parameters -= 1
        numbers -= 0 if parameter is None else parameter.numel()
        if min(parameters, numbers) < 0:
            raise InputError(
                f"the configuration of {where} asks for a network of many more parameters than there are weights; "
                "download the model again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _header_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        start = stream.read(8)
    return min(struct.unpack("<Q", start)[0], file.stat().st_size) if len(start) == 8 else 0
