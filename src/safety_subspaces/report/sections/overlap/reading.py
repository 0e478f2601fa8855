"""What the overlaps of the weight updates say, placed between their matched chance and the same-kind floors."""

from dataclasses import replace

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import in_blocks, nearest_energy
from safety_subspaces.findings.intervals import Finding, t_interval
from safety_subspaces.report.parts.sentence import first_headline


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


def _floors_of(floors: pd.DataFrame, pair: tuple[str, str]) -> pd.Series:
    """Return the mean floor of each tensor: of the floors that share a label with the pair, else of all."""
    own = floors[floors["first"].isin(pair) | floors["second"].isin(pair)]
    return (floors if own.empty else own).groupby("tensor")["overlap"].mean()


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
    place = {1: "above", -1: "below", 0: "not shown to differ from"}[over_chance.sign]
    which = "matched chance" if has_matched else "chance (no matched control was run)"
    numbers = (
        f"overlap {by_tensor['overlap'].mean():.2f} at energy {energy:g} over {len(by_tensor)} matrices in "
        "the blocks, "
        f"chance {by_tensor['chance'].mean():.2f}, matched chance {by_tensor['matched_chance'].mean():.2f}, "
        f"same-kind floor {floor.mean():.2f}"
    ).replace("nan", "not measured")
    text = f"{name}: {numbers}; {place} {which} by {over_chance}; {ending}."
    text += "" if np.isnan(of_head) else f" In the output head {of_head:.2f}."
    text += f" Undefined in {undefined} matrices." if undefined else ""
    headline = f"In weights, {name} overlap {place} {which} ({by_tensor['overlap'].mean():.2f}): {ending}."
    return Finding("overlap", verdict, headline, text)
