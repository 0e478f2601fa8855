"""How a decided finding is said in a sentence: its estimate with the interval, its p, and of how many tests."""

from collections.abc import Iterator

import pandas as pd

from safety_subspaces.findings.finding import ALPHA
from safety_subspaces.report.parts.sentence import p_words


def estimate_words(finding: pd.Series, digits: int = 2, more: str = "") -> str:
    """Return a decided difference with its interval, its corrected p and what else is known of it, as far as it is.

    ``+0.62 (95 % +0.55 to +0.69, p .003, of 7 tests)``
    """
    if pd.isna(finding["estimate"]):
        return "not known"
    mean, low, high = (f"{finding[name]:+z.{digits}f}" for name in ("estimate", "low", "high"))
    behind = [] if pd.isna(finding["low"]) else [f"95 % {low} to {high}"]
    behind += [] if pd.isna(finding["p_adjusted"]) else [f"p {p_words(float(finding['p_adjusted']))}"]
    behind += [more] if more else []
    return f"{mean} ({', '.join(behind)})" if behind else mean


def family_words(findings: pd.DataFrame) -> str:
    """Return for how many tests the p of some findings of one family are corrected: ``of 7 tests``; empty without."""
    tests = int(findings["tests"].max()) if len(findings) else 0
    return f"of {tests} test{'' if tests == 1 else 's'}" if tests else ""


def by_verdict(findings: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Give each verdict with the subjects that have it and the largest of their p: ``("lost", "a, b", "p .01")``.

    The verdict of the largest estimates comes first. The p is left out where it is not at most 0.05.
    """
    means = findings.groupby("verdict", sort=False)["estimate"].mean().sort_values(ascending=False, kind="stable")
    for verdict in means.index:
        rows = findings[findings["verdict"] == verdict]
        largest = rows["p_adjusted"].max(skipna=False)
        is_shown = largest <= ALPHA
        yield str(verdict), ", ".join(rows["subject"].astype(str)), f"p {p_words(float(largest))}" if is_shown else ""
