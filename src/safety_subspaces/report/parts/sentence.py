"""How a number is said in a sentence: with its error, and with the prompts behind it; missing is said to be missing."""

from typing import Any

import pandas as pd

from safety_subspaces.findings.intervals import Finding


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
