"""Whether two kinds of fine-tuning write to the same directions of a weight, against chance and against floors."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from tqdm import tqdm

from safety_subspaces.analysis.results import ResultFolder
from safety_subspaces.checkpoint import Checkpoint, open_checkpoint
from safety_subspaces.compatibility import check_compatible
from safety_subspaces.delta import iterate_updates, warn_of_foreign_bases
from safety_subspaces.errors import InputError
from safety_subspaces.linalg import LeftFactors, as_matrix, left_factors
from safety_subspaces.names import layer_of, type_of
from safety_subspaces.nulls import matched_control, overlap_moments, overlap_p_value
from safety_subspaces.overlap import mode_subspace_overlap
from safety_subspaces.subspace import seeded_generator


def overlap(
    reference: str,
    updates: dict[str, str],
    out: str,
    floors: Sequence[Sequence[str]] = (),
    energies: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99),
    controls: int = 199,
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Measure the mode subspace overlap of every pair of updates, tensor by tensor and energy by energy.

    The overlap, ||Qu^T Qh||^2 / min(ku, kh), compares the left singular vectors that hold a share of each update's
    energy. It is 1 where one space contains the other, and max(ku, kh) / rows by chance. Of the table's columns, p_haar
    asks whether two uniformly random subspaces would overlap as much; matched_chance and p_matched compare with the
    same pair after each row of the second gets a random sign, which keeps the scale of rows that any two updates
    share. Vectors count as one column. A zero update has no direction: its overlaps are NaN, counted, and listed in
    result.json.

    Args:
        reference: Folder of the model that every update starts from.
        updates: Label and folder (or LoRA adapter) of each fine-tuned model; two or more.
        out: Folder for the results.
        floors: Pairs of labels of one kind (two seeds, two halves of the data): how much the same overlaps itself.
        energies: Shares of energy, in (0, 1], at which the spaces are cut.
        controls: Draws of the matched control; 0 leaves it out.
        seed: Seed of the matched control.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each pair, tensor and energy.

    Raises:
        InputError: Before anything is computed: an argument out of range, a folder that cannot be read, models of
            different shapes or vocabularies. Later: weights that are NaN or infinite.

    Source: arXiv 2505.14185; the nulls and floors are ours.
    """
    arguments: dict[str, Any] = {
        **{"reference": reference, "updates": updates, "floors": [list(pair) for pair in floors]},
        **{"energies": list(energies), "controls": controls, "seed": seed},
    }
    _check_arguments(updates, floors, energies, controls)
    origin = open_checkpoint(reference)
    labelled = {label: open_checkpoint(path) for label, path in updates.items()}
    check_compatible(origin, *labelled.values())
    warn_of_foreign_bases(origin, labelled)
    floor_pairs = {frozenset(pair) for pair in floors}
    with ResultFolder(out, "overlap", arguments, [reference, *updates.values()], overwrite) as results:
        for name, reason in origin.left_out.items():
            results.leave_out(name, reason)
        rows: list[dict[str, Any]] = []
        progress = tqdm(
            iterate_updates(origin, labelled), total=len(origin.names), desc="comparing updates", unit="tensor"
        )
        for name, deltas in progress:
            factors = {label: left_factors(as_matrix(delta)) for label, delta in deltas.items()}
            for label in (label for label, found in factors.items() if found.numerical_rank == 0):
                results.leave_out(f"{label}: {name}", "the update is zero and has no direction: its overlaps are NaN")
            for first, second in combinations(updates, 2):
                found = _compare(factors[first], factors[second], energies, controls, (seed, name, first, second))
                identity = {"first": first, "second": second, "tensor": name}
                place = {"layer": layer_of(name), "type": type_of(name)}
                floor = {"floor": frozenset((first, second)) in floor_pairs}
                rows += [identity | place | row | floor for row in found]
        table = pd.DataFrame(rows)
        results.summary = _summarise(table, origin)
        results.write_table(table)
    return table


def _check_arguments(
    updates: Mapping[str, str], floors: Sequence[Sequence[str]], energies: Sequence[float], controls: int
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
    if not energies:
        raise InputError("no energy share was given; expected at least one in (0, 1]")
    for share in energies:
        if not 0 < share <= 1:
            raise InputError(f"an energy share must be in (0, 1], got {share}")
    if controls < 0:
        raise InputError(f"the number of controls must be 0 or more, got {controls}")


def _compare(
    first: LeftFactors,
    second: LeftFactors,
    energies: Sequence[float],
    controls: int,
    key: tuple[int, str, str, str],
) -> list[dict[str, Any]]:
    """Return the numeric columns of one pair and tensor, a row for each energy."""
    overlaps = mode_subspace_overlap(first, second, energies)
    seed, *names = key
    matched = matched_control(first, second, overlaps, controls, seeded_generator(seed, "matched", *names))
    dim = first.basis.shape[0]
    rows = []
    for found, control in zip(overlaps, matched, strict=True):
        ranks = (found.rank_first, found.rank_second)
        rows.append(
            {
                **{"energy": found.energy, "rank_first": ranks[0], "rank_second": ranks[1], "overlap": found.value},
                "chance": overlap_moments(dim, *ranks).mean,
                "p_haar": overlap_p_value(found.value, dim, *ranks),
                **{"matched_chance": control.mean, "p_matched": control.p_value},
            }
        )
    return rows


def _summarise(table: pd.DataFrame, reference: Checkpoint) -> dict[str, Any]:
    """Mean overlap beside mean chance for each pair and energy, over block matrices, embeddings and head."""
    matrices = {name for name in reference.names if len(reference.shape(name)) == 2}
    selected = table[table["tensor"].isin(matrices)]
    parts = {
        "blocks": selected[selected["layer"] >= 0],
        "embeddings": selected[selected["type"] == "embeddings"],
        "head": selected[selected["type"] == "head"],
    }
    pairs: dict[str, Any] = {}
    for part, rows in parts.items():
        for (first, second, energy), group in rows.groupby(["first", "second", "energy"], sort=False):
            means = group[["overlap", "chance", "matched_chance"]].mean()  # NaN rows are counted below, not averaged
            defined = int(group["overlap"].notna().sum())
            entry = {key: None if pd.isna(value) else float(value) for key, value in means.items()}
            entry |= {"n": defined, "n_nan": len(group) - defined, "floor": bool(group["floor"].iloc[0])}
            pairs.setdefault(f"{first}|{second}", {}).setdefault(f"{energy:g}", {})[part] = entry
    return {"tensors": len(reference.names), "matrices": len(matrices), "pairs": pairs}
