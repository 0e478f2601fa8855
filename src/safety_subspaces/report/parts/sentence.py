"""How a number is said in a sentence: with its error, and with the prompts behind it; missing is said to be missing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import Finding, Interval


def row_of(rows: pd.DataFrame, label: str) -> pd.Series:
    """Return the row of a label as a series, the first where there are several."""
    return rows.loc[[label]].iloc[0]


def value_words(row: pd.Series, measure: str) -> str:
    """Return a measure with its standard error, ``0.97 ± 0.01``."""
    if pd.isna(row[measure]):
        return "not measured"
    error = row[f"{measure}_stderr"]
    return f"{row[measure]:.2f}" + ("" if pd.isna(error) else f" ± {error:.2f}")


def rate_words(row: pd.Series, measure: str) -> str:
    """Return a rate in per cent."""
    return "an unmeasured share" if pd.isna(row[measure]) else f"{100 * row[measure]:.1f} %"


def prompt_words(row: pd.Series, kind: str) -> str:
    """Return how many prompts of a kind stand behind a row, and in how many independent groups."""
    groups = row[f"n_groups_{kind}"]
    return f"{_count(row[f'n_{kind}'])} {kind} prompts" + ("" if pd.isna(groups) else f" in {int(groups)} groups")


def _count(value: Any) -> str:
    return "an unknown number of" if pd.isna(value) else f"{int(value)}"


def answer(findings: list[Finding]) -> str:
    """Return the one-paragraph answer: the headlines of the findings, in their order, each once."""
    return " ".join(dict.fromkeys(finding.headline for finding in findings if finding.headline))


def first_headline(findings: list[Finding]) -> list[Finding]:
    """Leave the headline to the first of some findings."""
    return [finding if index == 0 else replace(finding, headline="") for index, finding in enumerate(findings)]


def many(n: int, what: str) -> str:
    """Return a count with its noun: ``1 seed``, ``3 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def interval_words(interval: Interval, digits: int = 2, more: str = "", alone: str = "no interval") -> str:
    """Return a difference with its 95 % interval.

    Args:
        interval: The difference.
        digits: Decimals.
        more: What else stands in the brackets.
        alone: What is said where there is no interval.
    """
    if np.isnan(interval.mean):
        return "not known"
    mean, low, high = (f"{value:+z.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} ({alone if np.isnan(interval.low) else f'95 % {low} to {high}'}{more})"


def seeds_interval_words(interval: Interval, digits: int = 3) -> str:
    """Return a mean with its interval over seeds, and their number."""
    more = "" if interval.n == 1 else f", {interval.n} seeds"
    return interval_words(interval, digits, more, "one seed, no interval")


def smallest_sample(prompts: pd.DataFrame) -> tuple[pd.Series, float, str] | None:
    """Return the row of the fewest harmful prompts, in groups where these are known; ``None`` where no row has any.

    Returns:
        The row, how many of them are independent of one another, and "over groups" where these are groups.
    """
    counts = prompts[["n_harmful", "n_groups_harmful"]].astype(float).dropna(subset="n_harmful").reset_index(drop=True)
    if counts.empty:
        return None
    independent = counts["n_groups_harmful"].fillna(counts["n_harmful"])
    smallest = counts.iloc[int(independent.argmin())]
    return smallest, max(float(independent.min()), 1.0), "" if pd.isna(smallest["n_groups_harmful"]) else " over groups"
