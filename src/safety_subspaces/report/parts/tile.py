"""A number at the top of a page, with what a reader needs to trust it: its interval, what it counts, and its judge."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safety_subspaces.report.parts.table import number


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of a page.

    Args:
        name: What it is, and of which model.
        value: The number.
        interval: The number with its 95 % interval in words, and what it is beside.
        verdict: What is said of it.
        behind: What the interval varies over, how many of these there are, and who judged.
    """

    name: str
    value: str
    interval: str
    verdict: str
    behind: str


def tile_of(
    name: str,
    value: str,
    finding: Any,
    beside: str = "",
    sign: str = "+",
    counted: str = "",
    judge: str = "",
) -> Tile:
    """Return the tile of a decided finding.

    Args:
        name: What the number is, and of which model.
        value: The number.
        finding: A row of decided findings.
        beside: What the estimate is and what it is beside, in front of its interval.
        sign: How its ends are written: ``+`` for a difference.
        counted: What there is n of, where the finding's own words are too long.
        judge: Who judged.
    """
    low, high = (number(finding[end], 2, sign=sign) for end in ("low", "high"))
    interval = "no interval" if pd.isna(finding["low"]) else f"95 % {low} to {high}"
    said = ", ".join(part for part in (beside, interval) if part)
    behind = ", ".join(part for part in (counted or f"n = {finding['n']} {finding['unit']}".strip(), judge) if part)
    return Tile(name, value, said, str(finding["verdict"]).partition(":")[0], behind)


def judge_words(judges: Iterable[Any]) -> str:
    """Return who judged some answers: ``judge phrases``; empty where that is not known."""
    named = dict.fromkeys(judge for judge in judges if isinstance(judge, str) and judge)
    return f"judge {', '.join(named)}" if named else ""
