"""What the watchers of a run logged: values at each look, layer by layer, and where a measure first passed a level.

Tables in, tables out. A look is a number of optimizer steps done; what was not measured at one is missing, never 0.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.artefacts.study_files import AnalysisResult
from safety_subspaces.findings.intervals import CONFIDENCE
from safety_subspaces.findings.rates import effective_counts, exact_interval
from safety_subspaces.weights.names import layer_of, type_of

# First parts of the tags that watchers log, and nothing else does.
GROUPS = ("utility/", "safety/", "delta/", "activation/")
UTILITY, HARM, MARGIN = "utility/accuracy", "safety/harmful_rate", "safety/refusal_margin"
# The rates among what is measured on prompts, and the set of prompts behind each measure.
RATES = {
    UTILITY: "utility",
    HARM: "harmful",
    "safety/over_refusal_rate": "benign",
    "safety/benign_answered_rate": "benign",
}
ASKED = {**RATES, MARGIN: "harmful", "safety/harm_score": "harmful"}
LOOK_COLUMNS = ("value", "error", "low", "high", "prompts", "groups", "effective")
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


def watched_stages(study: Study) -> tuple[Stage, ...]:
    """Return the runs whose TensorBoard scalars hold anything that a watcher logs."""
    return tuple(stage for stage in study.stages if any(tag.startswith(GROUPS) for tag in stage.scalars))


def measured(stage: Stage, tag: str) -> pd.DataFrame:
    """Return the values of a tag with their 95 % intervals over groups of prompts; NaN where there is none.

    Returns:
        A row a look, indexed by step, with ``LOOK_COLUMNS``: ``prompts`` and their ``groups`` as far as the run kept
        them; ``effective``, how many independent answers a rate is worth. The interval of a rate is exact, so that
        it has a width at 0 and 1 too; that of another measure is Student's, with a degree less than there are groups.
        It is one look's: several together have each to be wider.
    """
    looks = pd.DataFrame({"value": _by_step(stage, tag), "error": _by_step(stage, f"{tag}_stderr")})
    looks = looks.dropna(subset="value").rename_axis("step")
    asked = stage.prompts.drop_duplicates("step", keep="last").set_index("step").reindex(looks.index)
    for name, column in (("prompts", "n_{}"), ("groups", "n_groups_{}")):
        looks[name] = asked[column.format(ASKED[tag])].astype(float) if tag in ASKED else np.nan
    return with_intervals(looks, tag in RATES)


def with_intervals(looks: pd.DataFrame, is_rate: bool) -> pd.DataFrame:
    """Return looks with the intervals of :func:`measured`: they have ``value``, ``error``, ``prompts``, ``groups``."""
    value, error, prompts, groups = (looks[name].to_numpy(float) for name in ("value", "error", "prompts", "groups"))
    effective = effective_counts(value, error, prompts, groups) if is_rate else np.full(len(value), np.nan)
    reach = error * stats.t.ppf(0.5 + CONFIDENCE / 2, degrees_of(looks))
    low, high = exact_interval(value, effective) if is_rate else (value - reach, value + reach)
    return looks.assign(low=low, high=high, effective=effective)[list(LOOK_COLUMNS)]


def degrees_of(looks: pd.DataFrame) -> "pd.Series[float]":
    """Return the degrees of freedom of each look's error: a group less; a normal law's where groups are not known."""
    return (looks["groups"] - 1).where(looks["groups"] > 1, np.inf)


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
    return tuple(
        r for r in study.of("trajectory") if "table" in r.tables and study.run_of(r, "run", SNAPSHOTS) == stage.name
    )


def last_beside_chance(stage: Stage, tag: str) -> dict[str, float] | None:
    """Return the ``step`` of a measure's last look, its ``value`` and its ``chance`` level; ``None`` without a look."""
    values, chances = _by_step(stage, tag), _by_step(stage, f"{tag}_chance")
    if values.empty:
        return None
    step = values.index[-1]
    return {"step": float(step), "value": float(values.iloc[-1]), "chance": float(chances.get(step, np.nan))}


def compared_at_ends(stage: Stage) -> dict[str, float] | None:
    """Return the overlap of the two prompt sets' activations at the first and the last look, with its surroundings.

    Returns:
        ``first`` and ``last``, each with its ``_step`` and ``_chance``, and how far each set has drifted from its own
        subspace at the start (``drift_first``, ``drift_second``); NaN where one is not known. ``None`` below two looks.
    """
    values, chances = _by_step(stage, "activation/overlap"), _by_step(stage, "activation/overlap_chance")
    if len(values) < 2:
        return None
    ends: dict[str, float] = {}
    for name, step in (("first", values.index[0]), ("last", values.index[-1])):
        chance = float(chances.get(step, np.nan))
        ends |= {name: float(values[step]), f"{name}_step": float(step), f"{name}_chance": chance}
    for name in ("drift_first", "drift_second"):
        drift = _by_step(stage, f"activation/{name}")
        ends[name] = float(drift.iloc[-1]) if len(drift) else np.nan
    return ends


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


def _compared(stage: Stage) -> dict[str, object]:
    """Return which sets' activations the run compared, and how; nothing without that, and with several at once."""
    compared = facts_about("compared_activations", stage.manifest)
    return compared[0] if len(compared) == 1 else {}
