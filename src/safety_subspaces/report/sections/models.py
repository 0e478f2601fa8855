"""The models: was alignment learnt, which fine-tunes lost it, where did utility grow, and every evaluation as a row."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from safety_subspaces.artefacts.study_files import MEASURES
from safety_subspaces.findings.evaluations import UNSCORED, evaluations
from safety_subspaces.findings.finding import UNKNOWN, asked
from safety_subspaces.findings.models import main_fine_tune
from safety_subspaces.findings.topics.models import LEARNT, LOST, MARGIN, TWO_MEASURES, UTILITY
from safety_subspaces.report.parts.columns import Cell, counts, numbers, outcomes, table_of, text
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many, p_words
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, sample_words, seeds_of
from safety_subspaces.report.parts.tile import Tile, judge_words, tile_of
from safety_subspaces.report.parts.verdict import by_verdict, corrected_p_words, estimate_words, family_words

# How a verdict reads between what is said of and the models that have it.
MOVED: Final = {"not shown": "is not shown to have changed in", UNKNOWN: "is not known in"}
# What stands at the top of the page: the name of the measure, its unit, and who judges it (harm: who did).
TILES: Final = {
    UTILITY: ("Utility", "", "exact match"),
    LOST: ("Harm score", " of 5", ""),
    MARGIN: ("Refusal margin", " nats", "log-probabilities"),
}
# Fine-tunes that the sentence at the top names of each fate.
MOST_NAMED: Final = 3
MORE_OF_BOTH: Final = "more harm and a higher refusal margin"
LESS_OF_BOTH: Final = "less harm and a lower refusal margin"
LOST_BY: Final = {UNKNOWN: "not known for"}
SENSE: Final = (
    "± one standard error over groups of prompts",
    "Means ± half the 95 % t interval over seeds, no shorter than what the prompts, which all seeds share, leave open",
)
COMPARED: Final = (
    "Estimate: the value minus that of the model beside, with its 95 % interval; of safety lost, the share of the fall "
    "in harm score that was taken back. p: corrected by Holm's method for the tests of its kind."
)
MEANING: Final = (
    "Harm: 1 refusal to 5 full compliance. Answered: benign requests answered in full. Margin: log P(refusal) - log "
    "P(compliance) in nats, positive prefers to refuse."
)


def models(part: Part) -> Section | None:
    """Say what the models are, show them as a table, and name the command that evaluates them."""
    found = part.of_topic("models")
    learnt, lost, utility, margin = (asked(found, question) for question in (LEARNT, LOST, UTILITY, MARGIN))
    said = [_learnt(learnt), _lost(lost), _utility(utility), ("", _moved("The refusal margin", margin))]
    rows = evaluations(part.studies)
    table = _table(part, rows)
    return Section(
        "models",
        "Models",
        tables={"Every evaluated model": table, "Each beside the model that it started from": _comparisons(found)},
        clause=_clause(learnt, lost),
        tiles=_tiles(part, rows, {LEARNT: learnt, LOST: lost, UTILITY: utility, MARGIN: margin}),
        warnings=_disagreements(asked(found, TWO_MEASURES)),
        headlines=[headline for headline, _ in said if headline],
        sentences=[sentence for _, sentence in said if sentence],
        terminal={"Models": table},
        missing=_missing(part),
        place=20,
    )


def _clause(learnt: pd.DataFrame, lost: pd.DataFrame) -> str:
    """Say whether alignment was learnt, and which fine-tunes lost it in any seed, or else which kept it in all."""
    if learnt.empty or learnt.iloc[0]["verdict"] == UNKNOWN:
        return ""
    said, named = f"alignment was {learnt.iloc[0]['verdict']}", lost[lost["subject"] != ""]
    counts = pd.Series([set(_counts(row)) for _, row in named.iterrows()], index=named.index, dtype=object)
    is_lost = counts.map(lambda verdicts: any(verdict.startswith("lost") for verdict in verdicts)).astype(bool)
    is_kept = counts.map(lambda verdicts: verdicts == {"kept"}).astype(bool)
    gone, kept = (
        " and ".join(f"{verdict} by {_few(labels)}" for verdict, labels, _ in by_verdict(rows))
        for rows in (named[is_lost], named[is_kept])
    )
    if gone or named.empty:
        return said + (f" and {gone}" if gone else "")
    if not kept:
        return f"{said} and is not shown to be lost by a fine-tune"
    return f"{said} and {kept}" + ("" if is_kept.all() else ", and is not shown to be lost by another fine-tune")


def _counts(finding: pd.Series) -> dict[str, int]:
    """Return how often each verdict was given: once the one of a single study, over seeds those of each seed."""
    counts: dict[str, int] = finding["details"].get("counts", {finding["verdict"]: 1})
    return counts


def _few(labels: str) -> str:
    """Return the first of some names, and how many more there are."""
    names = labels.split(", ")
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more < 2 else f"{', '.join(names[:MOST_NAMED])} and {more} more"


def _tiles(part: Part, rows: pd.DataFrame, by_question: Mapping[str, pd.DataFrame]) -> list[Tile]:
    """Return utility, harm and margin of one model, beside the one that it started from.

    It is the fine-tune that the page asks first, without a sweep the first one, and without a fine-tune the aligned
    model. Where alignment was not learnt there is nothing to lose: what alignment did to harm stands in that place.
    """
    named = {question: _valued(found) for question, found in by_question.items()}
    learnt, fine_tuned = named[LEARNT], [row["subject"] for row in named[UTILITY]]
    main, aligned = main_fine_tune(part.studies), [row["details"]["own_model"] for row in learnt]
    subject = main if main in fine_tuned else next(iter([*fine_tuned, *aligned]), "")
    judged = judge_words(rows["judge"])
    tiles = []
    for question, (name, unit, judge) in TILES.items():
        found = named[question] or (learnt if question == LOST else [])
        for row in found:
            details = row["details"]
            is_share = row["question"] == LOST
            if pd.isna(details["own"]) or (row["question"] != LEARNT and row["subject"] != subject):
                continue
            estimate = f"{row['estimate']:.2f} of the fall taken back" if is_share else f"{row['estimate']:+z.2f}"
            beside = f"{details['other_model']} {number(details['other'], 2)}: {estimate}"
            tiles.append(
                tile_of(
                    f"{name} of {details['own_model']}",
                    f"{number(details['own'], 2)}{unit}",
                    row,
                    beside,
                    sign="" if is_share else "+",
                    judge=judge or judged,
                )
            )
    return tiles


def _valued(found: pd.DataFrame) -> list[pd.Series]:
    """Return the findings that have the values of two models."""
    return [row for _, row in found.iterrows() if "own" in row["details"]]


def _disagreements(rows: pd.DataFrame) -> list[str]:
    """Say of which models two measures of safety say opposite things; over seeds, in more than half of them."""
    said = []
    for _, row in rows.iterrows():
        details, counts = row["details"], _counts(row)
        disagreeing = counts.get("disagree", 0)
        if 2 * disagreeing <= sum(counts.values()):
            continue
        more = details.get("more_harm", int(details["harm"] > 0))
        less = disagreeing - more
        means = f"harm score {details['harm']:+z.2f}, margin {details['margin']:+z.2f} nats"
        if row["unit"] == "seeds":
            means += f", means of the seeds that disagree; {row['verdict']}"
        if more and less:
            way = (
                f"in {many(more, 'seed')} {MORE_OF_BOTH}, and in {many(less, 'seed')} {LESS_OF_BOTH} ({row['verdict']})"
            )
        else:
            way = f"{MORE_OF_BOTH if more else LESS_OF_BOTH} ({means})"
        said.append(
            f"Two measures of safety disagree on {row['subject']}: beside {details['other_model']} it has {way}. The "
            "judge reads whole answers and the margin their beginning: read some answers before you believe either."
        )
    return said


def _learnt(rows: pd.DataFrame) -> tuple[str, str]:
    if rows.empty:
        return "", ""
    row, details = rows.iloc[0], rows.iloc[0]["details"]
    headline = f"Alignment was {row['verdict']}."
    if row["verdict"] == UNKNOWN or "own" not in details:
        headline = f"Whether alignment was learnt cannot be told: {details['why']}."
    if "own" not in details:
        return headline, headline
    own, other = details["own_model"], details["other_model"]
    sentence = (
        f"{headline} The harm score (1 refusal, 5 full compliance) is {_value(details, 'own')} for {own} against "
        f"{_value(details, 'other')} for {other}: {estimate_words(row, more=corrected_p_words(row))}, {_over(row)}; "
        f"{_share(details['own_refused'])} of benign requests are refused by {own} ({_share(details['other_refused'])} "
        f"by {other})."
    )
    return headline, sentence


def _lost(rows: pd.DataFrame) -> tuple[str, str]:
    if rows.empty:
        return "", ""
    first = rows.iloc[0]
    if not first["subject"]:
        return "", f"Whether a fine-tune lost it cannot be told: {first['details']['why']}."
    fates = _fates(rows, LOST_BY, "by")
    over = "" if first["unit"] == "seeds" else f", {_tested(rows)}"
    rule = f"{first['rule'][0].upper()}{first['rule'][1:]}"
    return f"It was {_joined(fates)}.", f"Alignment was {_joined(fates, is_short=False)}{over}. {rule}."


def _utility(rows: pd.DataFrame) -> tuple[str, str]:
    if rows["estimate"].isna().all():
        return "", "Whether utility grew cannot be told: it was not measured." if len(rows) else ""
    grown = [labels for verdict, labels, _ in by_verdict(rows) if verdict == "grew"]
    headline = f"Utility grew in {grown[0]}." if grown else "Utility is shown to have grown in no fine-tune."
    return headline, _moved("Utility", rows)


def _moved(measure: str, rows: pd.DataFrame) -> str:
    """Say in which models a measure rose and fell beside the model that each started from."""
    if rows.empty:
        return ""
    return f"{measure} {_joined(_fates(rows, MOVED, 'in'), is_short=False)}, {_tested(rows)}."


def _fates(rows: pd.DataFrame, words: dict[str, str], preposition: str) -> list[tuple[str, str, str]]:
    """Return what happened, to which models, and its p, or why that is not known."""
    why = {str(row["verdict"]): str(row["details"].get("why", "")) for _, row in rows.iterrows()}
    return [
        (words[UNKNOWN] if why[verdict] else words.get(verdict, f"{verdict} {preposition}"), labels, why[verdict] or p)
        for verdict, labels, p in by_verdict(rows)
    ]


def _joined(fates: list[tuple[str, str, str]], is_short: bool = True) -> str:
    """Return what happened to which models: ``lost by harmful (p < .001); kept by useful``."""
    said = [(f"{what} {labels}", "" if is_short or not behind else f" ({behind})") for what, labels, behind in fates]
    return "; ".join(f"{fate}{behind}" for fate, behind in said)


def _tested(rows: pd.DataFrame) -> str:
    """Return over what some findings of a family are said, and how many tests they were corrected for."""
    tests = family_words(rows)
    return _over(rows.iloc[0]) + (f" (p corrected for {tests})" if tests else "")


def _over(row: pd.Series) -> str:
    if row["unit"] == "seeds":
        return f"mean over {many(int(row['n']), 'seed')}"
    asked_of = row["details"]["prompts"]
    counted = "an unknown number of" if pd.isna(asked_of) else count(asked_of)
    groups = f" in {row['n']} groups" if row["unit"] == "groups of prompts" else ""
    return f"on {counted} {row['details']['set']} prompts{groups}"


def _value(details: dict[str, Any], name: str) -> str:
    if pd.isna(details[name]):
        return "not measured"
    error = details.get(f"{name}_error")
    return f"{details[name]:.2f}" + ("" if error is None or pd.isna(error) else f" ± {error:.2f}")


def _share(rate: float) -> str:
    return "an unmeasured share" if pd.isna(rate) else f"{100 * rate:.1f} %"


def _table(part: Part, rows: pd.DataFrame) -> Table:
    columns = {"model": text("model"), "judge": lambda row: row["judge"] or NOTHING, **outcomes(MEASURES, "_error")}
    if part.is_single:
        columns["n"] = counts("n_utility", "n_harmful", "n_benign")
    else:
        columns["seeds"] = lambda row: seeds_of(row, MEASURES)
    columns["unscored"] = counts(UNSCORED)
    asked_of = "utility/harmful/benign prompts" if part.is_single else sample_words(rows)
    grouped = _groups(rows) if part.is_single else ""
    note = f"{SENSE[not part.is_single]}. {MEANING} n: {asked_of}{grouped}."
    return table_of(rows, columns, 2, note)


def _comparisons(found: pd.DataFrame) -> Table:
    rows = found[[("own" in details) for details in found["details"]]]
    columns: dict[str, Cell] = {
        **{"asked": text("question"), "model": text("subject"), "verdict": text("verdict")},
        "beside": lambda row: row["details"]["other_model"],
        "value": lambda row: number(row["details"]["own"], 2, row["details"].get("own_error")),
        "of that beside": lambda row: number(row["details"]["other"], 2, row["details"].get("other_error")),
        "estimate": numbers("estimate", 2, sign="+"),
        "95 %": lambda row: NOTHING if pd.isna(row["low"]) else f"{row['low']:+z.2f} to {row['high']:+z.2f}",
        "p": lambda row: NOTHING if pd.isna(row["p_adjusted"]) else p_words(float(row["p_adjusted"])),
        "tests": counts("tests"),
    }
    return table_of(rows, columns, 4, COMPARED)


def _groups(rows: pd.DataFrame) -> str:
    """Return how many independent groups the prompts of the models lie in, nothing where that is not known."""
    sizes = rows[["n_groups_utility", "n_groups_harmful", "n_groups_benign"]].dropna(how="all")
    said = dict.fromkeys("/".join(map(count, row)) for row in sizes.itertuples(index=False))
    return f", in {' or '.join(said)} independent groups, by which errors are reckoned" if said else ""


def _missing(part: Part) -> list[tuple[str, str]]:
    if len(part.studies.models):
        return []
    if not part.is_single:
        return [("No model was evaluated in these studies.", "")]
    command = part.studies.studies[0].missing().get("evaluate", "")
    return [("No model was evaluated.", command)]
