"""The watched runs of a study as the page shows them: charts, tables and trajectories, run by run."""

from dataclasses import dataclass

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.findings.watched import mapped_tags, trajectories_of, watched_stages
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.table import Table
from safety_subspaces.report.sections.watching.figures import layer_figure, rows_not_drawn, watching_figure
from safety_subspaces.report.sections.watching.tables import change_table, looks_table, trajectory_table

# More heatmaps than this tell little that the first ones do not.
MOST_HEATMAPS = 2
TITLES = {
    "activation/overlap": "overlap of the activations of the two prompt sets",
    "delta/energy_fraction": "share of the update's energy in the alignment subspace",
    "delta/overlap": "overlap with the other update",
    "delta/frobenius_norm": "norm of the update",
}


@dataclass(frozen=True)
class Heatmap:
    """A measure layer by layer, and what its picture leaves out."""

    chart: Chart
    note: str


@dataclass(frozen=True)
class Trajectory:
    """One trajectory of a run: its label, the course of the whole update, and where a series changes its level."""

    label: str
    course: Table
    changes: Table | None


@dataclass(frozen=True)
class WatchedRun:
    """What the page shows of one run: the chart where there is one, heatmaps, the looks, and its trajectories."""

    name: str
    chart: Chart | None
    heatmaps: tuple[Heatmap, ...]
    looks: Table
    trajectories: tuple[Trajectory, ...]


def watched_runs(study: Study) -> tuple[WatchedRun, ...]:
    """Return the runs of a study that were watched."""
    return tuple(_run(study, stage, number) for number, stage in enumerate(watched_stages(study)))


def _run(study: Study, stage: Stage, number: int) -> WatchedRun:
    figure = watching_figure(stage)
    label = f"Behaviour, refusal margin, update and activations of {stage.name} over its optimizer steps"
    return WatchedRun(
        name=stage.name,
        chart=None if figure is None else make_chart(f"watching-{number}", stage.name, label, figure),
        heatmaps=tuple(
            _heatmap(stage, tag, f"watching-{number}-layers-{tag_number}")
            for tag_number, tag in enumerate(mapped_tags(stage)[:MOST_HEATMAPS])
        ),
        looks=looks_table(stage),
        trajectories=tuple(
            Trajectory(result.label, trajectory_table(result), change_table(result))
            for result in trajectories_of(study, stage)
        ),
    )


def _heatmap(stage: Stage, tag: str, name: str) -> Heatmap:
    title = f"{stage.name}: {TITLES[tag]}"
    chart = make_chart(name, title, f"{title}, by layer and optimizer step", layer_figure(stage, tag))
    left_out = ", ".join(f"{part} {value:.2f}" for part, value in rows_not_drawn(stage, tag).items())
    return Heatmap(chart, f"Not drawn, for it does not move: {left_out}." if left_out else "")
