"""What a constraint is anchored to, kept with the run: after a resume it is still the weights of the first start."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from safety_subspaces.errors import InputError
from safety_subspaces.provenance import sha256_of_file


def save_reference(path: Path, weights: Mapping[str, Float[Tensor, "..."]]) -> str:
    """Write the reference weights under a temporary name, rename them, and return the file's SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}, partial)
    partial.replace(path)
    return sha256_of_file(path)


def load_reference(
    path: Path, sha256: str, like: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """Read the reference weights of a run that goes on.

    Raises:
        InputError: The file is missing, is not the one that the run started with, or lacks a constrained tensor.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: the constraint has lost what it is anchored to; start a new run")
    if sha256_of_file(path) != sha256:
        raise InputError(f"{path} is not the file that this run started with; restore it or start a new run")
    stored = load_file(path)
    missing = [name for name in like if name not in stored]
    if missing:
        raise InputError(f"{path} lacks {len(missing)} constrained tensors, {missing[0]} first; start a new run")
    return {name: stored[name].to(weight.device, weight.dtype) for name, weight in like.items()}
