"""What is measured of one layer: each probe after each erasure, by the share that it is trained on, between sources."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Generator, Tensor, tensor

from safety_subspaces.algebra.statistics import Groupings, fewest_groups
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.rates import SHARE, Estimate, estimate
from safety_subspaces.language.examples import PromptItem, groupings_of, groups_of
from safety_subspaces.states.choices import Erasure, ProbeKind
from safety_subspaces.states.probes import (
    Predictions,
    area_under_curve,
    auc_with_error,
    control_labels,
    group_folds,
    predict_held_out,
    refitted_error,
)

Row = dict[str, Any]
# Measures of a cell that are missing where there is nothing to read.
MEASURES = (
    "accuracy", "accuracy_stderr", "balanced_accuracy", "auc", "auc_stderr", "control_accuracy", "selectivity",
    "selectivity_stderr", "control_auc", "control_auc_sd",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Telling one set of prompts from another.

    Args:
        labels: 1 for the positive set.
        groups: What prompts that stand and fall together share, as a whole.
        groupings: The same in one way or in two that cross, which errors are robust to.
        split_by: What splits keep together: the groups, or the sources.
        sources: Where each prompt is from, or its template.
        splits: Training and test prompts of each fold.
    """

    labels: Int[Tensor, " prompt"]
    groups: list[Hashable]
    groupings: Groupings
    split_by: list[Hashable]
    sources: list[str | None]
    splits: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def of(
        cls, positive: Sequence[PromptItem], negative: Sequence[PromptItem], split_by: str, folds: int, seed: int
    ) -> "Task":
        """Make the task of two sets.

        Raises:
            InputError: Splits by source, and a prompt without one; fewer groups than folds.
        """
        items = [*positive, *negative]
        labels = tensor([1] * len(positive) + [0] * len(negative))
        sources = [item.source for item in items]
        if split_by == "source" and None in sources:
            raise InputError("split_by source: some prompts have no source; give one to each, or split by group")
        groups = groups_of(items)
        kept: list[Hashable] = list(sources) if split_by == "source" else groups
        return cls(labels, groups, groupings_of(items), kept, sources, group_folds(labels, kept, folds, seed))

    @property
    def counts(self) -> Row:
        """The sizes of the sets, and their groups; of two groupings the fewer."""
        positives = int(self.labels.sum())
        groups = fewest_groups(self.groupings)
        return {"n_positive": positives, "n_negative": len(self.labels) - positives, "n_groups": groups}

    @property
    def chance(self) -> float:
        """The accuracy of one who always names the larger set."""
        positives = int(self.labels.sum())
        return max(positives, len(self.labels) - positives) / len(self.labels)

    @property
    def trained(self) -> float:
        """How many prompts a probe is trained on, the mean over folds."""
        return float(np.mean([len(train) for train, _ in self.splits]))

    def accuracy(self, predictions: Predictions, rows: Sequence[int], trained: float) -> Estimate:
        """Return the share of some prompts that is predicted rightly, with the error of a probe trained anew."""
        of_rows = predictions.of(rows)
        correct = [None if np.isnan(value) else value for value in of_rows.correct.tolist()]
        found = estimate(correct, [[keys[row] for row in rows] for keys in self.groupings], SHARE)
        error = refitted_error(found.stderr, found.n, trained)
        return Estimate(found.mean, error, found.n, found.n_unscored, found.n_groups)


@dataclass(frozen=True)
class Cells:
    """Measures the cells of a layer: every probe, after every erasure; arguments are those of ``probe``."""

    probes: Sequence[ProbeKind]
    erasures: Sequence[Erasure]
    learning_shares: Sequence[float]
    folds: int
    controls: int
    seed: int

    def probed(self, states: Float[Tensor, "prompt hidden"], task: Task) -> Iterator[Row]:
        """Yield what each probe reads after each erasure, beside control labels."""
        drawn = []
        for draw in range(self.controls):
            labels = control_labels(task.labels, task.groups, Generator().manual_seed(1000 * self.seed + draw))
            # Stratified by the drawn labels: folds stratified by the true ones would push the controls below chance.
            drawn.append((labels, self._control_folds(labels, task)))
        everything = range(len(task.labels))
        for kind in self.probes:
            for erasure in self.erasures:
                accuracies, areas = [], []
                for labels, control_splits in drawn:
                    of_control = predict_held_out(states, labels, control_splits, kind, self.seed, erasure)
                    accuracies.append(float(np.nanmean(of_control.correct)))
                    areas.append(area_under_curve(of_control, labels))
                control, area = (float(np.mean(values)) if values else nan for values in (accuracies, areas))
                spread = float(np.var(accuracies, ddof=1)) / self.controls if self.controls > 1 else nan
                found = predict_held_out(states, task.labels, task.splits, kind, self.seed, erasure)
                accuracy = task.accuracy(found, everything, task.trained)
                auc, auc_stderr = auc_with_error(found, task.labels, task.groupings)
                sides = [float(np.nanmean(found.correct[(task.labels == label).numpy()])) for label in (0, 1)]
                values = {
                    "accuracy": accuracy.mean,
                    "accuracy_stderr": accuracy.stderr,
                    "balanced_accuracy": sum(sides) / 2,
                    "auc": auc,
                    "auc_stderr": refitted_error(auc_stderr, accuracy.n, task.trained),
                    "control_accuracy": control,
                    "selectivity": accuracy.mean - control,
                    "selectivity_stderr": sqrt(accuracy.stderr**2 + spread),
                    "control_auc": area,
                    "control_auc_sd": float(np.std(areas, ddof=1)) if self.controls > 1 else nan,
                }
                yield self._row(kind, erasure, values, task, self.controls)

    def without_values(self, task: Task, reason: str) -> Iterator[Row]:
        """Yield the cells of a layer where there is nothing to read."""
        for kind in self.probes:
            for erasure in self.erasures:
                yield self._row(kind, erasure, dict.fromkeys(MEASURES, nan), task, 0, reason)

    def learning(self, states: Float[Tensor, "prompt hidden"], task: Task) -> Iterator[Row]:
        """Train on a share of each fold's training groups."""
        for share in self.learning_shares:
            fewer, sizes = [], []
            for number, (train, test) in enumerate(task.splits):
                groups = list(dict.fromkeys(task.groups[row] for row in train))
                order = np.random.default_rng([self.seed, number]).permutation(len(groups))
                chosen_groups = {groups[index] for index in order[: max(2, round(share * len(groups)))]}
                chosen = np.array([row for row in train if task.groups[row] in chosen_groups])
                fewer.append((chosen, test))
                sizes.append(len(chosen))
            for kind in self.probes:
                found = predict_held_out(states, task.labels, fewer, kind, self.seed)
                # Each fold draws groups of its own: what these few add to the error averages out over the folds, and
                # the correction of the whole training parts is enough (measured at shares of 0.1 to 0.5).
                accuracy = task.accuracy(found, range(len(task.labels)), task.trained)
                yield {
                    "probe": kind,
                    "share": share,
                    "n_train": float(np.mean(sizes)),
                    "accuracy": accuracy.mean,
                    "accuracy_stderr": accuracy.stderr,
                    "auc": area_under_curve(found, task.labels),
                    "n_test": accuracy.n,
                }

    def transfer(self, states: Float[Tensor, "prompt hidden"], task: Task) -> Iterator[Row]:
        """Train on all prompts of one source, test on those of another whose groups were not trained on."""
        of_label = zip(task.sources, task.labels.tolist(), strict=True)
        sides: list[set[str | None]] = [set(), set()]
        for origin, label in of_label:
            sides[label].add(origin)
        both = sorted(source for source in sides[0] & sides[1] if source is not None)
        for source in both if len(both) > 1 else []:
            train = np.array([row for row, origin in enumerate(task.sources) if origin == source])
            seen = {task.groups[row] for row in train}
            test = np.array(
                [row for row, origin in enumerate(task.sources) if origin != source and task.groups[row] not in seen]
            )
            if not len(test):
                continue
            for kind in self.probes:
                found = predict_held_out(states, task.labels, [(train, test)], kind, self.seed)
                for other in [*(name for name in both if name != source), None]:
                    chosen = [int(row) for row in test if other is None or task.sources[row] == other]
                    if not chosen:
                        continue
                    accuracy = task.accuracy(found, chosen, float(len(train)))
                    yield {
                        "probe": kind,
                        "train_source": source,
                        "test_source": other or "all others",
                        "accuracy": accuracy.mean,
                        "accuracy_stderr": accuracy.stderr,
                        "auc": area_under_curve(found.of(chosen), task.labels[chosen]),
                        "n_train": len(train),
                        "n_test": accuracy.n,
                    }

    def _row(self, kind: str, erasure: str, values: Row, task: Task, controls: int, reason: str | None = None) -> Row:
        return {
            "probe": kind,
            "erasure": erasure,
            **values,
            "chance": task.chance,
            "n_controls": controls,
            **task.counts,
            "informative": reason is None,
            "reason": reason,
        }

    def _control_folds(self, labels: Tensor, task: Task) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Folds of control labels; where they left one label fewer groups (or sources) than folds, of as many."""
        counts = [
            len({unit for unit, label in zip(task.split_by, labels.tolist(), strict=True) if label == side})
            for side in (0, 1)
        ]
        return group_folds(labels, task.split_by, max(2, min(self.folds, *counts)), self.seed)


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Means over layers, none of which is picked by its result: what each probe reads after each erasure."""
    keys = ["model", "negative", "probe", "erasure"]
    read = table[table["informative"]].groupby(keys, sort=False)
    means = read[["accuracy", "auc", "control_auc", "chance", "selectivity"]].mean()
    means = means.assign(layers=read.size()).reset_index()
    return {"means_over_layers": means.astype(object).where(means.notna(), None).to_dict("records")}
