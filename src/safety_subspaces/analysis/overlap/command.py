"""Whether two kinds of fine-tuning write to the same directions of a weight, against chance and against floors."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View
from safety_subspaces.language.model_paths import check_there

if TYPE_CHECKING:
    import pandas as pd

VIEW = View(
    by=("first", "second", "kind", "energy"),
    columns=("overlap", "matched_chance", "covariance_chance", "chance"),
    over="tensors",
    says="overlap is 1 where one update's space holds the other's; matched_chance is what it is by chance.",
)


@dataclass(frozen=True)
class CovarianceUpdate:
    """The update whose covariance of rows explains an overlap, as far as it does.

    Args:
        tuned: Folder of the model that it ends at (or LoRA adapter, or delta snapshot): one trained on unrelated data,
            or the aligned model.
        start: Folder of the model that it starts from; by default the model that all updates start from.
    """

    tuned: str
    start: str | None = None


def overlap(
    aligned: str,
    tuned: dict[str, str],
    out: str,
    floors: Sequence[Sequence[str]] = (),
    unrelated: Sequence[str] = (),
    covariance: CovarianceUpdate | None = None,
    energies: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99),
    controls: int = 199,
    angles: bool = True,
    tensors: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    workers: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
) -> "pd.DataFrame":
    """Measure the mode subspace overlap of every pair of updates, tensor by tensor and energy by energy.

    The overlap, ||Qu^T Qh||^2 / min(ku, kh), compares the left singular vectors that hold a share of each update's
    energy. It is 1 where one space contains the other, and max(ku, kh) / rows by chance. Vectors count as one column. A
    zero update has no direction: its overlaps are NaN, counted, and listed in result.json.

    Each p is of one null, and says nothing of the others. p_haar: two uniformly random subspaces would overlap as much.
    p_matched: so would the same pair after each row of the second gets a random sign, which keeps the scale of rows
    that any two updates share, and no other covariance; matched_chance is the exact mean over signs, matched_sd their
    standard deviation. p_covariance: so would two updates that share no more than each shares with a third, the one of
    covariance; covariance_chance is the mean of reference_overlap_first and reference_overlap_second, the overlaps
    of each with that one at the same ranks, raised where it is narrower than they are, and covariance_sd the standard
    deviation of the overlap minus that level. These are NaN without covariance and where its update has too few
    directions, p_covariance also below four directions on a side. kind is cross, same kind (a floor) or unrelated.

    Beside each overlap stand the projection (chordal) and Grassmann distances, the principal angles, the stable and
    effective rank of each update, and k_margin, by what share of energy each rank escaped being another one. Tables by
    layer, type and pair pool the tensors: their p_matched and p_covariance are of the mean over tensors, whose nulls
    are independent. audit says of each update how much of it is rounding of the stored numbers and how well conditioned
    it is.

    Interrupted, the same command goes on from the tensors that are done.

    Args:
        aligned: Folder of the model that every update starts from, such as the aligned one.
        tuned: Label and folder (or LoRA adapter, or delta snapshot) of each fine-tuned model; two or more. A file of
            analyze.py subspace (left, top) stands for the update that it was made of, whatever that started from; an
            energy that takes more directions than it holds is NaN.
        out: Folder for the results.
        floors: Pairs of labels of one kind (two seeds, two halves of the data): how much the same overlaps itself.
        unrelated: Labels of updates by training on unrelated data: what a pair with one of them overlaps by is what any
            two fine-tunes share.
        covariance: The update whose covariance of rows p_covariance keeps: a fine-tune on unrelated data (tuned; start
            is aligned by default), or the alignment update (tuned the aligned model, start the base). Take one as
            broad as the others (by effective rank): of a narrow one the test has little power.
        energies: Shares of energy, in (0, 1], at which the spaces are cut.
        controls: Draws of the matched control; 0 leaves it out.
        angles: Measure principal angles and the Grassmann distance, for one or two singular value decompositions more
            a share; without, they are NaN.
        tensors: Patterns, types or layers of the tensors to take; all by default.
        seed: Seed of the matched control.
        overwrite: Replace earlier results in out.
        workers: Processes of one thread each; by default one a core, or none beside this one for small models.
        devices: Ranks on each node that share the tensors (GPUs, where there are any).
        num_nodes: Nodes; they must see one file system.

    Returns:
        One row for each pair, tensor and energy; empty on every rank but the first.

    Raises:
        InputError: Before anything is computed: an argument out of range, a folder that cannot be read, models of
            different shapes or vocabularies. Later: weights that are NaN or infinite, or those of the aligned model.

    Source: arXiv 2505.14185; the nulls and floors are ours.
    """
    arguments = recorded(locals())
    started = time.monotonic()
    _check_arguments(tuned, floors, unrelated, energies, controls)
    third = _covariance_pair(covariance, aligned, tuned)
    check_there(aligned, *tuned.values())
    check_result_free(out, "overlap", overwrite)

    import pandas as pd

    from safety_subspaces.algebra.audit import summarise_audit
    from safety_subspaces.analysis.overlap.tables import (
        layer_table,
        overlap_table,
        pair_table,
        rows_of,
        summarise_pairs,
        type_table,
    )
    from safety_subspaces.analysis.overlap.tensors import OverlapTensor, check_subspace_file, is_subspace_file
    from safety_subspaces.analysis.work import Workers, factorisation_cost, unfinished_work, work_through
    from safety_subspaces.weights.compatibility import check_compatible, compared_names, coverage, select_tensors
    from safety_subspaces.weights.delta import warn_of_foreign_bases
    from safety_subspaces.weights.lineage import check_related
    from safety_subspaces.weights.update_checkpoint import open_checkpoint

    pool = Workers(workers, devices, num_nodes)
    origin = open_checkpoint(aligned)
    stored = frozenset(label for label, path in tuned.items() if is_subspace_file(path))
    models = {label: open_checkpoint(path) for label, path in tuned.items() if label not in stored}
    ends = {path: open_checkpoint(path) for path in third or ()}
    check_compatible(origin, *models.values(), *ends.values(), tensors=tensors)
    for path in sorted({tuned[label] for label in stored}):
        check_subspace_file(path, origin)
    names = select_tensors(compared_names(origin, *models.values(), *ends.values()), tensors)
    warn_of_foreign_bases(origin, models)
    implausible = check_related(origin, models, names, "the aligned model")
    if third is not None:
        warn_of_foreign_bases(ends[third[0]], {"covariance": ends[third[1]]})
    inputs = list(dict.fromkeys([aligned, *tuned.values(), *ends]))
    results = ResultFolder(out, "overlap", arguments, inputs, overwrite, started)
    results.check_free()
    task = OverlapTensor(aligned, tuned, stored, tuple(energies), controls, seed, angles, third)
    costs = {name: factorisation_cost(origin.shape(name)) for name in names}
    with unfinished_work(out, "overlap", arguments, inputs, pool) as unfinished:
        records = work_through(task, costs, unfinished, pool, "comparing updates")
        if records is None:
            return pd.DataFrame()
        table = overlap_table(records, floors, unrelated)
        audit = [row for record in records.values() for row in record["audit"]]
        _check_updates(audit, tuned, aligned)
        matrices = {name for name in names if len(origin.shape(name)) == 2}
        pairs = pair_table(table, matrices)
        with results:
            for entry in (*coverage({"reference": origin, **models}, names), *rows_of(records, "left_out")):
                results.leave_out(entry["name"], entry["reason"])
            results.summary = {
                "tensors": len(names),
                "matrices": len(matrices),
                "pairs": summarise_pairs(pairs),
                "implausible": implausible,
                "audit": summarise_audit(audit),
            }
            results.write_table(table)
            results.write_table(layer_table(table, matrices), "layers")
            results.write_table(type_table(table, matrices), "types")
            results.write_table(pairs, "pairs")
            results.write_table(pd.DataFrame(audit), "audit")
    return table


def _check_arguments(
    updates: Mapping[str, str],
    floors: Sequence[Sequence[str]],
    unrelated: Sequence[str],
    energies: Sequence[float],
    controls: int,
) -> None:
    if len(updates) < 2:
        raise InputError(f"an overlap needs two updates or more, got {len(updates)} ({', '.join(updates) or 'none'})")
    for pair in floors:
        if len(pair) != 2 or len(set(pair)) != 2:
            raise InputError(f"a floor is a pair of different labels, got {list(pair)}")
        for label in pair:
            if label not in updates:
                raise InputError(
                    f"floor {list(pair)} names {label!r}, which is no update; expected two of {', '.join(updates)}"
                )
    for label in unrelated:
        if label not in updates:
            raise InputError(f"unrelated names {label!r}, which is no update; expected some of {', '.join(updates)}")
    if not energies:
        raise InputError("no energy share was given; expected at least one in (0, 1]")
    for share in energies:
        if not 0 < share <= 1:
            raise InputError(f"an energy share must be in (0, 1], got {share}")
    if len(set(energies)) < len(energies):
        raise InputError(f"an energy share was given twice: {list(energies)}")
    if controls < 0:
        raise InputError(f"the number of controls must be 0 or more, got {controls}")


def _covariance_pair(
    covariance: CovarianceUpdate | None, reference: str, updates: Mapping[str, str]
) -> tuple[str, str] | None:
    """Return start and end of the update whose covariance is kept, if there is one: a third one, and an update."""
    if covariance is None:
        return None
    start = covariance.start or reference
    places = {path: Path(path).resolve() for path in (start, covariance.tuned, reference, *updates.values())}
    if places[start] == places[covariance.tuned]:
        raise InputError(
            f"covariance starts and ends at {start}: there is no update between a model and itself; expected a model "
            "(covariance.tuned) and one that it was trained from (covariance.start)"
        )
    for label, path in updates.items():
        if (places[start], places[covariance.tuned]) == (places[reference], places[path]):
            raise InputError(
                f"covariance is of {path}, the update {label!r} itself: what it shares with itself explains any "
                "overlap; expected a third update, of unrelated data"
            )
    return start, covariance.tuned


def _check_updates(audit: Sequence[Mapping[str, Any]], updates: Mapping[str, str], reference: str) -> None:
    """Refuse an update that is zero everywhere: every number of it would be missing."""
    for label, path in updates.items():
        if not any(row["numerical_rank"] for row in audit if row["update"] == label):
            raise InputError(
                f"{path} ({label}) has the weights of {reference} in every tensor that was compared: there is no update"
            )
