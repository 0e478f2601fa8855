"""The section on kept energy: what of a fine-tune lies in the alignment subspace, and what kept energy orders."""

from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.finding import asked
from safety_subspaces.findings.kept_energy import energy_beside_chance
from safety_subspaces.findings.models import main_fine_tune
from safety_subspaces.findings.sweep_contrasts import SEEDS
from safety_subspaces.findings.swept import energy_correlations, evaluated, sweep_ends, sweep_points, swept
from safety_subspaces.findings.topics.energy import ALONE, AT_EQUAL, INSIDE, ORDER, SHOWN
from safety_subspaces.report.parts.columns import (
    HEADINGS,
    Cell,
    counts,
    numbers,
    outcomes,
    short,
    table_of,
    text,
    texts,
)
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many, p_words
from safety_subspaces.report.parts.sweeps import (
    AGAINST_ENERGY,
    AGAINST_UTILITY,
    UTILITY,
    kept_energy_figure,
    left_out_words,
    margin_range,
    missing_projections,
    sweep_caption,
    sweep_figure,
)
from safety_subspaces.report.parts.table import Table, count, joined_counts, number, sample_words
from safety_subspaces.report.parts.verdict import corrected_p_words, estimate_words

# The two charts of a fine-tune: against what, the measures, and the axes of their panels.
VIEWS: Final = (
    ("the energy kept", "Utility, harm score and refusal margin", AGAINST_ENERGY),
    ("utility", "Harm score and refusal margin", AGAINST_UTILITY),
)
TITLE: Final = "Utility and harm against the energy kept"
# A screenful of a terminal, which shows top-k and its control of equal energy where a sweep has more.
TERMINAL_ROWS: Final = 48
COMPARED_SUBSPACES: Final = ("top", "random-energy")
ONLY_COMPARED: Final = " (top-k and its control of equal energy; the page has every subspace)"
WORDS: Final = {"utility": "utility", "harm_score": "harm score", "refusal_margin": "refusal margin"}
NAMES: Final = {"top": "top-k", "random-energy": "random of equal energy", "scaled": "scaled"}
OUTCOMES: Final = ("utility", "harmful_rate", "harm_score", "over_refusal_rate", "refusal_margin")
ORDERS: Final = {
    "alone": "orders the outcome, and at equal energy no difference is shown",
    "not alone": "orders the outcome, but not alone: at equal energy kinds differ",
    "partly": "orders the outcome in part, or how far it does is not shown",
    "does not order": "does not order the outcome",
    "unknown": "is not known to order the outcome alone",
}
INSIDE_WORDS: Final = {
    "more than random": "holds more than random subspaces of equal rank",
    "less than random": "holds less than random subspaces of equal rank",
    "no difference": "holds no more and no less than random subspaces of equal rank, as far as is shown",
}
HAAR: Final = (
    "Random subspaces are Haar-random, of equal rank in each tensor. More energy than theirs is also what updates have "
    "that share nothing but the scales of their rows."
)


def energy(part: Part) -> Section:
    """Return the section; of studies without a projection it is the next step towards one."""
    studies, found, anchor = part.studies, part.of_topic("energy"), "energy"
    projections = swept(studies)
    missing = missing_projections(studies)
    if projections.empty:
        return Section(anchor, TITLE, missing=missing, place=50)
    points = sweep_points(projections)
    hero, charts = _charts(part, projections, points)
    has_outcomes = not evaluated(projections).empty
    order, inside = _order_table(projections, part.is_single), _inside_table(projections, part.is_single)
    projected = _projections_table(points, part.is_single)
    tables = {"Kept energy and the outcome": order} if has_outcomes else {}
    terminal = dict(tables)
    if part.is_single:
        shown = points if len(points) <= TERMINAL_ROWS else points[points["subspace"].isin(COMPARED_SUBSPACES)]
        more = (
            " (top-k and its control of equal energy; the page has every subspace)" if len(shown) < len(points) else ""
        )
        brief = _projections_table(shown, is_single=True)
        terminal[f"Projections{more}"] = brief.without("chance", "harmful", "over-refusal", "unscored", "energies")
    return Section(
        anchor,
        TITLE,
        charts=charts,
        hero=hero,
        leads=has_outcomes,  # every subspace beside its control of equal energy, where runs under a constraint are few
        tables=tables | {"Energy in the alignment subspace": inside, "Every projection": projected},
        headlines=[*_order_headlines(found, part.is_single), *_inside_headlines(found)],
        sentences=[*_inside_sentences(found), *_order_sentences(found, part.is_single)],
        terminal=terminal,
        notes=[HAAR] if len(inside.rows) else [],
        missing=missing,
        place=50,
    )


def _charts(
    part: Part, projections: pd.DataFrame, points: pd.DataFrame
) -> tuple[tuple[Chart, str] | None, list[tuple[Chart, str]]]:
    """Return the chart of the fine-tune that the page asks first, against utility, and the others."""
    name = "-".join(filter(None, (part.anchor, "energy")))
    if evaluated(projections).empty:
        label = "Energy kept against the fraction of directions"
        text = "Energy: the share of the update's squared norm that is kept; of random subspaces the mean over draws."
        return (make_chart(f"{name}-kept", label, label, kept_energy_figure(points)), text), []
    hero, charts = None, []
    ends, unit = sweep_ends(projections, part.studies.models), "draws" if part.is_single else "seeds"
    margins, main = margin_range(points, ends), main_fine_tune(part.studies)
    for place, (tuned, rows) in enumerate(points.groupby("tuned", sort=False)):
        if rows[list(COMPARED)].isna().all(axis=None):
            continue
        caption = sweep_caption(rows, str(tuned), part.studies.seeds)
        for against, what, pairs in VIEWS:
            title = f"{what} of {tuned}, projected, against {against}"
            figure = sweep_figure(rows, ends[ends["tuned"] == tuned], unit, part.colours, pairs, margins)
            if not figure.data:
                continue
            unique = f"{name}-{place}" if pairs is AGAINST_ENERGY else f"{name}-{place}-{UTILITY}"
            chart = (make_chart(unique, title, title, figure), caption)
            if pairs is AGAINST_UTILITY and str(rows["tuned"].iloc[0]) == main and hero is None:
                hero = chart
            else:
                charts.append(chart)
    return hero, charts


def _order_headlines(found: pd.DataFrame, is_single: bool) -> list[str]:
    """Say in one sentence for which fine-tunes kept energy orders the outcome; of one study, how it goes."""
    if is_single:
        rhos = asked(found, ORDER)
        each = [f"{tuned} ({_rhos(rows)})" for tuned, rows in rhos.groupby("subject", sort=False) if _is_known(rows)]
        what = "In this study kept energy goes with the outcome as these rank correlations say"
        return [f"{what}: {'; '.join(each)}."] if each else []
    alone = asked(found, ALONE)
    said = [
        f"{words} ({', '.join(alone[alone['verdict'] == verdict]['subject'])})"
        for verdict, words in ORDERS.items()
        if verdict in set(alone["verdict"])
    ]
    return [f"Kept energy {'; '.join(said)}."] if said else []


def _order_sentences(found: pd.DataFrame, is_single: bool) -> list[str]:
    sentences = []
    for _, alone in asked(found, ALONE).iterrows():
        tuned = str(alone["subject"])
        rows = asked(found, ORDER, subject=tuned)
        details = rows["details"].iloc[0]
        spread = max((row["draw_spread"] for row in rows["details"]), default=np.nan)
        between = "" if np.isnan(spread) else f"; spread over draws up to {spread:.2f}"
        sizes = f"{many(int(details['draws']), 'draw')}, {min(row['points'] for row in rows['details'])} points each"
        what = f"Spearman's rho over all subspaces, methods and fractions: {_rhos(rows)}"
        if is_single:
            models = min(row["models"] for row in rows["details"])
            text = (
                f"{tuned}: {what} ({sizes}{between}; at least {models} projected models scored). It describes the "
                "points of this study: another training seed may order them otherwise."
            )
        else:
            text = (
                f"{tuned}: kept energy {ORDERS[str(alone['verdict'])]}. {what} ({many(int(alone['n']), 'seed')}, "
                f"{sizes}{between}). {_compared_words(found, tuned)}"
            )
        sentences.append(text)
    return sentences


def _compared_words(found: pd.DataFrame, tuned: str) -> str:
    """Say which differences at equal energy are shown, of how many, and what was left out for its energy."""
    rows = asked(found, AT_EQUAL)
    rows = rows[[details["tuned"] == tuned for details in rows["details"]]]
    tested = rows[rows["p"].notna()]
    if tested.empty:
        return "At equal energy no difference was tested."
    shown = tested[tested["verdict"].isin(SHOWN)]
    p_of = {place: f"p {p_words(float(p))}" for place, p in shown["p_adjusted"].items()}
    listed = "; ".join(f"{_pair_words(row)} {estimate_words(row, more=p_of[at])}" for at, row in shown.iterrows())
    left_out = sum(int(row["left_out"]) for row in rows.drop_duplicates("subject")["details"])
    compared = sum(int(row["compared"]) for row in rows.drop_duplicates("subject")["details"])
    missed = f" {left_out_words(left_out, compared)}" if left_out else ""
    return (
        f"At equal energy {len(shown)} of {len(tested)} differences in refusal margin or utility are shown, corrected "
        f"for their number{': ' if listed else ''}{listed}.{missed}"
    )


def _pair_words(row: pd.Series) -> str:
    details = row["details"]
    pair = f"{NAMES[details['subspace']]} minus {NAMES[details['other']]}"
    return f"{pair}, {details['method']}, {str(row['measure']).removesuffix(' (nats)')}"


def _rhos(rows: pd.DataFrame) -> str:
    return ", ".join(f"{WORDS[row['measure']]} {_rho(row)}" for _, row in rows.iterrows())


def _rho(row: pd.Series) -> str:
    if pd.isna(row["estimate"]):
        return "does not move, or too little was scored"
    return estimate_words(row)


def _is_known(rows: pd.DataFrame) -> bool:
    return bool(rows["estimate"].notna().any())


def _inside_headlines(found: pd.DataFrame) -> list[str]:
    inside = asked(found, INSIDE)
    said = []
    for verdict, words in INSIDE_WORDS.items():
        rows = inside[inside["verdict"] == verdict]
        if len(rows):
            largest = corrected_p_words(rows.iloc[int(rows["p_adjusted"].argmax())])
            said.append(f"the alignment subspace {words} ({', '.join(rows['subject'])}; {largest})")
    return [f"Of the energy of an update {'; '.join(said)}."] if said else []


def _inside_sentences(found: pd.DataFrame) -> list[str]:
    sentences = []
    for _, row in asked(found, INSIDE).iterrows():
        details = row["details"]
        verdict, n = str(row["verdict"]), int(row["n"])
        told = f"it {INSIDE_WORDS[verdict]} ({corrected_p_words(row)})" if verdict in INSIDE_WORDS else verdict
        chance = "" if np.isnan(details["chance_energy"]) else f", expected of chance {details['chance_energy']:.3f}"
        if row["unit"] == SEEDS:
            beside = f"chance, {many(n, 'seed')}, {estimate_words(row, 3)}"
        else:
            within = "" if pd.isna(row["high"]) else f", one more draw within ±{row['high'] - row['estimate']:.3f}"
            draws = f" ({many(n, 'draw')}, {details['evaluated']} of them evaluated{within})"
            beside = f"{'random' if n else 'chance'} {row['estimate']:+z.3f}{draws if n else ''}"
        sentences.append(
            f"{row['subject']}: the alignment subspace has {details['energy_top']:.3f} of the energy of its update, "
            f"mean over {many(int(details['fractions']), 'fraction')}{chance}; top minus {beside}: {told}."
        )
    return sentences


def _inside_table(projections: pd.DataFrame, is_single: bool) -> Table:
    """The energy in the alignment subspace beside random ones, at each fraction and as a mean over them."""
    frames = [energy_beside_chance(projections, keys) for keys in (["tuned", "fraction"], ["tuned"])]
    frame = pd.concat(frames, ignore_index=True)
    order = list(dict.fromkeys(frame["tuned"]))
    frame = frame.sort_values("tuned", key=lambda tuned: tuned.map(order.index), kind="stable")
    columns: dict[str, Cell] = {
        "tuned": text("tuned"),
        "fraction": lambda row: "mean" if pd.isna(row["fraction"]) else f"{row['fraction']:g}",
        "top": numbers("energy_top", 3),
        "random": numbers("energy_random", 3),
        "chance": numbers("chance_energy", 3),
        "difference": numbers("difference", 3, "reach", "+"),
        "p": numbers("p", 3),
        "draws": counts("draws"),
        "seeds": counts("seeds"),
    }
    of_one = (
        "Difference: top minus the mean of the draws ± how far from it one more draw would fall (95 %). p: the rank of "
        "top among the draws, not corrected for the fractions; the verdict is that of the mean."
    )
    of_seeds = (
        "Difference: top minus chance, mean over seeds ± half the 95 % t interval. p: that of the t-test, not "
        "corrected; the verdict is that of the mean over fractions."
    )
    note = f"Shares of the update's energy. {of_one if is_single else of_seeds}"
    return table_of(frame, columns, 2, note)


def _order_table(projections: pd.DataFrame, is_single: bool) -> Table:
    """Spearman's rho of kept energy with each measure, over all subspaces, methods and fractions."""
    of_tuned = energy_correlations(projections).groupby("tuned", sort=False)
    rows = [(str(tuned), cell.set_index("measure").loc[list(COMPARED)]) for tuned, cell in of_tuned]
    columns: dict[str, Cell] = {
        "tuned": lambda row: row[0],
        **{HEADINGS[measure]: _correlation(measure) for measure in COMPARED},
        "spread": lambda row: number(row[1]["draw_spread"].max(), 2),
        "points": lambda row: count(row[1]["points"].min()),
        "draws": lambda row: count(row[1]["draws"].max()),
        "seeds": lambda row: joined_counts([count(n) for n in row[1]["seeds"]]),
    }
    of_one = "Mean over draws; one study has no interval"
    of_seeds = "Mean over seeds [95 % t interval over seeds, on Fisher's z scale], draws averaged within each seed"
    note = (
        f"{of_one if is_single else of_seeds}; - where the measure does not move. Spread: the largest mean standard "
        "deviation over draws. Points: behind each rho, the fewest. Where the measures differ in their seeds, all are "
        f"told in the order of the columns. n: {sample_words(projections)}."
    )
    return table_of(rows, columns, note=note)


def _projections_table(points: pd.DataFrame, is_single: bool) -> Table:
    """Every projected configuration: of one study its draws pooled, of several the mean over seeds."""
    columns: dict[str, Cell] = {
        **texts("tuned", "subspace", "method"),
        "fraction": short("fraction"),
        "energy": numbers("energy_kept", 3),
        "chance": numbers("chance_energy", 3),
        **outcomes(OUTCOMES, "_error"),
        "unscored": counts("n_unscored"),
        "draws": counts("draws"),
        "energies": counts("energies"),
        **({} if is_single else {"seeds": lambda row: joined_counts([count(row[f"{m}_n"]) for m in OUTCOMES])}),
    }
    of_one = "Means over draws; ± the standard error over draws, never below that over prompts."
    of_seeds = (
        "Means over seeds ± half the 95 % t interval over seeds, never narrower than that over prompts, draws averaged "
        "within each seed. Where the measures differ in their seeds, all are told in the order of the columns."
    )
    note = (
        f"Energy: the share of the update's squared norm that is kept. Chance: what a random subspace is expected to "
        f"keep. {of_one if is_single else of_seeds} Draws: those evaluated; energies: those whose energy is known. n: "
        f"{sample_words(points)}."
    )
    return table_of(points, columns, 3, note)


def _correlation(measure: str) -> Cell:
    def cell(row: tuple[str, pd.DataFrame]) -> str:
        rho, low, high = (float(row[1][name][measure]) for name in ("rho", "low", "high"))
        return number(rho, 2) + ("" if np.isnan([rho, low]).any() else f" [{low:z.2f}, {high:z.2f}]")

    return cell
