"""From the records of single tensors to one tidy table, and from that to the arrays that conclusions are drawn from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import betaincinv

from safety_subspaces.analysis.work import Record
from safety_subspaces.weights.names import layer_of, type_of

Array = np.ndarray
ENERGY_KEPT: Final = "energy_kept"
OVERLAP: Final = "overlap"
IDENTITY = ["seed", "tensor", "layer", "type", "is_matrix", "side"]
MEASURED = (
    "measure first second rule rank dim rank_first rank_second energy_first energy_second value chance "
    "matched_chance chance_median ceiling"
)
COLUMNS = [*IDENTITY, *MEASURED.split()]
RENAMED = {"rank": "rank_first", "share": "value", "overlap": "value", "matched": "matched_chance"}
NUMBERS = ("value", "chance", "matched_chance", "chance_median", "ceiling", "energy_first", "energy_second")


@dataclass(frozen=True)
class Measures:
    """What was measured on one side, as arrays of ``(seed, tensor, choice, subject)``.

    Args:
        side: Which side.
        seeds: Names of the seeds.
        tensors: A row for each tensor: ``tensor layer type is_matrix``.
        choices: A row for each choice of rank: ``rule rank``.
        labels: The fine-tunes, the subjects of ``energies``.
        pairs: Pairs of them, the subjects of ``overlaps``.
        energies: Arrays by column of the table: ``value`` is the share of the fine-tune's energy that alignment's
            leading directions keep.
        overlaps: The same of the pairs: ``value`` is the mode subspace overlap.
    """

    side: str
    seeds: list[str]
    tensors: pd.DataFrame
    choices: pd.DataFrame
    labels: list[str]
    pairs: list[tuple[str, str]]
    energies: Mapping[str, Float[Array, "seed tensor choice label"]]
    overlaps: Mapping[str, Float[Array, "seed tensor choice pair"]]


def tensor_table(records: Iterable[Record], choices: Sequence[tuple[str, float]], matrices: set[str]) -> pd.DataFrame:
    """Return one row for each seed, tensor, side, choice of rank, and fine-tune or pair of them.

    ``value`` is the share of energy kept (``measure`` energy_kept; ``first`` is the fine-tune, ``rank_first`` the rank
    of alignment's subspace) or the overlap (of ``first`` and ``second``). ``chance`` is its mean for Haar-random
    subspaces, ``matched_chance`` its mean when the rows of one update have random signs, ``chance_median`` the median
    under chance (of overlaps, matched chance), ``ceiling`` the most energy that any subspace of the rank could keep.

    Args:
        records: Of :class:`~safety_subspaces.analysis.atlas.tensors.AtlasTensor`.
        choices: Rule and value of each entry of the records' lists.
        matrices: Names of the tensors that are 2-D.
    """
    energies = [row for record in records for row in record["energies"]]
    overlaps = [row for record in records for row in record["overlaps"]]
    frames = [_energy_rows(energies, choices), _overlap_rows(overlaps, choices)]
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    names = {name: (layer_of(name), type_of(name), name in matrices) for name in table["tensor"].unique()}
    for index, column in enumerate(("layer", "type", "is_matrix")):
        table[column] = table["tensor"].map({name: values[index] for name, values in names.items()})
    return table.reindex(columns=COLUMNS)


def measures_of(table: pd.DataFrame, side: str) -> Measures:
    """Arrange one side of a :func:`tensor_table` as arrays; every combination must be there.

    Raises:
        ValueError: Some are missing.
    """
    one_side = table[table["side"] == side]
    energy_rows, overlap_rows = one_side[one_side["measure"] == ENERGY_KEPT], one_side[one_side["measure"] == OVERLAP]
    seeds = list(dict.fromkeys(one_side["seed"]))
    tensors = one_side[["tensor", "layer", "type", "is_matrix"]].drop_duplicates(ignore_index=True)
    choices = one_side[["rule", "rank"]].drop_duplicates(ignore_index=True)
    labels = list(dict.fromkeys(energy_rows["first"]))
    pairs = list(dict.fromkeys(zip(overlap_rows["first"], overlap_rows["second"], strict=True)))
    shape = (len(seeds), len(tensors), len(choices))
    return Measures(
        side,
        seeds,
        tensors,
        choices,
        labels,
        pairs,
        energies=_arrays(energy_rows, seeds, tensors, choices, [(label, "") for label in labels], shape),
        overlaps=_arrays(overlap_rows, seeds, tensors, choices, pairs, shape),
    )


def beta_median(
    mean: Float[Array, "..."], variance: Float[Array, "..."], low: Float[Array, "..."] | float = 0.0
) -> Float[Array, "..."]:
    """Return the median of the Beta distribution on ``[low, 1]`` with a mean and a variance.

    The null of an overlap or a share of energy; exact where it is the square of one cosine, whose median is 0.45 of
    its mean. The mean itself where nothing varies; NaN where the mean is.
    """
    mean, variance, low = (np.asarray(value, dtype=np.float64) for value in (mean, variance, low))
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (mean - low) / (1 - low)
        concentration = centre * (1 - centre) / (variance / (1 - low) ** 2) - 1
        varies = (variance > 0) & (centre > 0) & (centre < 1) & (concentration > 0)
        safe = np.where(varies, concentration, 2.0)
        middle = np.where(varies, centre, 0.5)
        median = low + (1 - low) * betaincinv(middle * safe, (1 - middle) * safe, 0.5)
    return np.where(varies, median, mean)


def _energy_rows(rows: Sequence[Mapping[str, object]], choices: Sequence[tuple[str, float]]) -> pd.DataFrame:
    """Return the rows of :func:`tensor_table` whose ``measure`` is energy_kept; ``second`` is empty."""
    frame = _explode(rows, choices, ["rank_first", "value", "matched_chance", "ceiling"], RENAMED)
    if frame.empty:
        return frame
    rank, dim = frame["rank_first"].to_numpy(float), frame["dim"].to_numpy(float)
    chance = rank / dim
    # nulls.haar_energy_variance for all rows together; the maxima avoid a division by zero in one dimension.
    spread = np.maximum(0.0, frame.pop("concentration").to_numpy(float) - 1 / dim)
    variance = 2 * rank * (dim - rank) / (dim * np.maximum(dim - 1, 1) * (dim + 2)) * spread
    median = beta_median(chance, variance)
    return frame.rename(columns={"tuned": "first", "energy": "energy_first"}).assign(
        measure=ENERGY_KEPT, second="", chance=chance, chance_median=median
    )


def _overlap_rows(rows: Sequence[Mapping[str, object]], choices: Sequence[tuple[str, float]]) -> pd.DataFrame:
    """Return the rows of :func:`tensor_table` whose ``measure`` is overlap; ``ceiling`` is missing."""
    frame = _explode(rows, choices, ["rank_first", "rank_second", "value", "matched_chance"], RENAMED)
    if frame.empty:
        return frame
    ranks = frame[["rank_first", "rank_second"]].to_numpy(float)
    smaller, larger, dim = ranks.min(axis=1), ranks.max(axis=1), frame["dim"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.where(smaller > 0, larger / dim, np.nan)
        # nulls.overlap_moments for all rows together.
        spread = 2 * smaller * larger * (dim - smaller) * (dim - larger)
        variance = spread / (dim**2 * np.maximum(dim - 1, 1) * (dim + 2) * smaller**2)
        low = np.where(smaller > 0, np.maximum(0, smaller + larger - dim) / smaller, 0.0)
    median = frame["matched_chance"] * beta_median(chance, variance, np.minimum(low, chance)) / chance
    return frame.assign(measure=OVERLAP, chance=chance, chance_median=median)


def _explode(
    rows: Sequence[Mapping[str, object]],
    choices: Sequence[tuple[str, float]],
    lists: list[str],
    renamed: Mapping[str, str],
) -> pd.DataFrame:
    """Make one row of each choice of rank, which the lists in a row go by; add the columns ``rule`` and ``rank``."""
    frame = pd.DataFrame(rows).rename(columns=renamed)
    if frame.empty:
        return frame
    exploded = frame.explode(lists, ignore_index=True).astype(dict.fromkeys(lists, float))
    rules, ranks = zip(*choices, strict=True)
    exploded["rule"], exploded["rank"] = np.tile(rules, len(frame)), np.tile(np.asarray(ranks, float), len(frame))
    return exploded.astype({name: "int64" for name in lists if name.startswith("rank")})


def _arrays(
    frame: pd.DataFrame,
    seeds: list[str],
    tensors: pd.DataFrame,
    choices: pd.DataFrame,
    subjects: list[tuple[str, str]],
    shape: tuple[int, int, int],
) -> dict[str, Array]:
    """Sort the rows by seed, tensor, choice and subject, and fold each column of numbers."""
    whole = (*shape, len(subjects))
    if len(frame) != np.prod(whole):
        raise ValueError(f"{len(frame)} rows do not fill {whole} of seeds, tensors, choices and subjects")
    keys = [
        (seeds, frame["seed"]),
        (list(tensors["tensor"]), frame["tensor"]),
        (list(zip(choices["rule"], choices["rank"], strict=True)), zip(frame["rule"], frame["rank"], strict=True)),
        (subjects, zip(frame["first"], frame["second"], strict=True)),
    ]
    indices = [[{key: index for index, key in enumerate(known)}[key] for key in column] for known, column in keys]
    order = np.ravel_multi_index(tuple(indices), whole) if len(frame) else np.zeros(0, int)
    arrays = {}
    for column in NUMBERS:
        array = np.full(np.prod(whole), np.nan)
        array[order] = frame[column].to_numpy(float)
        arrays[column] = array.reshape(whole)
    return arrays
