"""Whether the paper's conclusions in weight space hold whatever one chooses: the sensitivity atlas."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safety_subspaces.algebra.choices import Side
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View

if TYPE_CHECKING:
    import pandas as pd

# Two and a half per cent of fewer resamples is less than one of them.
LEAST_RESAMPLES = 40
VIEW = View(
    columns=("conclusion", "subject", "holds", "opposite", "undecided", "unknown", "reading", "factor"),
    says="For how many choices each conclusion holds, and the choice that it depends on most.",
)


def atlas(
    base: str,
    aligned: str,
    tuned: dict[str, str],
    out: str,
    floors: Sequence[Sequence[str]] = (),
    seeds: Sequence[int] = (),
    fractions: Sequence[float] = (0.1, 0.25, 0.5),
    energies: Sequence[float] = (0.5, 0.75, 0.9),
    counts: Sequence[int] = (4, 16),
    sides: Sequence[Side] = ("left", "right"),
    bootstrap: int = 1000,
    seed: int = 0,
    tensors: Sequence[str] = (),
    any_lineage: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
) -> "pd.DataFrame":
    """Ask five conclusions of every rank rule, rank, side, aggregation, layer, tensor type and seed.

    alignment_above_chance: alignment's leading directions keep more of a fine-tune's energy than random ones (log2 of
    the ratio); alignment_above_matched_chance: more than if the fine-tune's rows had random signs, so that scales of
    rows that any two updates share explain nothing of it. same_alignment_energy: they keep as much of one fine-tune as
    of another of a different kind (difference of the shares, within a quarter of the room between chance and the most
    that any subspace of the rank could keep). overlap_above_matched_chance: the mode subspace overlap of two kinds of
    fine-tune lies above that of the same pair with random signs of rows. overlap_nearer_to_same_kind: it lies above the
    midpoint of that level and the overlap of two fine-tunes of one kind.

    A conclusion holds where the whole bootstrap interval is on the claimed side, is the opposite where it is wholly on
    the other, and undecided between. One seed is resampled by tensors; all seeds by seeds first and tensors within
    each, which three seeds make coarse. A tensor whose alignment or fine-tune is zero, or whose subspace is the whole
    space, decides nothing: it is left out of every aggregation, and counted.

    Interrupted, the same command goes on from the tensors that are done.

    Args:
        base: Folder of the base model; {seed} in a path stands for each of seeds.
        aligned: Folder of the aligned model.
        tuned: Label and folder (or LoRA adapter, or delta snapshot) of each fine-tune of the aligned model.
        out: Folder for the results.
        floors: Pairs of labels of one kind (two seeds, two halves of the data); other pairs are of two kinds.
        seeds: Seeds of the models; none takes the paths as they are.
        fractions: Ranks as fractions of full rank, between 0 and 1.
        energies: Ranks as shares of each update's energy, in (0, 1].
        counts: Ranks as numbers of directions.
        sides: left compares what updates write to, right what they read from.
        bootstrap: Resamples of each interval.
        seed: Seed of the bootstrap.
        tensors: Patterns, types or layers of the tensors to take; all by default.
        any_lineage: Go on, with a warning, where base and aligned look swapped, or a fine-tune trained from the base.
        overwrite: Replace earlier results in out.
        workers: Processes of one thread each; by default one a core, or none beside this one for small models.
        devices: Ranks on each node that share the tensors (GPUs, where there are any).
        num_nodes: Nodes; they must see one file system.

    Returns:
        One row for each conclusion and fine-tune or pair: how many choices it holds for, and what it depends on. The
        atlas itself is table.parquet, and what it is made of tensors.parquet. Empty on every rank but the first.

    Raises:
        InputError: Before anything is computed: an argument out of range, a path without {seed} where there are several
            seeds, a folder that cannot be read, models of different shapes or vocabularies. Later: weights that are NaN
            or infinite, or the same in two models.

    Source: arXiv 2505.14185 for the conclusions and the overlap; choices, nulls, margins and intervals are ours.
    """
    arguments = recorded(locals())
    started = time.monotonic()
    _check_bootstrap(sides, bootstrap, seed)
    check_result_free(out, "atlas", overwrite)

    import pandas as pd

    from safety_subspaces.algebra.audit import summarise_audit
    from safety_subspaces.analysis.atlas.conclusions import conclude
    from safety_subspaces.analysis.atlas.measures import tensor_table
    from safety_subspaces.analysis.atlas.run import (
        check_labels,
        check_models,
        check_updates,
        expand_seeds,
        left_out,
        list_choices,
    )
    from safety_subspaces.analysis.atlas.summary import summarise
    from safety_subspaces.analysis.atlas.tensors import AtlasTensor
    from safety_subspaces.analysis.work import Workers, factorisation_cost, unfinished_work, work_through
    from safety_subspaces.weights.compatibility import compared_names, select_tensors
    from safety_subspaces.weights.lineage import check_lineage
    from safety_subspaces.weights.update_checkpoint import open_checkpoint

    check_labels(tuned, floors)
    choices = list_choices(fractions, energies, counts)
    pool = Workers(workers, devices, num_nodes)
    models = expand_seeds(base, aligned, tuned, seeds)
    opened = {path: open_checkpoint(path) for one in models for path in one.paths}
    origin = check_models(models, opened)
    names = select_tensors(compared_names(origin, *opened.values()), tensors)
    found = {
        one.seed: check_lineage(
            opened[one.base],
            opened[one.aligned],
            {label: opened[path] for label, path in one.tuned.items()},
            names,
            any_lineage,
        )
        for one in models
    }
    results = ResultFolder(out, "atlas", arguments, list(opened), overwrite, started)
    results.check_free()
    task = AtlasTensor(models, tuple(sides), choices)
    costs = {name: len(models) * len(sides) * factorisation_cost(origin.shape(name)) for name in names}
    with unfinished_work(out, "atlas", arguments, list(opened), pool) as unfinished:
        records = work_through(task, costs, unfinished, pool, "measuring")
        if records is None:
            return pd.DataFrame()
        audit = [row for record in records.values() for row in record["audit"]]
        check_updates(audit, models)
        matrices = {name for name in names if len(origin.shape(name)) == 2}
        by_tensor = tensor_table(records.values(), [(choice.rule, float(choice.value)) for choice in choices], matrices)
        table = conclude(by_tensor, floors, bootstrap, seed)
        summary, conclusions = summarise(table)
        with results:
            for entry in left_out(records, models, opened, names):
                results.leave_out(entry["name"], entry["reason"])
            results.summary = {
                "seeds": [one.seed for one in models],
                "tensors": len(names),
                "matrices": len(matrices),
                "choices": len(table),
                "conclusions": conclusions,
                "lineage": {seed: each.summary() for seed, each in found.items()},
                "audit": summarise_audit([{**row, "update": f"{row['seed']}, {row['update']}"} for row in audit]),
            }
            results.write_table(table)
            results.write_table(summary, "summary")
            results.write_table(by_tensor, "tensors")
            results.write_table(pd.DataFrame(audit), "audit")
    return summary


def _check_bootstrap(sides: Sequence[str], bootstrap: int, seed: int) -> None:
    unknown = [side for side in sides if side not in ("left", "right")]
    if unknown or not sides or len(set(sides)) < len(sides):
        raise InputError(f"sides are left, right or both, got {list(sides)}")
    if bootstrap < LEAST_RESAMPLES:
        raise InputError(f"a 95 % interval needs at least {LEAST_RESAMPLES} resamples, got bootstrap {bootstrap}")
    if seed < 0:
        raise InputError(f"the seed of the bootstrap must be 0 or more, got {seed}")
