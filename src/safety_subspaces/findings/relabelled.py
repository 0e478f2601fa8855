"""Top-k of one study as one subspace among random ones: its rank among what each draw gets when it is taken for top-k.

Under the null top-k and the draws are exchangeable. Each of them is compared with all the others, as top-k is with the
draws, and the p-value is the rank of top-k's own number: exact at every number of draws, whatever the distribution.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import rank_p_value
from safety_subspaces.findings.sweep_arrays import Sweep, arrays_of
from safety_subspaces.findings.sweep_contrasts import comparable, mean, sign_of
from safety_subspaces.findings.swept import evaluated
from safety_subspaces.findings.utility_curves import difference, walks_of

MEASURE: Final = "refusal_margin"


def relabelled_p_value(of_tuned: pd.DataFrame, at: str, methods: Sequence[str]) -> float:
    """Return the p-value that top-k is one of the draws of random-energy, by its mean signed difference from them.

    A number is the mean over the others, over methods, and over fractions (at equal energy) or shared utilities (at
    equal utility), of the difference in refusal margin; a pair that lacks a method is in no mean.

    Args:
        of_tuned: One fine-tune of one study, as :func:`~.swept.swept`, that has both.
        at: ``energy`` or ``utility``.
        methods: The methods that are averaged.
    """
    sweeps = arrays_of(evaluated(of_tuned))
    pairs_of = _at_equal_energy if at == "energy" else _at_equal_utility
    each = [
        sign_of(MEASURE, method) * pairs_of(sweeps["top", method], sweeps["random-energy", method])
        for method in methods
    ]
    numbers = mean(np.mean(each, axis=0))
    return rank_p_value(float(numbers[0]), numbers[1:])


def _at_equal_energy(top: Sweep, drawn: Sweep) -> np.ndarray:
    """Return the difference of every two subspaces, top-k first, over the fractions at which both have its energy."""
    _, is_equal = comparable(top, drawn)
    own = np.where(is_equal[0].any(axis=0), top.values[MEASURE][0], np.nan)
    margins = np.concatenate([own, np.where(is_equal[0], drawn.values[MEASURE][0], np.nan)])
    margins[:, np.isnan(margins[0])] = np.nan
    return _without_itself(mean(margins[:, None] - margins[None]))


def _at_equal_utility(top: Sweep, drawn: Sweep) -> np.ndarray:
    """Return the difference of every two subspaces at equal utility, top-k first."""
    walks = [*walks_of(top)[0], *walks_of(drawn)[0]]
    differences = np.full((len(walks), len(walks)), np.nan)
    for row, first in enumerate(walks):
        for column, second in enumerate(walks[:row]):
            differences[row, column] = difference(first, second, MEASURE)
    return _without_itself(np.where(np.isnan(differences), -differences.T, differences))


def _without_itself(differences: np.ndarray) -> np.ndarray:
    np.fill_diagonal(differences, np.nan)
    return differences
