"""What probes tell of two sets of prompts, before and after each erasure: above chance or not, in every model.

Layers of one model share their prompts: the mean over them has the error of one layer, on average, and in one study
that is the error of a test over groups of prompts. With several seeds a seed is the unit. Layers that carry no
information by construction have no value and are in no mean.
"""

from typing import Final

import numpy as np

from safety_subspaces.findings.finding import UNKNOWN, Finding, Words
from safety_subspaces.findings.intervals import interval_of, normal_p_value
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.probes import TELLING, of_view, probes_over_seeds, read_probes

TOPIC: Final = "probes"
LEFT: Final = "probes above chance"
WORDS: Final = Words("above chance", "below chance", "not shown to differ from chance")
COIN, CONTROLS = (
    "the probe tells the two sets as a coin does",
    "the probe tells the two sets as it tells control labels that went through the same erasure",
)


def probes(studies: Seeds) -> list[Finding]:
    """Return for each model, erasure and probe whether anything is told, as a mean over layers."""
    read = read_probes(studies.named)
    if read.table.empty:
        return []
    every, several, findings = probes_over_seeds(read), len(studies.studies) > 1, []
    for view in read.views:
        for _, row in of_view(every, view).iterrows():
            over = interval_of(row, "left")
            p = over.p_value if several else normal_p_value(over.mean, float(row["left_stderr"]))
            findings.append(
                Finding(
                    topic=TOPIC,
                    question=LEFT,
                    subject=f"{row['probe']} probe of {row['model']}, erasure {row['erasure']} ({view.words})",
                    measure="AUC minus chance" if not np.isnan(row["auc"]) else "accuracy minus chance",
                    estimate=over.mean,
                    low=over.low,
                    high=over.high,
                    unit="seeds" if several else "groups of prompts",
                    n=over.n if several else int(np.nan_to_num(float(row["n_groups"]))),
                    null=CONTROLS if row["erasure"] in TELLING else COIN,
                    p=p,
                    words=WORDS,
                    verdict=UNKNOWN,
                    rule="mean over layers; "
                    + ("t over seeds" if several else "normal, with a refitted probe's error"),
                    family=f"{LEFT}: {view.words}",
                    details={
                        **{name: str(row[name]) for name in ("model", "erasure", "probe", "analysis", "position")},
                        **{name: float(row[name]) for name in ("auc", "accuracy", "layers")},
                        "positive": view.positive,
                        "negative": view.negative,
                    },
                )
            )
    return findings
