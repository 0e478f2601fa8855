"""The section on several alignments side by side, which no single one of them has."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.run_alignment import Alignment
from safety_subspaces.findings.alignments import (
    ERRORS,
    MEASURES,
    TRAITS,
    alignments_by_seed,
    alignments_over_seeds,
    judged_by,
)
from safety_subspaces.findings.between_alignments import (
    CHANGES,
    CLOSING,
    HARM,
    MORE_THAN_HALF,
    NATS,
    OBJECTIVES,
    SHARE,
    WITH_SELECTIVITY,
)
from safety_subspaces.findings.finding import asked
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, text
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, sample_words
from safety_subspaces.report.parts.verdict import corrected_p_words, estimate_words

TITLE: Final = "Alignments side by side"
TRAIT_WORDS: Final = {
    "norm": "size of the alignment update",
    "stable_rank": "stable rank in the blocks",
    "head_share": "share of the output head",
    "aligned_margin": "refusal margin of the aligned model",
}
BETWEEN: Final = {
    "more selective": "Alignment's subspace is more selective under {} than under {}",
    "less selective": "Alignment's subspace is less selective under {} than under {}",
    "no difference": "Between {} and {} there is no difference in selectivity that these seeds can show",
}
SELECTIVITY_NOTE: Final = (
    "Selectivity: refusal margin of top-k minus random of equal energy, in nats, positive where alignment's directions "
    "are spared by away and spent by onto; share: of the margin that the fine-tune took away; of harm: the same "
    "difference of the judged score, which jumps and has no interval."
)


def alignments(organisms: Sequence[Organism], findings: pd.DataFrame) -> Section | None:
    """Return what several alignments show together; ``None`` of a single one.

    Args:
        organisms: The studies, by alignment.
        findings: Those of :func:`safety_subspaces.findings.between_alignments.between_alignments`, decided.
    """
    found = findings[findings["topic"] == "alignments"]
    if len(organisms) < 2 or found.empty:
        return None
    gaps = [row for _, row in asked(found, OBJECTIVES, measure=SHARE).iterrows()]
    changes = [row for _, row in asked(found, CHANGES, measure=SHARE).iterrows()]
    table, closed, traits = alignments_table(organisms), _closed(found, changes), _traits(found)
    headlines = [*map(_between, gaps), *closed, *traits[:1]]
    return Section(
        "alignments",
        TITLE,
        tables={TITLE: table},
        clause=headlines[0].rstrip(".") if headlines else "",
        headlines=headlines,
        sentences=[
            *(f"{_between(row)}{_measured(found, row)}" for row in gaps),
            *closed,
            *(
                f"{row['details']['first']}, beside {row['details']['beside']}: {_changed(found, row)}"
                for row in changes
            ),
            *([" ".join(traits)] if traits else []),
        ],
        terminal={TITLE: table.without("data", "examples", "rate/1e-3", "draws")},
        place=10,
    )


def alignments_table(organisms: Sequence[Organism]) -> Table:
    """Each alignment: its recipe, what its update is like, and how selective its subspace is."""
    over = alignments_over_seeds(alignments_by_seed(organisms))
    recipes = {organism.name: organism.alignment for organism in organisms}
    shown = ("norm", "stable_rank", "head_share", "aligned_margin", "tuned_margin", *ERRORS)
    means = {name: numbers(name, 2, f"{name}_reach") for name in shown}
    columns: dict[str, Cell] = {
        "alignment": text("organism"),
        "data": lambda row: getattr(recipes[row["organism"]], "data", "unknown"),
        "examples": lambda row: count(getattr(recipes[row["organism"]], "examples", None)),
        "rate/1e-3": lambda row: _rate(recipes, str(row["organism"])),
        "norm": means["norm"],
        "stable rank": means["stable_rank"],
        "head share": means["head_share"],
        "margin": means["aligned_margin"],
        "tuned margin": means["tuned_margin"],
        "selectivity": means["selectivity"],
        "share": means["lost_share"],
        "of harm": numbers("harm_selectivity", 2),
        "seeds": lambda row: "/".join(dict.fromkeys(count(row[f"{name}_seeds"]) for name in (*TRAITS, *MEASURES))),
        "draws": counts("draws"),
    }
    projected = pd.concat([organism.seeds.projections for organism in organisms])
    note = (
        "Means over seeds, ± half the 95 % t interval. Norm, stable rank (blocks, by energy) and head share are those "
        "of the alignment update; margin is the aligned model's, tuned margin that of the fine-tune that all are "
        f"judged by, {judged_by(organisms)}. {SELECTIVITY_NOTE} Over {int(over['fractions'].max())} fractions. "
        f"n: {sample_words(projected)}."
    )
    return table_of(over, columns, 2, note)


def _between(row: pd.Series) -> str:
    names, verdict = (row["details"].get("first"), row["details"].get("beside")), row["verdict"]
    if names[0] is None:
        return f"How selective the alignments are is {verdict}."
    if verdict not in BETWEEN:
        return f"Whether {names[0]} and {names[1]} differ in selectivity is not told: {verdict}, {estimate_words(row)}."
    said = f"{estimate_words(row)} of the margin that was lost, {many(int(row['n']), 'seed')}, {corrected_p_words(row)}"
    return f"{BETWEEN[verdict].format(*names)}: {said}."


def _measured(found: pd.DataFrame, row: pd.Series) -> str:
    """Say the same difference in nats and in judged harm."""
    if not row["subject"]:
        return ""
    nats, harm = (asked(found, row["question"], subject=row["subject"], measure=m).iloc[0] for m in (NATS, HARM))
    return f" In nats {estimate_words(nats)}; judged harm {number(harm['estimate'], 2, sign='+')}, {harm['verdict']}."


def _changed(found: pd.DataFrame, row: pd.Series) -> str:
    way = 100 * row["details"]["gap_share"]
    tested = f", {corrected_p_words(row)}" if corrected_p_words(row) else ""
    far = "" if np.isnan(way) else f", {way:.0f} % of the way to the other objective"
    numbers_of = f"{estimate_words(row)} of the margin that was lost over {many(int(row['n']), 'seed')}{tested}"
    return f"{row['verdict']}, {numbers_of}{far}.{_measured(found, row)}"


def _closed(found: pd.DataFrame, changes: Sequence[pd.Series]) -> list[str]:
    """Name the changes that close more than half of the gap between the objectives, or the one that closes most."""
    asked_of = asked(found, CLOSING)
    closing = asked_of[asked_of["verdict"] == MORE_THAN_HALF]
    if len(closing):
        each = "; ".join(f"{row['details']['first']} ({corrected_p_words(row)})" for _, row in closing.iterrows())
        return [f"More than half of the gap between the objectives is closed by other changes: {each}."]
    ways = [(row["details"]["gap_share"], row["details"]["first"]) for row in changes]
    known = [way for way in ways if not np.isnan(way[0])]
    if not known:
        return []
    most, name = max(known)
    return [
        "No change that keeps the objective is shown to close more than half of the gap between the objectives; the "
        f"most is {100 * most:.0f} %, by {name}."
    ]


def _traits(found: pd.DataFrame) -> list[str]:
    """Say which traits go with selectivity, then the numbers of each."""
    rows = asked(found, WITH_SELECTIVITY)
    if rows.empty:
        return []
    shown = [
        f"{TRAIT_WORDS[row['subject']]} ({row['verdict']}, {corrected_p_words(row)})"
        for _, row in rows.iterrows()
        if row["verdict"] in ("rises with it", "falls with it")
    ]
    what = ", ".join(shown) if shown else "none of the traits that is shown"
    numbers_of = "; ".join(f"{TRAIT_WORDS[row['subject']]} {_rho(row)}" for _, row in rows.iterrows())
    return [
        f"Over {many(int(rows['n'].max()), 'alignment')} selectivity goes with: {what}.",
        f"Rank correlation with its 95 % interval over alignments: {numbers_of}.",
    ]


def _rho(row: pd.Series) -> str:
    if np.isnan(row["estimate"]):
        return "not known"
    seeds = row["details"]
    ends = (seeds["seeds_low"], seeds["seeds_high"])
    over = (
        ""
        if np.isnan(ends[0])
        else f", over {many(int(seeds['seeds']), 'seed')} of these {ends[0]:+.2f} to {ends[1]:+.2f}"
    )
    return f"{row['estimate']:+z.2f} ({row['low']:+.2f} to {row['high']:+.2f}{over}, {corrected_p_words(row)})"


def _rate(recipes: Mapping[str, Alignment | None], name: str) -> str:
    rate = getattr(recipes[name], "learning_rate", None)
    return NOTHING if rate is None else f"{1e3 * rate:.1f}"
