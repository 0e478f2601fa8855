"""Renders the page of several studies: each organism over seeds, and the organisms side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.models import MEASURED, Seeds, models_over_seeds, runs_over_seeds
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.report.pages.across import SIDE_BY_SIDE
from safety_subspaces.report.pages.hidden_states import across_state_sections, read_hidden_states
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.parts.page import Chart, by_topic, fill, make_chart, origins, versions_of
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.parts.table import Table, count
from safety_subspaces.report.sections.alignments.reading import alignments_table
from safety_subspaces.report.sections.constraint.figures import draw_runs
from safety_subspaces.report.sections.constraint.tables import constrained_across_table, differences_across_table
from safety_subspaces.report.sections.energy.figures import sweep_caption, sweep_figure
from safety_subspaces.report.sections.energy.tables import (
    correlations_table,
    selectivity_across_table,
    sweep_table,
)
from safety_subspaces.report.sections.models.tables import models_across_table
from safety_subspaces.report.sections.overlap.figures import overlap_across_figure, overlap_caption
from safety_subspaces.report.sections.overlap.tables import overlaps_across_table, overlaps_by_cell_table


@dataclass(frozen=True)
class OrganismPart:
    """One organism on the page: what is said of it, its charts with what stands under them, and its tables."""

    name: str
    anchor: str
    recipe: str
    prompts: str
    seeds: tuple[str, ...]
    answer: str
    findings: dict[str, list[str]]
    sweeps: list[tuple[Chart, str]]
    sweep_tables: dict[str, Table]
    overlaps: list[tuple[Chart, str]]
    overlap_tables: dict[str, Table]
    sections: list[Section]
    constraint: Chart | None
    constrained: Table | None
    differences: Table | None
    models: Table | None


def render_across(organisms: Sequence[Organism], findings: Mapping[str, list[Finding]]) -> str:
    """Return the whole page as HTML, with the findings of :func:`~.across.across_findings`."""
    parts = [_part_of(organism, findings[organism.name], number) for number, organism in enumerate(organisms)]
    studies = [study for organism in organisms for study in organism.seeds.studies]
    side_by_side = findings.get(SIDE_BY_SIDE, [])
    seeds = list(dict.fromkeys(seed for organism in organisms for seed in organism.seeds.seeds))
    return fill(
        "across_seeds.html.j2",
        has_charts=any(part.sweeps or part.overlaps or part.sections or part.constraint for part in parts),
        title=f"seeds {', '.join(seeds)}",
        source=", ".join(str(study.folder) for study in studies),
        seeds=seeds,
        parts=parts,
        answer=answer(side_by_side),
        findings=by_topic(side_by_side),
        alignments=alignments_table(organisms) if len(organisms) > 1 else None,
        studies=[(study, answer(read(study)), versions_of(study), origins(study)) for study in studies],
    )


def across_figure(seeds: Seeds) -> go.Figure:
    """Draw the means over seeds with half their t intervals, and every run behind them."""
    models = models_over_seeds(seeds)
    aligned = models[models["model"] == "aligned"]
    levels = {measure: float(aligned[measure].iloc[0]) for measure in MEASURED} if len(aligned) else {}
    return draw_runs(runs_over_seeds(seeds), levels, "± half the 95 % t interval over seeds", single=seeds.runs)


def _part_of(organism: Organism, findings: list[Finding], number: int) -> OrganismPart:
    seeds = organism.seeds
    anchor = f"organism-{number}"
    has_runs = bool(len(seeds.runs))
    label = "Harm score and refusal margin of each kind of run under a constraint, against its utility, over seeds"
    return OrganismPart(
        name=organism.name,
        anchor=anchor,
        recipe="" if organism.alignment is None else str(organism.alignment),
        prompts=_prompts_of(seeds),
        seeds=seeds.seeds,
        answer=answer(findings),
        findings=by_topic(findings),
        sweeps=_sweep_charts(seeds, anchor),
        sweep_tables=_sweep_tables(seeds),
        overlaps=_overlap_charts(seeds, anchor),
        overlap_tables=_overlap_tables(seeds),
        sections=across_state_sections(read_hidden_states(seeds.named), anchor),
        constraint=make_chart(f"constraint-{anchor}", "", label, across_figure(seeds)) if has_runs else None,
        constrained=constrained_across_table(seeds) if has_runs else None,
        differences=differences_across_table(seeds) if len(seeds.differences) else None,
        models=models_across_table(seeds) if len(seeds.models) else None,
    )


def _prompts_of(seeds: Seeds) -> str:
    """Say how many prompts stand behind each model's rates."""
    counts = seeds.models[["n_utility", "n_harmful", "n_benign"]].max() if len(seeds.models) else pd.Series(dtype=float)
    words = [f"{count(n)} {str(name).removeprefix('n_')}" for name, n in counts.items()]
    return f"each model answers {', '.join(words)} prompts" if words else "no model was evaluated"


def _sweep_charts(seeds: Seeds, anchor: str) -> list[tuple[Chart, str]]:
    if not seeds.has_evaluated_projections:
        return []
    charts = []
    for tuned in dict.fromkeys(seeds.projections["tuned"].astype(str)):
        label = f"Utility, harm score and refusal margin of {tuned} projected, against the energy kept, over seeds"
        figure = sweep_figure(seeds.projections, seeds.models, tuned)
        chart = make_chart(f"sweep-{anchor}-{tuned}", tuned, label, figure)
        charts.append((chart, sweep_caption(seeds.projections, tuned)))
    return charts


def _sweep_tables(seeds: Seeds) -> dict[str, Table]:
    if not seeds.has_evaluated_projections:
        return {}
    return {
        "Top-k beside its controls": selectivity_across_table(seeds.projections),
        "Kept energy and the outcome": correlations_table(seeds.projections),
        "Every projection": sweep_table(seeds.projections),
    }


def _overlap_charts(seeds: Seeds, anchor: str) -> list[tuple[Chart, str]]:
    charts = []
    for analysis in dict.fromkeys(seeds.overlaps["analysis"].astype(str)):
        label = f"Overlap of useful and harmful updates by layer and by type of tensor, over seeds ({analysis})"
        figure = overlap_across_figure(seeds.overlaps, analysis)
        chart = make_chart(f"overlap-{anchor}-{analysis}", analysis, label, figure)
        charts.append((chart, overlap_caption(seeds.overlaps, analysis)))
    return charts


def _overlap_tables(seeds: Seeds) -> dict[str, Table]:
    if seeds.overlaps.empty:
        return {}
    return {
        "Blocks, embeddings and head": overlaps_across_table(seeds.overlaps),
        "Every layer and type": overlaps_by_cell_table(seeds.overlaps),
    }
