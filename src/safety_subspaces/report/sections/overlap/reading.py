"""What the overlaps of updates say: each pair between matched chance and two of one kind, in a study and over seeds."""

from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import REPEAT_SUFFIX
from safety_subspaces.findings.comparisons import in_blocks, nearest_energy
from safety_subspaces.findings.intervals import Finding, interval_of, t_interval
from safety_subspaces.findings.overlaps import AS_NAMED, ONE_REPEATED, PARTS, cross_pairs, distances_over_seeds
from safety_subspaces.report.parts.sentence import first_headline, interval_words, many

PART_WORDS: Final = {"blocks": "matrices in the blocks", "head": "output head", "embeddings": "embeddings"}
CELLS: Final = {"layer": "layers of the blocks", "type": "types of tensor"}
NEARER: Final = {
    "as the same kind": "nearer to two of one kind than to chance",
    "apart": "nearer to chance than to two of one kind",
    "undecided": "which of chance and two of one kind is nearer, these seeds cannot show",
    "unknown": "not placed against two of one kind",
}


def read_overlap(overlaps: pd.DataFrame) -> list[Finding]:
    """Place each pair's weight overlap between its matched chance level and the same-kind floors.

    Means over the matrices in the blocks, compared tensor by tensor. "Distinct" and "shared" ask on which side of the
    half-way mark between matched chance and floor the whole t interval over tensors lies.
    """
    blocks = in_blocks(overlaps)
    if blocks.empty:
        text = "No overlap of fine-tunes was measured."
        return [Finding("overlap", "unknown", text, text)]
    energy = nearest_energy(blocks)
    rows = blocks[blocks["energy"] == energy]
    head = overlaps[(overlaps["type"] == "head") & (overlaps["energy"] == energy)]
    floors = rows[rows["floor"].astype(bool)]
    pairs = rows[~rows["floor"].astype(bool)]
    # A fine-tune that stands second in a floor repeats the first with another seed.
    repeats = {str(second): str(first) for first, second in floors[["first", "second"]].itertuples(index=False)}
    pairs = pairs.assign(
        kinds=[
            "|".join(sorted(repeats.get(label, label) for label in pair))
            for pair in zip(pairs["first"], pairs["second"], strict=True)
        ]
    )
    findings = []
    for _, same_kinds in pairs.groupby(["analysis", "kinds"], sort=False):
        means = same_kinds.groupby(["first", "second"], sort=False)["overlap"].mean()
        first, second = next(iter(means.index))
        cell = same_kinds[(same_kinds["first"] == first) & (same_kinds["second"] == second)]
        of_head = head[(head["first"] == first) & (head["second"] == second)]["overlap"].mean()
        finding = _read_pair(f"{first} and {second}", cell, _floors_of(floors, (first, second)), of_head, energy)
        if len(means) > 1:
            others = means.iloc[1:]
            more = f" With second seeds: {others.min():.2f} to {others.max():.2f} ({len(others)} pairs)."
            finding = replace(finding, sentence=finding.sentence + more)
        findings.append(finding)
    # The question of the study first; of a study that asks another one, the first pair alone gives the
    # headline.
    asked = {"useful and harmful", "harmful and useful"}
    findings.sort(key=lambda finding: finding.sentence.split(":")[0] not in asked)
    return first_headline(findings)


def read_overlaps_across(overlaps: pd.DataFrame, organism: str) -> list[Finding]:
    """Return the findings of one organism: each cross-kind pair by part, then how many layers and types agree.

    Args:
        overlaps: ``Study.overlaps`` of every seed, with a column ``seed``.
        organism: What the sentences call it.

    Returns:
        Findings of the topic ``overlap``; the first alone has a headline.
    """
    frame = distances_over_seeds(overlaps)
    findings: list[Finding] = []
    for analysis, first, second in cross_pairs(overlaps):
        rows = frame[(frame["analysis"] == analysis) & (frame["first"] == first) & (frame["second"] == second)]
        named, repeated = rows[rows["pairing"] == AS_NAMED], rows[rows["pairing"] == ONE_REPEATED]
        for part in PARTS:
            cell = named[(named["by"] == "part") & (named["cell"] == part)]
            beside = repeated[(repeated["by"] == "part") & (repeated["cell"] == part)]
            if len(cell):
                findings.append(_read_part(organism, cell.iloc[0], beside.iloc[0] if len(beside) else None))
        if len(named):
            findings.append(_count_cells(organism, named))
    if not findings:
        text = f"{organism}: no overlap of two kinds of fine-tune was measured."
        return [Finding("overlap", "unknown", text, text)]
    return first_headline(findings)


def midpoint_verdict(row: pd.Series) -> str:
    """Judge by the interval: wholly above, wholly below, or across the midpoint between floor and matched chance."""
    if _why_unknown(row):
        return "unknown"
    return {1: "as the same kind", -1: "apart", 0: "undecided"}[interval_of(row, "from_midpoint").sign]


def chance_verdict(row: pd.Series) -> str:
    """Judge by the interval of the overlap minus matched chance."""
    over = interval_of(row, "from_matched")
    if np.isnan(over.low):
        return "unknown"
    return "above chance" if over.sign > 0 else "not above chance"


def _floors_of(floors: pd.DataFrame, pair: tuple[str, str]) -> pd.Series:
    """Return the mean floor of each tensor: of the floors that share a label with the pair, else of all."""
    shared = floors[floors["first"].isin(pair) | floors["second"].isin(pair)]
    return (floors if shared.empty else shared).groupby("tensor")["overlap"].mean()


def _read_pair(name: str, cell: pd.DataFrame, floor: pd.Series, of_head: float, energy: float) -> Finding:
    by_tensor = cell.set_index("tensor")[["overlap", "chance", "matched_chance"]].astype(float)
    by_tensor = by_tensor[by_tensor["overlap"].notna()]
    undefined = len(cell) - len(by_tensor)
    if by_tensor.empty:
        text = f"{name}: no overlap is defined in any of {len(cell)} matrices."
        return Finding("overlap", "unknown", text, text)
    has_matched = bool(by_tensor["matched_chance"].notna().any())
    level = by_tensor["matched_chance"] if has_matched else by_tensor["chance"]
    over_chance = t_interval(by_tensor["overlap"] - level)
    floor = floor.reindex(by_tensor.index)
    half_way = (level + floor) / 2
    from_half = t_interval(by_tensor["overlap"] - half_way)
    if floor.notna().sum() == 0:
        verdict, ending = ("no floor", "no floor (two fine-tunes of one kind) was measured, so a scale is missing")
    else:
        verdict = {-1: "distinct", 1: "shared", 0: "undecided"}[from_half.sign if from_half.n > 1 else 0]
        ending = {
            "distinct": "nearer to chance than to a repeat of the same kind",
            "shared": "nearer to a repeat of the same kind than to chance",
            "undecided": "which of the two is nearer, these tensors cannot show",
        }[verdict]
    side = {1: "above", -1: "below", 0: "not shown to differ from"}[over_chance.sign]
    which = "matched chance" if has_matched else "chance (no matched control was run)"
    numbers = (
        f"overlap {by_tensor['overlap'].mean():.2f} at energy {energy:g} over {len(by_tensor)} matrices in "
        "the blocks, "
        f"chance {by_tensor['chance'].mean():.2f}, matched chance {by_tensor['matched_chance'].mean():.2f}, "
        f"same-kind floor {floor.mean():.2f}"
    ).replace("nan", "not measured")
    text = f"{name}: {numbers}; {side} {which} by {over_chance}; {ending}."
    text += "" if np.isnan(of_head) else f" In the output head {of_head:.2f}."
    text += f" Undefined in {undefined} matrices." if undefined else ""
    headline = f"In weights, {name} overlap {side} {which} ({by_tensor['overlap'].mean():.2f}): {ending}."
    return Finding("overlap", verdict, headline, text)


def _why_unknown(row: pd.Series) -> str:
    """Return why a pair cannot be judged between matched chance and floor; nothing where it can."""
    if row["overlap_seeds"] == 0:
        return "no overlap is defined"
    if np.isnan(row["floor"]):
        return "no two of one kind were measured"
    if np.isnan(row["from_matched"]):
        return "no matched control was run"
    if row["from_midpoint_seeds"] < 2:
        return "one seed has no interval" if row["overlap_seeds"] < 2 else "fewer than two seeds have all three"
    # Where two of one kind overlap no more than chance does, there is no way to be half-way along.
    return "" if interval_of(row, "scale").sign > 0 else "two of one kind are not shown to lie above matched chance"


def _read_part(organism: str, row: pd.Series, repeated: pd.Series | None) -> Finding:
    """Say where a pair lies in one part; beside it, the pairs that differ in their seed as the floors do."""
    part, pair = PART_WORDS[str(row["cell"])], f"{row['first']} and {row['second']}"
    verdict, seeds = midpoint_verdict(row), many(int(row["overlap_seeds"]), "seed")
    if row["overlap_seeds"] == 0:
        text = (
            f"{organism}, {row['analysis']}, {part}: {pair} have no overlap in any of {row['undefined']:.0f} tensors, "
            "all seeds together: an update of zero has no direction."
        )
        return Finding("overlap", verdict, text, text)
    # Numbers of tensors differ between seeds only where an overlap is undefined.
    tensors = f"{row['tensors']:.3g} tensor{'' if row['tensors'] == 1 else 's'} a seed, {seeds}"
    text = (
        f"{organism}, {row['analysis']}, {part} ({tensors}, energy {row['energy']:g}): {pair} overlap "
        f"{_level(row, 'overlap')}; chance {_level(row, 'chance', reach=False)}, matched chance "
        f"{_level(row, 'matched_chance')}, two of one kind (the floor) {_level(row, 'floor')}. Minus matched chance "
        f"{_words(row, 'from_matched')}: {chance_verdict(row)}. Minus the floor {_words(row, 'from_floor')}. Minus the "
        f"mark half-way between them {_words(row, 'from_midpoint')}: {verdict}{_because(row)}{_power(row)}."
    )
    text += f" Undefined in {row['undefined']:.0f}, all seeds together." if row["undefined"] else ""
    repeated_words = "not known"
    if repeated is not None:
        first, second = row["first"], row["second"]
        text += (
            f" With a repeat, of another seed, in the place of one ({first} and {second}{REPEAT_SUFFIX}, "
            f"{first}{REPEAT_SUFFIX} and {second}): overlap {_level(repeated, 'overlap')}, minus matched chance "
            f"{_words(repeated, 'from_matched')}: {chance_verdict(repeated)}; minus the half-way mark "
            f"{_words(repeated, 'from_midpoint')}: {midpoint_verdict(repeated)}{_because(repeated)}."
        )
        repeated_words = f"{chance_verdict(repeated)}, {midpoint_verdict(repeated)}"
    headline = (
        f"{organism}, {row['analysis']}, {part}: {pair} overlap {_level(row, 'overlap')}, matched chance "
        f"{_level(row, 'matched_chance')}, two of one kind {_level(row, 'floor')} ({seeds}): {chance_verdict(row)}, "
        f"{NEARER[verdict]}{_because(row)} (with a repeat of another seed in the place of one: {repeated_words})."
    )
    return Finding("overlap", verdict, headline, text)


def _count_cells(organism: str, named: pd.DataFrame) -> Finding:
    """Count the layers and types above matched chance, and on each side of the midpoint, by intervals over seeds."""
    first = named.iloc[0]
    said = []
    for by, what in CELLS.items():
        rows = [row for _, row in named[named["by"] == by].iterrows()]
        above = [str(row["cell"]) for row in rows if chance_verdict(row) == "above chance"]
        judged = {v: [str(row["cell"]) for row in rows if midpoint_verdict(row) == v] for v in NEARER}
        said.append(
            f"of {len(rows)} {what}, {_named(above)} above matched chance, "
            f"{_named(judged['as the same kind'])} nearer to the floor, {_named(judged['apart'])} nearer to chance, "
            f"{_named(judged['undecided'])} undecided, {_named(judged['unknown'])} unknown"
        )
    text = (
        f"{organism}, {first['analysis']}, {first['first']} and {first['second']} place by place "
        f"({many(int(named['overlap_seeds'].max()), 'seed')}, energy {first['energy']:g}): {'; '.join(said)}. "
        "Each by its own 95 % interval: of places at chance, one in forty stands above it by luck."
    )
    return Finding("overlap", "counted", "", text)


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"


def _because(row: pd.Series) -> str:
    reason = _why_unknown(row)
    return f", as {reason}" if reason else ""


def _level(row: pd.Series, measure: str, reach: bool = True) -> str:
    if np.isnan(row[measure]):
        return "not measured"
    half = row[f"{measure}_reach"]
    return f"{row[measure]:.2f}" + (f" ± {half:.2f}" if reach and not np.isnan(half) else "")


def _words(row: pd.Series, measure: str) -> str:
    """Return a difference with its interval, to the third decimal: an overlap just above chance differs there."""
    interval = interval_of(row, measure)
    return interval_words(interval, 3, "" if interval.n == row["overlap_seeds"] else f", {many(interval.n, 'seed')}")


def _power(row: pd.Series) -> str:
    return "" if _why_unknown(row) else f" (one at the floor would be told with probability {row['power']:.2f})"
