"""The section on selectivity: top-k of alignment beside random subspaces of equal energy, and the scaled update."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.finding import asked
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.sweep_contrasts import (
    BOTH,
    COMPARED_AT,
    DRAWS,
    PROMPTS,
    SEEDS,
    contrasts,
    contrasts_by_fraction,
)
from safety_subspaces.findings.swept import METHODS, evaluated, swept
from safety_subspaces.findings.thresholds import ENERGY_GAP, LEAST_DIFFERENCE
from safety_subspaces.findings.topics.selectivity import HARM, MARGIN, QUESTIONS
from safety_subspaces.report.parts.columns import Cell, counts, numbers, short, table_of, text
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import interval_words, many
from safety_subspaces.report.parts.sweeps import left_out_words, missing_projections
from safety_subspaces.report.parts.table import NOTHING, Table, count, joined_counts, sample_words
from safety_subspaces.report.parts.tile import Tile
from safety_subspaces.report.parts.verdict import corrected_p_words

TITLE: Final = "Top-k against random subspaces of equal energy"
BESIDE: Final = "Top-k of alignment beside its controls"
CONTROLS: Final = {
    QUESTIONS["random-energy"]: "random subspaces of equal energy",
    QUESTIONS["scaled"]: "the whole update scaled to equal energy",
}
# How a count of judged harm ends that points the other way than the margin.
OPPOSITE: Final = ", the opposite"
# What the differences mean, said once on the page.
SENSE: Final = (
    "Differences are top-k minus its control. Signed, margin and harm are positive where top-k is selective: alignment "
    "spared when its directions are projected away, spent when the update is projected onto them. A control that is "
    "better, or worse, in both methods alike takes itself out of their signed mean: read each method alone. Verdicts "
    "are on the mean over methods, in refusal margin; one method alone is described, and the judged harm score, which "
    "jumps, is counted."
)
ONE_STUDY: Final = (
    "One study: top-k is one subspace among random ones. Beside its difference stands how far from the mean of the "
    "draws one more draw of the control would fall, in 95 %; p is its rank among the draws. Other training seeds are "
    "not covered."
)
FAMILIES: Final = (
    "p is corrected (Holm) for the controls of the fine-tune that is asked first (of those that gained utility, the "
    "one that lost most refusal margin), and apart from that for all controls of the other fine-tunes."
)


def selectivity(part: Part) -> Section:
    """Return the section; of studies without a projection it is the next step towards one."""
    anchor, projections, found = "selectivity", swept(part.studies), part.of_topic("selectivity")
    missing, margins = missing_projections(part.studies), found[found["measure"] == MARGIN]
    why = (
        "no projection was run"
        if projections.empty
        else "no projected model was evaluated"
        if evaluated(projections).empty
        else "no sweep has top-k and a control"
    )
    if margins.empty or not margins["subject"].any():
        said = [f"Whether top-k of alignment is selective cannot be told: {why}."]
        return Section(anchor, TITLE, headlines=said, sentences=said, missing=missing, place=60)
    rows = [row for _, row in margins.iterrows()]
    beside = _contrasts_table(projections, margins, part.is_single)
    return Section(
        anchor,
        TITLE,
        tables={BESIDE: beside, "At each fraction": _fractions_table(projections, part.is_single)},
        clause=_clause(rows),
        tiles=_tiles(rows),
        # What one study cannot test, whatever its draws, is a sentence and no headline.
        headlines=[_headline(row) for row in rows if row["details"]["is_judged"] and row["unit"] != PROMPTS],
        sentences=[_sentence(row, found) for row in rows] + _opposite_counts(rows, found),
        terminal={BESIDE: _main_rows(beside)},
        notes=[SENSE, *([ONE_STUDY] if part.is_single else []), FAMILIES],
        missing=missing,
        place=60,
    )


def _main(rows: list[pd.Series]) -> pd.Series | None:
    """Return the finding that is asked first: of one fine-tune, beside random subspaces of equal energy."""
    of_random = [row for row in rows if row["details"]["is_judged"] and row["question"] == QUESTIONS["random-energy"]]
    return of_random[0] if of_random else None


def _clause(rows: list[pd.Series]) -> str:
    row = _main(rows)
    if row is None:
        return ""
    control, verdict = CONTROLS[row["question"]], str(row["verdict"])
    if verdict in ("more selective", "less selective"):
        return f"alignment's leading directions are {verdict} than {control}"
    if verdict in ("no difference", "as random"):
        return f"alignment's leading directions are not shown to be more selective than {control}"
    why = verdict.partition(": ")[2]
    return f"whether alignment's leading directions are more selective than {control} is not told ({why})"


def _tiles(rows: list[pd.Series]) -> list[Tile]:
    row = _main(rows)
    if row is None or pd.isna(row["estimate"]):
        return []
    return [
        Tile(
            f"Selectivity on {row['subject']}",
            f"{row['estimate']:+z.2f} nats",
            f"top-k minus random of equal energy, {_margin_words(row).partition(' ')[2].strip('()') or 'no interval'}",
            str(row["verdict"]),
            f"n = {_units(row)}, log-probabilities",
        )
    ]


def _opposite_counts(rows: list[pd.Series], found: pd.DataFrame) -> list[str]:
    """Describe where the judged score counts the other way than the margin's verdict: it is counted and not tested."""
    said = []
    for row in rows:
        harm = asked(found, row["question"], subject=row["subject"], measure=HARM).iloc[0]
        words = _harm_words(harm, row)
        if words.endswith(OPPOSITE):
            said.append(
                f"On {row['subject']}, beside {CONTROLS[row['question']]}, top-k is {row['verdict']} by the refusal "
                f"margin, while the judged harm score, which is counted and not tested, goes the other way "
                f"({words.removesuffix(OPPOSITE)})."
            )
    return said


def _headline(row: pd.Series) -> str:
    return f"{row['subject']}, {_at(row)}: {_verdict_words(row)}; refusal margin {_margin_words(row)}, {_units(row)}."


def _sentence(row: pd.Series, found: pd.DataFrame) -> str:
    """Say what is found of one fine-tune beside one control, with every number behind it."""
    details = row["details"]
    unit, alone = str(row["unit"]), details["each"]
    each = "; ".join(_method_words(method, alone[method], unit) for method in METHODS if method in alone)
    harm = asked(found, row["question"], subject=row["subject"], measure=HARM).iloc[0]
    sizes = f"{_units(row)}, {many(details['fractions'], 'fraction')}"
    utility = (
        "" if details["at"] == "utility" else f"; utility {_difference_words(details['utility'], unit)}, not signed"
    )
    text = (
        f"{row['subject']}, {_at(row)}: {_verdict_words(row)}. Signed, mean over {_methods(details['methods'])}: "
        f"refusal margin {_margin_words(row)}, in nats ({sizes}{utility}). Each method alone, not signed: {each}. By "
        f"the judged harm score: {_harm_words(harm, row)}."
    )
    if details.get("undefined"):
        text += f" Pairs of curves that share too little utility, in all methods and seeds: {details['undefined']}."
    if details.get("left_out"):
        text += f" {left_out_words(details['left_out'], details['compared'])}"
    return text


def _verdict_words(row: pd.Series) -> str:
    control, verdict, details = CONTROLS[row["question"]], str(row["verdict"]), row["details"]
    side = "more" if row["estimate"] > 0 else "less"
    random = details["random"]
    unit = SEEDS if row["unit"] == SEEDS else DRAWS
    beside = "" if random is None else f", {{}} random subspaces of equal energy: {_difference_words(random, unit)}"
    if verdict == "as random":
        return f"top-k of alignment is {side} selective than {control}{beside.format('and so are')}"
    if verdict in ("more selective", "less selective"):
        return f"top-k of alignment is {verdict} than {control}{beside.format('beside')}"
    if verdict == "no difference":
        return (
            f"between top-k of alignment and {control} there is no difference that {_units(row)} can show"
            f"{beside.format('beside')}"
        )
    why = verdict.partition(": ")[2].replace("one seed", "one study has one of each")
    return f"whether top-k of alignment is more selective than {control} cannot be told: {why}{beside.format('beside')}"


def _at(row: pd.Series) -> str:
    if row["details"]["at"] == "utility":
        return "at equal utility"
    still = "does not grow over the sweep" if row["details"]["utility_scored"] else "was not scored"
    return f"at equal energy, for utility {still}"


def _margin_words(row: pd.Series) -> str:
    p, plain = corrected_p_words(row), {"mean": row["estimate"], "low": row["low"], "high": row["high"], "n": row["n"]}
    return _difference_words(plain, str(row["unit"])) + (f", {p}" if p else "")


def _units(row: pd.Series) -> str:
    """Return over what the numbers are: seeds and draws, draws, or nothing that is drawn."""
    draws, details = row["question"] == QUESTIONS["random-energy"], row["details"]
    drawn = many(details["draws"], "draw") if draws else "without draws"
    return f"{many(int(row['n']), 'seed')}, {drawn}" if row["unit"] == SEEDS else drawn


def _methods(methods: list[str]) -> str:
    return " and ".join(methods) if len(methods) > 1 else f"{methods[0]} alone" if methods else "no method"


def _method_words(method: str, alone: dict[str, Any], unit: str) -> str:
    """Return the differences by one method, with the utilities that the two share where they are compared at equal."""
    where = ""
    if "utility_low" in alone:
        low, high = alone["utility_low"], alone["utility_high"]
        where = " (no utility in common)" if np.isnan(low) else f" (utility in common {low:.2f} to {high:.2f})"
    harm = alone["harm_score"]["mean"]
    scored = "not known" if np.isnan(harm) else f"{harm:+z.2f}"
    return f"{method}{where} margin {_difference_words(alone['refusal_margin'], unit)}, harm score {scored}"


def _harm_words(harm: pd.Series, margin: pd.Series) -> str:
    """Return the count of the judged harm score, and whether it points the other way than the margin's verdict."""
    if pd.isna(harm["estimate"]):
        return "unknown"
    details, side = harm["details"], {"more selective": 1, "less selective": -1}.get(str(margin["verdict"]), 0)
    opposite = OPPOSITE if side * (details["above"] - details["below"]) < 0 else ""
    if harm["unit"] == PROMPTS:
        return f"{harm['estimate']:+z.2f}, one model of each{opposite}"
    unit = "seeds" if harm["unit"] == SEEDS else "draws"
    counted = str(harm["verdict"]).replace(" more", f" {unit} more", 1)
    least = f"by {LEAST_DIFFERENCE['harm_score']:g} or more of its 4 points"
    return f"{harm['estimate']:+z.2f}, {counted} ({least}){opposite}"


def _difference_words(plain: dict[str, float], unit: str) -> str:
    """Return a difference with its interval; of draws with how far from the mean of the others one more would fall."""
    over = Interval(plain["mean"], plain["low"], plain["high"], int(plain["n"]))
    if unit != DRAWS or np.isnan(over.low):
        return interval_words(over)
    return f"{over.mean:+z.2f} (one more draw within ±{over.reach:.2f})"


def _contrasts_table(projections: pd.DataFrame, margins: pd.DataFrame, is_single: bool) -> Table:
    """Kinds of subspace minus each other at equal utility and at equal energy, each method alone and both."""
    frame = pd.concat([contrasts(projections, at).assign(at=at) for at in ("utility", "energy")], ignore_index=True)
    cells = frame.groupby(["tuned", "subspace", "other"], sort=False)
    p_of = {(row["subject"], row["question"], row["details"]["at"]): row["p_adjusted"] for _, row in margins.iterrows()}
    utility = numbers("utility_difference", 2, "utility_difference_reach", "+")

    def p(row: pd.Series) -> str:
        question = QUESTIONS.get(row["other"]) if row["subspace"] == "top" and row["method"] == BOTH else None
        known = p_of.get((row["tuned"], question, row["at"]), np.nan)
        return "" if pd.isna(known) else f"{known:.3f}"

    columns: dict[str, Cell] = {
        "tuned": text("tuned"),
        "pair": lambda row: f"{row['subspace']} - {row['other']}",
        "equal": text("at"),
        "method": text("method"),
        "utility": lambda row: "" if row["at"] == "utility" else utility(row),
        "harm 1-5": numbers("harm_score_difference", 2, sign="+"),
        "margin": numbers("refusal_margin_difference", 2, "refusal_margin_difference_reach", "+"),
        "p": p,
        "shared": _shared,
        "fractions": counts("fractions"),
        "draws": counts("draws"),
        **({} if is_single else {"seeds": _seeds}),
    }
    of_one = (
        "± of a pair with a random subspace how far from the mean of the draws one more draw would fall, of top and "
        "scaled half the interval over prompts (95 %)"
    )
    of_seeds = (
        "Mean differences, seed by seed, ± half the 95 % t interval over seeds, never narrower than that over prompts, "
        "draws averaged within each; where the measures differ in their seeds, all are told in the order of the columns"
    )
    note = (
        f"{of_one if is_single else of_seeds}. Equal utility: the mean over the shared utilities, each curve's utility "
        "made non-decreasing in energy; equal energy: the mean over fractions that every seed has, without draws whose "
        f"own energy differs by more than {ENERGY_GAP}. Both: the mean over methods, margin and harm signed: positive "
        "is selective (margin spared by away, spent by onto); p is that of its margin, corrected. n: "
        f"{sample_words(projections)}."
    )
    return table_of([row for _, cell in cells for _, row in cell.iterrows()], columns, 4, note)


def _fractions_table(projections: pd.DataFrame, is_single: bool) -> Table:
    """Top-k minus random subspaces of equal energy at each fraction."""
    columns: dict[str, Cell] = {
        "tuned": text("tuned"),
        "method": text("method"),
        "fraction": short("fraction"),
        "energy top": numbers("energy_top", 3),
        "energy random": numbers("energy_random", 3),
        "utility": numbers("utility_difference", 2, "utility_difference_reach", "+"),
        "harm 1-5": numbers("harm_score_difference", 2, sign="+"),
        "margin": numbers("refusal_margin_difference", 2, "refusal_margin_difference_reach", "+"),
        **({"p": numbers("rank_p", 3)} if is_single else {}),
        "draws": counts("draws"),
        "left out": counts("left_out"),
        **({} if is_single else {"seeds": _seeds}),
    }
    of_one = (
        "Top minus the mean of the random draws ± how far from it one more draw would fall (95 %; none with one draw). "
        "p: the rank of top's margin among the draws, one fraction alone, not corrected"
    )
    of_seeds = "Top minus the mean of the random draws, mean over seeds ± half the 95 % t interval"
    note = (
        f"{of_one if is_single else of_seeds}. Left out: draws whose own energy differs from top's by more than "
        f"{ENERGY_GAP}. A selective subspace spares the margin when it is projected away (positive) and spends it when "
        "projected onto (negative)."
    )
    return table_of(contrasts_by_fraction(projections), columns, 2, note)


def _main_rows(table: Table) -> Table:
    """Keep the rows of top-k with both methods together: a terminal has room for the verdict, the page has the rest."""
    pair, method = table.columns.index("pair"), table.columns.index("method")
    rows = tuple(row for row in table.rows if row[pair].startswith("top") and row[method] == BOTH)
    return replace(table, rows=rows).without("shared", "fractions", "draws")


def _shared(row: pd.Series) -> str:
    """Return the utilities that two curves share."""
    if row["at"] != "utility":
        return ""
    return NOTHING if pd.isna(row["utility_low"]) else f"{row['utility_low']:.2f}-{row['utility_high']:.2f}"


def _seeds(row: pd.Series) -> str:
    measures = [measure for measure in COMPARED_AT[row.get("at", "energy")] if measure in COMPARED]
    return joined_counts([count(row[f"{measure}_difference_n"]) for measure in measures])
