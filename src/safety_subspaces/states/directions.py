"""Directions in the residual stream that behaviour may depend on, from the states of two sets of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import haar_basis, left_factors
from safety_subspaces.artefacts.errors import InputError

# Inverse strength of the probe's ridge, on standardised states: scikit-learn's default.
PROBE_C = 1.0


@dataclass(frozen=True)
class Direction:
    """One or several orthonormal directions, with the scale of a steering strength along them.

    Args:
        name: The method that they come from.
        basis: Orthonormal columns ``(hidden, k)``; the first points from the negative to the positive set.
        scale: How far the sets' means are apart along the first, in the units of the states: strength 1.
    """

    name: str
    basis: Float32[Tensor, "hidden k"]
    scale: float


def mean_difference(
    positive: Float[Tensor, "prompt_positive hidden"], negative: Float[Tensor, "prompt_negative hidden"]
) -> Direction:
    """Return the difference of the two means.

    Raises:
        InputError: The means are the same.

    Source: Arditi et al., arXiv 2406.11717.
    """
    return _signed("mean_difference", _means_apart(positive, negative)[:, None], positive, negative)


def paired_differences(
    positive: Float[Tensor, "prompt_positive hidden"],
    negative: Float[Tensor, "prompt_negative hidden"],
    pairs: Sequence[tuple[int, int]],
) -> Direction:
    """Return the first principal direction of differences between paired prompts, uncentred.

    Args:
        positive: States of the positive set.
        negative: Of the negative one.
        pairs: Which prompts are paired, as :func:`safety_subspaces.states.matching.match_prompts` gives them.

    Raises:
        InputError: No pair, or no difference.

    Source: Zou et al., arXiv 2310.01405.
    """
    rows, columns = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    factors = left_factors((positive[rows].double() - negative[columns].double()).T)
    if not factors.numerical_rank:
        raise InputError(f"{len(pairs)} pairs of prompts have no difference in their states; give other prompts")
    return _signed("paired", factors.basis[:, :1], positive, negative)


def probe_direction(
    positive: Float[Tensor, "prompt_positive hidden"], negative: Float[Tensor, "prompt_negative hidden"]
) -> Direction:
    """Return the normal of a logistic regression on standardised states, in the space of the states themselves."""
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([positive, negative]).double()
    deviation = rows.std(dim=0)
    deviation[deviation == 0] = torch.inf  # a coordinate that never varies tells nothing
    labels = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(((rows - rows.mean(dim=0)) / deviation).numpy(), labels)
    normal = torch.from_numpy(probe.coef_[0]) / deviation
    if not normal.any():
        raise InputError("the states of both sets are the same in every prompt; give another layer or position")
    return _signed("probe", normal[:, None], positive, negative)


def overlap_vectors(
    positive: Float[Tensor, "prompt_positive hidden"],
    negative: Float[Tensor, "prompt_negative hidden"],
    energy: float,
    count: int = 1,
) -> Direction:
    """Return the principal vectors at which the two sets' subspaces are closest: those that make up their overlap.

    Args:
        positive: States of the positive set.
        negative: Of the negative one.
        energy: Share of energy of each subspace, uncentred.
        count: How many vectors.

    Raises:
        InputError: The smaller subspace has fewer directions.
    """
    bases = []
    for states in (positive, negative):
        factors = left_factors(states.double().T)
        bases.append(factors.basis[:, : rank_of_energy(factors.singular_values, energy)].double())
    smaller = min(basis.shape[1] for basis in bases)
    if count > smaller:
        raise InputError(f"{count} vectors of an overlap of rank {smaller} at energy {energy}: raise the energy")
    turn, _, other = torch.linalg.svd(bases[0].T @ bases[1])
    middle = bases[0] @ turn[:, :count] + bases[1] @ other.T[:, :count]
    return _signed("overlap", middle, positive, negative)


def random_direction(hidden: int, like: Direction, generator: torch.Generator) -> Direction:
    """Return Haar directions of the same number and length as another's: its control."""
    return Direction("random", haar_basis(hidden, like.basis.shape[1], generator), like.scale)


def _means_apart(positive: Tensor, negative: Tensor) -> Tensor:
    difference = positive.double().mean(dim=0) - negative.double().mean(dim=0)
    if not difference.any():
        raise InputError("the two sets have the same mean state here, as at the embedding of a template's last token")
    return difference


def _signed(name: str, vectors: Tensor, positive: Tensor, negative: Tensor) -> Direction:
    """Orthonormalise, point the first towards the positive set, and take its length from the means."""
    basis = torch.linalg.qr(vectors.double()).Q
    along = float(basis[:, 0] @ (positive.double().mean(dim=0) - negative.double().mean(dim=0)))
    basis[:, 0] *= -1.0 if along < 0 else 1.0
    return Direction(name, basis.float(), abs(along))
