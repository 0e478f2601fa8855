"""Probes over seeds: what is left after each erasure, with t intervals; a seed is the unit, layers lie within it."""

from typing import Final

import pandas as pd

from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.intervals import Finding, interval_of, over_seeds
from safety_subspaces.findings.probes import (
    CELL,
    ERASURES,
    PROBES,
    Probes,
    in_order,
    of_view,
    over_layers,
    reference_of,
)
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, texts
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.sentence import many, seeds_interval_words
from safety_subspaces.report.parts.table import Table, count, joined_counts, number
from safety_subspaces.report.sections.probes.figures import left_figure
from safety_subspaces.report.sections.probes.reading import AFTER
from safety_subspaces.report.sections.probes.tables import CELL_COLUMNS, paired

MEASURES: Final = ("left", "auc", "accuracy", "selectivity")
# Sets that are drawn; every one stands in the table.
MOST_VIEWS: Final = 2


def probes_over_seeds(probes: Probes) -> pd.DataFrame:
    """Return each probe of each erasure, model and view: measures over layers as means over seeds with ``_reach``.

    Columns: ``CELL``, and each of ``MEASURES`` with ``_reach`` and ``_seeds``.
    """
    return over_seeds(over_layers(probes.table), CELL, MEASURES)


def left_over_seeds_verdict(row: pd.Series) -> str:
    """Judge by the interval over seeds of what is left above chance; unknown below two seeds."""
    over = interval_of(row, "left")
    if over.n < 2:
        return "unknown"
    return {1: "above chance", -1: "below chance", 0: "not shown to differ from chance"}[over.sign]


def probes_across_table(probes: Probes) -> Table:
    """What each probe tells before and after erasure, in each model, over seeds."""
    columns: dict[str, Cell] = {
        **texts(*CELL_COLUMNS),
        "AUC": numbers("auc", 3, "auc_reach"),
        "accuracy": numbers("accuracy", 3, "accuracy_reach"),
        "selectivity": numbers("selectivity", 3, "selectivity_reach", "+"),
        "left": numbers("left", 3, "left_reach", "+"),
        "judged": left_over_seeds_verdict,
        "seeds": counts("left_seeds"),
    }
    note = (
        "Means over seeds of the mean over a seed's layers, ± half the 95 % t interval over seeds; none with one "
        "seed. Left: AUC minus 0.5, or accuracy minus chance; judged by its interval. Selectivity: accuracy minus "
        "the control task's."
    )
    return table_of(paired(probes_over_seeds(probes)), columns, 6, note)


def probes_across_terminal_table(probes: Probes) -> Table:
    """The first view of the reference model over seeds: a row a probe, for a terminal."""
    view = probes.views[0]
    model = reference_of(probes, view)
    means = of_view(probes_over_seeds(probes), view)
    means = means[means["model"] == model]
    erasures = in_order(labels_of(means, "erasure"), ERASURES)
    rows = []
    for kind in in_order(labels_of(means, "probe"), PROBES):
        of_probe = means[means["probe"] == kind].set_index("erasure")
        of_probe = of_probe.reindex(erasures)
        left = [
            number(mean, 3, reach, "+") for mean, reach in zip(of_probe["left"], of_probe["left_reach"], strict=True)
        ]
        rows.append((kind, *left, joined_counts([count(seeds) for seeds in of_probe["left_seeds"]])))
    columns = ("probe", *(f"erasure {name}" for name in erasures), "seeds")
    note = f"{model}, {view.words}: above chance, mean over layers ± half the 95 % t interval over seeds."
    return Table(columns, tuple(rows), note=note)


def probes_across_section(probes: Probes, anchor: str) -> Section | None:
    """Return what the page over seeds shows of probes; ``None`` where none were trained."""
    if probes.table.empty:
        return None
    every, charts = probes_over_seeds(probes), []
    for view_number, view in enumerate(probes.views[:MOST_VIEWS]):
        title = f"Left in each model: {view.words}"
        rows = of_view(probes.table, view)
        seeds, n = rows["seed"].nunique(), rows[["n_positive", "n_negative"]].astype(float).max()
        half = "half the 95 % t interval over" if seeds > 1 else "none, with"
        caption = (
            "AUC minus 0.5 (accuracy minus chance where there is no AUC): the mean over seeds of the mean over "
            f"layers. Bars: {half} {many(seeds, 'seed')}. Dashed: chance. n: at most "
            f"{count(n['n_positive'])} and {count(n['n_negative'])} prompts in each seed."
        )
        figure = left_figure(of_view(every, view), "left_reach")
        charts.append((make_chart(f"probes-{anchor}-{view_number}", title, f"{title}, over seeds", figure), caption))
    return Section("probes", "Probes", charts, {"What is left after erasure": probes_across_table(probes)})


def read_probes_across(probes: Probes, organism: str) -> list[Finding]:
    """Return which probes are above chance after each erasure in the reference model, by intervals over seeds."""
    if probes.table.empty:
        return []
    view = probes.views[0]
    model = reference_of(probes, view)
    rows = of_view(probes_over_seeds(probes), view)
    rows = rows[rows["model"] == model].assign(judged=lambda frame: frame.apply(left_over_seeds_verdict, axis=1))
    erasures = in_order(labels_of(rows, "erasure"), ERASURES)
    counted, values = [], []
    for erasure in erasures:
        cells = rows[rows["erasure"] == erasure]
        names = {str(verdict): list(cell["probe"]) for verdict, cell in cells.groupby("judged", sort=False)}
        words = "; ".join(f"{', '.join(kinds)} {verdict}" for verdict, kinds in names.items())
        counted.append(f"{AFTER.get(erasure, erasure)}: {words}")
        said = [f"{row['probe']} {seeds_interval_words(interval_of(row, 'left'))}" for _, row in cells.iterrows()]
        values.append(f"{AFTER.get(erasure, erasure)} {', '.join(said)}")
    headline = f"{organism}, probes of {model} ({view.words}): {'. '.join(_upper(text) for text in counted)}."
    text = f"{headline} Above chance, mean over layers: {'; '.join(values)}."
    verdicts = set(rows[rows["erasure"] == erasures[-1]]["judged"]) if erasures else set()
    verdict = "left" if "above chance" in verdicts else "unknown" if verdicts <= {"unknown"} else "not shown"
    return [Finding("probes", verdict, headline, text)]


def _upper(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
