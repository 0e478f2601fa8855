"""How a decided finding is said in a sentence: its estimate with the interval, its p, and of how many tests."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from safety_subspaces.findings.finding import ALPHA
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.report.parts.sentence import interval_words, many, p_words


def estimate_words(finding: Any, digits: int = 2, more: str = "") -> str:
    """Return a finding's estimate with its interval and what else is said of it: ``+0.76 (95 % +0.71 to +0.82, more)``.

    Args:
        finding: A row of decided findings.
        digits: Decimals.
        more: What else stands in the brackets.
    """
    interval = Interval(float(finding["estimate"]), float(finding["low"]), float(finding["high"]), int(finding["n"]))
    if pd.isna(interval.low):
        return interval_words(interval, digits, alone=more) if more else interval_words(interval, digits).split(" (")[0]
    return interval_words(interval, digits, more=f", {more}" if more else "")


def corrected_p_words(finding: Any) -> str:
    """Return a finding's corrected p with the tests of its family: ``p .012, of 2 tests``; empty without one."""
    p = float(finding["p_adjusted"])
    return "" if pd.isna(p) else f"p {p_words(p)}, of {many(int(finding['tests']), 'test')}"


def finding_words(finding: Any, digits: int = 2) -> str:
    """Return a decided finding's number with its interval, what varies, the corrected p, and the verdict.

    ``+0.12 (95 % +0.05 to +0.19, 3 seeds, p .012, of 6 tests): above chance``.
    """
    varies = f"{finding['n']} {finding['unit']}" if finding["unit"] and finding["n"] > 1 else ""
    behind = [part for part in (varies, corrected_p_words(finding)) if part]
    return f"{estimate_words(finding, digits, ', '.join(behind))}: {finding['verdict']}"


def family_words(findings: pd.DataFrame) -> str:
    """Return for how many tests the p of some findings of one family are corrected: ``7 tests``; empty without."""
    tests = int(findings["tests"].max()) if len(findings) else 0
    return many(tests, "test") if tests else ""


def by_verdict(findings: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Give each verdict with the subjects that have it and the largest of their p: ``("lost", "a, b", "p .010")``.

    The verdict of the largest estimates comes first. The p is left out where it is not at most 0.05.
    """
    means = findings.groupby("verdict", sort=False)["estimate"].mean().sort_values(ascending=False, kind="stable")
    for verdict in means.index:
        rows = findings[findings["verdict"] == verdict]
        largest = rows["p_adjusted"].max(skipna=False)
        is_shown = largest <= ALPHA
        yield str(verdict), ", ".join(rows["subject"].astype(str)), f"p {p_words(float(largest))}" if is_shown else ""
