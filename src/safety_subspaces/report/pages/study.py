"""Renders a study as one HTML file that needs nothing else: no host, no font, no second file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safety_subspaces.artefacts.next_step import constraint_command, watching_command
from safety_subspaces.artefacts.study import REQUIRED_COLUMNS, AnalysisResult, Study
from safety_subspaces.findings.comparisons import nearest_energy
from safety_subspaces.findings.watched import trajectories_of, watched_stages
from safety_subspaces.report.pages.hidden_states import COMMANDS, read_hidden_states, state_sections
from safety_subspaces.report.pages.readings import read
from safety_subspaces.report.parts.page import Chart, by_topic, fill, make_chart, origins, versions_of
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.parts.table import any_table
from safety_subspaces.report.sections import plugged_sections
from safety_subspaces.report.sections.constraint.figures import constraint_figure
from safety_subspaces.report.sections.constraint.tables import comparison_table, constrained_table
from safety_subspaces.report.sections.energy.figures import energy_figures, kept_energy_figure
from safety_subspaces.report.sections.energy.tables import projection_table, selectivity_table
from safety_subspaces.report.sections.models.figures import loss_figure
from safety_subspaces.report.sections.models.tables import model_table, stage_table
from safety_subspaces.report.sections.overlap.figures import overlap_figure, overlap_type_figure
from safety_subspaces.report.sections.overlap.tables import overlap_table
from safety_subspaces.report.sections.watching.section import watched_runs

SETS = ("harmful", "benign", "utility")
# Enough to see how a model talks; all of them stay in generations.jsonl.
SAMPLES = 3


@dataclass(frozen=True)
class Samples:
    """Answers of one model to the first prompts of one set, out of ``total``."""

    model: str
    kind: str
    total: int
    answers: tuple[dict[str, Any], ...]


def render(study: Study, plugged: Sequence[str] = ()) -> str:
    """Return the whole page as HTML.

    Args:
        study: The study.
        plugged: Import paths of sections of other packages' analyses.

    Raises:
        InputError: As :func:`~safety_subspaces.report.sections.plugged_sections`.
    """
    findings = read(study)
    charts = make_charts(study)
    watched = watched_runs(study)
    constrained = [stage.name for stage in study.stages if stage.constraint is not None]
    sections = [*state_sections(read_hidden_states([("", study)])), *plugged_sections(study, plugged)]
    has_charts = any(charts.values()) or any(run.chart or run.heatmaps for run in watched)
    return fill(
        "page.html.j2",
        has_charts=has_charts or any(section.charts for section in sections),
        title=study.name,
        source=str(study.folder),
        study=study,
        answer=answer(findings),
        findings=by_topic(findings),
        missing=study.missing(),
        stages=stage_table(study) if study.stages else None,
        models=model_table(study) if len(study.models) else None,
        constrained=constrained_table(study) if len(study.constrained) else None,
        comparisons=comparison_table(study) if len(study.constrained) else None,
        constraint_step="" if len(study.constrained) else constraint_command(study.folder, constrained),
        watched=watched,
        watching_step="" if watched else watching_command(study.folder),
        projections=projection_table(study) if len(study.projections) else None,
        selectivity=selectivity_table(study) if len(study.projections) else None,
        overlaps=overlap_table(study) if len(study.overlaps) else None,
        charts=charts,
        sections=sections,
        energies=_energies(study),
        energy=nearest_energy(study.overlaps) if len(study.overlaps) else None,
        samples=_by_model(sample_generations(study)),
        others=[
            (f"{result.command} / {result.label}", any_table(result.tables["table"]))
            for result in _without_section(study)
        ],
        origins=origins(study),
        versions=versions_of(study),
    )


def make_charts(study: Study) -> dict[str, list[Chart]]:
    """Return the charts that the study has numbers for, by the section that they stand in."""
    charts: dict[str, list[Chart]] = {"constraint": [], "energy": [], "overlap": [], "training": []}
    if len(study.constrained):
        label = "Harm score and refusal margin of each run under a constraint, against its utility"
        charts["constraint"].append(make_chart("constraint", "", label, constraint_figure(study)))
    if study.has_evaluated_projections:
        for number, (group, figure) in enumerate(energy_figures(study).items()):
            label = f"Utility, harm score and refusal margin of {group}, projected, against the energy kept"
            charts["energy"].append(make_chart(f"energy-{number}", group, label, figure))
    elif len(study.projections):
        label = "Energy kept against the fraction of directions"
        charts["energy"].append(make_chart("energy-kept", "", label, kept_energy_figure(study)))
    if len(study.overlaps):
        label = "Overlap of the weight updates, layer by layer, with chance levels and same-kind floors"
        charts["overlap"].append(make_chart("overlap-layer", "By layer", label, overlap_figure(study)))
        label = "Overlap of the weight updates by type of tensor"
        charts["overlap"].append(make_chart("overlap-type", "By type of tensor", label, overlap_type_figure(study)))
    logged = [stage for stage in study.stages if "train/loss" in stage.scalars or "val/loss" in stage.scalars]
    constrained = [stage for stage in logged if stage.constraint is not None]
    free = [stage for stage in logged if stage.constraint is None]
    for name, title, stages in (("loss", "", free), ("loss-held", "Under a constraint", constrained)):
        if stages:
            label = "Loss of each stage against its optimizer steps"
            charts["training"].append(make_chart(name, title, label, loss_figure(stages)))
    return charts


def sample_generations(study: Study, samples: int = SAMPLES) -> list[Samples]:
    """Return the first answers of each model to each set, in the order of the file: not chosen."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    results = study.of("evaluate")
    labels = [{str(line.get("model")) for line in result.generations} for result in results]
    for number, result in enumerate(results):
        repeated = set().union(*labels[:number], *labels[number + 1 :])
        for line in result.generations:
            model = str(line.get("model"))
            model += f" ({result.label})" if model in repeated else ""
            answers.setdefault((model, str(line.get("set"))), []).append(line)
    order = {kind: number for number, kind in enumerate(SETS)}
    models = list(dict.fromkeys(model for model, _ in answers))
    keys = sorted(answers, key=lambda key: (models.index(key[0]), order.get(key[1], len(order))))
    return [
        Samples(model, kind, len(answers[model, kind]), tuple(answers[model, kind][:samples])) for model, kind in keys
    ]


def _without_section(study: Study) -> list[AnalysisResult]:
    """Return the analyses with a table that no section of the page shows."""
    shown = {result.folder for stage in watched_stages(study) for result in trajectories_of(study, stage)}
    sections = (*REQUIRED_COLUMNS, *COMMANDS)
    return [
        result
        for result in study.results
        if result.command not in sections and "table" in result.tables and result.folder not in shown
    ]


def _by_model(samples: list[Samples]) -> dict[str, list[Samples]]:
    grouped: dict[str, list[Samples]] = {}
    for sample in samples:
        grouped.setdefault(sample.model, []).append(sample)
    return grouped


def _energies(study: Study) -> list[float]:
    return sorted(float(energy) for energy in study.overlaps["energy"].dropna().unique())
