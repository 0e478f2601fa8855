"""What survives of a fine-tune when its update is projected onto, away from or against the alignment subspace."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from safety_subspaces.analysis.projected_models import ProjectedModels
from safety_subspaces.analysis.projection_sweep import Sweep, pooled_table, sweep_tensors, tensor_table
from safety_subspaces.analysis.projections import list_projections
from safety_subspaces.analysis.results import ResultFolder
from safety_subspaces.checkpoint import open_checkpoint
from safety_subspaces.compatibility import check_compatible
from safety_subspaces.delta import warn_of_foreign_bases
from safety_subspaces.errors import InputError
from safety_subspaces.evaluation import EvaluationSettings, build_evaluator
from safety_subspaces.projector import Method
from safety_subspaces.subspace import RankRule, SubspaceKind

SUBSPACES: tuple[SubspaceKind, ...] = ("top", "random", "random-k", "random-energy", "scaled")
METHODS: tuple[Method, ...] = ("onto", "away", "opposite")
# The fractions of arXiv 2505.14185, and two between: judged harm jumps where these keep .4 to .6
# of the energy.
FRACTIONS = (0.01, 0.1, 0.25, 0.4, 0.5, 0.75, 0.99)


def project(
    base: str,
    aligned: str,
    tuned: dict[str, str],
    out: str,
    subspaces: Sequence[SubspaceKind] = ("top", "random-energy"),
    methods: Sequence[Method] = ("onto", "away"),
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 3,
    seed: int = 0,
    evaluate: EvaluationSettings | None = None,
    write: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Project fine-tuning updates onto, away from or against the alignment subspace, beside random controls.

    For each tensor L holds the leading left singular vectors of W_aligned - W_base; the projected models are
    W_aligned + L L^T d (onto), W_aligned + d - L L^T d (away) and W_aligned - L L^T d (opposite), with d =
    W_tuned - W_aligned. Energies are summed over tensors before dividing. Of the table's columns, energy_kept
    is the projected update's share of ||d||^2, cos_task_projected its cosine with d, cos_task_alignment the
    cosine of d and the alignment update, and chance_energy the share that a random subspace of the same rank
    in each tensor is expected to keep (for away: to leave; NaN for scaled, which has no rank). A table per
    tensor stands beside it, and one of what the alignment update is like in each tensor.

    Args:
        base: Folder of the base model W_base.
        aligned: Folder of the aligned model W_aligned.
        tuned: Label and folder (or LoRA adapter) of each fine-tune of the aligned model.
        out: Folder for the results.
        subspaces: top is the alignment subspace; random a random one of the same rank; random-k as many of the
            alignment update's own directions, drawn at random; random-energy a random one whose rank in each
            tensor is set to keep the energy that top keeps there; scaled the whole update times one factor
            that leaves the energy that top leaves.
        methods: What to do with the part in the subspace: keep it alone (onto), remove it (away), reverse it and
            drop the rest (opposite).
        fractions: Ranks of the subspace as fractions of full rank, between 0 and 1.
        draws: Draws of each random subspace.
        seed: Seed of the draws.
        evaluate: Measure every projected model's behaviour, in memory, by these settings.
        write: Save every projected model under out/models, a whole model each.
        overwrite: Replace earlier results in out.

    Returns:
        The pooled table, one row for each fine-tune, subspace, method, fraction and draw.

    Raises:
        InputError: Before anything is computed: an argument out of range, a folder that cannot be read, models of
            different shapes or vocabularies. Later: weights that are NaN or infinite.

    Source: arXiv 2505.14185.
    """
    arguments: dict[str, Any] = {
        **{"base": base, "aligned": aligned, "tuned": tuned, "subspaces": list(subspaces), "methods": list(methods)},
        **{"fractions": list(fractions), "draws": draws, "seed": seed, "write": write},
        "evaluate": asdict(evaluate) if evaluate else None,
    }
    _check_arguments(tuned, subspaces, methods, fractions, draws)
    models = {path: open_checkpoint(path) for path in dict.fromkeys((base, aligned, *tuned.values()))}
    check_compatible(models[aligned], models[base], *(models[path] for path in tuned.values()))
    evaluator = build_evaluator(evaluate) if evaluate else None
    labelled = {label: models[path] for label, path in tuned.items()}
    warn_of_foreign_bases(models[aligned], labelled)
    projections = list(dict.fromkeys(list_projections(subspaces, fractions, draws)))
    inputs = [base, aligned, *tuned.values()]
    inputs += [evaluate.prompts] if evaluate and Path(evaluate.prompts).is_file() else []
    with ResultFolder(out, "project", arguments, inputs, overwrite) as results:
        for name, reason in models[aligned].left_out.items():
            results.leave_out(name, reason)
        with tempfile.TemporaryDirectory(dir=results.folder, prefix=".factors-") as spilled:
            scratch = Path(spilled) if evaluator or write else None
            sweep = sweep_tensors(models[base], models[aligned], labelled, projections, seed, scratch, results)
            tensors = tensor_table(sweep, projections, methods)
            table = pooled_table(tensors, sweep, projections, methods)
            if scratch:
                maker = ProjectedModels(models[aligned], labelled, sweep, scratch, seed)
                if write:
                    maker.write_all(table, results.folder / "models")
                if evaluator:
                    table = maker.evaluate_all(table, aligned, evaluator, results.folder / "generations.jsonl")
        results.summary = _summarise(sweep, results.left_out)
        results.write_table(table)
        results.write_table(tensors, "tensors")
        results.write_table(pd.DataFrame(sweep.alignment), "alignment")
    return table


def _check_arguments(
    tuned: Mapping[str, str],
    subspaces: Sequence[str],
    methods: Sequence[str],
    fractions: Sequence[float],
    draws: int,
) -> None:
    if not tuned:
        raise InputError("no fine-tune was given; expected at least one label and folder (--tuned.useful FOLDER)")
    for label in tuned:
        if not label or "/" in label or label.startswith("."):
            raise InputError(f"label {label!r} names a folder and rows of tables; expected letters, digits, - and _")
    for what, got, known in (("subspace", subspaces, SUBSPACES), ("method", methods, METHODS)):
        unknown = [value for value in got if value not in known]
        if unknown or not got:
            raise InputError(f"unknown {what} {unknown[0] if unknown else '(none given)'}; expected {', '.join(known)}")
    if not fractions:
        raise InputError("no fraction was given; expected at least one between 0 and 1")
    for fraction in fractions:
        RankRule(fraction=fraction)  # raises outside (0, 1)
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")


def _summarise(sweep: Sweep, left_out: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "tensors": len(sweep.totals),
        "alignment_frobenius_norm": sweep.alignment_energy**0.5,
        "task_frobenius_norm": {label: sweep.total(label) ** 0.5 for label in sweep.labels},
        "cos_task_alignment": {label: sweep.cosine_with_alignment(label) for label in sweep.labels},
        "capped_ranks": {"count": len(sweep.capped), "at_largest_fraction": sweep.capped},
        "left_out_counts": Counter(entry["reason"] for entry in left_out),
    }
