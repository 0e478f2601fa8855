"""What the atlas comes to: which conclusions hold whatever one chooses, and on which choice the others depend."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pandas as pd

from safety_subspaces.analysis.atlas.conclusions import ALL, VERDICTS

# "Mostly": a reader who takes any one of the choices is told otherwise at most once in ten.
MOSTLY: Final = 0.9
FACTORS: Final = ("rule", "rank", "side", "aggregation", "layer", "type", "seed")
CLAIMS: Final = {
    "alignment_above_chance": "alignment's directions keep more of its energy than chance",
    "alignment_above_matched_chance": "alignment's directions keep more of it than scales of rows explain",
    "same_alignment_energy": "alignment's directions keep as much of either's energy",
    "overlap_above_matched_chance": "they overlap more than chance",
    "overlap_nearer_to_same_kind": "they overlap nearer to two of one kind than to chance",
}
COLUMNS = ("conclusion", "subject", *VERDICTS, "reading", "factor", "sentence")


def summarise(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Count the verdicts of each conclusion and subject over all choices, and say what they depend on.

    Args:
        table: Of :func:`~safety_subspaces.analysis.atlas.conclusions.conclude`.

    Returns:
        A row for each ``conclusion`` and ``subject``: the number of choices
        by verdict; ``reading``, one verdict ``throughout``
        (all choices that are known) or ``mostly`` (nine in ten), or ``depends``, or ``unknown``; the ``factor`` whose
        levels differ most in their share of ``holds``, where it is not throughout; and a sentence. And the same for
        ``result.json``, with the share of ``holds`` at every level of every factor, ``None`` where none is known.
    """
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for (conclusion, subject), cell in table.groupby(["conclusion", "subject"], sort=False):
        counts = {verdict: int((cell["verdict"] == verdict).sum()) for verdict in VERDICTS}
        shares = {factor: _shares(cell, factor) for factor in FACTORS}
        reading = read_counts(counts)
        factor = "" if reading == "unknown" or reading.endswith("throughout") else _widest(shares)
        sentence = _sentence(str(conclusion), str(subject), counts, reading, factor, shares)
        named = {"conclusion": conclusion, "subject": subject}
        rows.append({**named, **counts, "reading": reading, "factor": factor, "sentence": sentence})
        entry = {"choices": counts, "reading": reading, "depends_on": factor or None, "sentence": sentence}
        result.setdefault(str(conclusion), {})[str(subject)] = {**entry, "holds_by": shares}
    return pd.DataFrame(rows, columns=list(COLUMNS)), result


def read_counts(counts: Mapping[str, int]) -> str:
    """Return what the verdicts of all choices come to, in a word or two; unknown ones do not count."""
    known = {verdict: counts[verdict] for verdict in VERDICTS if verdict != "unknown"}
    total = sum(known.values())
    if total == 0:
        return "unknown"
    verdict = max(known, key=lambda name: known[name])
    if known[verdict] == total:
        return f"{verdict} throughout"
    return f"{verdict} mostly" if known[verdict] >= MOSTLY * total else "depends"


def _levels(cell: pd.DataFrame, factor: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each level of a factor with its rows; layers and types are each seen over all of the other."""
    if factor in ("layer", "type"):
        cell = cell[cell["type" if factor == "layer" else "layer"] == ALL]
    names = cell[factor].astype(str)
    if factor == "rank":  # a rank has a meaning only together with its rule
        names = cell["rule"] + " " + cell["rank"].map("{:g}".format)
    for name, rows in cell.groupby(names, sort=False):
        yield str(name), rows


def _shares(cell: pd.DataFrame, factor: str) -> dict[str, float | None]:
    """Return the share of known choices that hold, at each level."""
    shares: dict[str, float | None] = {}
    for name, rows in _levels(cell, factor):
        known = rows[rows["verdict"] != "unknown"]
        shares[name] = float((known["verdict"] == "holds").mean()) if len(known) else None
    return shares


def _known(shares: Mapping[str, float | None]) -> dict[str, float]:
    return {name: share for name, share in shares.items() if share is not None}


def _widest(shares: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the factor whose levels differ most; nothing where no factor's do."""
    spread = {factor: list(_known(levels).values()) for factor, levels in shares.items()}
    widths = {factor: max(values) - min(values) for factor, values in spread.items() if len(values) > 1}
    widest = max(widths, key=lambda factor: widths[factor], default="")
    return widest if widest and widths[widest] > 0 else ""


def _sentence(
    conclusion: str,
    subject: str,
    counts: Mapping[str, int],
    reading: str,
    factor: str,
    shares: Mapping[str, Mapping[str, float | None]],
) -> str:
    claim = f"{subject}: {CLAIMS[conclusion]}"
    if reading == "unknown":
        return f"{claim}: unknown, no choice has an interval that can be judged."
    known = sum(counts[verdict] for verdict in VERDICTS if verdict != "unknown")
    text = f"{claim}: {reading}; of {known:,} choices it {_listed(counts, known)}"
    if counts["unknown"]:
        text += f" ({counts['unknown']:,} unknown)"
    if factor:
        levels = _known(shares[factor])
        least, most = min(levels, key=lambda name: levels[name]), max(levels, key=lambda name: levels[name])
        text += f"; most by {factor}, from {_percent(levels[least])} ({least}) to {_percent(levels[most])} ({most})"
    return text + "."


def _listed(counts: Mapping[str, int], known: int) -> str:
    words = {"holds": "holds", "opposite": "is the opposite", "undecided": "is undecided"}
    said = [f"{word} in {_percent(counts[verdict] / known)}" for verdict, word in words.items() if counts[verdict]]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _percent(share: float) -> str:
    """Write a share in per cent; 0 % and 100 % only where it is exactly that."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
