"""The section on probes: its charts with what a reader must know of each, and its tables."""

from typing import Final

from safety_subspaces.findings.probes import Probes, ProbeView, of_view, over_layers, reference_of
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import count
from safety_subspaces.report.sections.probes.figures import layer_figure, left_figure
from safety_subspaces.report.sections.probes.tables import learning_table, left_table, transfer_table

# Other sets and positions that are drawn; every one stands in the table.
MOST_VIEWS: Final = 2


def probes_section(probes: Probes) -> Section | None:
    """Return the section of the probes of one study; ``None`` where none were trained."""
    if probes.table.empty:
        return None
    charts = [chart for number, view in enumerate(probes.views[:MOST_VIEWS]) for chart in _charts(probes, view, number)]
    tables = {
        "What is left after erasure": left_table(probes),
        "Learning curves": learning_table(probes),
        "From one source of prompts to another": transfer_table(probes),
    }
    return Section("probes", "Probes", charts, tables)


def _charts(probes: Probes, view: ProbeView, number: int) -> list[tuple[Chart, str]]:
    rows = of_view(probes.table, view)
    model = reference_of(probes, view)
    sizes = rows[["n_positive", "n_negative", "n_groups"]].astype(float).max()
    n = (
        f"n: {count(sizes['n_positive'])} and {count(sizes['n_negative'])} prompts in {count(sizes['n_groups'])} "
        "independent groups; no group is in training and test."
    )
    by_layer = (
        f"Each probe on held-out prompts ({view.words}). Bars: one standard error over groups. Dotted: the same "
        "probe on control labels, drawn at random by group, which after quadratic erasure are its chance level. "
        f"Dashed: chance. {n}"
    )
    by_model = (
        "AUC minus 0.5 (after quadratic erasure minus that of control labels which went through it; accuracy minus "
        "chance where there is no AUC), mean over layers. Bars: the mean standard "
        f"error of a layer, as layers share their prompts. Dashed: chance. {n}"
    )
    titles = (f"{model}: {view.words}", f"Left in each model: {view.words}")
    return [
        (
            make_chart(
                f"probes-{number}-layers",
                titles[0],
                f"Accuracy and AUC by layer, {titles[0]}",
                layer_figure(probes, view, model),
            ),
            by_layer,
        ),
        (make_chart(f"probes-{number}-models", titles[1], titles[1], left_figure(over_layers(rows))), by_model),
    ]
