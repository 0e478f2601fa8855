"""One finding as a row of a table: what was asked of what, the estimate, its chance level, and the verdict by a rule.

A topic says what it found before anything is decided. The decision is made here, once for all topics: p-values are
corrected for how many were asked together, and the words of a verdict follow from the corrected p, the sign and the
least size that counts. Page, terminal and notebook read the same rows.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, isnan, nan
from typing import Any, Final

import numpy as np
import pandas as pd

# What a corrected p must not exceed, and what intervals hold for: the field's habit.
ALPHA: Final = 0.05
LEVEL: Final = 1 - ALPHA
UNKNOWN: Final = "unknown"
COLUMNS: Final = (
    "topic", "question", "subject", "measure", "estimate", "low", "high", "level", "unit", "n", "null", "p",
    "p_adjusted", "family", "tests", "verdict", "rule", "details",
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    """What a verdict is called: of an estimate above 0, below 0, and of none that is shown."""

    above: str
    below: str
    neither: str


@dataclass(frozen=True)
class Finding:
    """What was found, before it is decided.

    Args:
        topic: The section that says it: ``overlap``.
        question: What is asked, in a few words that are the same in every study: ``top against random``.
        subject: Of what: labels of models, parts of a network.
        measure: In what: ``refusal margin (nats)``.
        estimate: The number; of a comparison a difference, 0 where there is none.
        low: Lower end of its 95 % interval; NaN where it has none.
        high: Upper end.
        unit: What the interval and the p vary over: ``seeds``, ``random draws``, ``groups of prompts``.
        n: How many of these.
        null: What the p supposes, in words; empty where nothing was tested.
        p: The two-sided p-value; NaN where there is none.
        words: What the verdict is called where there is a p.
        least: A smaller estimate is no difference that a reader would name, however sure.
        verdict: The verdict where nothing is tested: a count, a description, or why it cannot be told.
        rule: How the verdict follows from the numbers.
        family: The tests that are corrected together; the question where it is empty.
        draws: Random draws or permutations that the p is a rank among; 0 where it is none. Too few cannot reach 0.05.
        details: What a sentence needs beside these: plain values.
    """

    topic: str
    question: str
    subject: str
    measure: str = ""
    estimate: float = nan
    low: float = nan
    high: float = nan
    unit: str = ""
    n: int = 0
    null: str = ""
    p: float = nan
    words: Words | None = None
    least: float = 0.0
    verdict: str = UNKNOWN
    rule: str = ""
    family: str = ""
    draws: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def decide(findings: Iterable[Finding]) -> pd.DataFrame:
    """Correct the p-values of each family by Holm's method, and say each verdict.

    Returns:
        A row a finding, with ``COLUMNS``: ``p_adjusted`` and ``tests``, the number of p-values in its ``family`` (0
        where the finding has none); ``level`` is that of the interval, which is not corrected. A verdict is one of the
        finding's words where ``p_adjusted`` is at most 0.05 and the estimate not under ``least``; else that of neither.
        Where no rank among its draws could be that rare, it is *unknown*, with how many are needed.

    Source: Holm, Scand. J. Stat. 6 (1979).
    """
    rows = []
    for finding in findings:
        row = asdict(finding)
        row |= {"family": finding.family or finding.question, "level": LEVEL if not isnan(finding.low) else nan}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*dict.fromkeys([*COLUMNS, "words", "least", "draws"])])
    frame["p_adjusted"], frame["tests"] = nan, 0
    for _, family in frame[frame["p"].notna()].groupby("family", sort=False):
        frame.loc[family.index, "p_adjusted"] = holm(family["p"].to_numpy(float))
        frame.loc[family.index, "tests"] = len(family)
    frame["verdict"] = [_verdict(row) for _, row in frame.iterrows()]
    return frame[list(COLUMNS)]


def draws_needed(tests: int) -> int:
    """Return how many draws a rank needs to be as rare as 0.05 after Holm's correction for so many tests: 19 of one."""
    return max(ceil(max(tests, 1) / ALPHA - 1e-9) - 1, 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number by Holm's step-down method, in their own order."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def as_table(findings: pd.DataFrame) -> pd.DataFrame:
    """Return decided findings as a file has them: the details as JSON."""
    texts = [json.dumps(dict(details), default=_plain, ensure_ascii=False) for details in findings["details"]]
    return findings.assign(details=pd.Series(texts, index=findings.index, dtype=object))


def asked(findings: pd.DataFrame, question: str, **fixed: Any) -> pd.DataFrame:
    """Keep the findings on a question, of the subjects or measures that are named: ``measure="utility"``."""
    chosen = findings["question"] == question
    for name, value in fixed.items():
        chosen &= findings[name] == value
    return findings[chosen]


def _verdict(row: pd.Series) -> str:
    words = row["words"]
    if isnan(row["p"]) or words is None:
        return str(row["verdict"])
    if row["p_adjusted"] > ALPHA and 0 < row["draws"] < draws_needed(row["tests"]):
        of_tests = f"{row['tests']} test{'' if row['tests'] == 1 else 's'}"
        return f"{UNKNOWN}: {row['draws']} draws, {draws_needed(row['tests'])} needed for {of_tests}"
    if row["p_adjusted"] > ALPHA or abs(row["estimate"]) < row["least"]:
        return str(words["neither"])
    return str(words["above"] if row["estimate"] > 0 else words["below"])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
