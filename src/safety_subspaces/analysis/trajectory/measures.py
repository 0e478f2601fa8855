"""What each snapshot of a run measures: one weight followed through all of them, and the measures of many pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, nan, sqrt
from typing import Any

from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.overlap import principal_angles
from safety_subspaces.algebra.path import haar_rms_angle, rms_angle
from safety_subspaces.algebra.subspace import RankChoice, choose_rank, top_basis
from safety_subspaces.algebra.update import Update
from safety_subspaces.analysis.trajectory.inputs import read_update
from safety_subspaces.weights.measures import Comparison, UpdateMeasures, measure_update, pool_measures
from safety_subspaces.weights.snapshots import Snapshot
from safety_subspaces.weights.subspace_file import Subspace


@dataclass(frozen=True)
class Settings:
    """How updates are followed.

    Args:
        rank: Directions of each matrix's update that are followed.
        energy: Share of each update's energy at which an overlap cuts its space.
        draws: Pairs of random subspaces that make the chance level of an angle.
        seed: Seed of the draws.
        from_start: Whether updates count from the start of the run: then they were zero at step 0.
    """

    rank: RankRule
    energy: float
    draws: int
    seed: int
    from_start: bool


@dataclass(frozen=True)
class TensorStep:
    """One weight at one snapshot; NaN is what is not defined.

    Args:
        update: Measures of its update.
        moved: Squared norm of what it moved since the snapshot before.
        displaced: Squared norm of what it moved since the path began.
        along_final: Inner product with the update of the last snapshot.
        rank: Directions that are followed; ``None`` of a weight that is not 2-D.
        angle: Rms principal angle between the followed subspaces of this snapshot and the one before, in radians.
        angle_chance: The same between independent Haar-random subspaces.
        overlaps: Overlap with the other update, by its label.
    """

    update: UpdateMeasures
    moved: float
    displaced: float
    along_final: float
    rank: int | None
    angle: float
    angle_chance: float
    overlaps: dict[str, UpdateMeasures]


@dataclass(frozen=True)
class Track:
    """One weight through all snapshots.

    Args:
        name: Its canonical name.
        steps: What it measures at each.
        notes: What is missing and why.
    """

    name: str
    steps: list[TensorStep]
    notes: list[str]


@dataclass
class _Seen:
    """What is remembered of a weight between snapshots: updates that later ones are compared with, and what to note."""

    final: Update
    origin: Update | None = None
    previous: Update | None = None
    basis: Float[Tensor, "out rank"] | None = None
    zero_at: list[int] = field(default_factory=list)
    capped: RankChoice | None = None
    short_of_energy: bool = False


def follow_tensor(
    name: str,
    snapshots: Sequence[Snapshot],
    subspace: Subspace | None,
    others: Mapping[str, Float[Tensor, "out rank"]],
    settings: Settings,
) -> Track:
    """Measure one weight at every snapshot; of its updates no more than five are in memory at a time.

    Args:
        name: Canonical name of the weight.
        snapshots: By step.
        subspace: The subspace that its energy is measured in.
        others: Leading left singular vectors of other updates of it, up to the energy share, by label.
        settings: How it is followed.

    Raises:
        InputError: An update is NaN or infinite.
    """
    seen = _Seen(final=read_update(snapshots[-1], name))
    steps = [_measure(name, snapshot, subspace, others, settings, seen) for snapshot in snapshots]
    lost = max(snapshot.lost_energy.get(name, 0.0) for snapshot in snapshots)
    return Track(name, steps, _notes(seen, lost))


def pool_tracks(tracks: Sequence[Track], steps: Sequence[int], from_start: bool) -> list[dict[str, float]]:
    """Make one row of each step; squared norms, energies and products are summed over weights before anything else.

    Columns: ``frobenius_norm``, ``path_length``, ``straightness``, ``step_norm_per_step``, ``cos_to_final``,
    ``energy_fraction`` and its ``energy_fraction_chance``, ``stable_rank``, ``effective_rank``, ``rms_angle_radians``
    and its ``rms_angle_chance_radians``, ``speed_radians_per_step``, ``n_matrices``.
    """
    rows = []
    path, previous = 0.0, 0 if from_start else None
    norm_of_final = sqrt(fsum(track.steps[-1].update.energy for track in tracks))
    for index, step in enumerate(steps):
        now = [track.steps[index] for track in tracks]
        pooled = pool_measures([weight.update for weight in now])
        moved = sqrt(fsum(weight.moved for weight in now))
        path += moved
        gap = 0.0 if previous is None else float(step - previous)
        norms = pooled["frobenius_norm"] * norm_of_final
        angle = _mean([weight.angle for weight in now])
        displacement = sqrt(fsum(weight.displaced for weight in now))
        rows.append(
            {
                "frobenius_norm": pooled["frobenius_norm"],
                "path_length": path,
                "straightness": _clipped(_ratio(displacement, path)),
                "step_norm_per_step": _ratio(moved, gap),
                "cos_to_final": _clipped(_ratio(fsum(weight.along_final for weight in now), norms)),
                "energy_fraction": pooled["energy_fraction"],
                "energy_fraction_chance": pooled["energy_fraction_chance"],
                "stable_rank": pooled["stable_rank"],
                "effective_rank": pooled["effective_rank"],
                "rms_angle_radians": angle,
                "rms_angle_chance_radians": _mean([weight.angle_chance for weight in now]),
                "speed_radians_per_step": _ratio(angle, gap),
                "n_matrices": sum(weight.update.is_matrix and weight.update.energy > 0 for weight in now),
            }
        )
        previous = step
    return rows


def pool_overlaps(tracks: Sequence[Track], index: int, label: str) -> tuple[float, float]:
    """Return the overlap with another update at a snapshot, and its chance level: means over matrices that have one."""
    by_label = [track.steps[index].overlaps for track in tracks]
    pooled = pool_measures([overlaps[label] for overlaps in by_label if label in overlaps])
    return pooled["overlap"], pooled["overlap_chance"]


def tensor_rows(track: Track, steps: Sequence[int], from_start: bool) -> list[dict[str, Any]]:
    """Make one row of each step of a single weight.

    Columns: those of :func:`pool_tracks` without ``n_matrices``, then ``rank`` and, of each other update,
    ``overlap_<label>`` and ``overlap_<label>_chance``.
    """
    rows = []
    for index, pooled in enumerate(pool_tracks([track], steps, from_start)):
        pooled.pop("n_matrices")
        at = track.steps[index]
        compared = {
            key: value
            for label, overlap in at.overlaps.items()
            for key, value in (
                (f"overlap_{label}", overlap.overlap),
                (f"overlap_{label}_chance", overlap.overlap_chance),
            )
        }
        rows.append({**pooled, "rank": at.rank, **compared})
    return rows


def _measure(
    name: str,
    snapshot: Snapshot,
    subspace: Subspace | None,
    others: Mapping[str, Float[Tensor, "out rank"]],
    settings: Settings,
    seen: _Seen,
) -> TensorStep:
    """Measure one snapshot of a weight, and remember what the next one is compared with."""
    update = read_update(snapshot, name)
    lost = snapshot.lost_energy.get(name, 0.0)
    factors = update.factors(formed=True) if update.is_matrix else None
    # The spectra of every weight at every step would take much memory.
    measures = replace(measure_update(name, update, Comparison(subspace), factors), spectrum=None)
    if 0 < lost < 1:
        # The share of energy that compression left out is known: norm and stable rank are scaled to the whole update.
        grown = 1 / (1 - lost)
        measures = replace(
            measures,
            energy=measures.energy * grown,
            inside_chance=measures.inside_chance * grown,
            stable_rank=measures.stable_rank * grown,
            effective_rank=nan,
        )
    if measures.energy == 0:
        seen.zero_at.append(snapshot.step)
    basis, angle, chance = None, nan, nan
    if factors is not None:
        basis = _followed(factors, update.matrix_shape[1], lost, settings.rank, seen)
        if seen.basis is not None:
            angle = rms_angle(principal_angles(seen.basis, basis))
            ranks = seen.basis.shape[1], basis.shape[1]
            chance = haar_rms_angle(basis.shape[0], *ranks, settings.draws, settings.seed)
    share = _share_of_snapshot(settings.energy, lost)
    seen.short_of_energy |= bool(others) and settings.energy > 1 - lost
    compared = {label: Comparison(None, {name: other}, share, spectra=False) for label, other in others.items()}
    if seen.previous is None:
        moved = displaced = measures.energy if settings.from_start else 0.0
        seen.origin = None if settings.from_start else update
    else:
        moved = update.minus(seen.previous).energy()
        displaced = measures.energy if seen.origin is None else update.minus(seen.origin).energy()
    seen.previous, seen.basis = update, basis
    rank = None if basis is None else basis.shape[1]
    overlaps = {label: measure_update(name, update, against, factors) for label, against in compared.items()}
    along_final = update.inner(seen.final)
    return TensorStep(measures, moved, displaced, along_final, rank, angle, chance, overlaps)


def _followed(factors: Factors, columns: int, lost: float, rank: RankRule, seen: _Seen) -> Float[Tensor, "out rank"]:
    """Return the leading directions of an update; empty where it is zero."""
    if rank.energy is not None:
        seen.short_of_energy |= rank.energy > 1 - lost
        rank = RankRule(energy=_share_of_snapshot(rank.energy, lost))
    choice = choose_rank(rank, factors, columns)
    if choice.capped and choice.rank and (seen.capped is None or choice.rank < seen.capped.rank):
        seen.capped = choice
    return top_basis(factors, choice.rank)


def _share_of_snapshot(share: float, lost: float) -> float:
    """Convert a share of the whole update's energy into a share of what a compressed snapshot has of it."""
    return min(1.0, share / (1 - lost)) if lost < 1 else 1.0


def _notes(seen: _Seen, lost: float) -> list[str]:
    notes = []
    if seen.zero_at:
        steps = ", ".join(map(str, seen.zero_at))
        notes.append(f"the update is zero and has no direction (step {steps}): its angles and overlaps are NaN")
    if lost > 0:
        notes.append(
            f"compressed: a share of up to {lost:.3g} of its energy was left out; it counts in the norm and the stable "
            "rank, has no effective rank, and is in no path, angle or energy inside a subspace, which is a lower bound"
        )
    if seen.capped is not None:
        notes.append(
            f"its update has {seen.capped.rank} directions (low rank, or compressed), fewer than the "
            f"{seen.capped.wanted} to follow: those are followed"
        )
    if seen.short_of_energy:
        notes.append("compressed below the energy share that was asked for: all that was kept is used")
    return notes


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else nan


def _clipped(value: float) -> float:
    """Rounding may pass 1 by 1e-7; NaN stays."""
    return value if value != value else max(-1.0, min(1.0, value))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return fsum(known) / len(known) if known else nan
