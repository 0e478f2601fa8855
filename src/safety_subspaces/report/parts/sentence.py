"""How a number is said in a sentence: with its error, and with the prompts behind it; missing is said to be missing."""

from typing import Any

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import Interval


def prompt_words(row: pd.Series, kind: str) -> str:
    """Return how many prompts of a kind stand behind a row, and in how many independent groups."""
    groups = row[f"n_groups_{kind}"]
    return f"{_count(row[f'n_{kind}'])} {kind} prompts" + ("" if pd.isna(groups) else f" in {int(groups)} groups")


def _count(value: Any) -> str:
    return "an unknown number of" if pd.isna(value) else f"{int(value)}"


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


def p_words(p: float) -> str:
    """Return a p-value as short as it can be said: ``.03``, ``.004``, ``< .001``."""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}"[1:] if p < 0.0995 else f"{p:.2f}".removeprefix("0")


def range_words(value: float, low: float, high: float, digits: int = 2) -> str:
    """Return a value with its interval in brackets, ``0.97 (0.84 to 1.00)``; without them where it has none."""
    said = f"{value:z.{digits}f}"
    return said if np.isnan([low, high]).any() else f"{said} ({low:z.{digits}f} to {high:z.{digits}f})"
