"""Steering over seeds: the selectivity of interventions, with t intervals; a seed is the unit, its layers are not."""

import pandas as pd

from safety_subspaces.findings.contracts import reference_model
from safety_subspaces.findings.intervals import Finding, interval_of, over_seeds
from safety_subspaces.findings.steering import COMPARISON, Steering, is_reserved, judged
from safety_subspaces.report.parts.columns import counts, numbers, table_of, text, texts
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.sentence import many, seeds_interval_words
from safety_subspaces.report.parts.table import NOTHING, Table, count
from safety_subspaces.report.sections.steering.figures import selectivity_figure
from safety_subspaces.report.sections.steering.reading import by_measure, counted_verdict, spoken
from safety_subspaces.report.sections.steering.tables import SENSE, selectivity_by_intervention


def selectivity_over_seeds(steering: Steering) -> pd.DataFrame:
    """Return the selectivity of each model, direction, intervention, sense and measure as a mean over seeds.

    Columns: ``COMPARISON``, ``selectivity`` with ``_reach`` and ``_seeds``, and ``reserved``, ``low``, ``high``,
    ``row`` (the name of a row in a chart) and ``judged``. Layers of a seed are averaged first. ``low`` and ``high`` are
    the 95 % t interval over ``selectivity_seeds``, NaN below two; the intervals within a seed are not used.
    ``reserved`` counts the values with a reason.
    """
    numbers = steering.selectivity.assign(
        selectivity=steering.selectivity["selectivity"].astype(float),
        reserved=[is_reserved(row) for _, row in steering.selectivity.iterrows()],
    )
    grouped = numbers.groupby(["seed", *COMPARISON], sort=False)
    within = grouped.agg({"selectivity": "mean", "reserved": "sum"}).reset_index()
    frame = over_seeds(within, COMPARISON, ["selectivity"], {"reserved": "sum"})
    mean, reach = frame["selectivity"].astype(float), frame["selectivity_reach"].astype(float)
    frame = frame.assign(low=mean - reach, high=mean + reach, row=[_name(row) for _, row in frame.iterrows()])
    return frame.assign(judged=judged(frame))


def steering_across_table(steering: Steering) -> Table:
    """The selectivity of every direction, intervention, sense and measure over seeds."""
    columns = {
        **texts("model", "analysis", "direction", "intervention", "sign"),
        "matched on": text("matched_on"),
        "measure": text("measure"),
        "judged": text("judged"),
        "selectivity": numbers("selectivity", 3, "selectivity_reach", "+"),
        "at largest dose": counts("reserved"),
        "seeds": counts("selectivity_seeds"),
    }
    note = (
        f"Means over seeds ± half the 95 % t interval over seeds; none with one seed. {SENSE} At largest dose: how "
        "many of the values behind a mean are."
    )
    return table_of(selectivity_over_seeds(steering), columns, 8, note)


def steering_across_terminal_table(steering: Steering) -> Table:
    """The selectivity in the reference model over seeds: a row an intervention, for a terminal."""
    model, every = reference_model(steering.models), selectivity_over_seeds(steering)
    shown = every[(every["model"] == model) & (every["analysis"] == every["analysis"].iloc[0])]
    said = numbers("selectivity", 2, "selectivity_reach", "+")
    cells = [NOTHING if pd.isna(row["selectivity"]) else f"{said(row)} {row['judged']}" for _, row in shown.iterrows()]
    note = " ± half the 95 % t interval over seeds."
    return selectivity_by_intervention(shown.assign(cell=cells), len(every), model, note)


def steering_across_section(steering: Steering, anchor: str) -> Section | None:
    """Return what the page over seeds shows of steering; ``None`` where no selectivity was reckoned."""
    if steering.selectivity.empty:
        return None
    frame = selectivity_over_seeds(steering)
    charts = []
    if frame["selectivity"].notna().any():
        seeds = int(frame["selectivity_seeds"].max())
        n, draws = (steering.selectivity[name].astype(float).max() for name in ("n", "n_draws"))
        half = "the 95 % t interval over" if seeds > 1 else "none, with"
        caption = (
            f"Points: the mean over seeds of the mean over layers; bars: {half} "
            f"{many(seeds, 'seed')}. Dotted: 0, as much as along random directions at equal cost. n: at most "
            f"{count(n)} prompts and {count(draws)} random directions in each seed."
        )
        shown = frame[frame["selectivity"].notna()]
        chart = make_chart(
            f"steering-{anchor}", "Selectivity", "Selectivity of steering, over seeds", selectivity_figure(shown)
        )
        charts.append((chart, caption))
    return Section("steering", "Steering", charts, {"Selectivity over seeds": steering_across_table(steering)})


def read_steering_across(steering: Steering, organism: str) -> list[Finding]:
    """Return how steering the reference model differs from random directions, by intervals over seeds."""
    if steering.selectivity.empty:
        return []
    model = reference_model(steering.models)
    frame = selectivity_over_seeds(steering)
    compared = frame[frame["model"] == model]
    headline = (
        f"{organism}, steering {model} beside random directions at equal cost, over seeds: "
        f"{by_measure(compared, compared['judged'])}."
    )
    values = "; ".join(
        f"{row['row']}, {spoken(row['measure'])} {seeds_interval_words(interval_of(row, 'selectivity'), 2)}: "
        f"{row['judged']}"
        for _, row in compared.iterrows()
    )
    reserved = int(compared["reserved"].sum())
    text = f"{headline} {values}."
    text += f" {reserved} of the values behind them are compared at the largest dose." if reserved else ""
    return [Finding("steering", counted_verdict(list(compared["judged"])), headline, text)]


def _name(row: pd.Series) -> str:
    sign = f" ({row['sign']})" if row["sign"] else ""
    matched = f", equal {row['matched_on']}" if row["matched_on"] else ""
    return f"{row['intervention']}{sign} of {row['direction']}{matched}"
