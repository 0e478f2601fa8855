"""Whether harm can be read off hidden states by more than a linear subspace, and what the best erasure of it leaves."""

import logging
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, recorded
from safety_subspaces.evaluation.prompt_sets import files_of, read_sets
from safety_subspaces.evaluation.rates import estimate
from safety_subspaces.language.examples import PromptItem, groups_of
from safety_subspaces.language.model import load_language_model
from safety_subspaces.language.prompting import CHAT
from safety_subspaces.states.capture import Position, Site, check_layers, check_models, prompt_states
from safety_subspaces.states.probes import (
    Erasure,
    Predictions,
    ProbeKind,
    area_under_curve,
    auc_with_error,
    control_labels,
    group_folds,
    predict_held_out,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """Telling one set of prompts from another.

    Args:
        labels: 1 for the positive set.
        groups: What prompts that stand and fall together share.
        split_by: What splits keep together: the groups, or the sources.
        sources: Where each prompt is from, or its template.
    """

    labels: Int[Tensor, " prompt"]
    groups: list[Hashable]
    split_by: list[Hashable]
    sources: list[str | None]


def probe(
    models: dict[str, str],
    prompts: dict[str, str],
    out: str,
    positive: str = "harmful",
    probes: Sequence[ProbeKind] = ("linear", "rbf_svm", "mlp"),
    erasures: Sequence[Erasure] = ("none", "leace", "quadratic"),
    layers: list[int] | None = None,
    position: Position = "last",
    site: Site = "residual",
    folds: int = 5,
    controls: int = 3,
    split_by: Literal["group", "source"] = "group",
    learning_shares: Sequence[float] = (0.1, 0.25, 0.5),
    template: str = CHAT,
    split: Literal["dev", "test"] = "test",
    limit: int | None = None,
    batch_size: int = 64,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Train probes to tell one prompt set from each other one, layer by layer, before and after erasure.

    A probe is tested on prompts whose group (or source) it was not trained on. Erasures are fitted on the training
    prompts: leace leaves no linear information about the label there, quadratic no difference in means and covariances
    (it is told each prompt's label). Control labels are drawn at random for each group and go through the same erasure
    and folds of their own; selectivity is the accuracy less that on them. control_auc is the level that auc is to be
    read against: after quadratic erasure it need not be 0.5.

    Further tables: learning (accuracy against the share of training groups), transfer (trained on the prompts of one
    source, tested on those of another).

    Args:
        models: Label and path (or Hub id) of each model.
        prompts: Label and source of each prompt set, two or more, as for activations.
        out: Folder to write.
        positive: Label of the set that is told from each of the others.
        probes: linear (logistic regression), rbf_svm, mlp.
        erasures: none, leace, quadratic.
        layers: Hidden-state indices: 0 is the embedding, i what block i leaves; all by default.
        position: last token of the prompt, mean over it, or first_generated token of the answer.
        site: residual stream, or the output of each block's attention or mlp.
        folds: Parts of the cross-validation.
        controls: Draws of control labels.
        split_by: Keep whole groups of prompts on one side of a split, or whole sources.
        learning_shares: Shares of the training groups for the learning curve; the whole is in the table.
        template: chat, or a prompt template by its name or import path.
        split: Split of the organism's prompts.
        limit: At most so many prompts of each set.
        batch_size: Prompts at once.
        dtype: Type in which models are run.
        device: As for activations.
        seed: Seed of folds, controls and the MLP.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each model, negative set, layer, probe and erasure.

    Raises:
        InputError: Before a model runs: a label, layer or argument that cannot be used, sets that are too small, the
            same or share prompts, fewer groups than folds.

    Source: Alain and Bengio, arXiv 1610.01644; Hewitt and Liang, arXiv 1909.03368; Belrose et al., arXiv 2306.03819.
    """
    arguments = recorded(locals())
    started = time.monotonic()
    _check_arguments(models, prompts, positive, probes, erasures, folds, controls, learning_shares)
    if split_by not in ("group", "source") or batch_size < 1:
        raise InputError(f"split_by {split_by!r}, batch_size {batch_size}: expected group or source, and at least 1")
    check_models(models, layers, site)
    sets, left_out = read_sets(prompts, split, limit)
    tasks = {label: _task(sets[positive], items, split_by) for label, items in sets.items() if label != positive}
    splits = {label: group_folds(task.labels, task.split_by, folds, seed) for label, task in tasks.items()}
    results = ResultFolder(out, "probe", arguments, [*models.values(), *files_of(prompts)], overwrite, started)
    with results:
        tables: dict[str, list[dict[str, Any]]] = {"table": [], "learning": [], "transfer": []}
        few: dict[str, int] = {}
        for label, path in models.items():
            model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
            probed_layers = check_layers(model, layers, site)
            states = {
                name: torch.stack(
                    prompt_states(
                        model,
                        tokenizer,
                        [item.prompt for item in items],
                        position,
                        batch_size,
                        template,
                        site=site,
                        layers=probed_layers,
                    )
                )
                for name, items in sets.items()
            }
            del model
            hidden = next(iter(states.values())).shape[-1]
            few |= {name: len(folds_of[0][0]) for name, folds_of in splits.items() if len(folds_of[0][0]) <= hidden}
            cells = [(negative, index) for negative in tasks for index in range(len(probed_layers))]
            for negative, index in tqdm(cells, desc=f"probe {label}", unit="layer"):
                rows = torch.cat([states[positive][:, index], states[negative][:, index]])
                task = tasks[negative]
                named = {"model": label, "negative": negative, "layer": probed_layers[index], "position": position}
                for row in _probed(rows, task, splits[negative], probes, erasures, folds, controls, seed):
                    tables["table"].append({**named, **row})
                for row in _learning(rows, task, splits[negative], probes, learning_shares, seed):
                    tables["learning"].append({**named, **row})
                tables["transfer"] += [{**named, **row} for row in _transfer(rows, task, probes, seed)]
        if few:
            logger.warning(
                "probes were trained on fewer prompts than the states have dimensions (%s): a linear one then tells "
                "any labels in training apart; read accuracy beside the control labels",
                ", ".join(f"{name}: {count}" for name, count in few.items()),
            )
        table = pd.DataFrame(tables["table"])
        for name, reason in left_out:
            results.leave_out(name, reason)
        results.summary = _summarise(table) | {"trained_on_fewer_than_dimensions": few}
        results.write_table(table)
        for name in ("learning", "transfer"):
            if tables[name]:
                results.write_table(pd.DataFrame(tables[name]), name)
            else:
                results.leave_out(name, "no prompts with two sources in both sets, or no share asked for")
    return table


def _check_arguments(
    models: Mapping[str, str],
    prompts: Mapping[str, str],
    positive: str,
    probes: Sequence[str],
    erasures: Sequence[str],
    folds: int,
    controls: int,
    shares: Sequence[float],
) -> None:
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    if positive not in prompts:
        raise InputError(f"positive {positive!r} is no prompt set; expected one of {', '.join(prompts) or 'none'}")
    for name, values, known in (("probes", probes, get_args(ProbeKind)), ("erasures", erasures, get_args(Erasure))):
        if not values or len(set(values)) < len(values) or not set(values) <= set(known):
            raise InputError(f"{name} {list(values)}: expected different ones of {', '.join(known)}, at least one")
    if folds < 2 or controls < 0 or not all(0 < share < 1 for share in shares):
        raise InputError(
            f"folds {folds}, controls {controls}, learning_shares {list(shares)}: expected at least 2, at least 0, and "
            "shares in (0, 1)"
        )


def _task(positive: Sequence[PromptItem], negative: Sequence[PromptItem], split_by: str) -> _Task:
    items = [*positive, *negative]
    labels = torch.tensor([1] * len(positive) + [0] * len(negative))
    groups = [*groups_of(positive, "positive"), *groups_of(negative, "negative")]
    sources = [item.source for item in items]
    if split_by == "source" and None in sources:
        raise InputError("split_by source: some prompts have no source; give one to each, or split by group")
    return _Task(labels, groups, list(sources) if split_by == "source" else groups, sources)


def _probed(
    rows: Tensor,
    task: _Task,
    splits: Sequence[Any],
    probes: Sequence[ProbeKind],
    erasures: Sequence[Erasure],
    folds: int,
    controls: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    positives = int(task.labels.sum())
    counts = {"n_positive": positives, "n_negative": len(task.labels) - positives, "n_groups": len(set(task.groups))}
    chance = max(positives, len(task.labels) - positives) / len(task.labels)
    drawn = []
    for draw in range(controls):
        labels = control_labels(task.labels, task.groups, torch.Generator().manual_seed(1000 * seed + draw))
        # Folds stratified by the drawn labels: folds stratified by the true ones would push the controls below chance.
        drawn.append((labels, _control_folds(labels, task, folds, seed)))
    for kind in probes:
        for erasure in erasures:
            control_accuracies, areas = [], []
            for labels, control_splits in drawn:
                of_control = predict_held_out(rows, labels, control_splits, kind, seed, erasure)
                control_accuracies.append(float(np.nanmean(of_control.correct)))
                areas.append(area_under_curve(of_control, labels))
            control, area = (float(np.mean(values)) if values else nan for values in (control_accuracies, areas))
            spread = float(np.var(control_accuracies, ddof=1)) / controls if controls > 1 else nan
            predictions = predict_held_out(rows, task.labels, splits, kind, seed, erasure)
            accuracy = estimate(predictions.correct.tolist(), task.groups)
            auc, auc_stderr = auc_with_error(predictions, task.labels, task.groups)
            sides = [float(np.nanmean(predictions.correct[(task.labels == label).numpy()])) for label in (0, 1)]
            yield {
                "probe": kind,
                "erasure": erasure,
                "accuracy": accuracy.mean,
                "accuracy_stderr": accuracy.stderr,
                "balanced_accuracy": sum(sides) / 2,
                "auc": auc,
                "auc_stderr": auc_stderr,
                "control_accuracy": control,
                "selectivity": accuracy.mean - control,
                "selectivity_stderr": sqrt(accuracy.stderr**2 + spread),
                "control_auc": area,
                "control_auc_sd": float(np.std(areas, ddof=1)) if controls > 1 else nan,
                "chance": chance,
                "n_controls": controls,
                **counts,
            }


def _control_folds(labels: Tensor, task: _Task, folds: int, seed: int) -> list[Any]:
    """Folds of control labels; where they left one label fewer groups (or sources) than folds, of as many as it has."""
    counts = [
        len({unit for unit, label in zip(task.split_by, labels.tolist(), strict=True) if label == side})
        for side in (0, 1)
    ]
    return group_folds(labels, task.split_by, max(2, min(folds, *counts)), seed)


def _learning(
    rows: Tensor, task: _Task, splits: Sequence[Any], probes: Sequence[ProbeKind], shares: Sequence[float], seed: int
) -> Iterator[dict[str, Any]]:
    """Train on a share of each fold's training groups."""
    for share in shares:
        fewer, sizes = [], []
        for number, (train, test) in enumerate(splits):
            groups = list(dict.fromkeys(task.groups[row] for row in train))
            order = np.random.default_rng([seed, number]).permutation(len(groups))
            chosen_groups = {groups[index] for index in order[: max(2, round(share * len(groups)))]}
            chosen = np.array([row for row in train if task.groups[row] in chosen_groups])
            fewer.append((chosen, test))
            sizes.append(len(chosen))
        for kind in probes:
            predictions = predict_held_out(rows, task.labels, fewer, kind, seed)
            accuracy = estimate([None if np.isnan(c) else c for c in predictions.correct.tolist()], task.groups)
            yield {
                "probe": kind,
                "share": share,
                "n_train": float(np.mean(sizes)),
                "accuracy": accuracy.mean,
                "accuracy_stderr": accuracy.stderr,
                "auc": area_under_curve(predictions, task.labels),
                "n_test": accuracy.n,
            }


def _transfer(rows: Tensor, task: _Task, probes: Sequence[ProbeKind], seed: int) -> Iterator[dict[str, Any]]:
    """Train on all prompts of one source, test on those of another whose groups were not trained on."""
    sides = [
        {s for s, label in zip(task.sources, task.labels.tolist(), strict=True) if label == side} for side in (0, 1)
    ]
    both = sorted(source for source in sides[0] & sides[1] if source is not None)
    for source in both if len(both) > 1 else []:
        train = np.array([row for row, origin in enumerate(task.sources) if origin == source])
        seen = {task.groups[row] for row in train}
        test = np.array(
            [row for row, origin in enumerate(task.sources) if origin != source and task.groups[row] not in seen]
        )
        if not len(test):
            continue
        for kind in probes:
            predictions = predict_held_out(rows, task.labels, [(train, test)], kind, seed)
            for other in [*(name for name in both if name != source), None]:
                chosen = [row for row in test if other is None or task.sources[row] == other]
                if not chosen:
                    continue
                part = Predictions(predictions.score[chosen], predictions.correct[chosen])
                accuracy = estimate(part.correct.tolist(), [task.groups[row] for row in chosen])
                yield {
                    "probe": kind,
                    "train_source": source,
                    "test_source": other or "all others",
                    "accuracy": accuracy.mean,
                    "accuracy_stderr": accuracy.stderr,
                    "auc": area_under_curve(part, task.labels[chosen]),
                    "n_train": len(train),
                    "n_test": accuracy.n,
                }


def _summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Means over layers, none of which is picked by its result: what each probe reads after each erasure."""
    keys = ["model", "negative", "probe", "erasure"]
    means = (
        table.groupby(keys, sort=False)[["accuracy", "auc", "control_auc", "chance", "selectivity"]]
        .mean()
        .reset_index()
    )
    return {"means_over_layers": means.astype(object).where(means.notna(), None).to_dict("records")}
