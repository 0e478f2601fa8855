"""The section on steering: dose-response charts with what a reader must know of each, and the table of selectivity."""

from typing import Final

from safety_subspaces.findings.contracts import reference_model
from safety_subspaces.findings.steering import NO_DIRECTION, Steering, SteerView, is_random, of_view
from safety_subspaces.report.parts.page import make_chart
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import count
from safety_subspaces.report.sections.steering.figures import dose_figure
from safety_subspaces.report.sections.steering.tables import responses_table, selectivity_table

# Interventions that are drawn; every one stands in the table.
MOST_VIEWS: Final = 4


def steering_section(steering: Steering) -> Section | None:
    """Return the section of the steering of one study; ``None`` where nothing was steered."""
    if steering.is_empty:
        return None
    charts = []
    for number, view in enumerate(steering.views(reference_model(steering.models))[:MOST_VIEWS]):
        figure = dose_figure(steering, view)
        if figure is not None:
            title = f"{view.words[0].upper()}{view.words[1:]}"
            label = f"Harm, refusal margin, utility, over-refusal and perplexity against strength: {view.words}"
            charts.append((make_chart(f"steering-{number}", title, label, figure), _caption(steering, view)))
    tables = {
        "Selectivity with its intervals": selectivity_table(steering),
        "Every response": responses_table(steering),
    }
    return Section("steering", "Steering", charts, tables)


def _caption(steering: Steering, view: SteerView) -> str:
    rows = of_view(steering, view)
    controls = rows[[is_random(name) for name in rows["direction"]]]
    draws = controls.groupby(["direction", "strength"]).size().max() if len(controls) else 0
    sizes = rows[["n_harmful", "n_benign", "n_utility", "n_unscored"]].astype(float).max()
    same = steering.table[
        (steering.table["analysis"] == view.analysis)
        & (steering.table["model"] == view.model)
        & (steering.table["intervention"] == view.intervention)
        & (steering.table["direction"] != NO_DIRECTION)  # which is at no layer
    ]
    more = same["layer"].nunique() - 1
    others = f" {more} other {'layer stands' if more == 1 else 'layers stand'} in the table." if more > 0 else ""
    return (
        "Points: directions, bars one standard error over prompts. Grey: random directions, their mean, and a band "
        f"from the lowest to the highest of {count(draws)} draws. n: {count(sizes['n_harmful'])} harmful, "
        f"{count(sizes['n_benign'])} benign and {count(sizes['n_utility'])} utility prompts; at most "
        f"{count(sizes['n_unscored'])} answers are unscored.{others}"
    )
