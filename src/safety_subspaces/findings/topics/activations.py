"""Do two sets of prompts share their space of hidden states: beside chance, and beside parts of one set.

Layers of a model share its prompts, so no interval is over layers. In one study every layer of every model has its own
test, and these are corrected together; with several seeds the layers of a seed are averaged first, and a seed is the
unit.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.activations import (
    Activations,
    View,
    at_position,
    margin_cells,
    of_pair,
    overlap_cells,
    read_activations,
    space_over_seeds,
)
from safety_subspaces.findings.finding import UNKNOWN, Finding, Words
from safety_subspaces.findings.intervals import interval_of
from safety_subspaces.findings.models import Seeds

TOPIC: Final = "activations"
ABOVE: Final = Words("above chance", "below chance", "not shown to differ from chance")
ONLY_ABOVE: Final = Words("above chance", "not shown above chance", "not shown above chance")
NEARER: Final = Words("overlapping", "distinct", "undecided")
DIFFER: Final = Words("differ", "not shown to differ", "not shown to differ")
CHANCE: Final = "overlap above matched chance"
MARGIN: Final = "nearer to chance or to parts of one set"
DISTRIBUTIONS: Final = {"mmd": ("mmd_p", "distributions, by kernel MMD"), "means": ("mean_p", "distance of means")}
BY_LAYER: Final = ", layer by layer"
MATCHED_NULL: Final = "the two sets share the scale of each coordinate, and nothing else"
MARGIN_NULL: Final = "the overlap lies half-way between matched chance and parts of one set"


def activations(studies: Seeds) -> list[Finding]:
    """Return for each pair of sets and model where it lies, layer by layer or over seeds, then how the sets differ."""
    read = read_activations(studies.named)
    findings: list[Finding] = []
    for view in read.views:
        findings += _over_layers(read, view)
        findings += _by_layer(read, view) if len(studies.studies) == 1 else _by_layer_over_seeds(read, view)
    if read.views:
        findings += _distributions(read, read.views[0])
    return findings


def _over_layers(read: Activations, view: View) -> Iterator[Finding]:
    """Yield the means over layers, with tests over seeds where there are several."""
    for _, row in space_over_seeds(read, view).iterrows():
        for measure, question, null, words in (
            ("above", CHANCE, MATCHED_NULL, ABOVE),
            ("from_margin", MARGIN, MARGIN_NULL, NEARER),
        ):
            over = interval_of(row, measure)
            yield _finding(
                row,
                view,
                question,
                estimate=over.mean,
                low=over.low,
                high=over.high,
                unit="seeds",
                n=over.n,
                null=null,
                p=over.p_value,
                words=words,
                verdict="one seed: the layers of a model are no replicates" if over.n == 1 else UNKNOWN,
                rule="mean over layers, t over seeds",
            )


def _by_layer(read: Activations, view: View) -> Iterator[Finding]:
    """Yield the tests of each layer and model of one study."""
    for _, row in overlap_cells(read, view).iterrows():
        yield _finding(
            row,
            view,
            CHANCE + BY_LAYER,
            estimate=float(row["above"]),
            unit="draws of the matched control",
            n=_whole(row["n_first"]),
            null=MATCHED_NULL,
            p=float(row["p_matched"]),
            words=ONLY_ABOVE,
            rule="share of draws at least as high",
            draws=_whole(row["controls"]),
            layer=int(row["layer"]),
        )
    for _, row in margin_cells(read, view).iterrows():
        p, stderr = float(row["p_overlapping"]), float(row["stderr"])
        # Parts that are one space to the last bit have no error: their sign is no certainty.
        both_sides = 2 * min(p, 1 - p) if stderr > 0 else np.nan
        yield _finding(
            row,
            view,
            MARGIN + BY_LAYER,
            estimate=float(row["from_margin"]),
            unit="parts of the sets",
            n=_whole(row["n_first"]),
            null=MARGIN_NULL,
            p=both_sides if pd.notna(row["from_margin"]) else np.nan,
            words=NEARER,
            verdict="undefined",
            rule="jackknife over parts without a prompt in common, t",
            layer=int(row["layer"]),
            power=float(row["power"]),
        )


def _by_layer_over_seeds(read: Activations, view: View) -> Iterator[Finding]:
    for _, row in space_over_seeds(read, view, by_layer=True).iterrows():
        over = interval_of(row, "above")
        yield _finding(
            row,
            view,
            CHANCE + BY_LAYER,
            estimate=over.mean,
            low=over.low,
            high=over.high,
            unit="seeds",
            n=over.n,
            null=MATCHED_NULL,
            p=over.p_value,
            words=ABOVE,
            rule="t over seeds",
            layer=int(row["layer"]),
        )


def _distributions(read: Activations, view: View) -> Iterator[Finding]:
    """Yield whether the two sets of the first pair have one distribution, in every layer, model and seed."""
    rows = of_pair(at_position(read.two_sample, view), view.pairs[0])
    for _, row in rows[~rows["matched"]].iterrows():
        for measure, (column, question) in DISTRIBUTIONS.items():
            p = float(row[column])
            if np.isnan(p):
                continue
            yield _finding(
                row,
                view,
                question,
                estimate=float(row["mmd" if measure == "mmd" else "mean_distance_standardised"]),
                unit="permutations of groups of prompts",
                n=_whole(row["n_first"]),
                null="both sets are drawn from one distribution",
                p=p,
                words=DIFFER,
                rule="share of permutations at least as far apart",
                draws=_whole(row["permutations"]),
                layer=int(row["layer"]),
                seed=str(row["seed"]),
            )


def _whole(value: Any) -> int:
    return 0 if pd.isna(value) else int(value)


def _finding(row: pd.Series, view: View, question: str, **said: Any) -> Finding:
    """Return a finding on a pair of sets in a model, with what else is said of it among its details."""
    known: dict[str, Any] = {name: said.pop(name) for name in ("layer", "power", "seed") if name in said}
    pair = f"{row['first']} and {row['second']}"
    place = f", layer {known['layer']}" if "layer" in known else ""
    place += f", seed {known['seed']}" if known.get("seed") else ""
    details: dict[str, Any] = {
        "model": str(row["model"]),
        "first": str(row["first"]),
        "second": str(row["second"]),
        **known,
    }
    return Finding(
        topic=TOPIC,
        question=question,
        subject=f"{pair}, {row['model']}{place} ({view.words})",
        measure="overlap of hidden states",
        family=f"{question}: {pair}, {view.words}",
        details=details | {"analysis": view.analysis, "position": view.position, "energy": view.energy},
        **said,
    )
