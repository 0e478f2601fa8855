"""Null studies of weight space: updates that share no direction, and random subspaces that are called alignment's.

Each function makes one study from a seed and returns its p-values by name; a test holds its level where a p of 0.05 or
less comes out of at most 5 % of seeds. ``shared`` directions in both updates make it a study of power. A study takes
some hundredths of a second.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.nulls import Scenario
from safety_subspaces.algebra.covariance import covariance_control
from safety_subspaces.algebra.factors import haar_basis, left_factors, orthonormal_frame
from safety_subspaces.algebra.nulls import (
    draw_haar_energies,
    matched_control,
    overlap_p_value,
    pooled_p_value,
)
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.algebra.projection import Projection, TensorProjections, list_projections
from safety_subspaces.algebra.statistics import permutation_p_value
from safety_subspaces.algebra.update import DenseUpdate
from safety_subspaces.analysis.project.command import FRACTIONS
from safety_subspaces.findings.intervals import rank_p_value

CONTROLS = 99  # draws of the matched control: p-values in steps of 1 %


def shared_row_scales(
    seed: int, rows: int = 96, columns: int = 96, spread: float = 0.8, energy: float = 0.5, shared: int = 0
) -> dict[str, float]:
    """Overlap of two updates whose rows have the same lognormal scales: ``haar`` ignores them, ``matched`` does not."""
    source = torch.Generator().manual_seed(seed)
    scales = (spread * torch.randn(rows, 1, generator=source)).exp()
    updates = [scales * torch.randn(rows, columns, generator=source) for _ in range(2)]
    share_directions(updates, shared, source)
    first, second = (left_factors(update) for update in updates)
    (overlap,) = overlaps = mode_subspace_overlap(first, second, [energy])
    (matched,) = matched_control(first, second, overlaps, CONTROLS, source)
    haar = overlap_p_value(overlap.value, rows, overlap.rank_first, overlap.rank_second)
    return {"haar": haar, "matched": matched.p_value}


def shared_covariance(
    seed: int,
    rows: int = 96,
    columns: int = 96,
    spread: float = 0.3,
    energy: float = 0.5,
    shared: int = 0,
    decay: float = 0.0,
    reference_decay: float = 0.0,
    tensors: int = 1,
    controls: int = CONTROLS,
) -> dict[str, float]:
    """Overlap of two updates ``M^{1/2} G`` of one M that is turned at random; a third one tells ``covariance`` of M.

    Args:
        seed: Of everything.
        rows: Of each update.
        columns: Of each.
        spread: Deviation of the logarithms of the eigenvalues of ``M^{1/2}``.
        energy: Share at which the spaces are cut.
        shared: Directions, of M or not, that the two updates share and the third does not.
        decay: Column i of G is divided by ``i^decay``: how narrow the two updates are.
        reference_decay: The same of the third.
        tensors: How many tensors of their own M are pooled.
        controls: Draws of the matched control.
    """
    source = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[float, float, float]]] = {"matched": [], "covariance": []}
    p_values: dict[str, float] = {}
    for _ in range(tensors):
        axes = haar_basis(rows, rows, source)
        root = (axes * (spread * torch.randn(rows, generator=source)).exp()) @ axes.T
        falls = [torch.arange(1.0, columns + 1) ** -power for power in (decay, decay, reference_decay)]
        *updates, third = [root @ torch.randn(rows, columns, generator=source) * fall for fall in falls]
        share_directions(updates, shared, source)
        first, second, reference = (left_factors(update) for update in (*updates, third))
        (overlap,) = overlaps = mode_subspace_overlap(first, second, [energy])
        (matched,) = matched_control(first, second, overlaps, controls, source)
        (explained,) = covariance_control(first, second, reference, overlaps)
        p_values = {"matched": matched.p_value, "covariance": explained.p_value}
        found["matched"].append((overlap.value, matched.mean, matched.deviation))
        if not math.isnan(explained.p_value):
            found["covariance"].append((overlap.value, explained.level, explained.deviation))
    if tensors == 1:
        return p_values
    return {null: pooled_p_value(*zip(*rows, strict=True)) if rows else math.nan for null, rows in found.items()}


def relabelled_random_subspace(
    seed: int, draws: int = 99, rows: int = 48, columns: int = 64, rank: int = 12, tensors: int = 4
) -> dict[str, float]:
    """Energy that a Haar subspace of each tensor keeps, called *top*: its rank among draws, at either end.

    ``more`` and ``less`` are one-sided, ``either`` is twice the smaller.
    """
    source = torch.Generator().manual_seed(seed)
    energies, total, top = torch.zeros(draws, dtype=torch.float64), 0.0, 0.0
    for number in range(tensors):
        falls = torch.arange(1.0, columns + 1) ** (-0.5 * number)  # one flat, the others ever narrower
        update = DenseUpdate(torch.randn(rows, columns, generator=source) * falls)
        kept = update.left_product(haar_basis(rows, rank, source)).double().square().sum()
        energy = update.energy()
        energies += energy * draw_haar_energies([rank], rows, update.concentration(energy), draws, source)[0]
        total, top = total + energy, top + float(kept)
    more = permutation_p_value(int((energies >= top).sum()), draws)
    less = permutation_p_value(int((energies <= top).sum()), draws)
    return {"more": more, "less": less, "either": min(1.0, 2 * min(more, less))}


def independent_updates(
    seed: int, draws: int = 99, rows: int = 48, columns: int = 64, tensors: int = 4, shared: int = 0
) -> dict[str, float]:
    """Energy of an update in the leading directions of another one that it knows nothing of, as ``project`` has it.

    The mean over the seven fractions that a page compares, of all tensors together, and its rank among energies that
    are drawn beside the closed form, as ``compare`` has them. ``shared`` directions in both make it a study of power.
    """
    source = torch.Generator().manual_seed(seed)
    chance = list_projections(("random",), FRACTIONS, 0, "closed")
    leading = [Projection("top", fraction, 0) for fraction in FRACTIONS]
    top, energies = 0.0, torch.zeros(draws, dtype=torch.float64)
    for number in range(tensors):
        falls = torch.arange(1.0, columns + 1) ** (-0.5 * number)
        updates = [torch.randn(rows, columns, generator=source) * falls for _ in range(2)]
        share_directions(updates, shared, source)
        alignment, tuned = map(DenseUpdate, updates)
        projections = TensorProjections(f"tensor {number}", alignment.factors(), columns, seed)
        kept = projections.energies_kept({"tuned": tuned}, {"tuned": tuned.energy()}, [*leading, *chance], draws)
        top += sum(kept["tuned", each].energy for each in leading)
        energies += torch.tensor([kept["tuned", each].drawn for each in chance], dtype=torch.float64).sum(dim=0)
    return {"rank of the mean": rank_p_value(top, energies.numpy())}


def share_directions(updates: list[torch.Tensor], count: int, source: torch.Generator) -> None:
    """Add to each update a part along the same random directions, of a quarter of its energy."""
    if count == 0:
        return
    directions = orthonormal_frame(torch.randn(updates[0].shape[0], count, generator=source))
    for update in updates:
        part = directions @ torch.randn(count, update.shape[1], generator=source)
        update += part * (0.5 * update.norm() / part.norm())


def _matched_alone(seed: int, **settings: Any) -> dict[str, float]:
    return {"matched": shared_row_scales(seed, **settings)["matched"]}


def _covariance_alone(seed: int, **settings: Any) -> dict[str, float]:
    return {"covariance": shared_covariance(seed, **settings)["covariance"]}


def _either_end(seed: int, **settings: Any) -> dict[str, float]:
    return {"rank": relabelled_random_subspace(seed, **settings)["either"]}


def _small(simulate: Callable[..., Mapping[str, float]], settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Tell which p-values of a study are at most 0.05; NaN where there is none."""
    p_values = simulate(seed, **settings)
    return {f"p by {name} at most .05": float(p <= 0.05) if p == p else math.nan for name, p in p_values.items()}


def _scenario(
    claim: str, world: str, simulate: Callable[..., Mapping[str, float]], nominal: float | None = 0.05, **settings: Any
) -> Scenario:
    return Scenario(claim, world, partial(_small, simulate, settings), nominal)


OVERLAP, ENERGY = "overlap of updates above chance", "energy in the alignment subspace beside random ones"
# The null that ignores what updates share fails where they share it: no verdict rests on it, and its rate is the power.
SCENARIOS = (
    _scenario(OVERLAP, "independent, rows of lognormal scales .8", _matched_alone),
    _scenario(OVERLAP, "independent, a shared covariance", _covariance_alone),
    _scenario(OVERLAP, "32 of 96 directions shared beside the row scales", _matched_alone, nominal=None, shared=32),
    _scenario(ENERGY, "a random subspace called alignment's, 19 draws", _either_end, draws=19),
    _scenario(ENERGY, "a random subspace called alignment's, 99 draws", _either_end, draws=99),
    _scenario(ENERGY, "independent updates, mean over seven fractions, 99 draws", independent_updates),
    _scenario(ENERGY, "a quarter of both along 4 shared directions, the same", independent_updates, None, shared=4),
)
