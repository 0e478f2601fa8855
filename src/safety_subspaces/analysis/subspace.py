"""``analyze.py subspace``: the alignment subspace of a pair of checkpoints, for the training callback."""

from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

from safety_subspaces.compatibility import check_compatible
from safety_subspaces.delta import update_of
from safety_subspaces.errors import InputError
from safety_subspaces.linalg import as_matrix, left_factors
from safety_subspaces.provenance import describe_input, provenance
from safety_subspaces.subspace import RankRule, random_k_basis, seeded_generator, top_basis
from safety_subspaces.subspace_file import Side, SubspaceFile, read_subspace, write_subspace
from safety_subspaces.update_checkpoint import open_checkpoint


def subspace(
    base: str,
    aligned: str,
    out: str,
    rank: RankRule,
    side: Side = "left",
    select: Literal["top", "random-k"] = "top",
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Decompose ``W_aligned - W_base`` and keep a subspace of each tensor.

    A tensor that is not 2-D has the one direction of its whole update. A tensor that did not change has none and is
    left out of the file.

    Args:
        base: Folder of the base model.
        aligned: Folder of the aligned model; any two checkpoints will do.
        out: The ``.safetensors`` file to write.
        rank: Directions of each tensor: exactly one of count, fraction and energy.
        side: ``left`` for directions of output space, ``right`` for input space.
        select: ``top`` for the leading directions, ``random-k`` for as many of them drawn at random.
        seed: Seed of the draw.
        overwrite: Whether an earlier file may be replaced.

    Returns:
        One row a tensor: rank, the rank that was asked for, the share of the update's energy in the subspace.

    Raises:
        InputError: Before anything is computed: models of different shapes, a file in the way, a rank out of range.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out is {out}; expected a file that ends in .safetensors")
    if target.exists() and not overwrite:
        raise InputError(f"{out} exists and is not written over; choose another name, or say --overwrite true")
    models = [open_checkpoint(base), open_checkpoint(aligned)]
    check_compatible(models[1], models[0])
    bases, spectra, rows = {}, {}, []
    for name in tqdm(models[1].names, desc="subspace", unit="tensor"):
        delta = as_matrix(update_of(models[1], models[0], name))
        delta = delta.T.contiguous() if side == "right" and min(delta.shape) > 1 else delta
        factors = left_factors(delta)
        choice = rank.choose(factors, delta.shape[1])
        if choice.rank == 0:
            rows.append({"tensor": name, "rank": 0, "rank_wanted": choice.wanted, "energy": float("nan")})
            continue
        if select == "top":
            bases[name] = top_basis(factors, choice.rank)
        else:
            bases[name] = random_k_basis(factors, choice.rank, seeded_generator(seed, name, select))
        spectra[name] = factors.singular_values
        kept = float((bases[name].T.double() @ delta.double()).square().sum() / delta.double().square().sum())
        rows.append({"tensor": name, "rank": choice.rank, "rank_wanted": choice.wanted, "energy": kept})
    made_from = {
        **provenance(),
        "inputs": [describe_input(base), describe_input(aligned)],
        "rank": vars(rank),
        "select": select,
        "seed": seed,
    }
    write_subspace(target, SubspaceFile(bases, spectra, side, made_from))
    return pd.DataFrame(rows)


def cached_subspace(path: Path, base: str, aligned: str, rank: RankRule, side: Side = "left") -> None:
    """Make the subspace file of a pair of models, unless it was made before of exactly these models and this rank.

    Raises:
        InputError: As :func:`subspace`.
    """
    if path.is_file():
        stored = read_subspace(str(path))
        made_from = (stored.side, stored.provenance.get("rank"), stored.provenance.get("inputs"))
        if made_from == (side, vars(rank), [describe_input(model) for model in (base, aligned)]):
            return
    subspace(base, aligned, str(path), rank, side, overwrite=True)
