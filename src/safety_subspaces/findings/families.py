"""The tests that are corrected together: which families there are, how many tests each has, and how many held."""

import pandas as pd

from safety_subspaces.findings.finding import ALPHA


def families(findings: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each family of tests among decided findings; those that test nothing are left out.

    Columns: ``topic``, ``family``, ``units`` (what its p-values vary over, as text), ``tests``, and ``held``, the tests
    whose corrected p is at most 0.05. Where nothing is there to find, any test holds in at most 5 % of the families.
    """
    tested = findings[findings["tests"] > 0]
    rows = [
        {
            "topic": ", ".join(dict.fromkeys(rows["topic"].astype(str))),
            "family": family,
            "units": ", ".join(dict.fromkeys(unit for unit in rows["unit"].astype(str) if unit)),
            "tests": int(rows["tests"].iloc[0]),
            "held": int((rows["p_adjusted"] <= ALPHA).sum()),
        }
        for family, rows in tested.groupby("family", sort=False)
    ]
    return pd.DataFrame(rows, columns=["topic", "family", "units", "tests", "held"])
