"""Which directions: the alignment subspace at a chosen rank, and the seeded random controls beside it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import Factors, as_matrix, orthonormal_frame
from safety_subspaces.artefacts.errors import InputError

# With more rows than this many times its columns, a Haar projection is sampled without its basis, which would be up to
# out x out: every block matrix of the paper's five models lies below (5.8 at most, Qwen-2.5-1.5B's gate_proj), every
# embedding above (7.8 at least).
SAMPLED_ABOVE = 6


@dataclass(frozen=True)
class RankChoice:
    """A rank, and the one that was asked for before it was capped at the numerical rank."""

    rank: int
    wanted: int

    @property
    def capped(self) -> bool:
        """Whether the matrix has fewer directions than were asked for."""
        return self.rank < self.wanted


def choose_rank(rule: RankRule, factors: Factors, columns: int) -> RankChoice:
    """Apply a rule to a factorised matrix of ``columns`` columns, capped at its numerical rank."""
    if rule.count is not None:
        wanted = rule.count
    elif rule.fraction is not None:
        # Python's round takes halves to even, as numpy and the paper's code do.
        wanted = max(1, round(rule.fraction * min(factors.rows, columns)))
    else:
        assert rule.energy is not None
        wanted = rank_of_energy(factors.singular_values, rule.energy)
    return RankChoice(min(wanted, factors.numerical_rank), wanted)


def top_basis(factors: Factors, rank: int) -> Float32[Tensor, "out rank"]:
    """Return the leading ``rank`` left singular vectors: the alignment subspace."""
    return factors.basis[:, :rank]


def random_order(factors: Factors, generator: torch.Generator) -> Tensor:
    """Draw the order in which *random-k* takes directions: its first k are a draw without replacement."""
    return torch.randperm(factors.numerical_rank, generator=generator)


def energy_matched_rank(share: float, dim: int) -> int:
    """Return ``round(share * dim)``: a Haar subspace of that rank is expected to keep ``share``."""
    return round(share * dim)


def seeded_generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator whose stream depends on the seed and the key alone, in every process and run.

    Args:
        seed: The user's seed.
        key: What tells draws apart: tensor name, kind of control, number of the draw.
    """
    digest = hashlib.sha256("\0".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # 63 bits: manual_seed is signed


def is_sampled_without_basis(shape: Sequence[int]) -> bool:
    """Tell whether a Haar projection of a matrix of this shape is sampled without a basis."""
    return len(shape) == 2 and shape[0] > SAMPLED_ABOVE * shape[1]


def sampled_haar_energy(triangle: Float[Tensor, "in in"], dim: int, rank: int, generator: torch.Generator) -> float:
    """Draw the energy ``||P U||^2`` that a Haar projector of a rank keeps, in O(in^3) whatever ``dim`` is.

    With ``U = Q R``, ``||P U||^2 = tr(R^T A R)``, where ``A = Q^T P Q`` is drawn directly.

    Args:
        triangle: R of the update's QR decomposition.
        dim: Rows of the update, at least twice its columns.
        rank: Rank of the projector.
        generator: Source of the draw; :func:`sampled_haar_projection` makes the same one from an equal state.
    """
    compression = _haar_compression(dim, triangle.shape[0], rank, generator)
    factor = triangle.double()
    return ((compression @ factor) * factor).sum().item()


def sampled_haar_projection(
    update: Float[Tensor, "out in"], rank: int, generator: torch.Generator
) -> Float[Tensor, "out in"]:
    """Draw ``P U`` for a Haar projector P of the given rank, exactly in distribution, without a basis of P.

    ``P Q = Q A + W (a - a^2)^(1/2) V^T`` with ``U = Q R``, ``A = Q^T P Q = V a V^T`` of the matrix Beta
    distribution, and W a Haar frame in the complement of Q: P is invariant under rotations of that
    complement. Costs O(out in^2), where a basis may have ``out^2`` entries.

    Raises:
        InputError: The update has fewer than twice as many rows as columns, which leaves no room for W.
    """
    rows, columns = update.shape
    if rows < 2 * columns:
        raise InputError(f"this sampler needs at least twice as many rows as columns, got {rows} x {columns}")
    frame, triangle = torch.linalg.qr(update.float())
    compression = _haar_compression(rows, columns, rank, generator)
    shares, vectors = torch.linalg.eigh(compression)
    spread = (shares * (1 - shares)).clamp_min(0).sqrt()
    gaussian = torch.randn(rows, columns, generator=generator)
    outside = orthonormal_frame(gaussian - frame @ (frame.T @ gaussian))
    inside_part = frame @ (compression.float() @ triangle)
    return inside_part + outside @ ((spread[:, None] * vectors.T).float() @ triangle)


def haar_triangle(update: Float[Tensor, "..."]) -> Float[Tensor, "in in"]:
    """Return R of the update's QR decomposition, the one that :func:`sampled_haar_projection` uses."""
    return torch.linalg.qr(as_matrix(update).float()).R


def _haar_compression(
    dim: int, columns: int, rank: int, generator: torch.Generator
) -> Float64[Tensor, "{columns} {columns}"]:
    """Draw ``Q^T P Q`` for a fixed frame Q: a ratio of Wishart matrices (matrix Beta)."""
    if rank in (0, dim):
        return torch.eye(columns, dtype=torch.float64) * (rank == dim)
    inside = _wishart(rank, columns, generator)
    factor = torch.linalg.cholesky(inside + _wishart(dim - rank, columns, generator))
    half = torch.linalg.solve_triangular(factor, inside, upper=False)
    ratio = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return (ratio + ratio.T) / 2


def _wishart(freedom: int, columns: int, generator: torch.Generator) -> Float64[Tensor, "{columns} {columns}"]:
    """Draw ``G^T G`` of a Gaussian ``(freedom, columns)`` matrix, by Bartlett's triangle where smaller."""
    if freedom < columns:
        gaussian = torch.randn(freedom, columns, generator=generator, dtype=torch.float64)
        return gaussian.T @ gaussian
    triangle = torch.randn(columns, columns, generator=generator, dtype=torch.float64).triu(1)
    shape = (freedom - torch.arange(columns, dtype=torch.float64)) / 2
    # What torch.distributions.Gamma calls; the class itself takes no generator.
    chi_squared = 2 * torch._standard_gamma(shape, generator=generator)
    triangle += torch.diag(chi_squared.sqrt())
    return triangle.T @ triangle
