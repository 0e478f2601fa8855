"""Several studies that differ in their seed alone: means with t intervals over seeds, and differences seed by seed.

Tables in, tables out; missing stays NaN. A seed is the unit: whatever one seed has several of (ranks) is averaged
within it before anything is said over seeds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED, SAMPLE_SIZES
from safety_subspaces.findings.constrained import (
    CONFIGURATION,
    GROUPS,
    OTHERS,
    compare_runs,
    constrained_runs,
    root_mean_square,
)
from safety_subspaces.findings.intervals import over_seeds
from safety_subspaces.findings.matching import match_labels
from safety_subspaces.findings.thresholds import LEAST_RANGE

MEASURED = ("utility", "harm_score", "over_refusal_rate", "refusal_margin")
# The table of a projection that says what the alignment update is like.
ALIGNMENT = "alignment"
# Stands in the column of ranks where a seed's difference is the mean over all of them.
ALL_RANKS = "all"


@dataclass(frozen=True)
class Seeds:
    """Studies of one experiment, each with a seed of its own."""

    studies: tuple[Study, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """What each study is called: its seed, or its folder where that is not known."""
        return tuple(_label(study) for study in self.studies)

    @property
    def named(self) -> list[tuple[str, Study]]:
        """Every study with what it is called."""
        return list(zip(self.seeds, self.studies, strict=True))

    @cached_property
    def models(self) -> pd.DataFrame:
        """One evaluation of each model label of every study: the columns of ``Study.models``, and ``seed``."""
        return self._stacked(lambda study: study.evaluated)

    @cached_property
    def aligned(self) -> pd.DataFrame:
        """The evaluation of each study's aligned model, a row for each that has one: the columns of ``models``."""
        rows = [row.to_frame().T.assign(seed=_label(s)) for s in self.studies if (row := s.aligned) is not None]
        return pd.concat(rows, ignore_index=True) if rows else self.models.head(0)

    @property
    def roles(self) -> dict[str, str]:
        """What each label stands for in these studies: base, aligned, tuned, or nothing that is known."""
        return {label: role for study in reversed(self.studies) for label, role in study.known.roles.items()}

    @cached_property
    def projections(self) -> pd.DataFrame:
        """The finest sweep of each fine-tune of every study: the columns of ``Study.projections``, and ``seed``."""
        return self._stacked(lambda study: _finest(study.projections))

    @property
    def has_evaluated_projections(self) -> bool:
        """Whether any projected model was evaluated, not only measured."""
        return any(study.has_evaluated_projections for study in self.studies)

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """The overlaps of every study: the columns of ``Study.overlaps``, and ``seed``."""
        return self._stacked(lambda study: study.overlaps)

    @cached_property
    def alignment_updates(self) -> pd.DataFrame:
        """What the alignment update is like, a row for each tensor and seed; empty for studies of earlier versions.

        Columns: ``tensor``, ``layer``, ``type``, ``energy``, ``stable_rank``, ``effective_rank``, ``numerical_rank``
        and ``seed``.
        """
        return self._stacked(_alignment_update)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Every run under a constraint and its twin without one, as :func:`constrained_runs` has them, with a seed."""
        return self._stacked(constrained_runs)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """The differences of :func:`compare_runs` with a seed; with the rank ``all``, their means over ranks."""
        every = self._stacked(compare_runs)
        frame = pd.concat([every, _over_ranks(every)], ignore_index=True)
        rank = {other: rank for rank, other in enumerate(OTHERS)}
        by = ["fine_tune", "constraint", "details", "other"]
        return frame.sort_values(by, key=lambda c: c.map(rank) if c.name == "other" else c, kind="stable")

    def _stacked(self, read: Callable[[Study], pd.DataFrame]) -> pd.DataFrame:
        """Return a table of every study under one another, with a column ``seed``."""
        return pd.concat([read(study).assign(seed=_label(study)) for study in self.studies], ignore_index=True)


def together(studies: Sequence[Study]) -> Seeds:
    """Put the studies of several seeds together, under the labels of the first: see :func:`.matching.match_labels`.

    Raises:
        InputError: A study twice, or two of one seed: a repeated seed is no second run.
    """
    folder_of: dict[str, str] = {}
    for study in studies:
        folder = str(study.folder)
        for key in (os.path.realpath(folder), *(f"seed {seed}" for seed in study.seeds)):
            if key in folder_of:
                what = "is given twice" if folder_of[key] == folder else f"has {key}, as {folder_of[key]} has"
                raise InputError(f"{folder} {what}: a repeated seed is no second run; give studies of different seeds")
            folder_of[key] = folder
    return Seeds(match_labels(studies))


def main_fine_tune(*groups: Seeds) -> str:
    """Return the label of the swept fine-tune that is judged first: the one that traded most margin for utility.

    Of those that gained utility it is the one that lost most margin: the aligned model's minus that of the fine-tune
    itself, the mean over studies. Where none gained any, it is the one of all that lost most. Only these two ends are
    looked at, and none of the projections that are judged. Of ties it is the first one in the order of the table.

    Args:
        *groups: Studies of one or several experiments; a fine-tune must be swept in each of them.

    Returns:
        The label; empty where no fine-tune was swept in all.
    """
    swept = [list(dict.fromkeys(seeds.projections["tuned"].astype(str))) for seeds in groups]
    shared = [tuned for tuned in swept[0] if all(tuned in others for others in swept)] if swept else []

    def moved(tuned: str, measure: str) -> float:
        """Return the fine-tune's measure minus that of the aligned model, the mean over studies that have both."""
        ends = [(study.aligned, study.model(tuned)) for seeds in groups for study in seeds.studies]
        values = [
            float(model[measure]) - float(aligned[measure])
            for aligned, model in ends
            if aligned is not None and model is not None
        ]
        return float(pd.Series(values, dtype=float).mean())

    def trade(tuned: str) -> tuple[bool, float]:
        lost = -moved(tuned, "refusal_margin")
        return moved(tuned, "utility") >= LEAST_RANGE["utility"], -np.inf if np.isnan(lost) else lost

    return max(shared, key=trade, default="")


def runs_over_seeds(seeds: Seeds) -> pd.DataFrame:
    """Return a row for each configuration of a constraint: its draws averaged within a seed, then its seeds.

    Columns: ``CONFIGURATION``, ``fraction``, each of ``MEASURED`` and ``energy_inside`` with ``_reach`` and ``_seeds``;
    ``leakage``, the largest of any run; ``runs``, their number; and ``SAMPLE_SIZES``, the largest. A reach is half the
    95 % t interval over seeds; of a single study one standard error over prompts. The judged score has none over seeds:
    it jumps from one end to the other, which no t interval is made for.
    """
    keys = [*CONFIGURATION, "fraction"]
    means = (*MEASURED, "energy_inside")
    errors = {measure: f"{measure}_stderr" for measure in MEASURED}
    rules: dict[str, Any] = dict.fromkeys(means, "mean") | dict.fromkeys(errors.values(), root_mean_square)
    rules |= {"leakage": "max", **dict.fromkeys(SAMPLE_SIZES, "max")}
    numbers = seeds.runs.astype(dict.fromkeys(rules, float))
    cells = numbers.groupby([*keys, "seed"], sort=False, dropna=False)
    by_seed = cells.agg(rules).assign(runs=cells.size()).reset_index()
    described = {"leakage": "max", "runs": "sum", **dict.fromkeys(SAMPLE_SIZES, "max")}
    return _with_reach(seeds, over_seeds(by_seed, keys, means, described, errors), by_seed, errors)


def differences_over_seeds(seeds: Seeds) -> pd.DataFrame:
    """Return a row for each run constrained by the alignment subspace and each run beside it, paired seed by seed.

    Columns: ``CONFIGURATION``, ``fraction``, ``other``, ``<measure>_difference`` for each of ``COMPARED``, with
    ``_reach`` (as :func:`runs_over_seeds`) and ``_seeds``; and ``runs``, the number of runs beside it.
    """
    errors = {f"{measure}_difference": f"{measure}_error" for measure in COMPARED}
    keys = [*CONFIGURATION, "fraction", "other"]
    frame = over_seeds(seeds.differences, keys, list(errors), {"runs": "sum"}, errors)
    return _with_reach(seeds, frame, seeds.differences, errors)


def aligned_levels(seeds: Seeds) -> dict[str, float]:
    """Return where the aligned models stand in each of ``MEASURED``, the mean over seeds; nothing without any."""
    rows = [study.aligned[list(MEASURED)] for study in seeds.studies if study.aligned is not None]
    return (
        {} if not rows else {str(name): float(level) for name, level in pd.DataFrame(rows).astype(float).mean().items()}
    )


def default_page(folders: Sequence[str]) -> Path:
    """Return where the page of several studies goes: beside them, under ``study``."""
    return Path(folders[0]).parent / "study" / "report" / "index.html"


def _label(study: Study) -> str:
    return ", ".join(map(str, study.seeds)) or study.name


def _finest(projections: pd.DataFrame) -> pd.DataFrame:
    """Keep, of the analyses that projected one fine-tune, the one with most rows: they share their draws."""
    sizes = projections.groupby(["tuned", "analysis"], sort=False).size()
    finest = {tuned: sizes[tuned].idxmax() for tuned in projections["tuned"].unique()}
    return projections[projections["analysis"] == projections["tuned"].map(finest)]


def _alignment_update(study: Study) -> pd.DataFrame:
    tables = [result.tables[ALIGNMENT] for result in study.of("project") if ALIGNMENT in result.tables]
    columns = ["tensor", "layer", "type", "energy", "stable_rank", "effective_rank", "numerical_rank"]
    return tables[0] if tables else pd.DataFrame(columns=columns)


def _with_reach(seeds: Seeds, frame: pd.DataFrame, by_seed: pd.DataFrame, errors: Mapping[str, str]) -> pd.DataFrame:
    """Give the rows of a single study their errors over prompts, and the judged score of several no reach."""
    if len(seeds.studies) == 1:
        return frame.assign(**{f"{name}_reach": by_seed[error].to_numpy(float) for name, error in errors.items()})
    return frame.assign(**{f"{name}_reach": np.nan for name in errors if name.startswith("harm_score")})


def _over_ranks(every: pd.DataFrame) -> pd.DataFrame:
    """Average each seed's differences over the ranks that every seed has, where there are several."""
    keys = [name for name in (*CONFIGURATION, "other") if name != "rank"]
    names = [f"{measure}_difference" for measure in COMPARED]
    rows = []
    for values, cell in every.groupby(keys, sort=False):
        table = cell.pivot_table(index="seed", columns="rank", values=names, dropna=False, sort=False)
        whole = table.notna().all().groupby(level="rank").all()
        complete = [rank for rank in dict.fromkeys(cell["rank"]) if whole[rank]]
        if len(complete) < 2:
            continue
        shared = cell[cell["rank"].isin(complete)].groupby("seed", sort=False)
        # The ranks answer the same prompts, whose error no number of ranks averages out.
        errors = shared[[f"{measure}_error" for measure in COMPARED]].agg(root_mean_square)
        for seed in table.index:
            means = {name: float(table.loc[seed, name][complete].mean()) for name in names}
            described = {"rank": ALL_RANKS, "fraction": np.nan, "seed": seed, "runs": shared["runs"].sum()[seed]}
            described |= {name: shared[name].min()[seed] for name in GROUPS}
            rows.append({**dict(zip(keys, values, strict=True)), **described, **means, **errors.loc[seed]})
    return pd.DataFrame(rows, columns=list(every.columns))
