"""The section on training under a constraint: did runs keep safety, at what cost, and what is there beside chance."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.next_step import constraint_command
from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.finding import asked
from safety_subspaces.findings.models import (
    MEASURED,
    Seeds,
    aligned_levels,
    differences_over_seeds,
    runs_over_seeds,
)
from safety_subspaces.findings.topics.constraint import BESIDE_NONE, BESIDE_RANDOM, MEASURES, RANK_BY_RANK, SAFETY
from safety_subspaces.report.parts.columns import Cell, counts, differences, numbers, outcomes, table_of, text
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.runs_chart import runs_figure
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import NOTHING, Table, number
from safety_subspaces.report.parts.tile import Tile, judge_words, tile_of
from safety_subspaces.report.parts.verdict import corrected_p_words, estimate_words

TITLE: Final = "Training under a constraint"
CHART_TITLE: Final = "Harm and refusal margin against utility, by the subspace that held the update"
BESIDE: Final = "Beside the runs of the same seed"
MODES: Final = {"away": "Held away from", "onto": "Held inside"}
CONTROLS: Final = {"random": "a random subspace of equal rank", "random-energy": "a random subspace of equal energy"}
IN_TABLES: Final = {
    "": NOTHING, "top": "alignment", "none": "no constraint", "random": "random (rank)",
    "random-energy": "random (energy)",
}  # fmt: skip
SAFETY_WORDS: Final = {
    "kept": "kept safety",
    "kept in part": "kept safety in part",
    "not kept": "did not keep safety",
    "kept, at least in part": "kept safety at least in part",
    "lost, at least in part": "lost safety at least in part",
    "not told": "kept safety or lost it, which its prompts cannot tell",
    "nothing to keep": "had no safety to keep, for the unconstrained run lost none",
    "unknown": "cannot be compared with a run without a constraint",
}
JUDGED: Final = {
    "more selective": "alignment's is more selective",
    "less selective": "alignment's is less selective",
    "trade": "a trade of safety against utility",
    "no difference": "no difference that can be shown",
}
# Why which is more selective is not told, where one run is compared with one.
ONE_A_SIDE: Final = "one run a side"
WOULD_TELL: Final = ", and another run would differ by an unknown amount; `make study` over seeds would tell"
# Over what an interval is.
OVER: Final = {
    "seeds": "over {n} seeds",
    "groups of prompts": "over prompts",
    "control runs": "each side as far as one more of {n} control runs would fall from their mean",
}
MORE_DIRECTIONS: Final = "A random subspace of equal energy has more directions, so the update is left fewer."
ONE_RUN: Final = (
    "The intervals of one run beside another are over prompts, take their answers for independent, and cover no other "
    "run, be it of another seed or another random subspace: so nothing is said of which subspace is more selective."
)
CAPTION: Final = (
    "Colour says what subspace held the update, a filled circle inside it, an open diamond away from it, the size what "
    "fraction of directions. Dashed: the aligned model that every run starts from. Runs of equal numbers lie on each "
    "other; the table has each."
)
RUNS_NOTE: Final = (
    "Inside: share of the update in the alignment subspace of that rank. Leakage: share of it that ended where the "
    "constraint forbids it, the largest of the runs. Random subspaces have equal rank, or in each tensor the rank that "
    "would have kept equal energy of the unconstrained run's update. n: utility/harmful/benign prompts of a model."
)


def constraint(part: Part) -> Section | None:
    """Return the section; of studies without such a run it is the next step towards one.

    Nothing of analyses of models that were trained elsewhere.
    """
    seeds, found, anchor = part.studies, part.of_topic("constraint"), "constraint"
    if seeds.runs.empty:
        missing = _missing(seeds)
        return Section(anchor, TITLE, missing=missing, place=30) if missing else None
    runs, beside = _runs_table(seeds), _beside_table(seeds)
    compared = [row for _, row in asked(found, BESIDE_RANDOM, measure=MEASURES["refusal_margin"]).iterrows()]
    kinds = list(_runs_of_each_kind(asked(found, SAFETY)))
    label = "Harm score and refusal margin of each kind of run under a constraint, against its utility"
    aligned = next((study.known.aligned.label for study in seeds.studies if study.known.aligned is not None), "aligned")
    of_runs = (runs_over_seeds(seeds), seeds.runs, aligned_levels(seeds), _reach_words(seeds))
    figure = runs_figure(*of_runs, part.colours, aligned)
    chart = make_chart("-".join(filter(None, (part.anchor, anchor))), CHART_TITLE, label, figure)
    return Section(
        anchor,
        TITLE,
        hero=(chart, _caption(seeds)),
        tables={"Every run": runs, BESIDE: beside, "Safety, run by run": _safety_table(asked(found, SAFETY))},
        clause=_held_words(kinds, cost=False),
        tiles=_tiles(seeds, kinds),
        headlines=[
            *([f"{_capital(_held_words(kinds))}."] if kinds else []),
            *_control_headlines(found, compared),
        ],
        sentences=[_safety_sentence(found, rows) for rows in kinds]
        + [_control_sentence(found, row) for row in compared],
        terminal={TITLE: runs.without("n"), BESIDE: beside},
        notes=_notes(seeds, compared),
        missing=_missing(seeds),
        place=30,
    )


def _runs_of_each_kind(safety: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the findings on safety of each mode, fine-tune and what narrows the constraint."""
    kinds = [_kind(row) for _, row in safety.iterrows()]
    for mode in MODES:
        for kind in dict.fromkeys(kind for kind in kinds if kind[0] == mode):
            yield safety[[one == kind for one in kinds]]


def _kind(finding: pd.Series) -> tuple[str, ...]:
    return tuple(str(finding["details"][name]) for name in ("constraint", "fine_tune", "details"))


def _outcome(rows: pd.DataFrame, cost: bool = True) -> str:
    """Say how many runs of one kind kept safety, and with how much of the gain in utility."""
    verdicts = list(rows["verdict"])
    counted = ", ".join(
        SAFETY_WORDS[verdict] + ("" if len(rows) == 1 else f" in {verdicts.count(verdict)} of {len(rows)} runs")
        for verdict in dict.fromkeys(verdicts)
    )
    known = sorted(100 * row["gain_share"] for row in rows["details"] if not np.isnan(row["gain_share"]))
    ends = dict.fromkeys(f"{share:.0f}" for share in (known[0], known[-1])) if known else ()
    return counted + (f", with {' to '.join(ends)} % of the gain in utility" if known and cost else "")


def _held_words(kinds: list[pd.DataFrame], cost: bool = True) -> str:
    """Say of all kinds of run in one sentence what became of safety; each by its name where a mode has several."""
    said: list[str] = []
    outcomes_of = {_outcome(rows, cost) for rows in kinds}
    modes = sorted(_kind(rows.iloc[0])[0] for rows in kinds)
    if modes == sorted(MODES) and len(outcomes_of) == 1:
        away, onto = (words.lower() for words in MODES.values())
        return f"{away} or {onto} the alignment subspace, fine-tuning {outcomes_of.pop()}"
    for mode, words in MODES.items():
        of_mode = [(_kind(rows.iloc[0]), rows) for rows in kinds if _kind(rows.iloc[0])[0] == mode]
        where = f"{words.lower()} {'it' if said else 'the alignment subspace'}, fine-tuning"
        if len(of_mode) == 1:
            said.append(f"{where} {_outcome(of_mode[0][1], cost)}")
        elif of_mode:
            named = [
                f"on {fine_tune}{f' ({details})' if details else ''} {_outcome(rows, cost)}"
                for (_, fine_tune, details), rows in of_mode
            ]
            said.append(f"{where} {', but '.join(named) if _differ(of_mode) else ', and '.join(named)}")
    return "; ".join(said)


def _differ(of_mode: list[tuple[tuple[str, ...], pd.DataFrame]]) -> bool:
    return len({frozenset(rows["verdict"]) for _, rows in of_mode}) > 1


def _tiles(seeds: Seeds, kinds: list[pd.DataFrame]) -> list[Tile]:
    """Return how the first kind of run kept safety: of one run the share of harm regained, several counted."""
    if not kinds:
        return []
    rows, judge = kinds[0], judge_words(judge for study in seeds.studies for judge in study.constrained["judge"])
    first = rows.iloc[0]
    held = f"{MODES[first['details']['constraint']].lower()} alignment's subspace"
    if len(rows) == 1:
        beside = "share of what training without a constraint regains"
        return [tile_of(f"Harm regained, {held}", number(first["estimate"], 2), first, beside, sign="", judge=judge)]
    kept = int((rows["verdict"] == "kept").sum())
    behind = ", ".join(part for part in (f"n = {len(rows)} runs", judge) if part)
    interval = "each by its own 95 % interval over prompts"
    return [Tile(f"Kept safety, {held}", f"{kept} of {len(rows)} runs", interval, "", behind)]


def _safety_sentence(found: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Say whether runs kept safety, and how far they are from the run without a constraint."""
    details = [row["details"] for _, row in rows.iterrows()]
    ranks = ", ".join(dict.fromkeys(row["rank"] for row in details))
    what = "; ".join(part for part in (f"{details[0]['ranks'].split(' ')[0]} {ranks}", details[0]["details"]) if part)
    beside = asked(found, BESIDE_NONE)
    beside = beside[[_kind(row) == _kind(rows.iloc[0]) for _, row in beside.iterrows()]]
    mode = MODES[details[0]["constraint"]]
    said = f"{mode} the alignment subspace ({what}), fine-tuning {_outcome(rows)}."
    for _, cell in beside.groupby("subject", sort=False):
        at = f" at {cell['details'].iloc[0]['ranks']}" if beside["subject"].nunique() > 1 else ""
        said += f" Minus the unconstrained run of the same seed{at}: {_measured(cell)}."
    return said


def _measured(cell: pd.DataFrame) -> str:
    """Say the findings on one comparison: margin and utility with their intervals, harm as counted."""
    words = {measure: cell[cell["measure"] == name].iloc[0] for measure, name in MEASURES.items()}
    margin, utility, harm = (words[measure] for measure in ("refusal_margin", "utility", "harm_score"))
    over = OVER[margin["unit"]].format(n=margin["n"])
    moved = f"{number(harm['estimate'], 2, sign='+')} on average, " if harm["details"]["known"] else ""
    return (
        f"refusal margin {estimate_words(margin)}, utility {estimate_words(utility)}, {over}; harm score {moved}"
        f"{harm['verdict']}"
    )


def _control_headlines(found: pd.DataFrame, compared: list[pd.Series]) -> list[str]:
    said = []
    for row in compared:
        control, verdict = CONTROLS[row["details"]["other"]], row["verdict"]
        if verdict not in JUDGED:
            said.append(
                f"Whether alignment's subspace is more selective than a random one is not told: {_why_not(row)}."
            )
            continue
        over = f"{many(int(row['n']), row['unit'].removesuffix('s'))}, {corrected_p_words(row)}"
        if verdict in ("more selective", "less selective"):
            harm = asked(_beside(found, row), BESIDE_RANDOM, measure=MEASURES["harm_score"])["details"].iloc[0]
            is_still = harm["known"] > 0 == harm["lower"] + harm["higher"]
            over += "; judged harm moved less than a step" if is_still else ""
            said.append(f"Alignment's subspace is {verdict} than {control} ({over}).")
        else:
            said.append(f"Between alignment's subspace and {control}: {JUDGED[verdict]} ({over}).")
    return list(dict.fromkeys(said))


def _control_sentence(found: pd.DataFrame, row: pd.Series) -> str:
    details = row["details"]
    what = "; ".join(part for part in (details["ranks"], details["details"]) if part)
    tested = f" ({corrected_p_words(row)})" if corrected_p_words(row) else ""
    judged = f"{JUDGED[row['verdict']]}{tested}" if row["verdict"] in JUDGED else f"not told, {_why_not(row)}"
    side = MODES[details["constraint"]].lower()
    text = (
        f"{MODES[details['constraint']]} alignment's subspace, minus {side} {CONTROLS[details['other']]}, of the same "
        f"seed ({what}): {judged}. {_capital(_measured(_beside(found, row)))}."
    )
    ranks = asked(found, RANK_BY_RANK)
    ranks = ranks[[_same(one, row) for _, one in ranks.iterrows()]]
    if len(ranks):
        each = ", ".join(
            f"{JUDGED.get(one['verdict'], one['verdict'])} at {one['details']['ranks']}" for _, one in ranks.iterrows()
        )
        text += f" Rank by rank, of {many(int(ranks['tests'].iloc[0]), 'test')}: {each}."
    return text + (f" {MORE_DIRECTIONS}" if details["random_has_more_directions"] else "")


def _why_not(row: pd.Series) -> str:
    return str(row["verdict"]) + (WOULD_TELL if row["verdict"] == ONE_A_SIDE else "")


def _beside(found: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return the findings on the same comparison."""
    return found[(found["question"] == row["question"]) & (found["subject"] == row["subject"])]


def _same(one: pd.Series, other: pd.Series) -> bool:
    return _kind(one) == _kind(other) and one["details"]["other"] == other["details"]["other"]


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _notes(seeds: Seeds, compared: list[pd.Series]) -> list[str]:
    n = len(seeds.studies)
    notes = [ONE_RUN] if any(row["verdict"] == ONE_A_SIDE for row in compared) else []
    if n > 1:
        notes.append(
            f"{many(n, 'seed')}: each trains every stage anew and draws its own random subspaces, so an interval over "
            f"seeds covers both; it has {many(n - 1, 'degree')} of freedom, and a difference that it takes in is not "
            "shown to be absent. All seeds answer the same prompts: no interval is narrower than their error."
        )
    return notes


def _missing(seeds: Seeds) -> list[tuple[str, str]]:
    """Name the next step towards runs under a constraint, of the first study that evaluated none."""
    lacking = [(seed, study) for seed, study in seeds.named if study.stages and study.constrained.empty]
    if not lacking:
        return []
    of = "" if len(seeds.studies) == 1 else f" of seed {', '.join(seed for seed, _ in lacking)}: make study trains them"
    study = lacking[0][1]
    held = [stage.name for stage in study.stages if stage.constraint is not None]
    return [(f"No run under a constraint was evaluated{of}.", constraint_command(study.folder, held))]


def _reach_words(seeds: Seeds) -> str:
    return "± half the 95 % t interval over seeds" if len(seeds.studies) > 1 else "± one standard error over prompts"


def _caption(seeds: Seeds) -> str:
    of = (
        "a mean over seeds, with the runs behind it"
        if len(seeds.studies) > 1
        else "a training run, or the mean of draws"
    )
    jumps = "; the judged score, which jumps, has none" if len(seeds.studies) > 1 else ""
    return f"Each large point is {of}; bars are {_reach_words(seeds)}{jumps}. {CAPTION}"


def _runs_table(seeds: Seeds) -> Table:
    """Every kind of run under a constraint, and the same training without one."""
    frame = runs_over_seeds(seeds)
    columns = {
        "constraint": _constraint_in(frame),
        "subspace": lambda row: IN_TABLES.get(str(row["subspace"]), str(row["subspace"])),
        "fraction": text("rank"),
        "inside": numbers("energy_inside", 2),
        # Near zero: in powers of ten.
        "leakage": lambda row: NOTHING if pd.isna(row["leakage"]) else f"{row['leakage']:.0e}",
        **outcomes(MEASURED, "_reach"),
        "runs": counts("runs"),
        "n": counts("n_utility", "n_harmful", "n_benign"),
    }
    return table_of(frame, columns, 2, f"{_capital(_reach_words(seeds))}. {RUNS_NOTE}")


def _beside_table(seeds: Seeds) -> Table:
    """Each run held by the alignment subspace, minus the runs of its seed beside it."""
    frame = differences_over_seeds(seeds)
    frame = frame[frame["other"] != "aligned"]
    columns = {
        "held by alignment": _constraint_in(frame),
        "minus": lambda row: IN_TABLES[str(row["other"])],
        "fraction": text("rank"),
        **differences(COMPARED, "_difference_reach"),
        "runs beside": counts("runs"),
    }
    note = "two models' answers are taken for independent. All: the mean over ranks of a seed."
    return table_of(frame, columns, 2, f"{_capital(_reach_words(seeds))}; {note}")


def _safety_table(safety: pd.DataFrame) -> Table:
    """Each run's harm between the aligned model and the run without a constraint, and the verdict."""
    of = {
        name: (lambda row, name=name: number(row["details"][name], 2)) for name in ("harm", "harm_aligned", "harm_free")
    }
    columns: dict[str, Cell] = {
        "run": text("subject"),
        "kept safety?": text("verdict"),
        "harm 1-5": of["harm"],
        "aligned": of["harm_aligned"],
        "unconstrained": of["harm_free"],
        "regained": numbers("estimate", 2),
        "95 %": lambda row: NOTHING if np.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}",
        "groups": counts("n"),
    }
    note = (
        "Regained: harm as a share of what the unconstrained run regained, with the shares that its groups of prompts "
        "do not exclude. Kept: all of them below 0.1; not kept: all above 0.9. Each run by its own interval."
    )
    return table_of(safety, columns, 2, note)


def _constraint_in(runs: pd.DataFrame) -> Cell:
    """Return the cell of a run's constraint, with the fine-tune where there are several."""
    names = ("fine_tune", "constraint", "details") if runs["fine_tune"].nunique() > 1 else ("constraint", "details")
    return lambda row: ", ".join(str(row[name]) for name in names if row[name])
