"""Sweeps of one kind of subspace by one method, as arrays of seeds by draws by fractions; NaN where a point lacks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from safety_subspaces.findings.models import MEASURED


@dataclass(frozen=True)
class Sweep:
    """What projections of one fine-tune by one method onto one kind of subspace do.

    Args:
        energy: The share of the energy that each keeps, ``[seed, draw, fraction]``.
        values: Each measure of ``MEASURED``, as ``energy``.
        errors: Their standard errors over prompts.
        is_drawn: Whether the kind is drawn; one that is not has one draw.
    """

    energy: np.ndarray
    values: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    is_drawn: bool

    def at(self, fraction: int) -> "Sweep":
        """Return the projections at one fraction, by its place."""
        chosen = slice(fraction, fraction + 1)
        values, errors = ({m: array[..., chosen] for m, array in of.items()} for of in (self.values, self.errors))
        return Sweep(self.energy[..., chosen], values, errors, self.is_drawn)


def arrays_of(of_tuned: pd.DataFrame) -> dict[tuple[str, str], Sweep]:
    """Return the sweeps of one fine-tune by kind of subspace and method.

    All are over the same seeds and fractions, and those of a kind over the same draws.

    Args:
        of_tuned: Evaluated rows of :func:`~.swept.swept`.
    """
    seeds, fractions = (pd.Index(of_tuned[name].unique()) for name in ("seed", "fraction"))
    columns = ["energy_kept", *MEASURED, *(f"{measure}_stderr" for measure in MEASURED)]
    draws_of = {str(kind): pd.Index(np.sort(draws.unique())) for kind, draws in of_tuned.groupby("subspace")["draw"]}
    found = {}
    for (subspace, method), rows in of_tuned.groupby(["subspace", "method"], sort=False):
        draws = draws_of[str(subspace)]
        cube = np.full((len(columns), len(seeds), len(draws), len(fractions)), np.nan)
        at = (seeds.get_indexer(rows["seed"]), draws.get_indexer(rows["draw"]), fractions.get_indexer(rows["fraction"]))
        cube[(slice(None), *at)] = rows[columns].to_numpy(float).T
        values = dict(zip(MEASURED, cube[1:], strict=False))
        errors = dict(zip(MEASURED, cube[1 + len(MEASURED) :], strict=True))
        found[str(subspace), str(method)] = Sweep(cube[0], values, errors, str(subspace).startswith("random"))
    return found
