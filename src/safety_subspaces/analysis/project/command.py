"""What survives of a fine-tune when its update is projected onto, away from or against the alignment subspace."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safety_subspaces.algebra.choices import Controls, Method, SubspaceKind
from safety_subspaces.analysis.project.arguments import check_arguments, check_models
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.model_paths import check_distinct, check_there
from safety_subspaces.weights.subspace_path import check_subspace_there

if TYPE_CHECKING:
    import pandas as pd

# The fractions of arXiv 2505.14185, and two between: judged harm jumps where these keep .4 to .6
# of the energy.
FRACTIONS = (0.01, 0.1, 0.25, 0.4, 0.5, 0.75, 0.99)
VIEW = View(
    by=("tuned", "subspace", "method", "fraction"),
    columns=("energy_kept", "utility", "harm_score", "refusal_margin", "chance_energy", "energy_kept_sd",
             "cos_task_projected"),
    over="draws",
    says="energy_kept: share of the update that is kept; top is the alignment subspace, the others are its controls.",
)  # fmt: skip


def project(
    base: str,
    aligned: str,
    tuned: dict[str, str],
    out: str,
    subspaces: Sequence[SubspaceKind] = ("top", "random-energy"),
    methods: Sequence[Method] = ("onto", "away"),
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 3,
    energy_draws: int = 99,
    controls: Controls = "sampled",
    seed: int = 0,
    subspace: str | None = None,
    tensors: Sequence[str] = (),
    evaluate: EvaluationSettings | None = None,
    write: bool = False,
    any_lineage: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
) -> "pd.DataFrame":
    """Project fine-tuning updates onto, away from or against the alignment subspace, beside random controls.

    For each tensor L holds the leading left singular vectors of W_aligned - W_base; the projected models are
    W_aligned + L L^T d (onto), W_aligned + d - L L^T d (away) and W_aligned - L L^T d (opposite), with d =
    W_tuned - W_aligned. Energies are summed over tensors before dividing. Of the table's columns, energy_kept
    is the projected update's share of ||d||^2, cos_task_projected its cosine with d, cos_task_alignment the
    cosine of d and the alignment update, chance_energy the share that a random subspace of the same rank
    in each tensor is expected to keep (for away: to leave; NaN for scaled, which has no rank), energy_kept_sd
    its standard deviation over draws in closed form, and control says how a row was found. energy_gap is
    energy_kept minus that of top at the same fraction and method: by how much this very draw misses it.
    n_energy_draws counts the draws of the row's kind whose energy alone was drawn, a row each in the table draws
    (energy_kept, energy_gap): a model is made of none of them, and a p of energies is the rank of top among them.
    n_model_draws counts those that were written or evaluated, the rows of this table: what stands behind behaviour.
    Tables by tensor, layer and type stand beside it, and one of what the alignment update is like in each tensor.

    Interrupted, the same command goes on from the tensors that are done.

    Args:
        base: Folder of the base model W_base.
        aligned: Folder of the aligned model W_aligned.
        tuned: Label and folder (or LoRA adapter, or delta snapshot) of each fine-tune of the aligned model.
        out: Folder for the results.
        subspaces: top is the alignment subspace; random a random one of the same rank; random-k as many of the
            alignment update's own directions, drawn at random; random-energy a random one whose rank in each
            tensor is set to keep the energy that top keeps there; scaled the whole update times one factor
            that leaves the energy that top leaves.
        methods: What to do with the part in the subspace: keep it alone (onto), remove it (away), reverse it and
            drop the rest (opposite).
        fractions: Ranks of the subspace as fractions of full rank, between 0 and 1.
        draws: Draws of each random subspace that are made, and written or evaluated.
        energy_draws: Draws of each random kind whose energy alone is drawn, for next to nothing: of random-k exactly,
            of random and random-energy from the Beta distribution of their exact mean and variance. 0 leaves them out.
        controls: sampled draws the random subspaces; closed gives mean and standard deviation over all draws
            instead, which is exact, sooner done, and has no model to write or evaluate.
        seed: Seed of the draws.
        subspace: A file of analyze.py subspace (left, top) whose bases stand for the alignment subspace.
        tensors: Patterns, types or layers of the tensors to take; all by default.
        evaluate: Measure every projected model's behaviour, in memory, by these settings.
        write: Save every projected model under out/models, a whole model each.
        any_lineage: Go on, with a warning, where base and aligned look swapped, or a fine-tune trained from the base.
        overwrite: Replace earlier results in out.
        workers: Processes of one thread each; by default one a core, or none beside this one for small models.
        devices: Ranks on each node that share the tensors (GPUs, where there are any).
        num_nodes: Nodes; they must see one file system.

    Returns:
        The pooled table, one row for each fine-tune, subspace, method, fraction and draw; empty on every rank but
        the first.

    Raises:
        InputError: Before anything is computed: an argument out of range, a folder that cannot be read, models of
            different shapes or vocabularies, or that look swapped. Later: weights that are NaN or infinite.

    Source: arXiv 2505.14185.
    """
    arguments = recorded(locals())
    started = time.monotonic()
    check_arguments(tuned, subspaces, methods, fractions, draws, energy_draws)
    check_models(controls, subspaces, tensors, write, evaluate)
    check_there(base, aligned, *tuned.values())
    if subspace is not None:
        check_subspace_there(subspace)
    check_distinct(base, aligned, tuned)
    check_result_free(out, "project", overwrite)

    import pandas as pd

    from safety_subspaces.algebra.audit import summarise_audit
    from safety_subspaces.algebra.projection import list_projections, with_measured_alone
    from safety_subspaces.analysis.project.checks import check_basis, check_updates
    from safety_subspaces.analysis.project.tables import (
        drawn_table,
        pooled_table,
        read_sweep,
        shares_by,
        summarise,
        tensor_table,
        without_direction,
    )
    from safety_subspaces.analysis.project.tensors import ModelRow, ProjectTensor
    from safety_subspaces.analysis.project.written import create_models, finish_models, write_scaled, written_table
    from safety_subspaces.analysis.work import Workers, factorisation_cost, unfinished_work, work_through
    from safety_subspaces.weights.compatibility import (
        check_compatible,
        compared_names,
        coverage,
        select_tensors,
    )
    from safety_subspaces.weights.delta import warn_of_foreign_bases
    from safety_subspaces.weights.lineage import check_lineage
    from safety_subspaces.weights.update_checkpoint import open_checkpoint

    pool = Workers(workers, devices, num_nodes)
    models = {path: open_checkpoint(path) for path in dict.fromkeys((base, aligned, *tuned.values()))}
    labelled = {label: models[path] for label, path in tuned.items()}
    check_compatible(models[aligned], models[base], *labelled.values(), tensors=tensors)
    names = select_tensors(compared_names(models[aligned], models[base], *labelled.values()), tensors)
    if subspace is not None:
        check_basis(subspace, models[aligned], names, fractions)
    if evaluate:
        # A sweep of weights alone need not wait for Transformers.
        from safety_subspaces.analysis.project.measured import MeasuredModels
        from safety_subspaces.evaluation.behaviour import build_evaluator
        from safety_subspaces.evaluation.prompt_sets import files_of
        from safety_subspaces.language.model import load_config, load_tokenizer
    evaluator = build_evaluator(evaluate) if evaluate else None
    if evaluator:
        evaluator.check_room(load_config(aligned), load_tokenizer(aligned))
    warn_of_foreign_bases(models[aligned], labelled)
    found = check_lineage(models[base], models[aligned], labelled, names, any_lineage)
    projections = list_projections(subspaces, fractions, draws, controls)
    inputs = [base, aligned, *tuned.values(), *([subspace] if subspace else [])]
    inputs += files_of(evaluate.prompts) if evaluate else []
    results = ResultFolder(out, "project", arguments, inputs, overwrite, started)
    results.check_free()
    rows = [
        ModelRow(label, projection, method)
        for label in tuned
        for method in dict.fromkeys(methods)
        for projection in projections
    ]
    if evaluator is not None:
        evaluator.prepare(len(rows))
    costs = {name: factorisation_cost(models[aligned].shape(name)) for name in names}
    with unfinished_work(out, "project", arguments, inputs, pool) as unfinished:
        written = rows if write else []
        folder = unfinished.folder / "models"
        if unfinished.is_first_rank:
            create_models(written, aligned, unfinished, apart=any(name in models[aligned].full.ties for name in names))
        unfinished.wait_for_all()
        task = ProjectTensor(
            base=base,
            aligned=aligned,
            tuned=tuned,
            basis=subspace,
            projections=with_measured_alone(projections, subspaces, fractions, energy_draws),
            seed=seed,
            spilled=unfinished.folder / "factors" if evaluator else None,
            written=tuple(row for row in written if row.projection.subspace != "scaled"),
            models=folder,
            energy_draws=energy_draws,
        )
        records = work_through(task, costs, unfinished, pool, "projecting")
        if records is None:
            return pd.DataFrame()
        sweep = read_sweep(records)
        by_tensor = tensor_table(sweep, projections, methods)
        table = pooled_table(by_tensor, sweep, draws if write or evaluate else 0)
        check_updates(sweep, models[base], models[aligned], labelled)
        with results:
            for entry in coverage({"base": models[base], "aligned": models[aligned], **labelled}, names):
                results.leave_out(entry["name"], entry["reason"])
            for name, reason in without_direction(sweep):
                results.leave_out(name, reason)
            if write:
                written_rows = [row for record in records.values() for row in record["written"]]
                written_rows += write_scaled(written, sweep, task, costs)
                results.write_table(written_table(written_rows), "written")
            if evaluator:
                maker = MeasuredModels(aligned, tuned, sweep, unfinished.folder / "factors", seed)
                measured = maker.evaluate_all(rows, evaluator, results.folder / "generations.jsonl")
                table = pd.concat([table, pd.DataFrame(measured, index=table.index)], axis=1)
            audit = pd.DataFrame([row for record in records.values() for row in record["audit"]])
            results.summary = summarise(sweep, max(fractions), results.left_out)
            results.summary["lineage"] = found.summary()
            results.summary["audit"] = summarise_audit([dict(row) for _, row in audit.iterrows()])
            results.write_table(table)
            if energy_draws:
                results.write_table(drawn_table(sweep, methods), "draws")
            results.write_table(by_tensor, "tensors")
            results.write_table(shares_by(by_tensor, "layer"), "layers")
            results.write_table(shares_by(by_tensor, "type"), "types")
            results.write_table(sweep.alignment, "alignment")
            results.write_table(audit, "audit")
            if write:  # the last: until the results have their name, what is done is what these folders hold
                finish_models(written, aligned, tuned, folder, results.folder / "models")
    return table
