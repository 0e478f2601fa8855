"""What the probes say: whether anything can be read before and after each erasure, in one form of words."""

import pandas as pd

from safety_subspaces.findings.contracts import labels_of
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.probes import (
    ERASURES,
    Probes,
    ProbeView,
    cell_verdicts,
    in_order,
    left_verdict,
    of_view,
    over_layers,
    reference_of,
)
from safety_subspaces.report.parts.sentence import first_headline
from safety_subspaces.report.parts.table import count

AFTER = {"none": "without erasure", "leace": "after linear erasure (LEACE)", "quadratic": "after quadratic erasure"}


def read_probes_of(probes: Probes) -> list[Finding]:
    """Return what is left in the reference model, a finding each other set; the first alone has a headline."""
    if probes.table.empty:
        return []
    findings = [_read_view(probes, view, reference_of(probes, view)) for view in probes.views]
    return first_headline(findings)


def _read_view(probes: Probes, view: ProbeView, model: str) -> Finding:
    every = of_view(probes.table, view)
    means = over_layers(every)
    means = means[means["model"] == model]
    erasures = in_order(labels_of(means, "erasure"), ERASURES)
    verdicts = {erasure: _verdicts_of(means[means["erasure"] == erasure]) for erasure in erasures}
    counted = "; ".join(f"{AFTER.get(name, name)} {_above_words(of_erasure)}" for name, of_erasure in verdicts.items())
    headline = f"Probes of {model} ({view.words}) above chance: {counted}."
    values = "; ".join(f"{AFTER.get(name, name)} {_values(means[means['erasure'] == name])}" for name in erasures)
    cells = "; ".join(f"{AFTER.get(name, name)} {_cells(every[every['erasure'] == name])}" for name in erasures)
    sizes = means[["n_positive", "n_negative", "n_groups"]].max()
    text = (
        f"{headline} {'AUC' if means['auc'].notna().any() else 'Accuracy'}, mean over layers: {values}. Judged by the "
        "95 % interval over groups of prompts, after quadratic erasure beside control labels that went through it "
        "(it writes any label into the states; unknown with fewer than three draws). Of all layers, models and probes, "
        "each for itself, above chance: "
        f"{cells}. n: {count(sizes['n_positive'])} and {count(sizes['n_negative'])} prompts in "
        f"{count(sizes['n_groups'])} groups."
    )
    return Finding("probes", _verdict(verdicts[erasures[-1]]) if erasures else "unknown", headline, text)


def _verdicts_of(rows: pd.DataFrame) -> dict[str, str]:
    return {str(row["probe"]): left_verdict(row["left"], row["left_stderr"]) for _, row in rows.iterrows()}


def _verdict(verdicts: dict[str, str]) -> str:
    """Return what is left after the strongest erasure."""
    if "above chance" in verdicts.values():
        return "left"
    return "unknown" if set(verdicts.values()) <= {"unknown"} else "not shown"


def _above_words(verdicts: dict[str, str]) -> str:
    above = [kind for kind, judged in verdicts.items() if judged == "above chance"]
    others = [f"{kind} {judged}" for kind, judged in verdicts.items() if judged in ("unknown", "below chance")]
    return ", ".join(above or ["none"]) + (f" ({', '.join(others)})" if others else "")


def _values(rows: pd.DataFrame) -> str:
    measure = "auc" if rows["auc"].notna().any() else "accuracy"
    said = []
    for _, row in rows.iterrows():
        error = row[f"{measure}_stderr"]
        value = "not measured" if pd.isna(row[measure]) else f"{row[measure]:.2f}"
        said.append(f"{row['probe']} {value}" + ("" if pd.isna(error) or pd.isna(row[measure]) else f" ± {error:.2f}"))
    return ", ".join(said)


def _cells(rows: pd.DataFrame) -> str:
    verdicts = cell_verdicts(rows)
    known = [verdict for verdict in verdicts if verdict != "unknown"]
    lost = len(verdicts) - len(known)
    return f"{known.count('above chance')} of {len(known)}" + (f" ({lost} unknown)" if lost else "")
