"""Alignment's run beside runs held by random subspaces: intervals and p-values whose unit is a training run.

Over seeds the difference of a seed is one value, its control runs and ranks averaged first. Within one study
alignment's run is one among its control runs, which differ in the seed of their random subspace alone; beside a single
one of these nothing can be tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.constrained import ranks_of, runs_beside
from safety_subspaces.findings.finding import ALPHA, holm
from safety_subspaces.findings.intervals import (
    LEAST_DRAWS,
    Interval,
    joint_rank_p_values,
    prediction_interval,
    prompts_interval,
    t_interval,
)
from safety_subspaces.findings.models import ALL_RANKS, Seeds

# Judged together: a run that spares the margin because it learns less is not selective.
JOINT: Final = ("refusal_margin", "utility")
# A tenth more or less in the odds of refusing, and five of 256 prompts: less is no change that a reader would name.
LEAST_CHANGE: Final = {"refusal_margin": 0.1, "utility": 0.02}
CONTROLS: Final = ("random", "random-energy")
# What a comparison is of, whatever its rank.
KEY: Final = ["fine_tune", "constraint", "details", "other"]
NO_DIFFERENCE: Final = "no difference"
UNTESTED: Final = (np.nan, np.nan)


@dataclass(frozen=True)
class Comparison:
    """Alignment's run minus its controls.

    Args:
        rows: The differences, a row a seed.
        intervals: By measure of ``JOINT``. Over seeds t intervals. Beside a single control run that over prompts;
            beside several as far to each side as one more control run would fall from their mean.
        unit: What these are over.
        p_values: Of the measures, corrected for being two; NaN where nothing can be tested.
        draws: How many control runs the ranks are among; 0 where the p-values are no ranks.
        null: What the p-values suppose.
        why: Why nothing is tested.
    """

    rows: pd.DataFrame
    intervals: dict[str, Interval]
    unit: str
    p_values: tuple[float, float] = UNTESTED
    draws: int = 0
    null: str = ""
    why: str = ""

    @property
    def is_tested(self) -> bool:
        """Whether it has p-values."""
        return not np.isnan(self.p_values).any()

    def judged(self, tests: int) -> tuple[float, str]:
        """Return the p of the comparison, and what it is called where that is small.

        The p is that of the measure that is surer, of those that changed enough to be named. It is a trade where the
        other changed the other way, and is as sure in all of the family's ``tests`` as well.
        """
        named = [index for index, m in enumerate(JOINT) if abs(self.intervals[m].mean) >= LEAST_CHANGE[m]]
        if not self.is_tested or not named:
            return min(self.p_values), NO_DIFFERENCE
        signs = [np.sign(self.intervals[m].mean) for m in JOINT]
        first = min(named, key=lambda index: self.p_values[index])
        against = [i for i in named if signs[i] == -signs[first] and self.p_values[i] * tests <= ALPHA]
        word = "trade" if against else "more selective" if signs[first] > 0 else "less selective"
        return self.p_values[first], word


def control_comparisons(studies: Seeds) -> tuple[list[Comparison], list[Comparison]]:
    """Return the comparisons to judge by, and what each rank shows of those that are means over ranks.

    They are means over ranks where several seeds have several ranks.
    """
    every = studies.differences[studies.differences["other"].isin(CONTROLS)]
    cells, of_ranks = main_cells(every)
    return tuple(with_enough_draws([_compare(studies, cell) for cell in some]) for some in (cells, of_ranks))  # type: ignore[return-value]


def main_cells(every: pd.DataFrame) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """Split differences into those to judge by and those of single ranks behind means, each cell a row a seed.

    Args:
        every: Rows of ``Seeds.differences``; ``ranks`` is added to them, the ranks that a row is of.
    """
    cells, of_ranks = [], []
    for _, rows in every.groupby(KEY, sort=False):
        single = rows[rows["rank"] != ALL_RANKS]
        by_rank = [cell.assign(ranks=ranks_of(cell)) for _, cell in single.groupby("rank", sort=False)]
        means = rows[rows["rank"] == ALL_RANKS].assign(ranks=ranks_of(single))
        is_mean = len(means) > 0 and single["seed"].nunique() > 1
        cells += [means] if is_mean else by_rank
        of_ranks += by_rank if is_mean else []
    return cells, of_ranks


def difference_interval(rows: pd.DataFrame, measure: str) -> tuple[Interval, str]:
    """Return the mean of a measure's differences over seeds with its interval, or of one study that over prompts."""
    difference, error = rows[f"{measure}_difference"].astype(float), rows[f"{measure}_error"].astype(float)
    if len(rows) == 1:
        return prompts_interval(float(difference.iloc[0]), float(error.iloc[0])), "groups of prompts"
    return t_interval(difference, error), "seeds"


def with_enough_draws(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Leave out the p-values of comparisons with too few control runs for any rank to be at 5 % after Holm.

    The smallest p of a rank is ``1 / (runs + 1)``: each of k tests of a family needs ``20 k - 1`` runs. Of ranks as
    many are tested as have these.
    """
    draws = [one.draws for one in comparisons if one.draws]
    others = sum(one.is_tested and not one.draws for one in comparisons)

    def needed(tested: int) -> int:
        return (LEAST_DRAWS + 1) * (others + tested) - 1

    least = min((n for n in draws if n >= needed(sum(other >= n for other in draws))), default=inf)
    few = "{} control runs, {} needed"
    return [
        replace(one, p_values=UNTESTED, why=few.format(one.draws, needed(len(draws)))) if 0 < one.draws < least else one
        for one in comparisons
    ]


def _compare(studies: Seeds, rows: pd.DataFrame) -> Comparison:
    intervals, unit = {}, ""
    for measure in JOINT:
        intervals[measure], unit = difference_interval(rows, measure)
    if len(rows) == 1:
        return _compare_within(studies, Comparison(rows, intervals, unit, why="one run a side"))
    if min(one.n for one in intervals.values()) < 2:
        return Comparison(rows, intervals, unit, why="not measured")
    # A measure without spread and error differs in nothing that could be tested.
    p_values = [1.0 if np.isnan(intervals[m].p_value) else intervals[m].p_value for m in JOINT]
    margin, utility = holm(np.array(p_values))
    null = "no difference between the runs of a seed, in margin and in utility"
    return Comparison(rows, intervals, unit, (float(margin), float(utility)), null=null)


def _compare_within(studies: Seeds, alone: Comparison) -> Comparison:
    """Compare the run of a single study with its control runs, where there are several."""
    row = alone.rows.iloc[0]
    if np.isnan([one.mean for one in alone.intervals.values()]).any():
        return replace(alone, why="not measured")
    if row["runs"] < 2 or row["rank"] == ALL_RANKS:
        return alone
    runs = studies.runs[studies.runs["seed"] == row["seed"]]
    keys = ["fine_tune", "constraint", "rank", "details"]
    own = runs[(runs["subspace"] == "top") & (runs[keys] == row[keys]).all(axis=1)].iloc[0]
    drawn = runs_beside(runs, own, str(row["other"]))[list(JOINT)].to_numpy(float)
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    margin, utility = joint_rank_p_values(own[list(JOINT)].to_numpy(float), drawn)
    reaches = [prediction_interval(values).reach for values in drawn.T]
    means = [alone.intervals[m].mean for m in JOINT]
    intervals = {m: Interval(d, d - r, d + r, len(drawn)) for m, d, r in zip(JOINT, means, reaches, strict=True)}
    null = "alignment's run is one more of the runs held by random subspaces"
    return Comparison(alone.rows, intervals, "control runs", (float(margin), float(utility)), len(drawn), null)
