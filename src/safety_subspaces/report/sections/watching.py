"""The section on watched runs: what was lost and gained in which order, and what moved; run by run, or over seeds."""

from collections.abc import Mapping
from math import isnan
from typing import Final

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.next_step import watching_command
from safety_subspaces.artefacts.study import Stage
from safety_subspaces.findings.finding import asked
from safety_subspaces.findings.looks import GAIN, LEAST_LOOKS, MOVE, NO_PROMPTS, NOT_SHOWN, ORDER, RISE, SAFETY
from safety_subspaces.findings.topics.watching import ACTIVATIONS, INSIDE, LOOKS, OUTCOME, runs_of
from safety_subspaces.findings.watched import (
    HARM,
    MARGIN,
    UTILITY,
    mapped_tags,
    measured,
    watched_stages,
)
from safety_subspaces.report.parts.colours import Colours
from safety_subspaces.report.parts.columns import Cell, counts, table_of
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many, p_words, prompt_words
from safety_subspaces.report.parts.table import NOTHING, Table, number
from safety_subspaces.report.parts.verdict import corrected_p_words, estimate_words
from safety_subspaces.report.parts.watched_chart import layer_figure, rows_not_drawn, watching_figure
from safety_subspaces.report.parts.watched_tables import value_at, watched_tables

PLACE: Final = 40
TITLE: Final = "Watching a run"
# More heatmaps than this tell little that the first ones do not.
MOST_HEATMAPS: Final = 2
OUTCOMES: Final = {
    "lost before": "safety was lost before usefulness was gained",
    "lost after": "safety was lost after usefulness was gained",
    "lost together": "the loss of safety and the gain in usefulness show at the same look, so that the order cannot be "
    "told",
    "lost": "safety was lost",
    "worn": "safety was worn, not lost",
    "held": "safety held at every look",
    "never safe": "there was no safety to lose",
    "not shown": "whether safety was lost or held is not shown",
    "unknown": "whether safety was lost cannot be told",
}
MOVES: Final = {
    "fell": "it fell",
    "rose": "it rose",
    "not shown": "no move is shown",
    "not seen": "no look lies between",
    "no error": "it has no error",
    "unknown": "it was not measured twice",
}
MAPPED_TITLES: Final = {
    "activation/overlap": "overlap of the activations of the two prompt sets",
    "delta/energy_fraction": "share of the update's energy in the alignment subspace",
    "delta/overlap": "overlap with the other update",
    "delta/frobenius_norm": "norm of the update",
}
CAPTION: Final = (
    "Each point is a look at the model in training, at so many optimizer steps done. Bars are 95 % intervals over "
    "groups of prompts, each for its look alone; dashed lines are chance levels. Refusal margin: log P(refusal) - log "
    "P(compliance), positive prefers to refuse. Drift: 1 less the overlap of a prompt set's activations with their own "
    "at the start."
)
MAPPED: Final = "A row a part of the network, in the order of a forward pass; a column a look, however far apart."
TESTED: Final = (
    "In brackets are 95 % intervals over groups of prompts, which take the answers of two looks for independent. A p "
    "is corrected for the looks of which one was chosen, then by Holm's method for all tests on the watched runs. "
    "Shown is what stands among these; the look that first shows something may come after it happened."
)
OVER_SEEDS: Final = (
    "One run a seed. Each has its verdict as on its own page, over groups of prompts; here they are counted, with the "
    "exact interval of their share. Differences have Student's interval over seeds. The charts and looks of each run "
    "stand on the page of its own study."
)


def watching(part: Part) -> Section | None:
    """Return the section; of one study without a watched run the next step towards one, of several nothing."""
    found, studies = part.of_topic("watching"), part.studies.studies
    if found.empty:
        step = "No run was watched from inside (add --trainer.callbacks+=callbacks.BehaviourProbe to any run)."
        missing = [(step, watching_command(studies[0].folder))]
        return (
            Section("watching", TITLE, missing=missing, place=PLACE) if part.is_single and studies[0].stages else None
        )
    stages = {stage.name: stage for stage in watched_stages(studies[0])} if part.is_single else {}
    tested = _finding_table(found)
    charts: list[tuple[Chart, str]] = []
    tables = {"What the looks show": tested}
    for number_, stage in enumerate(stages.values()):
        charts += _charts(stage, part.colours, "-".join(filter(None, (part.anchor, f"watching-{number_}"))))
        tables |= watched_tables(studies[0], stage)
    return Section(
        "watching",
        TITLE,
        charts=charts,
        tables=tables,
        headlines=_headlines(found),
        sentences=[
            f"{run}: {said}"
            for run in runs_of(found)
            for said in _sentences(stages.get(run), found[found["subject"] == run])
        ],
        terminal={TITLE: tested},
        notes=[TESTED, _doubt(asked(found, LOOKS))] if part.is_single else [OVER_SEEDS],
        place=PLACE,
    )


def _headlines(found: pd.DataFrame) -> list[str]:
    """Say each way that runs came out once, with the runs that did."""
    by_outcome: dict[str, list[str]] = {}
    for _, row in asked(found, OUTCOME).iterrows():
        counted = f" ({_of(row)})" if row["n"] > 1 else ""
        by_outcome.setdefault(row["verdict"], []).append(f"{row['subject']}{counted}")
    said = [f"in {', '.join(runs)} {OUTCOMES[name]}" for name, runs in by_outcome.items() if name != "unknown"]
    return [f"Watched while training, {'; '.join(said)}."] if said else []


def _of(row: pd.Series) -> str:
    return f"{len(row['details']['seeds'])} of {many(int(row['n']), 'seed')}"


def _sentences(stage: Stage | None, rows: pd.DataFrame) -> list[str]:
    """Say all of one run, or without one of a kind of run over seeds; ``rows`` are the findings on it."""
    by_question = {str(row["question"]): row for _, row in rows.iterrows()}
    if stage is None:
        moves = _counted(asked(rows, MOVE), MOVES)
        said = [
            f"{_counted(asked(rows, OUTCOME), OUTCOMES)}.",
            f"the refusal margin, before the harmful rate passed one half or over the run where it did not: {moves}.",
        ]
    else:
        said = [_outcome_words(stage, by_question), *_moved_words(stage, by_question)]
    said += [_inside_words(by_question[INSIDE])] if INSIDE in by_question else []
    return said + ([_activations_words(by_question[ACTIVATIONS])] if ACTIVATIONS in by_question else [])


def _outcome_words(stage: Stage, by_question: Mapping[str, pd.Series]) -> str:
    safety, gain, order = (by_question[name] for name in (SAFETY, GAIN, ORDER))
    outcome = by_question[OUTCOME]["verdict"]
    behind = _behind(order if outcome in ("lost before", "lost after") else safety)
    behind = f" ({safety['rule']})" if outcome == "unknown" else behind
    parts = [_harm_words(stage, safety, by_question[RISE]), _gain_words(stage, gain), _order_words(stage, order)]
    return " ".join([f"{OUTCOMES[outcome]}{behind}.", *(part for part in parts if part)])


def _counted(rows: pd.DataFrame, words: Mapping[str, str]) -> str:
    """Say how often each verdict was given: ``safety was lost in 2 of 3 seeds (95 % .. to ..; seeds 0, 2)``."""
    return "; ".join(
        f"{words.get(row['verdict'], row['verdict'])} in {_of(row)} ("
        + ("" if isnan(row["low"]) else f"95 % {row['low']:.2f} to {row['high']:.2f} of such runs; ")
        + f"{'seed' if len(row['details']['seeds']) == 1 else 'seeds'} {', '.join(row['details']['seeds'])})"
        for _, row in rows.iterrows()
    )


def _harm_words(stage: Stage, safety: pd.Series, rise: pd.Series) -> str:
    looks, details = measured(stage, HARM), safety["details"]
    if len(looks) < LEAST_LOOKS:
        return ""
    first, last = int(looks.index[0]), int(looks.index[-1])
    if details["between"]:
        shown = details["shown_step"]
        said = f"The harmful rate first passed one half {_between(looks, details['between'], 'harmful')}; "
        said += "no look shows it above" if shown is None else f"the look at step {shown} is the first that shows it"
        return f"{said}. At the last look, step {last}, it was {value_at(looks, last)}."
    if safety["verdict"] == "never safe":
        return (
            f"The harmful rate was above one half from the first look on: {value_at(looks, first)} at step {first}"
            f"{_prompts(looks, first, 'harmful')}, {value_at(looks, last)} at step {last}."
        )
    highest = details["highest_step"]
    said = (
        f"The harmful rate was {value_at(looks, first)} at step {first}, at most {value_at(looks, highest)}"
        f"{_prompts(looks, highest, 'harmful')} (step {highest}) at {len(looks)} looks up to step {last}"
    )
    if isnan(rise["p"]):
        return f"{said}."
    shown = "" if rise["verdict"] != NOT_SHOWN else ", which is no change that is shown"
    return (
        f"{said}; its surest change from the first look is {_estimate(rise)} at step {rise['details']['step']}{shown}."
    )


def _gain_words(stage: Stage, gain: pd.Series) -> str:
    looks, details = measured(stage, UTILITY), gain["details"]
    if len(looks) < LEAST_LOOKS:
        return "Utility was not measured twice."
    first, last = int(looks.index[0]), int(looks.index[-1])
    change = (
        f"{_estimate(gain)} from {value_at(looks, first)} at step {first} to {value_at(looks, last)} at step {last}"
    )
    if isnan(gain["p"]):
        return f"Utility changed by {change}, without a test: {NO_PROMPTS}."
    if gain["verdict"] != "gained":
        fell = gain["verdict"] == "fell"
        return f"Utility {'fell' if fell else 'made no gain that these looks show'}: {change}."
    return f"Utility gained {change}; it passed half of that {_between(looks, details['between'], 'utility')}."


def _order_words(stage: Stage, order: pd.Series) -> str:
    if isnan(order["p"]):
        return ""
    is_before, step = order["estimate"] > 0, order["details"]["first_step"]
    looks = measured(stage, UTILITY if is_before else HARM)
    at = int(looks.index[looks.index >= step][0])
    shown, second = ("loss", "utility") if is_before else ("gain", "the harmful rate")
    level = "half of its gain" if is_before else "one half"
    said = f"At step {at}, when a look first shows the {shown}, {second} was {value_at(looks, at)}, "
    if order["verdict"] == NOT_SHOWN:
        return said + f"which is not shown to be below {level}{_behind(order)}: nor is the order."
    return said + f"below {level}."


def _moved_words(stage: Stage, by_question: Mapping[str, pd.Series]) -> list[str]:
    move, safety, looks = by_question[MOVE], by_question[SAFETY], measured(stage, MARGIN)
    details = move["details"]
    if len(looks) < LEAST_LOOKS:
        return []
    whole = f"over the run it moved by {details['whole']:+z.2f} nats"
    if move["verdict"] == "not seen":
        step = details["between"][1]
        return [
            f"no look between the first one and that at step {step} shows how far the refusal margin had moved before "
            f"the harmful rate passed one half; {whole}."
        ]
    first, then = int(looks.index[0]), details["step"]
    change = f"{_estimate(move)} nats, from {value_at(looks, first)} to {value_at(looks, then)}"
    unsure = " That is no move that is shown." if move["verdict"] == NOT_SHOWN else ""
    if not details["is_before"]:
        below = " The harmful rate is shown below one half at every look." if safety["verdict"] == "held" else ""
        return [f"over the run the refusal margin moved by {change}.{below}{unsure}"]
    share = "" if isnan(details["share"]) else f", {100 * details['share']:.0f} % of its change"
    return [
        f"at step {then}, the last look before the harmful rate passed one half, the refusal margin had moved by "
        f"{change}{share}; {whole}.{unsure}"
    ]


def _inside_words(row: pd.Series) -> str:
    details, over = row["details"], "" if row["n"] < 2 else f", a mean over {row['n']} seeds"
    said = f"at the last look, step {details['step']}, {details['share']:.2f} of the update's energy lay in the "
    said += f"alignment subspace{over}"
    if isnan(details["ratio"]):
        return f"{said}; its chance level is not known."
    said += (
        f", {details['ratio']:.1f} times the {details['chance']:.2f} expected of a random subspace of the same ranks"
    )
    if row["n"] < 2:
        return f"{said} ({row['verdict']}). A ratio and no test: one run has no spread to judge it by."
    return f"{said}: {row['verdict']}, {_estimate(row)}."


def _activations_words(row: pd.Series) -> str:
    details, is_one = row["details"], row["n"] < 2
    moved = {"stayed": "hardly moved", NOT_SHOWN: "is not shown to have moved"}.get(row["verdict"], row["verdict"])
    ends = []
    for name in ("first", "last"):
        chance = details[f"{name}_chance"]
        at = f"at step {details[f'{name}_step']:.0f}" if is_one else f"at the {name} look"
        ends.append(f"{details[name]:.2f} {at} (chance {'not known' if isnan(chance) else f'{chance:.2f}'})")
    said = f"the overlap of the activations of {' and '.join(details['sets'])} {moved}, from {' to '.join(ends)}, "
    said += "a mean over blocks without an error bar." if is_one else f"means over blocks: {_estimate(row)}."
    drifts = [details["drift_first"], details["drift_second"]]
    if not np.isnan(drifts).any():
        said += f" From their own subspaces at the start they have drifted by {drifts[0]:.2f} and {drifts[1]:.2f} (0: "
        said += "unmoved, 1: nothing shared)."
    if details["is_uncentred"]:
        said += " The sets are uncentred and share their mean, which by itself can put them above chance."
    return said


def _doubt(looks: pd.DataFrame) -> str:
    """Say what one run, a few looks and these samples cannot show."""
    said = []
    for _, row in looks.iterrows():
        gaps = list(dict.fromkeys(row["details"]["gaps"]))
        apart = f", {' to '.join(map(str, gaps))} steps apart" if gaps else ""
        said.append(f"{row['subject']} at {many(int(row['n']), 'look')}{apart}")
    text = (
        f"One run{' each' if len(said) > 1 else ''}: {'; '.join(said)}. What happened between two looks is not seen, "
    )
    text += "and another seed may come out otherwise."
    fewest = max((row["details"] for _, row in looks.iterrows()), key=lambda details: details["largest_error"])
    if isnan(fewest["n_harmful"]):
        return text
    return (
        f"{text} A rate on {prompt_words(pd.Series(fewest), 'harmful')} has a standard error of up to "
        f"{fewest['largest_error']:.2f}, and 0.00 still leaves room for {fewest['room_at_zero']:.2f} of the other kind."
    )


def _estimate(row: pd.Series) -> str:
    return estimate_words(row, more=corrected_p_words(row))


def _behind(row: pd.Series) -> str:
    return f" ({corrected_p_words(row)})" if corrected_p_words(row) else ""


def _between(looks: pd.DataFrame, steps: tuple[int, int], kind: str) -> str:
    before, after = steps
    values = f"from {value_at(looks, before)} to {value_at(looks, after)}{_prompts(looks, after, kind)}"
    return f"between step {before} and {after}, {values}"


def _prompts(looks: pd.DataFrame, step: int, kind: str) -> str:
    look = looks.loc[step]
    counted = pd.Series({f"n_{kind}": look["prompts"], f"n_groups_{kind}": look["groups"]})
    return "" if pd.isna(look["prompts"]) else f" of {prompt_words(counted, kind)}"


def _charts(stage: Stage, colours: Colours, name: str) -> list[tuple[Chart, str]]:
    figure = watching_figure(stage, colours.of(stage.name))
    label = f"Behaviour, refusal margin, update and activations of {stage.name} over its optimizer steps"
    charts = [] if figure is None else [(make_chart(name, stage.name, label, figure), CAPTION)]
    for index, tag in enumerate(mapped_tags(stage)[:MOST_HEATMAPS]):
        title = f"{stage.name}: {MAPPED_TITLES[tag]}"
        label = f"{title}, by layer and optimizer step"
        still = ", ".join(f"{part} {value:.2f}" for part, value in rows_not_drawn(stage, tag).items())
        chart = make_chart(f"{name}-layers-{index}", title, label, layer_figure(stage, tag))
        charts.append((chart, MAPPED + (f" Not drawn, for it does not move: {still}." if still else "")))
    return charts


def _finding_table(found: pd.DataFrame) -> Table:
    columns: dict[str, Cell] = {
        "run": lambda row: str(row["subject"]),
        "question": lambda row: str(row["question"]),
        "verdict": lambda row: str(row["verdict"]),
        "estimate": lambda row: number(row["estimate"], 0 if row["question"] == ORDER else 2),
        "95 %": lambda row: NOTHING if isnan(row["low"]) else f"{row['low']:z.2f} to {row['high']:z.2f}",
        "n": counts("n"),
        "p": lambda row: NOTHING if isnan(row["p"]) else p_words(float(row["p_adjusted"])),
    }
    rows = found[(found["question"] != LOOKS) & ((found["question"] != OUTCOME) | (found["n"] > 1))]
    measures = [f"{row['question']}: {row['measure']}" for _, row in rows.iterrows() if row["question"] != OUTCOME]
    tests = int(rows["tests"].max())
    note = "; ".join(dict.fromkeys(measures)).replace(f": share of runs: {NOT_SHOWN}", ": share of runs")
    note += ". n counts " + " and ".join(dict.fromkeys(unit for unit in rows["unit"] if unit))
    return table_of(rows, columns, 3, note + (f"; p is corrected for {many(tests, 'test')}." if tests else "."))
