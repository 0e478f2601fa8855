"""Reading resume state, which Lightning and DeepSpeed pickle: a pickle can run code, and a run folder may be a gift.

PyTorch's restricted unpickler builds tensors and plain values alone. DeepSpeed's own loaders switch it off, though its
state needs no more than four classes of its own; here it stays on, whoever calls ``torch.load``.
"""

import importlib
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.artefacts.foreign import in_short

# What DeepSpeed's state holds beside tensors and plain values, by module; each only keeps numbers.
DEEPSPEED_CLASSES = {
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
}
# How a training that reads a checkpoint is told to trust it: Lightning's own option.
RUN_PICKLES = "Say --weights_only false on the command line to read it all the same, where you trust who made it"


@contextmanager
def restricted_pickles(advice: str, classes: bool = False) -> Iterator[None]:
    """Have ``torch.load`` build tensors, plain values and DeepSpeed's records, whatever its caller asks for.

    Args:
        advice: What to say to run all the same what a pickle holds.
        classes: Whether DeepSpeed's records are read too, which imports it.

    Raises:
        InputError: Inside: a file that holds anything else, or that is no such file, or is damaged.
    """
    load = torch.load

    def restricted(file: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load(file, *arguments, **{**options, "weights_only": True})
        except InputError:  # of another such context around this one
            raise
        except pickle.UnpicklingError as error:
            raise InputError(f"{_name(file)} {_why(error)}. {advice}") from error
        except Exception as error:  # a damaged archive raises what comes
            raise InputError(
                f"{_name(file)} is no checkpoint that can be read, or is damaged: {in_short(error)}"
            ) from error

    torch.load = restricted  # type: ignore[assignment]
    try:
        with safe_globals(_deepspeed_classes() if classes else []):
            yield
    finally:
        torch.load = load


def read_state(path: Path, advice: str, trusted: bool = False) -> dict[str, Any]:
    """Read the state of a checkpoint of one file; its tensors stay on the disk until they are used.

    Args:
        path: The file.
        advice: As for :func:`restricted_pickles`.
        trusted: Whether to run what code the file holds.

    Raises:
        InputError: It holds more than tensors and plain values, is damaged, or holds no state of a training.
    """
    with nullcontext() if trusted else restricted_pickles(advice):
        state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=not trusted)
    weights = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path} is no training checkpoint: it holds no state_dict of tensors")
    return state


def read_sharded_weights(folder: Path) -> dict[str, Tensor]:
    """Put the weights of a checkpoint of ZeRO together from all ranks, in float32.

    Raises:
        InputError: The folder lacks a part, or parts do not fit.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="checkpoint")
    except InputError:
        raise
    except Exception as error:  # DeepSpeed takes its own files for whole
        raise InputError(f"{folder} is no whole checkpoint of ZeRO: {in_short(error)}") from error
    return weights


def _deepspeed_classes() -> list[Any]:
    check_extra("deepspeed", "a checkpoint of ZeRO")
    modules = {importlib.import_module(name): classes for name, classes in DEEPSPEED_CLASSES.items()}
    return [getattr(module, name) for module, names in modules.items() for name in names]


def _name(file: Any) -> str:
    return str(file if isinstance(file, str | Path) else getattr(file, "name", file))


def _why(error: pickle.UnpicklingError) -> str:
    """Say what a file holds that is not read; PyTorch's own message is a page that tells how to read it."""
    for line in str(error).splitlines():
        if "GLOBAL" in line:
            return f"holds more than tensors and plain values, and reading that could run code ({line.strip()[:160]})"
    return "is damaged, or holds more than tensors and plain values, and reading that could run code"
