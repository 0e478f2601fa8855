"""What an overlap does with one tensor: each update factorised once, for every pair, energy share and measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import torch

from safety_subspaces.algebra.audit import k_margin
from safety_subspaces.algebra.covariance import CovarianceControl, covariance_control
from safety_subspaces.algebra.eigen import rank_of_energy, spectral_ranks
from safety_subspaces.algebra.factors import Factors, no_factors
from safety_subspaces.algebra.nulls import matched_control, overlap_moments, overlap_p_value
from safety_subspaces.algebra.overlap import (
    AngleSummary,
    Overlap,
    mode_subspace_overlap,
    nested_principal_angles,
    summarise_angles,
)
from safety_subspaces.algebra.subspace import seeded_generator
from safety_subspaces.analysis.work import Record, opened
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.weights.audited import audit_row, stored_rounding
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.delta import STREAM_ABOVE, open_update
from safety_subspaces.weights.names import layer_of, type_of
from safety_subspaces.weights.subspace_file import BASIS, SPECTRUM, Subspace, open_subspace

LARGE = f"more than {STREAM_ABOVE} numbers: its singular vectors are not formed, nor its matched control and angles"
ZERO = "the update is zero and has no direction: its overlaps are NaN"
NO_REFERENCE = "the update whose covariance is kept is zero: overlaps are not held against it"


@dataclass(frozen=True)
class OverlapTensor:
    """The task of one tensor.

    Args:
        reference: Path of the model that every update starts from.
        updates: Path of each fine-tuned model, or of a subspace file that stands for its update, by label.
        stored: Labels of those that are subspace files.
        energies: Shares of energy at which the spaces are cut.
        controls: Draws of the matched control.
        seed: Seed of the matched control.
        angles: Whether principal angles are measured.
        covariance: Start and end of the update whose covariance of rows is kept, if there is one.
    """

    reference: str
    updates: Mapping[str, str]
    stored: frozenset[str]
    energies: tuple[float, ...]
    controls: int
    seed: int
    angles: bool
    covariance: tuple[str, str] | None = None

    def __call__(self, name: str, device: torch.device) -> Record:
        """Return its rows of the tables ``table`` and ``audit``, and what is ``left_out`` with the reason."""
        by_label = {label: self._factors(label, name, device) for label in self.updates}
        origin = stored_rounding(opened(self.reference), name)
        third = self._covariance_factors(name, device)
        rows = []
        for first, second in combinations(self.updates, 2):
            identity = {"first": first, "second": second, "tensor": name}
            location = {"layer": layer_of(name), "type": type_of(name)}
            rows += [identity | location | row for row in self._compare(name, first, second, by_label, third)]
        return {
            "table": rows,
            "audit": [self._audit(name, label, factors, origin) for label, factors in by_label.items()],
            "left_out": [{"name": name, "reason": LARGE}]
            * (self._is_large(name) and (self.angles or self.controls > 0 or self.covariance is not None))
            + [{"name": name, "reason": NO_REFERENCE}] * (third is not None and third.numerical_rank == 0)
            + [row for label, factors in by_label.items() for row in self._missing(name, label, factors)],
        }

    def _factors(self, label: str, name: str, device: torch.device) -> Factors:
        path = self.updates[label]
        if label in self.stored:
            return _stored_factors(path, name, opened(self.reference), device)
        update = open_update(opened(path), opened(self.reference), name).to(device)
        return update.factors(max(self.energies))

    def _covariance_factors(self, name: str, device: torch.device) -> Factors | None:
        """Factorise the update whose covariance is kept, to its last direction; ``None`` without one."""
        if self.covariance is None or self._is_large(name):
            return None
        start, tuned = (opened(path) for path in self.covariance)
        return open_update(tuned, start, name).to(device).factors()

    def _compare(
        self, name: str, first: str, second: str, by_label: Mapping[str, Factors], third: Factors | None
    ) -> list[dict[str, Any]]:
        """Return the numeric columns of one pair, a row for each energy."""
        pair = by_label[first], by_label[second]
        overlaps = mode_subspace_overlap(*pair, self.energies)
        generator = seeded_generator(self.seed, "matched", name, first, second)
        matched = matched_control(*pair, overlaps, 0 if self._is_large(name) else self.controls, generator)
        explained = [CovarianceControl()] * len(overlaps)
        if third is not None:
            explained = covariance_control(*pair, third, overlaps)
        angles = (
            _angles(*pair, overlaps) if self.angles and not self._is_large(name) else [AngleSummary()] * len(overlaps)
        )
        spectral = [spectral_ranks(factors.singular_values) for factors in pair]
        dim = pair[0].rows
        rows = []
        for overlap, control, shared, angle in zip(overlaps, matched, explained, angles, strict=True):
            ranks = (overlap.rank_first, overlap.rank_second)
            defined = overlap.reason is None
            rows.append(
                {
                    "energy": overlap.energy,
                    "rank_first": ranks[0],
                    "rank_second": ranks[1],
                    "overlap": overlap.value,
                    "chance": overlap_moments(dim, *ranks).mean if defined else nan,
                    "p_haar": overlap_p_value(overlap.value, dim, *ranks),
                    "matched_chance": control.mean,
                    "matched_sd": control.deviation,
                    "p_matched": control.p_value,
                    "covariance_chance": shared.level,
                    "covariance_sd": shared.deviation,
                    "p_covariance": shared.p_value,
                    "reference_overlap_first": shared.with_first,
                    "reference_overlap_second": shared.with_second,
                    "projection_distance": overlap.projection_distance,
                    "grassmann_distance": angle.grassmann_distance,
                    "smallest_angle_radians": angle.smallest,
                    "largest_angle_radians": angle.largest,
                    "mean_angle_radians": angle.mean,
                    "stable_rank_first": spectral[0][0],
                    "stable_rank_second": spectral[1][0],
                    "effective_rank_first": spectral[0][1],
                    "effective_rank_second": spectral[1][1],
                    "k_margin_first": k_margin(pair[0].singular_values, overlap.energy),
                    "k_margin_second": k_margin(pair[1].singular_values, overlap.energy),
                }
            )
        return rows

    def _is_large(self, name: str) -> bool:
        """Tell whether a tensor's singular vectors are too large to be held, as signs and angles need them."""
        return torch.Size(opened(self.reference).shape(name)).numel() > STREAM_ABOVE

    def _audit(self, name: str, label: str, factors: Factors, origin: float) -> dict[str, Any]:
        reference = opened(self.reference)
        rounding = nan
        if label not in self.stored:
            rounding = origin + stored_rounding(opened(self.updates[label]), name)
        row = audit_row(name, factors.singular_values, rounding, reference.shape(name), self.energies)
        return {"tensor": row.pop("tensor"), "update": label, **row}

    def _missing(self, name: str, label: str, factors: Factors) -> list[dict[str, Any]]:
        """Say why overlaps of an update are NaN, if some are."""
        label_and_name, path = f"{label}: {name}", self.updates[label]
        if factors.numerical_rank == 0:
            return [{"name": label_and_name, "reason": _absent(path) if label in self.stored else ZERO}]
        n_directions = factors.held
        short = [share for share in self.energies if rank_of_energy(factors.singular_values, share) > n_directions]
        if not short:
            return []
        shares = ", ".join(f"{share:g}" for share in short)
        reason = f"{path} holds {n_directions} directions, fewer than energy {shares} takes: its overlaps there are NaN"
        return [{"name": label_and_name, "reason": reason}]


def is_subspace_file(path: str) -> bool:
    """Tell whether an update is given by a subspace file, by its header: snapshots end in the same letters."""
    if not Path(path).is_file():
        return False
    try:
        return "side" in TensorFile(Path(path)).header
    except InputError:
        return False


def check_subspace_file(path: str, reference: Checkpoint) -> Subspace:
    """Open a subspace file that stands for an update of a model.

    Raises:
        InputError: It is no subspace file, of the wrong side, of drawn directions, or made from other models.
    """
    stored = open_subspace(path)
    if stored.side != "left":
        raise InputError(
            f"{path} holds {stored.side} subspaces, of input space; an overlap compares what updates write to: "
            "make it with python analyze.py subspace --side left"
        )
    select = stored.provenance.get("select", "top")
    if select != "top":
        raise InputError(
            f"{path} holds {select} directions, which no energy share can be cut from; "
            "make it with python analyze.py subspace --select top"
        )
    shapes = {name: reference.shape(name) for name in (*reference.names, *reference.full.ties)}
    for name, basis in stored.bases.items():
        if name not in shapes:
            raise InputError(f"{path} has a subspace of {name}, which {reference.path} does not have")
        shape = shapes[name]
        rows, full_rank = (shape[0], min(shape)) if len(shape) == 2 else (torch.Size(shape).numel(), 1)
        spectrum = stored.spectra.get(name)
        if basis.shape[0] != rows or spectrum is None or not basis.shape[1] <= len(spectrum) <= full_rank:
            counted = "no spectrum" if spectrum is None else f"{len(spectrum)} singular values"
            raise InputError(
                f"{path} has a basis of shape {tuple(basis.shape)} and {counted} for {name}, "
                f"which is {shape} in {reference.path}; expected a file made from models of this shape"
            )
    return stored


def _stored_factors(path: str, name: str, reference: Checkpoint, device: torch.device) -> Factors:
    """Read one tensor of a subspace file that was checked; its spectrum may be longer than its basis."""
    stored = TensorFile(Path(path))
    if f"{name}{BASIS}" in stored.shapes:
        basis, spectrum = stored.read(f"{name}{BASIS}"), stored.read(f"{name}{SPECTRUM}")
        return Factors(basis.float().to(device), spectrum.double().to(device))
    shape = reference.shape(name)
    return no_factors(shape[0] if len(shape) == 2 else torch.Size(shape).numel(), device)


def _angles(first: Factors, second: Factors, overlaps: Sequence[Overlap]) -> list[AngleSummary]:
    ranks = [(overlap.rank_first, overlap.rank_second) for overlap in overlaps if overlap.reason is None]
    angles = iter(nested_principal_angles(first.basis, second.basis, ranks))
    return [summarise_angles(next(angles)) if o.reason is None else AngleSummary() for o in overlaps]


def _absent(path: str) -> str:
    return f"{path} has no subspace of it (its update was zero, or it was not selected): its overlaps are NaN"
