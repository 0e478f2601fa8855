"""The tables of projected models, and of their selectivity."""

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import (
    COMPARED,
    pool_draws,
    selectivity,
)
from safety_subspaces.report.parts.table import NOTHING, Table, count, number, with_error

COMPARED_SUBSPACES = ("top", "random-energy")


def projection_table(study: Study, subspaces: tuple[str, ...] | None = None) -> Table:
    """Every projected configuration, its draws pooled; of the named subspaces only, if any are named."""
    pooled = pool_draws(study.projections)
    if subspaces is not None:
        pooled = pooled[pooled["subspace"].isin(subspaces)]
    rows = []
    for _, row in pooled.iterrows():
        measures = (f"{m}_error" for m in ("utility", "harmful_rate", "harm_score", "refusal_margin"))
        rows.append(
            (
                str(row["group"]),
                str(row["subspace"]),
                str(row["method"]),
                f"{row['fraction']:g}",
                count(row["n_draws"]),
                number(row["energy_kept"], 3),
                number(row["chance_energy"], 3),
                *(with_error(row, name.removesuffix("_error"), "_error") for name in measures),
                count(row["n_unscored"]),
            )
        )
    columns = (
        "tuned",
        "subspace",
        "method",
        "fraction",
        "draws",
        "energy",
        "chance",
        "utility",
        "harmful",
        "harm 1-5",
        "margin",
        "unscored",
    )
    note = (
        "Energy: the share of the update's squared norm that is kept. Means over draws; ± the standard "
        "error over draws "
        "where there are two or more, else of the evaluation."
    )
    return Table(columns, tuple(rows), text_columns=3, note=note)


def selectivity_table(study: Study) -> Table:
    """Top-k minus random subspaces of equal energy, with the error that the draws leave."""
    rows = [
        (
            str(row["group"]),
            str(row["method"]),
            f"{row['fraction']:g}",
            count(row["refusal_margin_draws"]),
            number(row["energy_top"], 3),
            number(row["energy_random"], 3),
            *(_difference(row, measure) for measure in COMPARED),
        )
        for _, row in selectivity(study.projections).iterrows()
    ]
    columns = (
        "tuned",
        "method",
        "fraction",
        "draws",
        "energy top",
        "energy random",
        "utility",
        "harm 1-5",
        "margin",
    )
    note = (
        "Top minus the mean of the random draws ± the error that the draws leave (their standard deviation / "
        "sqrt(draws); none with one draw). A selective subspace "
        "spares the margin when it is projected away (positive) and spends it when projected onto (negative)."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)


def _difference(row: pd.Series, measure: str) -> str:
    difference, error = row[f"{measure}_difference"], row[f"{measure}_error"]
    if pd.isna(difference):
        return NOTHING
    return f"{difference:+z.2f}" + ("" if pd.isna(error) else f"±{error:.2f}")
