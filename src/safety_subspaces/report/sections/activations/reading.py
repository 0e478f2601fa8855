"""What the activations say: each verdict is counted over layers and models, whichever it is, in one form of words."""

import pandas as pd

from safety_subspaces.findings.activations import (
    LEVEL,
    VERDICTS,
    Activations,
    View,
    at_position,
    level_words,
    margin_cells,
    of_pair,
    overlap_cells,
    verdict_counts,
)
from safety_subspaces.findings.contracts import reference_model
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.report.parts.table import count

WORDS = {
    "overlapping": "are mostly nearer to two halves of one set than to chance",
    "distinct": "are mostly nearer to chance than to two halves of one set",
    "undecided": "are mostly undecided between chance and two halves of one set",
    "mixed": "are nearer to chance in some places and to two halves of one set in others",
    "undefined": "cannot be placed, as two halves of one set overlap no more than chance",
    "unknown": "are not placed, as no equivalence test was run",
}


def read_activation_space(activations: Activations) -> list[Finding]:
    """Return what the first pair's overlap is, then how the two sets and the models differ; nothing without a pair."""
    views = activations.views
    if not views:
        return []
    return [_read_overlap(activations, views), *_read_differences(activations, views[0])]


def space_verdict(counts: dict[str, int]) -> str:
    """Return the verdict of more than half of the cells that have one; ``mixed`` without such a half."""
    judged = sum(counts[name] for name in VERDICTS[:-1])
    if judged == 0:
        return "undefined" if counts[VERDICTS[-1]] else "unknown"
    return next((name for name in VERDICTS[:-1] if counts[name] > judged / 2), "mixed")


def _read_overlap(activations: Activations, views: tuple[View, ...]) -> Finding:
    view = views[0]
    pair = view.pairs[0]
    names = f"{pair[0]} and {pair[1]}"
    cells = of_pair(overlap_cells(activations, view), pair)
    tests = of_pair(margin_cells(activations, view), pair)
    counts = verdict_counts(tests)
    verdict = space_verdict(counts)
    headline = (
        f"In activations, {names} prompts ({view.words}) {WORDS[verdict]}: {_counted(counts)} of "
        f"{sum(counts.values())} layers and models."
    )
    level = level_words(activations, view)
    above, p_values = cells["above"].astype(float), cells["p_matched"].astype(float).dropna()
    text = (
        headline + f" Overlap minus {level}: {_range(above)}; of two halves of one set: {_range(cells['floor_above'])}."
    )
    if len(p_values):
        text += f" Above matched chance (p < {LEVEL:g}): {int((p_values < LEVEL).sum())} of {len(p_values)}."
    text += f" Like prompts alone: {_range(cells['alike_above'])}." if cells["alike_above"].notna().any() else ""
    if tests["from_margin"].notna().any():
        power = tests["power"].astype(float).median()
        power_words = "unknown" if pd.isna(power) else f"{power:.2f} (median)"
        text += f" Overlap of halves minus the margin: {_range(tests['from_margin'])}; power {power_words}."
    text += f" {_prompts(cells)}.{_elsewhere(activations, views)}"
    return Finding("activations", verdict, headline, text)


def _elsewhere(activations: Activations, views: tuple[View, ...]) -> str:
    """Say the verdict of the same pair at every other energy, position and run."""
    said = []
    for index, view in enumerate(views):
        rows = of_pair(at_position(activations.equivalence, view), views[0].pairs[0])
        for energy, cells in rows.groupby("energy", sort=True):
            if index or energy != view.energy:
                where = f"energy {energy:g}" if index == 0 else f"{view.analysis}, {view.position}, energy {energy:g}"
                said.append(f"{where}: {space_verdict(verdict_counts(cells))}")
    return f" Elsewhere: {'; '.join(said)}." if said else ""


def _read_differences(activations: Activations, view: View) -> list[Finding]:
    """Say whether distributions differ, where spaces may not, and how alike the models are."""
    pair = view.pairs[0]
    tests = of_pair(at_position(activations.two_sample, view), pair)
    tests = tests[~tests["matched"]]
    said = []
    for column, what in (("mmd_p", "kernel MMD"), ("mean_p", "distance of means")):
        known = tests[column].astype(float).dropna()
        if len(known):
            said.append(f"{int((known < LEVEL).sum())} of {len(known)} by {what}")
    parts = []
    if said:
        parts.append(
            f"The distributions of {pair[0]} and {pair[1]} are shown to differ (p < {LEVEL:g}, not corrected for their "
            f"number) in {', '.join(said)}"
        )
    parts += _dimension_words(activations, view) + _cka_words(activations, view)
    return [Finding("activations", "differences", "", f"{'. '.join(parts)}.")] if parts else []


def _dimension_words(activations: Activations, view: View) -> list[str]:
    rows = at_position(activations.dimension, view)
    means = [(name, rows[rows["set"] == name]["two_nn"].astype(float)) for name in view.pairs[0]]
    words = [f"{name} {_range(values, '')}" for name, values in means if values.notna().any()]
    return [f"Intrinsic dimension (TwoNN): {', '.join(words)}"] if words else []


def _cka_words(activations: Activations, view: View) -> list[str]:
    rows = at_position(activations.cka, view)
    reference = reference_model(view.models)
    beside = rows[(rows["first_model"] == reference) | (rows["second_model"] == reference)]
    means = {
        model: beside[(beside["first_model"] == model) | (beside["second_model"] == model)]["linear"]
        .astype(float)
        .mean()
        for model in view.models
        if model != reference
    }
    known = {model: value for model, value in means.items() if not pd.isna(value)}
    if not known:
        return []
    words = ", ".join(f"{model} {value:.2f}" for model, value in known.items())
    return [f"Linear CKA with {reference}, mean over layers and sets: {words}"]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} in {n}" for name, n in counts.items())


def _range(values: pd.Series, sign: str = "+") -> str:
    """Return a mean, and the lowest and highest of the cells behind it."""
    known = values.astype(float).dropna()
    if known.empty:
        return "not known"
    mean, low, high = (format(float(value), f"{sign}z.2f") for value in (known.mean(), known.min(), known.max()))
    return f"{mean} ({low} to {high})"


def _prompts(cells: pd.DataFrame) -> str:
    return f"n: {count(cells['n_first'].max())} and {count(cells['n_second'].max())} prompts"
