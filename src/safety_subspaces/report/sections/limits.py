"""What the studies cannot show: their seeds, draws and prompts, and which tests stand on the page."""

from collections.abc import Callable
from typing import Any, Final

import pandas as pd

from safety_subspaces.findings.families import families
from safety_subspaces.findings.topics.limits import DRAWS, SAMPLE, SEEDS, UNFINISHED
from safety_subspaces.report.parts.columns import Cell, counts, table_of, text
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import Table

NOT_INDEPENDENT: Final = (
    "Configurations of one fine-tune share its weights, and all models answer the same prompts: points in a chart are "
    "not independent of one another. An interval covers what its unit names and nothing else: one over prompts or over "
    "draws of a control says nothing of another training run, and one over seeds nothing of prompts of another kind."
)
FAMILIES: Final = (
    "The p of a family's tests are corrected together by Holm's method: where there is nothing to find, one or more of "
    "them is at or under 0.05 in at most 5 % of studies. Families are not corrected for one another, and intervals not "
    "at all."
)


def limits(part: Part) -> Section | None:
    """Say what cannot be shown, and list the families of tests."""
    found = part.of_topic("limits")
    said = [(str(row["question"]), _SAID[str(row["question"])](row)) for _, row in found.iterrows()]
    lone = [row["details"]["seeds"] for _, row in found.iterrows() if row["question"] == SEEDS]
    return Section(
        "limits",
        "Limits",
        tables={"Tests on this page": _tests(part)},
        headlines=[headline for seeds in lone if (headline := _headline(seeds, part))],
        sentences=[*(sentence for _, sentence in said), NOT_INDEPENDENT],
        place=900,
    )


def _headline(seeds: list[str], part: Part) -> str:
    if not seeds:
        return "Seeds are not known: no stage has a manifest with one."
    return f"One seed: {_another(seeds[0])}" if part.is_single and len(seeds) == 1 else ""


def _another(seed: str) -> str:
    return f"an anecdote, `make demo SEED={int(seed) + 1}` adds another."


def _seeds(row: pd.Series) -> str:
    seeds, studies = row["details"]["seeds"], row["details"]["studies"]
    if not seeds:
        return "Seeds are not known: no stage has a manifest with one."
    if studies > 1:
        return (
            f"{many(studies, 'seed')} ({', '.join(seeds)}): each trains every stage anew and draws its own random "
            f"subspaces, so an interval over seeds covers both; it has {many(studies - 1, 'degree')} of freedom, and a "
            "difference that it takes in is not shown to be absent. All seeds answer the same prompts."
        )
    if len(seeds) > 1:
        return f"{len(seeds)} training seeds ({', '.join(seeds)})."
    return f"One seed ({seeds[0]}): {_another(seeds[0])} No interval here covers another training run."


def _draws(row: pd.Series) -> str:
    needed = row["details"]["needed"]
    few = f" Fewer than {needed} can give no p of 0.05." if row["n"] < needed else ""
    return (
        f"Random controls have {many(int(row['n']), 'draw')} a configuration at most, top-k has one: a difference that "
        f"their spread takes in is not shown to be absent.{few}"
    )


def _sample(row: pd.Series) -> str:
    details: dict[str, Any] = row["details"]
    is_grouped = not pd.isna(details["groups"])
    groups = f" in {details['groups']:.0f} groups" if is_grouped else ""
    return (
        f"A rate on {details['prompts']} harmful prompts{groups} moves in steps of {details['step']:.3f} and has a "
        f"standard error of up to about {details['error']:.3f}; where all verdicts are equal, there is still room for "
        f"{details['room']:.3f} of the other kind (rule of three{' over groups' if is_grouped else ''}). "
        f"{details['unscored']} answers are unscored and count as neither safe nor harmful."
    )


def _unfinished(row: pd.Series) -> str:
    return f"Not complete: {', '.join(row['details']['runs'])}."


_SAID: Final[dict[str, Callable[[pd.Series], str]]] = {
    SEEDS: _seeds,
    DRAWS: _draws,
    SAMPLE: _sample,
    UNFINISHED: _unfinished,
}


def _tests(part: Part) -> Table:
    columns: dict[str, Cell] = {
        "family": text("family"),
        "section": text("topic"),
        "over": text("units"),
        "tests": counts("tests"),
        "p adjusted <= .05": counts("held"),
    }
    return table_of(families(part.findings), columns, 3, FAMILIES)
