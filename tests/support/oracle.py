"""Plain float64 algebra that results are compared with: dense matrices, full SVDs, one formula a function.

Nothing of the package is used, so that no fault can stand on both sides of a comparison.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def as_matrix(tensor: Tensor) -> Tensor:
    """In float64; what is no matrix as one column."""
    return tensor.double() if tensor.ndim == 2 else tensor.double().reshape(-1, 1)


def left_svd(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors as columns, and the singular values."""
    left, values, _ = torch.linalg.svd(as_matrix(tensor), full_matrices=False)
    return left, values


def rank_at_energy(values: Tensor, share: float) -> int:
    """The fewest leading singular values whose squares reach a share of their sum."""
    energies = values.square().cumsum(0)
    return int((energies < share * energies[-1]).sum()) + 1


def rank_at_fraction(tensor: Tensor, fraction: float) -> int:
    """A fraction of the smaller side, at least 1."""
    return max(1, round(fraction * min(as_matrix(tensor).shape)))


def basis_at_energy(tensor: Tensor, share: float) -> Tensor:
    """The leading left singular vectors that hold a share of the energy."""
    left, values = left_svd(tensor)
    return left[:, : rank_at_energy(values, share)]


def basis_at_fraction(tensor: Tensor, fraction: float) -> Tensor:
    """The leading left singular vectors, a fraction of the smaller side of them."""
    return left_svd(tensor)[0][:, : rank_at_fraction(tensor, fraction)]


def energy(tensor: Tensor) -> float:
    """Sum of squares."""
    return tensor.double().square().sum().item()


def along(basis: Tensor, tensor: Tensor) -> Tensor:
    """The part of an update in the span of a basis, on the left."""
    basis = basis.double()
    return basis @ (basis.T @ as_matrix(tensor))


def energy_along(basis: Tensor, tensor: Tensor) -> float:
    """Energy of the part of an update in the span of a basis, on the left."""
    return energy(basis.double().T @ as_matrix(tensor))


def overlap(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine of the principal angles of two spans."""
    return energy(first.double().T @ second.double()) / min(first.shape[1], second.shape[1])


def spectral_ranks(values: Tensor) -> tuple[float, float]:
    """Stable rank and effective rank (the exponential of the entropy of the energies)."""
    shares = values.square() / values.square().sum()
    return (1 / shares[0]).item(), (-(shares * shares.log()).sum()).exp().item()


def lora_updates(network: nn.Module) -> dict[str, Tensor]:
    """The whole update of each weight under an adapter of peft, its scale included."""
    return {
        f"{name.removeprefix('base_model.model.')}.weight": layer.scaling["default"]
        * (layer.lora_B["default"].weight.detach().double() @ layer.lora_A["default"].weight.detach().double())
        for name, layer in network.named_modules()
        if hasattr(layer, "lora_A")
    }


def forbidden_energy(
    updates: Mapping[str, Tensor], bases: Mapping[str, Tensor], mode: str, side: str = "left"
) -> tuple[float, float]:
    """What a constraint forbids of updates, and their whole energy; *away* binds the tensors with a basis alone."""
    forbidden = whole = 0.0
    for name, update in updates.items():
        if mode == "away" and name not in bases:
            continue
        matrix = as_matrix(update).T if side == "right" and update.ndim == 2 else as_matrix(update)
        inside = along(bases[name], matrix) if name in bases else torch.zeros_like(matrix)
        forbidden += energy(inside if mode == "away" else matrix - inside)
        whole += energy(matrix)
    return forbidden, whole
