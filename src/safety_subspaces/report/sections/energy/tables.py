"""The tables of projected models, of one study and over seeds, of their selectivity, and of what kept energy orders."""

import numpy as np
import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED, pool_draws, selectivity
from safety_subspaces.findings.models import MEASURED
from safety_subspaces.findings.sweeps import (
    MATCHED,
    energy_correlations,
    equal_energy_over_seeds,
    matched_utility_over_seeds,
    sweep_over_seeds,
)
from safety_subspaces.report.parts.columns import (
    HEADINGS,
    Cell,
    counts,
    differences,
    numbers,
    outcomes,
    short,
    table_of,
    text,
    texts,
)
from safety_subspaces.report.parts.table import NOTHING, Table, count, joined_counts, number, sample_words, seeds_of

COMPARED_SUBSPACES = ("top", "random-energy")
REACH_NOTE = (
    "± half the 95 % t interval over seeds, draws averaged within each; none with one seed. Where the measures differ "
    "in their seeds, all are told in the order of the columns."
)


def projection_table(study: Study, subspaces: tuple[str, ...] | None = None) -> Table:
    """Every projected configuration, its draws pooled; of the named subspaces only, if any are named."""
    pooled = pool_draws(study.projections)
    columns = {
        "tuned": text("group"),
        **texts("subspace", "method"),
        "fraction": short("fraction"),
        "draws": counts("n_draws"),
        "energy": numbers("energy_kept", 3),
        "chance": numbers("chance_energy", 3),
        **outcomes(("utility", "harmful_rate", "harm_score", "refusal_margin"), "_error"),
        "unscored": counts("n_unscored"),
    }
    note = (
        "Energy: the share of the update's squared norm that is kept. Means over draws; ± the standard error over "
        "draws where there are two or more, else of the evaluation."
    )
    rows = pooled if subspaces is None else pooled[pooled["subspace"].isin(subspaces)]
    return table_of(rows, columns, 3, note)


def selectivity_table(study: Study) -> Table:
    """Top-k minus random subspaces of equal energy, with the error that the draws leave."""
    columns = {
        "tuned": text("group"),
        "method": text("method"),
        "fraction": short("fraction"),
        "draws": counts("refusal_margin_draws"),
        "energy top": numbers("energy_top", 3),
        "energy random": numbers("energy_random", 3),
        **differences(COMPARED, "_error"),
    }
    note = (
        "Top minus the mean of the random draws ± the error that the draws leave (their standard deviation / "
        "sqrt(draws); none with one draw). A selective subspace spares the margin when it is projected away (positive) "
        "and spends it when projected onto (negative)."
    )
    return table_of(selectivity(study.projections), columns, 2, note)


def sweep_table(projections: pd.DataFrame) -> Table:
    """Every projected configuration as a mean over seeds."""
    frame = sweep_over_seeds(projections)
    columns: dict[str, Cell] = {
        **texts("tuned", "subspace", "method"),
        "fraction": short("fraction"),
        "energy": numbers("energy_kept", 3),
        "chance": numbers("chance_energy", 3),
        **outcomes(MEASURED, "_reach"),
        "draws": counts("draws"),
        "seeds": lambda row: seeds_of(row, MEASURED),
    }
    note = (
        f"Means over seeds {REACH_NOTE} Energy: the share of the update's squared norm that is kept. Chance: what a "
        f"random subspace is expected to keep. n: {sample_words(frame)}."
    )
    return table_of(frame, columns, 3, note)


def selectivity_across_table(projections: pd.DataFrame) -> Table:
    """Kinds of subspace minus each other at equal utility and at equal energy, each method alone and both."""
    matched, equal = matched_utility_over_seeds(projections), equal_energy_over_seeds(projections)
    frame = pd.concat([matched.assign(at="utility"), equal.assign(at="energy")], ignore_index=True)
    cells = frame.groupby(["tuned", "subspace", "other"], sort=False)
    rows = [row for _, cell in cells for _, row in cell.iterrows()]
    utility = numbers("utility_difference", 2, "utility_difference_reach", "+")
    columns: dict[str, Cell] = {
        "tuned": text("tuned"),
        "pair": lambda row: f"{row['subspace']} - {row['other']}",
        "equal": text("at"),
        "method": text("method"),
        "utility": lambda row: "" if row["at"] == "utility" else utility(row),
        **differences(MATCHED, "_difference_reach"),
        "shared": _shared,
        "fractions": counts("fractions"),
        "draws": counts("draws"),
        "seeds": lambda row: seeds_of(
            row, [f"{measure}_difference" for measure in (MATCHED if row["at"] == "utility" else COMPARED)]
        ),
    }
    note = (
        f"Mean differences, seed by seed, {REACH_NOTE} Equal utility: the mean over the shared utilities, each curve's "
        "utility made non-decreasing in energy; equal energy: the mean over fractions that every seed has. Both: the "
        "mean over methods, margin and harm signed: positive is selective (margin spared by away, spent by onto). "
        f"n: {sample_words(projections)}."
    )
    return table_of(rows, columns, 4, note)


def correlations_table(projections: pd.DataFrame) -> Table:
    """Spearman's rho of kept energy with each measure, over all subspaces, methods and fractions."""
    of_tuned = energy_correlations(projections).groupby("tuned", sort=False)
    rows = [(str(tuned), cell.set_index("measure").loc[list(COMPARED)]) for tuned, cell in of_tuned]
    columns: dict[str, Cell] = {
        "tuned": lambda row: row[0],
        **{HEADINGS[measure]: _correlation(measure) for measure in COMPARED},
        "spread": lambda row: number(row[1]["draw_spread"].max(), 2),
        "points": lambda row: count(row[1]["points"].min()),
        "draws": lambda row: count(row[1]["draws"].max()),
        "seeds": lambda row: joined_counts([count(n) for n in row[1]["seeds"]]),
    }
    note = (
        "Mean over seeds [95 % t interval over seeds, on Fisher's z scale], draws averaged within each seed; no "
        "interval with one seed, - where the measure does not move. Spread: the largest mean standard deviation over "
        "draws. Points: behind each rho, the fewest. Where the measures differ in their seeds, all are told in the "
        f"order of the columns. n: {sample_words(projections)}."
    )
    return table_of(rows, columns, note=note)


def _shared(row: pd.Series) -> str:
    """Return the utilities that two curves share."""
    if row["at"] != "utility":
        return ""
    return NOTHING if pd.isna(row["utility_low"]) else f"{row['utility_low']:.2f}-{row['utility_high']:.2f}"


def _correlation(measure: str) -> Cell:
    def cell(row: tuple[str, pd.DataFrame]) -> str:
        rho, low, high = (float(row[1][name][measure]) for name in ("rho", "low", "high"))
        return number(rho, 2) + ("" if np.isnan([rho, low]).any() else f" [{low:z.2f}, {high:z.2f}]")

    return cell
