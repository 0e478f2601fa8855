"""The tables of ``probe``: what is left after erasure, learning curves and transfer between sources."""

import pandas as pd

from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.probes import (
    ERASURES,
    PROBES,
    Probes,
    in_order,
    left_verdict,
    of_view,
    over_layers,
    reference_of,
)
from safety_subspaces.report.parts.table import NOTHING, Table, count, number

MEANS_NOTE = (
    "Means over layers ± the mean standard error of a layer, as layers share their prompts. Left: AUC minus 0.5, or "
    "accuracy minus chance where there is no AUC; judged by its 95 % interval."
)


def left_table(probes: Probes) -> Table:
    """What each probe tells before and after each erasure, in each model."""
    rows = [
        (
            *(str(row["model"]), f"{row['positive']} - {row['negative']}", str(row["analysis"]), str(row["position"])),
            *(str(row["erasure"]), str(row["probe"])),
            _with_error(row, "auc"),
            NOTHING if pd.isna(row["best_auc"]) else f"{row['best_auc']:.3f} at {row['best_layer']:g}",
            _with_error(row, "accuracy"),
            number(row["chance"], 3),
            number(row["control_accuracy"], 3),
            _with_error(row, "selectivity"),
            left_verdict(row["left"], row["left_stderr"]),
            count(row["layers"]),
            f"{count(row['n_positive'])}/{count(row['n_negative'])}",
            count(row["n_groups"]),
        )
        for _, row in over_layers(probes.table).iterrows()
    ]
    columns = (
        *("model", "pair", "analysis", "position", "erasure", "probe", "AUC", "best AUC, layer", "accuracy", "chance"),
        *("control task", "selectivity", "left", "layers", "n", "groups"),
    )
    note = (
        f"{MEANS_NOTE} Control task: the same probe on labels drawn at random by group. Selectivity: accuracy minus "
        "it. The best layer is chosen by its own value, which is then too high. n: prompts of each set."
    )
    return Table(columns, tuple(rows), text_columns=6, note=note)


def learning_table(probes: Probes) -> Table:
    """Accuracy by the number of training prompts."""
    keys = ["model", "pair", "analysis", "position", "erasure", "probe", "n_train"]
    rows = [
        (
            *map(str, values[:-1]),
            count(values[-1]),
            number(cells["accuracy"].astype(float).mean(), 3),
            count(len(cells)),
        )
        for values, cells in _paired(probes.learning).groupby(keys, sort=False)
    ]
    columns = ("model", "pair", "analysis", "position", "erasure", "probe", "trained on", "accuracy", "cells")
    return Table(columns, tuple(rows), text_columns=6, note="Means over layers and repeats (cells).")


def transfer_table(probes: Probes) -> Table:
    """Accuracy on prompts of one source of probes that were trained on another."""
    keys = ["model", "pair", "analysis", "position", "erasure", "probe", "train_source", "test_source"]
    rows = [
        (
            *map(str, values),
            number(cells["accuracy"].astype(float).mean(), 3),
            count(len(cells)),
            count(cells["n_test"].astype(float).max()),
        )
        for values, cells in _paired(probes.transfer).groupby(keys, sort=False)
    ]
    columns = (
        *("model", "pair", "analysis", "position", "erasure", "probe", "trained on", "tested on", "accuracy", "cells"),
        "n",
    )
    return Table(columns, tuple(rows), text_columns=8, note="Means over layers (cells). n: prompts tested on, at most.")


def probes_terminal_table(probes: Probes) -> Table:
    """The first view of the reference model: a row a probe, for a terminal."""
    view = probes.views[0]
    model = reference_of(probes, view)
    found = over_layers(of_view(probes.table, view))
    found = found[found["model"] == model]
    erasures = in_order(labels_of(found, "erasure"), ERASURES)
    rows = []
    measure = "auc" if found["auc"].notna().any() else "accuracy"
    for kind in in_order(labels_of(found, "probe"), PROBES):
        own = found[found["probe"] == kind]
        cells = [_with_error(row, measure) for _, row in own.set_index("erasure").reindex(erasures).iterrows()]
        rows.append((kind, *cells, number(own["control_accuracy"].iloc[0], 3), number(own["chance"].iloc[0], 3)))
    columns = ("probe", *(f"erasure {name}" for name in erasures), "control task", "chance")
    told = "AUC (chance 0.5; after quadratic that of control labels)" if measure == "auc" else "accuracy"
    note = f"{model}, {view.words}: {told}, mean over layers ± a layer's standard error. Control task: accuracy."
    return Table(columns, tuple(rows), note=note)


def _with_error(row: pd.Series, measure: str) -> str:
    error = row[f"{measure}_stderr"]
    return number(row[measure], 3) + ("" if pd.isna(error) or pd.isna(row[measure]) else f"±{error:.3f}")


def _paired(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(pair=frame["positive"] + " - " + frame["negative"])
