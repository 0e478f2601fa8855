"""``analyze.py subspace``: the subspace of a pair of checkpoints, for the training callback and the other commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safety_subspaces.algebra.choices import RankRule, Selection, Side
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import clear_leavings
from safety_subspaces.artefacts.provenance import describe_input, provenance
from safety_subspaces.language.model_paths import check_distinct, check_there

if TYPE_CHECKING:
    import pandas as pd


def subspace(
    base: str,
    aligned: str,
    out: str,
    rank: RankRule,
    side: Side = "left",
    select: Selection = "top",
    seed: int = 0,
    tensors: Sequence[str] = (),
    overwrite: bool = False,
    workers: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
) -> "pd.DataFrame":
    """Decompose ``W_aligned - W_base`` and keep a subspace of each tensor.

    A tensor that is not 2-D has the one direction of its whole update. A tensor that did not change has none and is
    left out of the file. Interrupted, the same command goes on from the tensors that are done.

    Args:
        base: Folder of the base model.
        aligned: Folder of the aligned model (or LoRA adapter, or delta snapshot); any two checkpoints will do.
        out: The ``.safetensors`` file to write.
        rank: Directions of each tensor: exactly one of count, fraction and energy.
        side: ``left`` for directions of output space, ``right`` for input space.
        select: ``top`` for the leading directions, ``random-k`` for as many of them drawn at random, ``random`` for a
            random subspace of that rank.
        seed: Seed of the draw.
        tensors: Patterns, types or layers of the tensors to take; all by default.
        overwrite: Whether an earlier file may be replaced.
        workers: Processes of one thread each; by default one a core, or none beside this one for small models.
        devices: Ranks on each node that share the tensors (GPUs, where there are any).
        num_nodes: Nodes; they must see one file system.

    Returns:
        One row a tensor: rank, the rank that was asked for, the share of the update's energy in the subspace; empty on
        every rank but the first.

    Raises:
        InputError: Before anything is computed: models of different shapes, a file in the way, a rank out of range.
            Later: weights that are NaN or infinite, or the same in both models.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out is {out}; expected a file that ends in .safetensors")
    clear_leavings(target)
    if target.exists() and not overwrite:
        raise InputError(f"{out} exists and is not written over; choose another name, or say --overwrite true")
    check_there(base, aligned)
    check_distinct(base, aligned, {})

    import pandas as pd

    from safety_subspaces.algebra.audit import summarise_audit
    from safety_subspaces.analysis.subspace.tensors import SubspaceTensor
    from safety_subspaces.analysis.work import Workers, factorisation_cost, unfinished_work, work_through
    from safety_subspaces.artefacts.tensors import StoredTensors, TensorFile
    from safety_subspaces.weights.compatibility import (
        check_compatible,
        compared_names,
        coverage,
        select_tensors,
    )
    from safety_subspaces.weights.lineage import check_related
    from safety_subspaces.weights.subspace_file import BASIS, SPECTRUM, Subspace, write_subspace
    from safety_subspaces.weights.update_checkpoint import open_checkpoint

    pool = Workers(workers, devices, num_nodes)
    models = {"base": open_checkpoint(base), "aligned": open_checkpoint(aligned)}
    check_compatible(models["aligned"], models["base"], tensors=tensors)
    names = select_tensors(compared_names(models["aligned"], models["base"]), tensors)
    implausible = check_related(models["base"], {"aligned": models["aligned"]}, names, "the base")
    chosen: dict[str, Any] = {
        "rank": vars(rank),
        "side": side,
        "select": select,
        "seed": seed,
        "tensors": list(tensors),
    }
    costs = {name: factorisation_cost(models["aligned"].shape(name)) for name in names}
    arguments = {"base": base, "aligned": aligned, **chosen}
    with unfinished_work(out, "subspace", arguments, [base, aligned], pool) as unfinished:
        task = SubspaceTensor(base, aligned, rank, side, select, seed, unfinished.folder / "bases")
        task.folder.mkdir(exist_ok=True)
        records = work_through(task, costs, unfinished, pool, "decomposing")
        if records is None:
            return pd.DataFrame()
        table = pd.DataFrame([row for record in records.values() for row in record["table"]])
        if not table["rank"].any():
            raise InputError(f"{base} and {aligned} have the same weights: there is no update to decompose")
        audit = summarise_audit([row for record in records.values() for row in record["audit"]])
        zero = [{"name": str(name), "reason": "the update is zero"} for name in table.loc[table["rank"] == 0, "tensor"]]
        origin = {
            **provenance(),
            "inputs": [describe_input(base), describe_input(aligned)],
            **chosen,
            "audit": audit,
            "implausible": implausible,
            "left_out": [*coverage(models, names), *zero],
        }
        files = {str(name): TensorFile(task.path(str(name))) for name in table.loc[table["rank"] > 0, "tensor"]}
        bases = StoredTensors({name: (file, BASIS) for name, file in files.items()})
        spectra = {name: file.read(SPECTRUM) for name, file in files.items()}
        write_subspace(target, Subspace(bases, spectra, side, origin))
    return table


def cached_subspace(path: Path, base: str, aligned: str, rank: RankRule, side: Side = "left") -> None:
    """Make the subspace file of a pair of models, unless it was made before of exactly these models and this rank.

    Raises:
        InputError: As :func:`subspace`.
    """
    from safety_subspaces.weights.subspace_file import read_subspace

    if path.is_file():
        stored = read_subspace(str(path))
        origin = (stored.side, stored.provenance.get("rank"), stored.provenance.get("inputs"))
        if origin == (side, vars(rank), [describe_input(model) for model in (base, aligned)]):
            return
    subspace(base, aligned, str(path), rank, side, overwrite=True)
