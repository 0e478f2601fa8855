"""Renders the page of several studies that differ in their seed."""

import plotly.graph_objects as go

from safety_subspaces.report.across_reading import read_across
from safety_subspaces.report.across_seeds import MEASURED, Seeds, models_over_seeds, runs_over_seeds
from safety_subspaces.report.across_tables import (
    constrained_across_table,
    differences_across_table,
    models_across_table,
)
from safety_subspaces.report.constrained_figures import draw_runs
from safety_subspaces.report.page_parts import by_topic, fill, make_chart, origins, versions_of
from safety_subspaces.report.reading import answer, read


def render_across(seeds: Seeds) -> str:
    """Return the whole page as HTML."""
    findings = read_across(seeds)
    has_runs = bool(len(seeds.runs))
    label = "Harm score and refusal margin of each kind of run under a constraint, against its utility, over seeds"
    charts = [make_chart("constraint", "", label, across_figure(seeds))] if has_runs else []
    return fill(
        "across_seeds.html.j2",
        has_charts=bool(charts),
        title=f"seeds {', '.join(seeds.seeds)}",
        source=", ".join(str(study.folder) for study in seeds.studies),
        seeds=seeds.seeds,
        answer=answer(findings),
        findings=by_topic(findings),
        charts=charts,
        models=models_across_table(seeds) if len(seeds.models) else None,
        constrained=constrained_across_table(seeds) if has_runs else None,
        differences=differences_across_table(seeds) if len(seeds.differences) else None,
        studies=[(study, answer(read(study)), versions_of(study), origins(study)) for study in seeds.studies],
    )


def across_figure(seeds: Seeds) -> go.Figure:
    """Draw the means over seeds with half their t intervals, and every run behind them."""
    models = models_over_seeds(seeds)
    aligned = models[models["model"] == "aligned"]
    levels = {measure: float(aligned[measure].iloc[0]) for measure in MEASURED} if len(aligned) else {}
    return draw_runs(runs_over_seeds(seeds), levels, "± half the 95 % t interval over seeds", single=seeds.runs)
