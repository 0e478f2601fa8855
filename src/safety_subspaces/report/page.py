"""Renders a study as one HTML file that needs nothing else: no host, no font, no second file.

plotly.js is inlined once, figures are JSON beside it, and a content security policy forbids every request.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from safety_subspaces.provenance import provenance
from safety_subspaces.report import figures, tables
from safety_subspaces.report.comparisons import nearest_energy
from safety_subspaces.report.findings import Finding
from safety_subspaces.report.reading import answer, read
from safety_subspaces.report.study import REQUIRED_COLUMNS, Study

# In the head of every page, and looked for before a file is replaced by a newer page.
GENERATOR = '<meta name="generator" content="safety-subspaces">'
# Bytes of a file that are searched for it: the head's first lines take a tenth of that.
SEARCHED_HEAD = 4096
SETS = ("harmful", "benign", "utility")
# Enough to see how a model talks; all of them stay in generations.jsonl.
SAMPLES = 3
# Hexadecimal digits of a hash that a person compares; the whole one stands in manifest.json and result.json.
SHORT_HASH = 12


@dataclass(frozen=True)
class Chart:
    """A figure in the page: JSON safe inside a script element, and what a reader who cannot see it is told."""

    name: str
    title: str
    label: str
    height: int
    json: Markup


@dataclass(frozen=True)
class Samples:
    """Answers of one model to the first prompts of one set, out of ``total``."""

    model: str
    kind: str
    total: int
    answers: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Origin:
    """Where one stage or analysis came from, in the words of the page."""

    name: str
    command: str
    started: str
    commit: str
    time: str
    inputs: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]


def render(study: Study) -> str:
    """Return the whole page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    findings = read(study)
    charts = make_charts(study)
    return environment.get_template("page.html.j2").render(
        generator=Markup(GENERATOR),
        study=study,
        answer=answer(findings),
        findings=_by_topic(findings),
        missing=study.missing(),
        stages=tables.stage_table(study) if study.stages else None,
        models=tables.model_table(study) if len(study.models) else None,
        projections=tables.projection_table(study) if len(study.projections) else None,
        selectivity=tables.selectivity_table(study) if len(study.projections) else None,
        overlaps=tables.overlap_table(study) if len(study.overlaps) else None,
        charts=charts,
        energies=_energies(study),
        energy=nearest_energy(study.overlaps) if len(study.overlaps) else None,
        samples=_by_model(sample_generations(study)),
        others=[
            (f"{result.command} / {result.label}", tables.any_table(result.tables["table"]))
            for result in study.results
            if result.command not in REQUIRED_COLUMNS and "table" in result.tables
        ],
        origins=origins(study),
        versions=_versions(study),
        made=_made(),
        plotly_js=Markup(_in_script(get_plotlyjs())) if any(charts.values()) else "",
    )


def is_page(path: Path) -> bool:
    """Tell whether a file is a page that :func:`render` made, by its generator element."""
    with path.open("rb") as stream:
        return GENERATOR.encode() in stream.read(SEARCHED_HEAD)


def make_charts(study: Study) -> dict[str, list[Chart]]:
    """Return the charts that the study has numbers for, by the section that they stand in."""
    charts: dict[str, list[Chart]] = {"energy": [], "overlap": [], "training": []}
    if study.has_evaluated_projections:
        for place, (group, figure) in enumerate(figures.energy_figures(study).items()):
            label = f"Utility, harm score and refusal margin of {group}, projected, against the energy kept"
            charts["energy"].append(_chart(f"energy-{place}", group, label, figure))
    elif len(study.projections):
        label = "Energy kept against the fraction of directions"
        charts["energy"].append(_chart("energy-kept", "", label, figures.kept_energy_figure(study)))
    if len(study.overlaps):
        label = "Overlap of the weight updates, layer by layer, with chance levels and same-kind floors"
        charts["overlap"].append(_chart("overlap-layer", "By layer", label, figures.overlap_figure(study)))
        label = "Overlap of the weight updates by type of tensor"
        charts["overlap"].append(_chart("overlap-type", "By type of tensor", label, figures.overlap_type_figure(study)))
    if any("train/loss" in stage.scalars or "val/loss" in stage.scalars for stage in study.stages):
        label = "Loss of each stage against its optimizer steps"
        charts["training"].append(_chart("loss", "", label, figures.loss_figure(study.stages)))
    return charts


def sample_generations(study: Study, samples: int = SAMPLES) -> list[Samples]:
    """Return the first answers of each model to each set, in the order of the file: not chosen."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in study.of("evaluate"):
        for line in result.generations:
            answers.setdefault((str(line.get("model")), str(line.get("set"))), []).append(line)
    order = {kind: place for place, kind in enumerate(SETS)}
    models = list(dict.fromkeys(model for model, _ in answers))
    keys = sorted(answers, key=lambda key: (models.index(key[0]), order.get(key[1], len(order))))
    return [
        Samples(model, kind, len(answers[model, kind]), tuple(answers[model, kind][:samples])) for model, kind in keys
    ]


def origins(study: Study) -> list[Origin]:
    """Return command, commit, time, inputs and what was left out, of every stage and analysis."""
    found = [_origin(stage.name, stage.manifest, stage.manifest) for stage in study.stages if stage.manifest]
    return found + [
        _origin(f"{result.command} / {result.label}", result.result.get("provenance") or {}, result.result)
        for result in study.results
        if result.result
    ]


def _origin(name: str, made: dict[str, Any], record: dict[str, Any]) -> Origin:
    inputs: list[tuple[str, str]] = []
    for entry in record.get("inputs") or []:
        digest = entry.get("sha256")
        if isinstance(digest, dict):
            inputs += [(f"{entry.get('path')}/{file}", str(value)[:SHORT_HASH]) for file, value in digest.items()]
        else:
            inputs.append((str(entry.get("path")), str(digest)[:SHORT_HASH] if digest else "by name"))
    left_out = tuple((str(entry.get("name")), str(entry.get("reason"))) for entry in record.get("left_out") or [])
    return Origin(
        name=name,
        command=" ".join(map(str, made.get("command") or [])) or "not recorded",
        started=str(made.get("started", "")),
        commit=_commit(made.get("git")),
        time=tables.duration(record.get("wall_seconds")),
        inputs=tuple(inputs),
        left_out=left_out,
    )


def _commit(git: dict[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "no commit"
    return str(git["commit"])[:SHORT_HASH] + (" with changes" if git.get("dirty") else "")


def _versions(study: Study) -> dict[str, str]:
    """Return the package versions, all of them where stages and analyses do not agree."""
    seen: dict[str, list[str]] = {}
    records = [stage.manifest for stage in study.stages]
    records += [result.result.get("provenance") or {} for result in study.results]
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            seen.setdefault(package, []).append(str(version))
    return {package: ", ".join(dict.fromkeys(versions)) for package, versions in seen.items()}


def _with_code(text: str) -> Markup:
    """Escape a sentence and set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _made() -> str:
    git = _commit(provenance()["git"])
    return f"{datetime.now(UTC).isoformat(timespec='minutes')}, {git}"


def _by_topic(findings: list[Finding]) -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}
    for finding in findings:
        sentences.setdefault(finding.topic, []).append(finding.sentence)
    return sentences


def _by_model(samples: list[Samples]) -> dict[str, list[Samples]]:
    grouped: dict[str, list[Samples]] = {}
    for sample in samples:
        grouped.setdefault(sample.model, []).append(sample)
    return grouped


def _energies(study: Study) -> list[float]:
    return sorted(float(energy) for energy in study.overlaps["energy"].dropna().unique())


def _chart(name: str, title: str, label: str, figure: go.Figure) -> Chart:
    return Chart(name, title, label, int(figure.layout.height), Markup(_in_script(figure.to_json(), json=True)))


def _in_script(text: str, json: bool = False) -> str:
    """Make text safe inside a script element: nothing in it can end the element or open a comment."""
    if json:
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
