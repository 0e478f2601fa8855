"""Several studies that differ in their seed alone: means with t intervals over seeds, and differences seed by seed.

Tables in, tables out; missing stays NaN. A seed is the unit: whatever one seed has several of (ranks) is averaged
within it before anything is said over seeds.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.constrained import CONFIGURATION, OTHERS, compare_runs, constrained_runs
from safety_subspaces.findings.intervals import over_seeds

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
        return self._stacked(_evaluated)

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
    """Put the studies of several seeds together.

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
    return Seeds(tuple(studies))


def models_over_seeds(seeds: Seeds) -> pd.DataFrame:
    """Return a row for each model label: each measure's mean over seeds, its ``_reach`` and its number of ``_seeds``.

    Columns: ``model`` and those of ``MEASURED``. The reach is half the width of the two-sided 95 % t interval; NaN
    below two seeds.
    """
    return over_seeds(seeds.models, ["model"], MEASURED)


def runs_over_seeds(seeds: Seeds) -> pd.DataFrame:
    """Return a row for each configuration of a constraint, its measures averaged over seeds.

    Columns: ``CONFIGURATION``, ``fraction``, each of ``MEASURED`` and ``energy_inside`` with ``_reach`` and ``_seeds``,
    and ``leakage``, the largest of the seeds.
    """
    frame = over_seeds(seeds.runs, [*CONFIGURATION, "fraction"], (*MEASURED, "energy_inside"))
    largest = seeds.runs.groupby([*CONFIGURATION, "fraction"], sort=False, dropna=False)["leakage"].max()
    return frame.assign(leakage=largest.to_numpy(dtype=float))


def differences_over_seeds(seeds: Seeds) -> pd.DataFrame:
    """Return a row for each run constrained by the alignment subspace and each run beside it, paired seed by seed.

    Columns: ``CONFIGURATION``, ``fraction``, ``other``, and ``<measure>_difference`` for each of ``COMPARED``, with
    ``_reach`` and ``_seeds``.
    """
    names = [f"{measure}_difference" for measure in COMPARED]
    return over_seeds(seeds.differences, [*CONFIGURATION, "fraction", "other"], names)


def default_page(folders: Sequence[str]) -> Path:
    """Return where the page of several studies goes: beside them, under ``study``."""
    return Path(folders[0]).parent / "study" / "report" / "index.html"


def _label(study: Study) -> str:
    return ", ".join(map(str, study.seeds)) or study.name


def _evaluated(study: Study) -> pd.DataFrame:
    """Return one row of ``Study.models`` for each label."""
    rows = [study.model(str(label)) for label in dict.fromkeys(study.models["model"])]
    return pd.DataFrame([row for row in rows if row is not None]).reindex(columns=study.models.columns)


def _finest(projections: pd.DataFrame) -> pd.DataFrame:
    """Keep, of the analyses that projected one fine-tune, the one with most rows: they share their draws."""
    sizes = projections.groupby(["tuned", "analysis"], sort=False).size()
    finest = [sizes[tuned].idxmax() for tuned in projections["tuned"]] if len(projections) else []
    return projections[projections["analysis"] == finest] if finest else projections


def _alignment_update(study: Study) -> pd.DataFrame:
    tables = [result.tables[ALIGNMENT] for result in study.of("project") if ALIGNMENT in result.tables]
    columns = ["tensor", "layer", "type", "energy", "stable_rank", "effective_rank", "numerical_rank"]
    return tables[0] if tables else pd.DataFrame(columns=columns)


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
        for seed in table.index:
            means = {name: float(table.loc[seed, name][complete].mean()) for name in names}
            rows.append(
                {**dict(zip(keys, values, strict=True)), "rank": ALL_RANKS, "fraction": np.nan, "seed": seed, **means}
            )
    return pd.DataFrame(rows, columns=list(every.columns))
