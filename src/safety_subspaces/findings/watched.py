"""What the watchers of a run logged: values at each look, layer by layer, and where a measure first passed a level.

Tables in, tables out. A look is a number of optimizer steps done; what was not measured at one is missing, never 0.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.next_step import stage_at
from safety_subspaces.artefacts.study import AnalysisResult, Stage, Study
from safety_subspaces.weights.names import layer_of, type_of

# First parts of the tags that watchers log, and nothing else does.
GROUPS = ("utility/", "safety/", "delta/", "activation/")
UTILITY, HARM, MARGIN = "utility/accuracy", "safety/harmful_rate", "safety/refusal_margin"
# Tags whose values by layer are worth a heatmap, the most telling first.
MAPPED = ("activation/overlap", "delta/energy_fraction", "delta/overlap", "delta/frobenius_norm")
# Folder of a run that holds its snapshots, and that a trajectory may be given in place of the run.
SNAPSHOTS = "deltas"


@dataclass(frozen=True)
class Look:
    """One value of a measure: the optimizer steps done, the value, and its standard error (NaN where it has none)."""

    step: int
    value: float
    error: float


@dataclass(frozen=True)
class Passing:
    """The two neighbouring looks between which a measure first passed a level."""

    before: Look
    after: Look


def watched_stages(study: Study) -> tuple[Stage, ...]:
    """Return the runs whose TensorBoard scalars hold anything that a watcher logs."""
    return tuple(stage for stage in study.stages if any(tag.startswith(GROUPS) for tag in stage.scalars))


def looks_at(stage: Stage, tag: str) -> list[Look]:
    """Return the values of a tag by step; where a resumed run looked again, the later value."""
    table = pd.DataFrame({"value": _by_step(stage, tag), "error": _by_step(stage, f"{tag}_stderr")})
    known = table.dropna(subset="value").rename_axis("step").reset_index()
    return [Look(int(row["step"]), float(row["value"]), float(row["error"])) for _, row in known.iterrows()]


def first_passing(looks: list[Look], level: float) -> Passing | None:
    """Return where a measure first rose above a level; ``None`` where it never did, or was above it from the start."""
    above = next((index for index, look in enumerate(looks) if look.value > level), 0)
    return Passing(looks[above - 1], looks[above]) if above else None


def prompts_at(stage: Stage, look: Look) -> pd.Series | None:
    """Return how many prompts stand behind a look at the behaviour, where the run kept it."""
    rows = stage.prompts[stage.prompts["step"] == look.step]
    return rows.iloc[-1] if len(rows) else None


def look_steps(stage: Stage) -> list[int]:
    """Return the steps at which the behaviour was looked at; of a run without such a probe, those of any watcher."""
    behaviour = [tag for tag in stage.scalars if tag.startswith(("utility/", "safety/"))]
    tags = behaviour or [tag for tag in stage.scalars if tag.startswith(GROUPS)]
    return sorted({int(step) for tag in tags for step in stage.scalars[tag]["step"]})


def look_table(stage: Stage) -> pd.DataFrame:
    """Return a row a look and a column a tag, those of single layers left out; NaN where a watcher did not look."""
    tags = [tag for tag in stage.scalars if tag.startswith(GROUPS) and tag.count("/") == 1]
    return pd.DataFrame({tag: _by_step(stage, tag) for tag in tags}).sort_index()


def mapped_tags(stage: Stage) -> list[str]:
    """Return the tags that were logged layer by layer, the most telling first."""
    return [tag for tag in MAPPED if any(name.startswith(f"{tag}/") for name in stage.scalars)]


def layer_table(stage: Stage, tag: str) -> pd.DataFrame:
    """Return the values of a tag: a row a part of the network, in the order of a forward pass, and a column a look."""
    tags = {name.removeprefix(f"{tag}/"): name for name in stage.scalars if name.startswith(f"{tag}/")}
    columns = {part: _by_step(stage, tags[part]) for part in sorted(tags, key=_depth)}
    return pd.DataFrame(columns).sort_index().T


def trajectories_of(study: Study, stage: Stage) -> tuple[AnalysisResult, ...]:
    """Return the trajectories of a run that this study holds."""
    return tuple(r for r in study.of("trajectory") if "table" in r.tables and _run_of(study, r) == stage.name)


def prompt_sets(stage: Stage) -> tuple[str, str]:
    """Return the names of the two prompt sets whose activations were compared, as far as the run says."""
    compared = _compared(stage)
    return str(compared.get("first", "the first set")), str(compared.get("second", "the second set"))


def is_uncentred(stage: Stage) -> bool:
    """Tell whether the compared activations are known to have kept their mean."""
    return _compared(stage).get("center") is False


def _by_step(stage: Stage, tag: str) -> "pd.Series[float]":
    """Return the values of a tag indexed by step, the last one of each step; empty where it was not logged."""
    curve = stage.scalars.get(tag)
    if curve is None:
        return pd.Series(dtype=float)
    return curve.drop_duplicates("step", keep="last").set_index("step")["value"].astype(float).sort_index().dropna()


def _depth(part: str) -> tuple[int, int, str]:
    """Order the parts of a network: embeddings, blocks, what follows them, output head."""
    layer, kind = layer_of(f"{part}.weight"), type_of(f"{part}.weight")
    is_first = kind == "embeddings" or part == "embedding"
    return 0 if is_first else 1 if layer >= 0 else 3 if kind == "head" else 2, layer, part


def _run_of(study: Study, result: AnalysisResult) -> str:
    run = result.arguments.get("run")
    if not isinstance(run, str):
        return ""
    folder = Path(run).parent if Path(run).name == SNAPSHOTS else Path(run)
    return stage_at(folder, study.folder, {stage.name for stage in study.stages})


def _compared(stage: Stage) -> dict[str, object]:
    """Return which sets' activations the run compared, and how; nothing without that, and with several at once."""
    compared = facts_about("compared_activations", stage.manifest)
    return compared[0] if len(compared) == 1 else {}
