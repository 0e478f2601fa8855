"""What several alignments show together: which is selective, what change makes it so, and which trait goes with it."""

from collections.abc import Sequence
from typing import Final

import pandas as pd

from safety_subspaces.findings.alignments import (
    JUDGED_BY,
    LEAST_ALIGNMENTS,
    MEASURES,
    TRAITS,
    alignments_by_seed,
    alignments_over_seeds,
    changes,
    first_of_each,
    gap,
    trait_correlations,
)
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, text
from safety_subspaces.report.parts.sentence import interval_words, many
from safety_subspaces.report.parts.table import Table, count, sample_words

TRAIT_WORDS: Final = {
    "norm": "size of the alignment update",
    "stable_rank": "stable rank in the blocks",
    "head_share": "share of the output head",
    "aligned_margin": "refusal margin of the aligned model",
}


def read_alignments(organisms: Sequence[Organism]) -> list[Finding]:
    """Return what the alignments show beside each other; nothing of a single one."""
    if len(organisms) < 2:
        return []
    by_seed = alignments_by_seed(organisms)
    if by_seed["selectivity"].notna().sum() == 0:
        text = f"How selective the alignments are cannot be told: no projection of {JUDGED_BY} was evaluated in all."
        return [Finding("alignments", "unknown", text, text)]
    findings = [*_read_gap(organisms, by_seed), *_read_changes(organisms, by_seed)]
    return [*findings, *_read_traits(by_seed)]


def alignments_table(organisms: Sequence[Organism]) -> Table:
    """Each alignment: its recipe, what its update is like, and how selective its subspace is."""
    over = alignments_over_seeds(alignments_by_seed(organisms))
    recipe_of = {organism.name: organism.alignment for organism in organisms}
    recipes = [recipe_of[str(name)] for name in over["organism"]]
    rates = [None if recipe is None else recipe.learning_rate for recipe in recipes]
    over = over.assign(
        data=["unknown" if recipe is None else recipe.data for recipe in recipes],
        examples=pd.Series([None if recipe is None else recipe.examples for recipe in recipes], dtype=float),
        rate=1e3 * pd.Series(rates, dtype=float),
    )

    def over_seeds(name: str) -> Cell:
        return numbers(name, 2, f"{name}_reach")

    columns: dict[str, Cell] = {
        "alignment": text("organism"),
        "data": text("data"),
        "examples": counts("examples"),
        "rate/1e-3": numbers("rate", 1),
        "norm": over_seeds("norm"),
        "stable rank": over_seeds("stable_rank"),
        "head share": over_seeds("head_share"),
        "margin": over_seeds("aligned_margin"),
        "tuned margin": over_seeds("tuned_margin"),
        "selectivity": over_seeds("selectivity"),
        "share": over_seeds("lost_share"),
        "of harm": over_seeds("harm_selectivity"),
        "seeds": lambda row: "/".join(dict.fromkeys(count(row[f"{name}_seeds"]) for name in (*TRAITS, *MEASURES))),
        "draws": counts("draws"),
    }
    asked = pd.concat([organism.seeds.projections for organism in organisms])
    note = (
        "Means over seeds, ± half the 95 % t interval. Norm, stable rank (blocks, by energy) and head share are those "
        "of the alignment update; margin is the aligned model's, tuned margin that of the contaminated fine-tune. "
        "Selectivity: refusal margin of top-k minus random of equal energy in nats, positive where alignment's "
        f"directions are spared by away and spent by onto, over {int(over['fractions'].max())} fractions; share: of "
        "the margin that the fine-tune took away; of harm: the same difference of the judged score. "
        f"n: {sample_words(asked)}."
    )
    return table_of(over, columns, 2, note)


def _read_gap(organisms: Sequence[Organism], by_seed: pd.DataFrame) -> list[Finding]:
    names = list(first_of_each(organisms).values())
    if len(names) < 2:
        return []
    between, nats, harm = (gap(organisms, by_seed, m) for m in ("lost_share", "selectivity", "harm_selectivity"))
    verdict = {1: "more selective", -1: "less selective", 0: "no difference"}[between.sign]
    verdict = "unknown" if between.n < 2 else verdict
    said = {
        "more selective": f"Alignment's subspace is more selective under {names[1]} than under {names[0]}.",
        "less selective": f"Alignment's subspace is less selective under {names[1]} than under {names[0]}.",
        "no difference": f"Between {names[1]} and {names[0]} there is no difference in selectivity that "
        f"{between.n} seeds can show.",
        "unknown": f"Whether {names[1]} and {names[0]} differ in selectivity cannot be told from {between.n} seed.",
    }[verdict]
    text = (
        f"{said} Difference, seed by seed, as a share of the margin that the fine-tune took away: "
        f"{interval_words(between)}; in nats {interval_words(nats)}; in the judged harm score {interval_words(harm)}."
    )
    headline = f"{said[:-1]}: {interval_words(between)} of the margin that was lost, {many(between.n, 'seed')}."
    return [Finding("alignments", verdict, headline, text)]


def _read_changes(organisms: Sequence[Organism], by_seed: pd.DataFrame) -> list[Finding]:
    """Say of each alignment with one thing changed how far it moved, and name what closes most of the gap."""
    moved = changes(organisms, by_seed)
    if moved.empty:
        return []
    findings, closing = [], []
    for _, row in moved.iterrows():
        change = row["lost_share"]
        verdict = {1: "more selective", -1: "less selective", 0: "no change shown"}[change.sign]
        verdict = "unknown" if change.n < 2 else verdict
        way = 100 * float(row["gap_share"])
        share = "" if pd.isna(way) else f", {way:.0f} % of the way to the other objective"
        if row["past_half"].sign > 0:
            closing.append(str(row["organism"]))
        text = (
            f"{row['organism']}, beside {row['beside']}: {verdict} (share {interval_words(change)} over {change.n} "
            f"seeds{share}; nats {interval_words(row['selectivity'])}; judged harm "
            f"{interval_words(row['harm_selectivity'])})."
        )
        findings.append(Finding("changes", verdict, "", text))
    if moved["gap_share"].isna().all():
        return findings
    most = moved.sort_values("gap_share").iloc[-1]
    headline = (
        "No change that keeps the objective is shown to close more than half of the gap between the objectives; the "
        f"most is {100 * most['gap_share']:.0f} %, by {most['organism']}."
    )
    if closing:
        headline = f"More than half of the gap between the objectives is closed by other changes: {'; '.join(closing)}."
    return [Finding("changes", "explained" if closing else "not explained", headline, headline), *findings]


def _read_traits(by_seed: pd.DataFrame) -> list[Finding]:
    correlations = trait_correlations(by_seed)
    number_of = int(correlations["alignments"].max())
    if number_of < LEAST_ALIGNMENTS:
        return []
    shown, words = [], []
    for _, row in correlations.iterrows():
        word = TRAIT_WORDS[str(row["trait"])]
        if row["low"] > 0 or row["high"] < 0:
            shown.append(f"{word} ({'rises' if row['rho'] > 0 else 'falls'} with it)")
        interval = "no interval" if pd.isna(row["low"]) else f"95 % {row['low']:+.2f} to {row['high']:+.2f}"
        words.append(f"{word} {row['rho']:+z.2f} ({interval})" if pd.notna(row["rho"]) else f"{word} not known")
    headline = (
        f"Over {number_of} alignments selectivity goes with: {', '.join(shown) if shown else 'none of the traits'}."
    )
    text = f"{headline} Rank correlation, mean over {int(correlations['seeds'].max())} seeds: {'; '.join(words)}."
    return [Finding("traits", "found" if shown else "none", headline, text)]
