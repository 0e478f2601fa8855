"""The tables of ``probe``: what is left after erasure, learning curves and transfer between sources."""

import pandas as pd

from safety_subspaces.findings.probes import Probes, left_verdict, over_layers
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, text, texts
from safety_subspaces.report.parts.table import NOTHING, Table

# What names a cell, but for its layer.
CELL_COLUMNS = ("model", "pair", "analysis", "position", "erasure", "probe")
MEANS_NOTE = (
    "Means over layers ± the mean standard error of a layer, as layers share their prompts. Left: AUC minus 0.5, or "
    "accuracy minus chance where there is no AUC; judged by its 95 % interval."
)


def left_table(probes: Probes) -> Table:
    """What each probe tells before and after each erasure, in each model."""
    columns: dict[str, Cell] = {
        **texts(*CELL_COLUMNS),
        "AUC": numbers("auc", 3, "auc_stderr"),
        "best AUC, layer": _best,
        "accuracy": numbers("accuracy", 3, "accuracy_stderr"),
        "chance": numbers("chance", 3),
        "control task": numbers("control_accuracy", 3),
        "selectivity": numbers("selectivity", 3, "selectivity_stderr"),
        "left": lambda row: left_verdict(row["left"], row["left_stderr"]),
        "layers": counts("layers"),
        "n": counts("n_positive", "n_negative"),
        "groups": counts("n_groups"),
    }
    note = (
        f"{MEANS_NOTE} Control task: the same probe on labels drawn at random by group. Selectivity: accuracy minus "
        "it. The best layer is chosen by its own value, which is then too high. n: prompts of each set."
    )
    return table_of(paired(over_layers(probes.table)), columns, 6, note)


def learning_table(probes: Probes) -> Table:
    """Accuracy by the number of training prompts."""
    columns = {
        **texts(*CELL_COLUMNS),
        "trained on": counts("n_train"),
        "accuracy": numbers("accuracy", 3),
        "cells": counts("cells"),
    }
    return table_of(_averaged(probes.learning, "n_train"), columns, 6, "Means over layers and repeats (cells).")


def transfer_table(probes: Probes) -> Table:
    """Accuracy on prompts of one source of probes that were trained on another."""
    columns = {
        **texts(*CELL_COLUMNS),
        "trained on": text("train_source"),
        "tested on": text("test_source"),
        "accuracy": numbers("accuracy", 3),
        "cells": counts("cells"),
        "n": counts("n_test"),
    }
    frame = _averaged(probes.transfer, "train_source", "test_source")
    return table_of(frame, columns, 8, "Means over layers (cells). n: prompts tested on, at most.")


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Name the two sets of prompts in a column ``pair``."""
    return frame.assign(pair=frame["positive"] + " - " + frame["negative"])


def _averaged(frame: pd.DataFrame, *trained: str) -> pd.DataFrame:
    """Average accuracies over layers and repeats; ``cells`` counts them, ``n_test`` is the largest test part."""
    keys = [*CELL_COLUMNS, *trained]
    numeric = paired(frame).reindex(columns=[*keys, "accuracy", "n_test"]).astype({"accuracy": float, "n_test": float})
    pooled = {"accuracy": ("accuracy", "mean"), "cells": ("accuracy", "size"), "n_test": ("n_test", "max")}
    return numeric.groupby(keys, sort=False).agg(**pooled).reset_index()


def _best(row: pd.Series) -> str:
    return NOTHING if pd.isna(row["best_auc"]) else f"{row['best_auc']:.3f} at {row['best_layer']:g}"
