"""How a finding is said in a sentence: its estimate with the interval, and its p with the tests it is corrected for."""

from typing import Any

import numpy as np

from safety_subspaces.findings.intervals import Interval
from safety_subspaces.report.parts.sentence import interval_words, many


def estimate_words(finding: Any, digits: int = 2) -> str:
    """Return a finding's estimate with its interval: ``+0.76 (95 % +0.71 to +0.82)``."""
    interval = Interval(float(finding["estimate"]), float(finding["low"]), float(finding["high"]), int(finding["n"]))
    return interval_words(interval, digits)


def p_words(finding: Any) -> str:
    """Return a finding's corrected p with the tests of its family: ``p .012, of 2 tests``; empty without one."""
    p = float(finding["p_adjusted"])
    if np.isnan(p):
        return ""
    said = "p < .001" if p < 0.001 else f"p {p:.3f}".replace("0.", ".", 1)
    return f"{said}, of {many(int(finding['tests']), 'test')}"
