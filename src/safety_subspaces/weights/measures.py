"""What the update of one weight measures, dense or in factors, and how the measures of many become one number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, nan, sqrt

from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.algebra.eigen import rank_of_energy, spectral_ranks
from safety_subspaces.algebra.factors import Factors, drawn_factors, squared_norm
from safety_subspaces.algebra.nulls import overlap_moments
from safety_subspaces.algebra.overlap import overlap_sums
from safety_subspaces.algebra.subspace import choose_rank, top_basis
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate, Update
from safety_subspaces.weights.subspace_file import Subspace


@dataclass(frozen=True)
class UpdateMeasures:
    """Measures of one weight's update; NaN is what was not asked for or is not defined, as of a zero update.

    Args:
        name: Canonical name of the weight.
        is_matrix: Whether the weight is 2-D.
        energy: Squared Frobenius norm of the update.
        inside: Energy inside a given subspace.
        inside_chance: Energy that a Haar-random subspace of its rank is expected to hold.
        stable_rank: ``||D||_F^2 / sigma_1^2``, of a matrix.
        effective_rank: ``exp(-sum p log p)`` with ``p_i = sigma_i^2 / ||D||_F^2``, of a matrix.
        overlap: Mode subspace overlap with another update of the weight.
        overlap_chance: Its level for independent Haar-random subspaces.
        spectrum: Singular values of a matrix in descending order, where they were asked for.
    """

    name: str
    is_matrix: bool
    energy: float
    inside: float = nan
    inside_chance: float = nan
    stable_rank: float = nan
    effective_rank: float = nan
    overlap: float = nan
    overlap_chance: float = nan
    spectrum: Float64[Tensor, " rank"] | None = None


@dataclass(frozen=True)
class Comparison:
    """What an update is compared with.

    Args:
        subspace: A subspace of each weight, in which the energy is measured.
        other: Leading left singular vectors of another update of each weight, up to ``energy`` of it.
        energy: Share of this update's energy at which its own space is cut for the overlap.
        spectra: Whether matrices are decomposed: their stable rank, effective rank and spectrum. An overlap needs it.
    """

    subspace: Subspace | None = None
    other: Mapping[str, Float[Tensor, "out rank"]] | None = None
    energy: float = 0.9
    spectra: bool = True


def measure_update(
    name: str,
    update: Update,
    against: Comparison,
    factors: Factors | None = None,
) -> UpdateMeasures:
    """Measure the update of one weight.

    A streamed update is never made whole but for an overlap, whose factors need it.

    Args:
        name: Canonical name of the weight.
        update: Its update.
        against: What it is compared with.
        factors: Its factors, where they are known already.
    """
    is_matrix, energy = update.is_matrix, update.energy()
    inside = inside_chance = nan
    if against.subspace is not None:
        basis = against.subspace.bases.get(name)
        inside = 0.0 if basis is None else _energy_inside(update, basis, against.subspace.side)
        inside_chance = 0.0 if basis is None else energy * basis.shape[1] / basis.shape[0]
    overlap = overlap_chance = nan
    if is_matrix and energy > 0 and against.other is not None and name in against.other:
        factors = update.factors(formed=True) if factors is None else factors
        overlap, overlap_chance = _overlap(factors, against.other[name], against.energy)
    spectrum = None
    if is_matrix and energy > 0 and against.spectra:
        spectrum = update.singular_values() if factors is None else factors.singular_values
    stable, effective = (nan, nan) if spectrum is None else spectral_ranks(spectrum)
    return UpdateMeasures(
        name, is_matrix, energy, inside, inside_chance, stable, effective, overlap, overlap_chance, spectrum
    )


def pool_measures(measures: Sequence[UpdateMeasures]) -> dict[str, float]:
    """Make one number of each measure; NaN where no weight has it.

    Energies are summed before they are divided: ``frobenius_norm``, ``energy_fraction`` inside the subspace, and
    ``energy_fraction_chance``. ``stable_rank``, ``effective_rank``, ``overlap`` and ``overlap_chance`` are means over
    the matrices that have one.
    """
    whole = fsum(m.energy for m in measures)
    inside = fsum(measure.inside for measure in measures)
    inside_chance = fsum(measure.inside_chance for measure in measures)
    return {
        "frobenius_norm": sqrt(whole),
        "energy_fraction": inside / whole if whole > 0 else nan,
        "energy_fraction_chance": inside_chance / whole if whole > 0 else nan,
        "stable_rank": _mean(measure.stable_rank for measure in measures),
        "effective_rank": _mean(measure.effective_rank for measure in measures),
        "overlap": _mean(measure.overlap for measure in measures),
        "overlap_chance": _mean(measure.overlap_chance for measure in measures),
    }


def compress(
    update: Float[Tensor, "out in"], factors: Factors, rank: RankRule
) -> tuple[FactorUpdate | DenseUpdate, float]:
    """Keep the leading directions of an update: ``L (L^T D)``, and return the share of its energy that is lost.

    An update whose factors would take more room than itself is kept as it is, and loses nothing.
    """
    rows, columns = update.shape
    count = choose_rank(rank, factors, columns).rank
    if count * (rows + columns) >= rows * columns:
        return DenseUpdate(update), 0.0
    basis = top_basis(factors, count).to(update)
    right = basis.T @ update
    whole = squared_norm(update)
    return FactorUpdate(basis, right), max(0.0, 1 - squared_norm(right) / whole) if whole > 0 else 0.0


def _energy_inside(update: Update, basis: Tensor, side: Side) -> float:
    return float(update.energies_along(drawn_factors(basis), side).sum())


def _overlap(factors: Factors, other: Float[Tensor, "out rank"], energy: float) -> tuple[float, float]:
    ranks = (rank_of_energy(factors.singular_values, energy), other.shape[1])
    if 0 in ranks:
        return nan, nan
    (total,) = overlap_sums(factors, drawn_factors(other.to(factors.basis)), [ranks])
    return min(1.0, total / min(ranks)), overlap_moments(factors.rows, *ranks).mean


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return fsum(known) / len(known) if known else nan
