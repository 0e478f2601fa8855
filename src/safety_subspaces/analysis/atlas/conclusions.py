"""What the paper concludes in weight space, as signed numbers with intervals and verdicts for every choice.

Each conclusion is a statistic of single tensors. It is aggregated in four ways, for every rank, side, cell of the
network and seed; whether it holds is judged by its bootstrap interval alone.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float

from safety_subspaces.analysis.atlas.bootstrap import (
    AGGREGATIONS,
    LEAST_RATIO,
    Aggregation,
    Statistic,
    Term,
    bootstrap,
    estimate,
    interval,
    resample,
)
from safety_subspaces.analysis.atlas.measures import Measures, measures_of

Array = np.ndarray
COLUMNS = (
    "conclusion subject rule rank side aggregation layer type seed estimate low high margin n_tensors n_undefined "
    "n_seeds verdict"
).split()
VERDICTS: Final = ("holds", "opposite", "undecided", "unknown")
ALL: Final = "all"
# Two fine-tunes are the same to the alignment subspace when the shares that it keeps of them differ by less than this
# part of the room there is, from chance to the most that any subspace of the rank could keep. Set before any result was
# seen. On the organism it comes to .09 to .20 of the energy: no more than the .2 (from .4 to .6) over which its judged
# harm goes from none to full, so that two shares called the same never stand at the two ends of that.
MARGIN: Final = 0.25


@dataclass(frozen=True)
class Claim:
    """One conclusion on one side, for every choice of rank and subject.

    Args:
        conclusion: Its name.
        subjects: Fine-tunes, or pairs of them.
        choices: A row for each choice: ``rule rank``; columns of the statistic go by choice, then subject.
        statistic: What is estimated.
        room: Of a claim of equivalence, what the margin is a quarter of.
        guard: What must lie above 0 for the claim to have a meaning.
    """

    conclusion: str
    subjects: list[str]
    choices: pd.DataFrame
    statistic: Statistic
    room: Statistic | None = None
    guard: Statistic | None = None

    def part(self, tensors: Sequence[int] | Array) -> "Claim":
        """Return the claim of some tensors."""
        room, guard = (None if other is None else other.part(tensors) for other in (self.room, self.guard))
        return Claim(self.conclusion, self.subjects, self.choices, self.statistic.part(tensors), room, guard)

    def identity(self) -> dict[str, Any]:
        """Return the columns that name each column of the statistic."""
        number = len(self.subjects)
        return {
            "conclusion": self.conclusion,
            "subject": np.array(self.subjects * len(self.choices), dtype=object),
            "rule": np.repeat(self.choices["rule"].to_numpy(object), number),
            "rank": np.repeat(self.choices["rank"].to_numpy(float), number),
        }


def conclude(table: pd.DataFrame, floors: Sequence[Sequence[str]], count: int, seed: int) -> pd.DataFrame:
    """Judge every conclusion for every choice.

    Args:
        table: Of :func:`~safety_subspaces.analysis.atlas.measures.tensor_table`.
        floors: Pairs of fine-tunes of one kind; kinds are what they link.
        count: Resamples of the bootstrap.
        seed: Its seed.

    Returns:
        One row for each conclusion, subject, rank, side, aggregation, cell (all tensors, a layer or a type) and seed
        (``all`` of them, and each where there are several). Columns: ``conclusion``, ``subject``, ``rule``, ``rank``,
        ``side``, ``aggregation``, ``layer``, ``type`` and ``seed`` name it; ``estimate`` with its interval from ``low``
        to ``high``; ``margin`` of a claim of equivalence, else NaN; the counts ``n_tensors``, ``n_undefined`` and
        ``n_seeds``; and ``verdict``.
    """
    frames = []
    for side in dict.fromkeys(table["side"]):
        measures = measures_of(table, side)
        claims = claims_of(measures, floors)
        for layer, kind, cell in _cells(measures.tensors):
            for rows in _judge_cell(claims, measures, cell, (layer, kind), count, seed):
                frames.append(pd.DataFrame({**rows, "side": side, "layer": layer, "type": kind}))
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def claims_of(measures: Measures, floors: Sequence[Sequence[str]]) -> list[Claim]:
    """Return the conclusions that the fine-tunes allow: those about pairs need two kinds, the last one floors."""
    kinds = kinds_of(measures.labels, floors)
    cross = [pair for pair in measures.pairs if kinds[pair[0]] != kinds[pair[1]]]
    claims = [_above_chance(measures, matched=False), _above_chance(measures, matched=True)]
    if cross:
        claims += [_same_energy(measures, cross), _above_matched_chance(measures, cross)]
    same = [pair for pair in measures.pairs if kinds[pair[0]] == kinds[pair[1]]]
    if cross and same:
        claims.append(_nearer_to_same_kind(measures, cross, same))
    return claims


def kinds_of(labels: Sequence[str], floors: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the kind of each fine-tune, by its first label: what floors link is of one kind."""
    kinds = {label: label for label in labels}
    for first, second in floors:
        joined = {kinds[first], kinds[second]}
        name = next(kinds[label] for label in labels if kinds[label] in joined)
        kinds = {label: name if kind in joined else kind for label, kind in kinds.items()}
    return kinds


def judge(
    low: Float[Array, " column"], high: Float[Array, " column"], margin: Float[Array, " column"] | None = None
) -> Array:
    """Return the verdict of each interval: ``holds`` where it lies wholly on the claimed side.

    That is above 0; of a claim of equivalence within ``margin`` of 0. ``opposite`` where it lies wholly on the other,
    ``unknown`` where there is none.
    """
    if margin is None:
        holds, opposite, known = low > 0, high < 0, ~np.isnan(low)
    else:
        holds, opposite = (low >= -margin) & (high <= margin), (low > margin) | (high < -margin)
        known = ~np.isnan(low) & (margin > 0)
    return np.select([~known, holds, opposite], ["unknown", "holds", "opposite"], "undecided")


def _above_chance(measures: Measures, matched: bool) -> Claim:
    """Energy that alignment's leading directions keep, over chance: log2 of the ratio, positive above chance.

    Two updates that share nothing but the scale of their rows keep more of each other than a Haar-random subspace
    does; matched chance knows of these scales.
    """
    share, chance, median, level, energy = (
        _flat(measures.energies[name])
        for name in ("value", "chance", "chance_median", "matched_chance" if matched else "chance", "energy_first")
    )
    defined = _is_choice(share, chance) & (level > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = share / (median * level / chance)
        each = np.where(defined, np.log2(np.maximum(ratio, LEAST_RATIO)), np.nan)
    statistic = Statistic((Term(share, level, energy),), (1.0,), each, logarithm=True)
    name = "alignment_above_matched_chance" if matched else "alignment_above_chance"
    return Claim(name, measures.labels, measures.choices, statistic)


def _same_energy(measures: Measures, cross: Sequence[tuple[str, str]]) -> Claim:
    """Share of the first fine-tune's energy that alignment keeps, minus the second's; the claim is that it is 0."""
    label_indices = [[measures.labels.index(label) for label in column] for column in zip(*cross, strict=True)]
    terms, rooms, defined = [], [], np.array(True)
    for indices in label_indices:
        share, chance, ceiling, energy = (
            _flat(measures.energies[name][..., indices]) for name in ("value", "chance", "ceiling", "energy_first")
        )
        defined = defined & _is_choice(share, chance)
        terms.append(Term(share, np.ones_like(share), energy))
        rooms.append(Term(ceiling - chance, np.ones_like(share), energy))
    each = np.where(defined, terms[0].x - terms[1].x, np.nan)
    room = np.where(defined, (rooms[0].x + rooms[1].x) / 2, np.nan)
    return Claim(
        "same_alignment_energy",
        _names(cross),
        measures.choices,
        Statistic(tuple(terms), (1.0, -1.0), each),
        room=Statistic(tuple(rooms), (0.5, 0.5), room),
    )


def _above_matched_chance(measures: Measures, cross: Sequence[tuple[str, str]]) -> Claim:
    """Overlap minus its matched chance level, positive where two kinds share directions."""
    overlaps = _pairs(measures, cross)
    statistic = _difference(overlaps, overlaps["matched_chance"], overlaps["chance_median"], overlaps["value"])
    return Claim("overlap_above_matched_chance", _names(cross), measures.choices, statistic)


def _nearer_to_same_kind(
    measures: Measures, cross: Sequence[tuple[str, str]], same: Sequence[tuple[str, str]]
) -> Claim:
    """Overlap minus the midpoint of matched chance and the floor, positive where it is nearer to two of one kind.

    The floor of a pair is the mean overlap of the pairs of one kind that share a label with it, or of all where none
    does; undefined in a tensor where one of them is. Where the floor does not lie above matched chance there is no way
    to be half-way along.
    """
    overlaps = _pairs(measures, cross)
    floors = []
    for pair in cross:
        related = [other for other in same if set(other) & set(pair)] or list(same)
        floors.append(_pairs(measures, related)["value"].reshape(*_whole(measures), len(related)).mean(axis=-1))
    floor = _flat(np.stack(floors, axis=-1))
    matched, median = ((overlaps[name] + floor) / 2 for name in ("matched_chance", "chance_median"))
    guard = _difference(
        {**overlaps, "value": floor}, overlaps["matched_chance"], overlaps["chance_median"], overlaps["value"]
    )
    return Claim(
        "overlap_nearer_to_same_kind",
        _names(cross),
        measures.choices,
        _difference(overlaps, matched, median, overlaps["value"]),
        guard=guard,
    )


def _difference(measured: dict[str, Array], level: Array, median: Array, overlap: Array) -> Statistic:
    """A pair's value minus a level (of single tensors: a median level), weighted by their geometric mean energy."""
    defined = _is_choice(overlap, measured["chance"])
    each = np.where(defined, measured["value"] - median, np.nan)
    weight = np.sqrt(measured["energy_first"] * measured["energy_second"])
    return Statistic((Term(measured["value"] - level, np.ones_like(level), weight),), (1.0,), each)


def _judge_cell(
    claims: Sequence[Claim], measures: Measures, cell: Array, name: tuple[str, str], count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the columns of each claim, aggregation and seed in one cell."""
    tensors = measures.tensors.iloc[cell]
    in_blocks = cell[((tensors["layer"] >= 0) & tensors["is_matrix"]).to_numpy()]
    seeds = [(ALL, list(range(len(measures.seeds))))]
    if len(measures.seeds) > 1:
        seeds += [(label, [index]) for index, label in enumerate(measures.seeds)]
    groups: list[tuple[Array, list[Aggregation]]] = [
        (cell, [aggregation for aggregation in AGGREGATIONS if aggregation != "blocks"])
    ]
    groups += [(in_blocks, ["blocks"])] if len(in_blocks) else []
    for chosen, aggregations in groups:
        parts = [claim.part(chosen) for claim in claims]
        for label, drawn in seeds:
            # Every choice is given the same resamples, so that the draw adds no difference between choices.
            key = zlib.crc32("\0".join((*name, label, aggregations[0])).encode())
            resamples = resample(drawn, len(chosen), count, np.random.default_rng([seed, key]))
            for claim in parts:
                for aggregation in aggregations:
                    judged = _judge(
                        claim, drawn, aggregation, partial(bootstrap, resamples=resamples, aggregation=aggregation)
                    )
                    yield {**claim.identity(), "aggregation": aggregation, "seed": label, **judged}


def _judge(claim: Claim, seeds: list[int], aggregation: Aggregation, resampled: Any) -> dict[str, Any]:
    """Return the numbers and the verdict of every column of a claim."""
    statistic = claim.statistic
    defined = statistic.defined[seeds].sum(axis=(0, 1))
    with_number = statistic.defined[seeds].any(axis=1).sum(axis=0)
    units = np.where(with_number > 1, with_number, defined)
    low, high = interval(resampled(statistic), units)
    margin = None if claim.room is None else MARGIN * estimate(claim.room, seeds, aggregation)
    verdict = judge(low, high, margin)
    if claim.guard is not None:
        above, _ = interval(resampled(claim.guard), units)
        verdict = np.where(above > 0, verdict, "unknown")
    return {
        "estimate": estimate(statistic, seeds, aggregation),
        "low": low,
        "high": high,
        "margin": np.full(len(low), np.nan) if margin is None else margin,
        "n_tensors": defined,
        "n_undefined": len(seeds) * statistic.each.shape[1] - defined,
        "n_seeds": with_number,
        "verdict": verdict,
    }


def _cells(tensors: pd.DataFrame) -> Iterator[tuple[str, str, Array]]:
    """Yield layer, type and indices of the tensors: all of them, each block, each type."""
    yield ALL, ALL, np.arange(len(tensors))
    for layer in sorted({layer for layer in tensors["layer"] if layer >= 0}):
        yield str(layer), ALL, np.flatnonzero(tensors["layer"] == layer)
    for kind in dict.fromkeys(tensors["type"]):
        yield ALL, str(kind), np.flatnonzero(tensors["type"] == kind)


def _is_choice(value: Array, chance: Array) -> Array:
    """Tell where there is something to be seen: a subspace that is neither empty nor the whole space."""
    return ~np.isnan(value) & (chance > 0) & (chance < 1)


def _pairs(measures: Measures, pairs: Sequence[tuple[str, str]]) -> dict[str, Array]:
    indices = [measures.pairs.index(pair) for pair in pairs]
    return {name: _flat(array[..., indices]) for name, array in measures.overlaps.items()}


def _flat(array: Array) -> Array:
    """Make one column of each choice and subject."""
    return array.reshape(*array.shape[:2], -1)


def _whole(measures: Measures) -> tuple[int, int, int]:
    return len(measures.seeds), len(measures.tensors), len(measures.choices)


def _names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{first} - {second}" for first, second in pairs]
