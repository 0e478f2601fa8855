"""The section on probes: what they tell before and after each erasure, by layer and in every model."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from safety_subspaces.artefacts.palette import GREY, INK
from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.probes import (
    AUC_CHANCE,
    ERASURES,
    PROBES,
    TELLING,
    Probes,
    ProbeView,
    in_order,
    layers_over_seeds,
    of_view,
    probes_over_seeds,
    read_probes,
    reference_of,
)
from safety_subspaces.report.parts.chart import (
    SHARE,
    bounds_of,
    draw_curve,
    draw_key,
    draw_silent,
    finished_by_layer,
    finished_panels,
    panels_of,
)
from safety_subspaces.report.parts.colours import ink_style
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, text, texts
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import NOTHING, Table, count
from safety_subspaces.report.parts.verdict import finding_words

PLACE: Final = 110
# Other sets and positions that are drawn; every one stands in the table.
MOST_VIEWS: Final = 2
# Share of the room between two models that their probes are spread over.
SPREAD: Final = 0.5
AFTER: Final = {
    "none": "without erasure",
    "leace": "after linear erasure (LEACE)",
    "quadratic": "after quadratic erasure",
}
# What names a cell, but for its layer.
CELL_COLUMNS: Final = ("model", "pair", "analysis", "position", "erasure", "probe")


def probes(part: Part) -> Section | None:
    """Return the section; ``None`` where no probe was trained."""
    read = read_probes(part.studies.named)
    if read.table.empty:
        return None
    headlines, sentences = _said(part, read)
    every = probes_over_seeds(read)
    views = list(enumerate(read.views[:MOST_VIEWS]))
    return Section(
        "probes",
        "Probes",
        headlines=headlines,
        sentences=sentences,
        charts=[chart for place, view in views for chart in _charts(part, read, every, view, place)],
        tables={
            "What is left after erasure": _left_table(part, every),
            "Learning curves": _learning_table(read),
            "From one source of prompts to another": _transfer_table(read),
        },
        terminal={"Probes above chance": _terminal(part, read)},
        place=PLACE,
    )


def _said(part: Part, read: Probes) -> tuple[list[str], list[str]]:
    """Return which probes are above chance after each erasure in the reference model, then the numbers of each."""
    findings = part.of_topic("probes")
    headlines, sentences = [], []
    for place, view in enumerate(read.views):
        model = reference_of(read, view)
        rows = [row for _, row in findings.iterrows() if _is_of(row["details"], view, model)]
        erasures = in_order([row["details"]["erasure"] for row in rows], ERASURES)
        words, values = [], []
        for erasure in dict.fromkeys(erasures):
            of_erasure = [row for row in rows if row["details"]["erasure"] == erasure]
            above = [row["details"]["probe"] for row in of_erasure if row["verdict"] == "above chance"]
            words.append(f"{AFTER.get(erasure, erasure)} {', '.join(above) or 'none'}")
            said = "; ".join(f"{row['details']['probe']} {finding_words(row)}" for row in of_erasure)
            values.append(f"{AFTER.get(erasure, erasure)} {said}")
        tests = max((int(row["tests"]) for row in rows), default=0)
        headline = f"Probes of {model} ({view.words}) above chance: {'; '.join(words)} ({tests} tests)."
        headlines += [] if place else [headline]
        sentences.append(f"{headline} Mean over layers, minus chance: {'. '.join(values)}.")
    return headlines, sentences


def _is_of(details: dict[str, Any], view: ProbeView, model: str) -> bool:
    of_view_ = (details["analysis"], details["position"], details["positive"], details["negative"])
    return details["model"] == model and of_view_ == (view.analysis, view.position, view.positive, view.negative)


def _charts(part: Part, read: Probes, every: pd.DataFrame, view: ProbeView, place: int) -> list[tuple[Chart, str]]:
    rows, model = of_view(read.table, view), reference_of(read, view)
    sizes = rows[["n_positive", "n_negative", "n_groups"]].astype(float).max()
    n = (
        f"n: {count(sizes['n_positive'])} and {count(sizes['n_negative'])} prompts in {count(sizes['n_groups'])} "
        "independent groups; no group is in training and test."
    )
    mean = "" if part.is_single else f" Means over {many(len(part.studies.seeds), 'seed')}."
    by_layer = (
        f"Each probe on held-out prompts ({view.words}).{mean} Bars: one standard error over groups, of a probe that "
        "is trained anew. Dotted: the same probe on control labels, drawn at random by group, which after quadratic "
        f"erasure are its chance level. Dashed: chance. {n}"
    )
    bars = "the 95 % interval over groups of prompts" if part.is_single else "the 95 % t interval over seeds"
    by_model = (
        "AUC minus 0.5 (after quadratic erasure minus that of control labels which went through it; accuracy minus "
        f"chance where there is no AUC), mean over layers. Bars: {bars}. Dashed: chance. {n}"
    )
    titles = (f"{model}: {view.words}", f"Left in each model: {view.words}")
    name = f"probes-{part.anchor}{place}"
    layers = layer_figure(layers_over_seeds(rows[rows["model"] == model]))
    return [
        (make_chart(f"{name}-layers", titles[0], f"Accuracy and AUC by layer, {titles[0]}", layers), by_layer),
        (make_chart(f"{name}-models", titles[1], titles[1], left_figure(of_view(every, view))), by_model),
    ]


def layer_figure(rows: pd.DataFrame) -> go.Figure:
    """Draw accuracy and AUC of each probe by layer, a panel an erasure; dots: the control task; dashes: chance."""
    kinds = in_order(labels_of(rows, "probe"), PROBES)
    panels = [
        (erasure, measure)
        for measure in ("accuracy", "auc")
        for erasure in in_order(labels_of(rows, "erasure"), ERASURES)
        if rows[rows["erasure"] == erasure][measure].notna().any()
    ]
    figure = panels_of([f"{_upper(measure)}, {AFTER.get(erasure, erasure)}" for erasure, measure in panels])
    for panel, (erasure, measure) in enumerate(panels, start=1):
        cells = rows[rows["erasure"] == erasure].sort_values("layer")
        for number, kind in enumerate(kinds):
            line = cells[cells["probe"] == kind]
            control = "control_accuracy" if measure == "accuracy" else "control_auc" if erasure in TELLING else None
            _draw_probe(figure, line, measure, kind, number, panel, control)
        level = cells.groupby("layer")["chance"].first()
        if measure == "auc":  # after a telling erasure a coin's level says nothing: the control labels' lines do
            level = level * float("nan") if erasure in TELLING else level * 0 + AUC_CHANCE
        draw_silent(figure, panel, list(level.index), level, _grey("dash"), name="chance")
    for name, dash in (("control task", "dot"), ("chance", "dash")):
        draw_key(figure, name, line=_grey(dash))
    figure.update_yaxes(range=SHARE)
    return finished_by_layer(figure, len(panels), rows["layer"])


def left_figure(frame: pd.DataFrame) -> go.Figure:
    """Draw what each probe is above chance in each model, as a mean over layers, a panel an erasure.

    Args:
        frame: Rows of :func:`~safety_subspaces.findings.probes.probes_over_seeds`, of one view.
    """
    models, kinds = labels_of(frame, "model"), in_order(labels_of(frame, "probe"), PROBES)
    erasures = in_order(labels_of(frame, "erasure"), ERASURES)
    figure = panels_of([AFTER.get(erasure, erasure) for erasure in erasures])
    for panel, erasure in enumerate(erasures, start=1):
        for number, kind in enumerate(kinds):
            cells = frame[(frame["erasure"] == erasure) & (frame["probe"] == kind)]
            line = cells.drop_duplicates("model").set_index("model").reindex(models)
            shift = SPREAD * ((number + 0.5) / len(kinds) - 0.5)
            ticks = [tick + shift for tick in range(len(models))]
            hover = "%{text}: %{y:+.3f} ± %{customdata[0]:.3f}, seeds %{customdata[1]:.0f}"
            style = {"mode": "markers", "text": models}
            seen = line[["left_reach", "left_seeds"]]
            draw_curve(
                figure, panel, ink_style(number), kind, ticks, line["left"], line["left_reach"], seen, hover, **style
            )
        figure.add_hline(y=0, line=_grey("dash"), row=panel, col=1)
    figure.update_xaxes(tickvals=list(range(len(models))), ticktext=models, range=[-0.6, len(models) - 0.4])
    low, high = frame["left"] - frame["left_reach"].fillna(0), frame["left"] + frame["left_reach"].fillna(0)
    # One range for every panel: what is left is seen beside what there was.
    ends = [value for value in (0.0, *low, *high) if not pd.isna(value)]
    figure.update_yaxes(title="above chance", range=bounds_of(ends))
    return finished_panels(figure, len(erasures))


def _draw_probe(
    figure: go.Figure, line: pd.DataFrame, measure: str, kind: str, number: int, panel: int, control: str | None
) -> None:
    hover = (
        "layer %{x}: %{y:.3f} ± %{customdata[0]:.3f}<br>control task %{customdata[1]:.3f}, groups %{customdata[2]:.0f}"
    )
    errors, seen = line[f"{measure}_stderr"], line[[f"{measure}_stderr", "control_accuracy", "n_groups"]]
    draw_curve(figure, panel, ink_style(number), kind, line["layer"], line[measure], errors, seen, hover)
    if control is not None and line[control].notna().any():
        dotted = {"color": INK, "dash": "dot", "width": 1.2}
        draw_silent(figure, panel, line["layer"], line[control], dotted, kind, f"{kind}, control task")


def _grey(dash: str) -> dict[str, Any]:
    return {"color": GREY, "dash": dash, "width": 1.2}


def _upper(measure: str) -> str:
    return "AUC" if measure == "auc" else measure.capitalize()


def _left_table(part: Part, every: pd.DataFrame) -> Table:
    """What each probe tells before and after each erasure, in each model."""
    judged = {
        tuple(row["details"][name] for name in ("analysis", "position", "negative", "model", "erasure", "probe")): row
        for _, row in part.of_topic("probes").iterrows()
    }

    def verdict(row: pd.Series) -> str:
        names = ("analysis", "position", "negative", "model", "erasure", "probe")
        found = judged.get(tuple(str(row[name]) for name in names))
        return NOTHING if found is None else str(found["verdict"])

    columns: dict[str, Cell] = {
        **texts(*CELL_COLUMNS),
        "AUC": numbers("auc", 3, "auc_reach"),
        "best AUC, layer": _best,
        "accuracy": numbers("accuracy", 3, "accuracy_reach"),
        "chance": numbers("chance", 3),
        "control task": numbers("control_accuracy", 3),
        "selectivity": numbers("selectivity", 3, "selectivity_reach", "+"),
        "left": numbers("left", 3, "left_reach", "+"),
        "judged": verdict,
        "layers": counts("layers"),
        "seeds": counts("left_seeds"),
        "n": counts("n_positive", "n_negative"),
        "groups": counts("n_groups"),
    }
    half = "over groups of prompts, of a layer on average" if part.is_single else "over seeds (t)"
    note = (
        f"Means over layers, ± half the 95 % interval {half}; layers without information by construction are left out. "
        "Left: AUC minus 0.5 (after quadratic erasure minus control labels'), or accuracy minus chance without an AUC; "
        "judged after correction for all tests of a pair. Control task: the same probe on labels drawn at random by "
        "group. Selectivity: accuracy minus it. The best layer is chosen by its own value, which is then too high."
    )
    return table_of(_paired(every), columns, 6, note)


def _learning_table(read: Probes) -> Table:
    """Accuracy by the number of training prompts."""
    columns = {
        **texts(*CELL_COLUMNS),
        "trained on": counts("n_train"),
        "accuracy": numbers("accuracy", 3),
        "cells": counts("cells"),
    }
    return table_of(_averaged(read.learning, "n_train"), columns, 6, "Means over layers, repeats and seeds (cells).")


def _transfer_table(read: Probes) -> Table:
    """Accuracy on prompts of one source of probes that were trained on another."""
    columns = {
        **texts(*CELL_COLUMNS),
        "trained on": text("train_source"),
        "tested on": text("test_source"),
        "accuracy": numbers("accuracy", 3),
        "cells": counts("cells"),
        "n": counts("n_test"),
    }
    frame = _averaged(read.transfer, "train_source", "test_source")
    return table_of(frame, columns, 8, "Means over layers and seeds (cells). n: prompts tested on, at most.")


def _terminal(part: Part, read: Probes) -> Table:
    """The first view of the reference model: a row a probe, a column an erasure."""
    view = read.views[0]
    model = reference_of(read, view)
    rows = [row for _, row in part.of_topic("probes").iterrows() if _is_of(row["details"], view, model)]
    erasures = in_order(list(dict.fromkeys(row["details"]["erasure"] for row in rows)), ERASURES)
    kinds = in_order(list(dict.fromkeys(row["details"]["probe"] for row in rows)), PROBES)
    cell_of = {
        (row["details"]["probe"], row["details"]["erasure"]): f"{row['estimate']:+z.3f} {_short(row)}" for row in rows
    }
    lines = tuple((kind, *(cell_of.get((kind, erasure), NOTHING) for erasure in erasures)) for kind in kinds)
    columns = ("probe", *(AFTER.get(name, name) for name in erasures))
    return Table(columns, lines, len(columns), f"{model}, {view.words}: minus chance, mean over layers.")


def _short(row: pd.Series) -> str:
    known = {"above chance": "above", "below chance": "below", "unknown": "unknown"}
    return known.get(str(row["verdict"]), "not shown")


def _paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Name the two sets of prompts in a column ``pair``."""
    return frame.assign(pair=frame["positive"] + " - " + frame["negative"])


def _averaged(frame: pd.DataFrame, *trained: str) -> pd.DataFrame:
    """Average accuracies over layers, repeats and seeds; ``cells`` counts them, ``n_test`` is the largest test part."""
    keys = [*CELL_COLUMNS, *trained]
    numeric = _paired(frame).reindex(columns=[*keys, "accuracy", "n_test"]).astype({"accuracy": float, "n_test": float})
    pooled = {"accuracy": ("accuracy", "mean"), "cells": ("accuracy", "size"), "n_test": ("n_test", "max")}
    return numeric.groupby(keys, sort=False).agg(**pooled).reset_index()


def _best(row: pd.Series) -> str:
    return NOTHING if pd.isna(row["best_auc"]) else f"{row['best_auc']:.3f} at {row['best_layer']:g}"
