"""Every evaluated model as a row: of one study each evaluation, of several each model's means over seeds."""

from collections.abc import Iterable
from typing import Any, Final

import pandas as pd

from safety_subspaces.artefacts.study_files import MEASURES, SAMPLE_COLUMNS
from safety_subspaces.findings.intervals import over_seeds
from safety_subspaces.findings.models import Seeds

UNSCORED: Final = "n_unscored"
SIZES: Final = tuple(name for name in SAMPLE_COLUMNS if name != UNSCORED)


def evaluations(studies: Seeds) -> pd.DataFrame:
    """Return a row for each evaluated model that no constraint held.

    Columns: ``model``, ``judge`` (all that it had), the ``MEASURES``, each with its ``_error`` (of one study the
    standard error over groups of prompts; of several half the 95 % t interval over seeds, no shorter than what the
    prompts leave open) and its ``_seeds``, and the ``SAMPLE_COLUMNS``: the largest of several seeds, of the unscored
    answers the sum. A model that several analyses of one study evaluated has a row for each, with the analysis behind
    its label.
    """
    errors = {measure: f"{measure}_stderr" for measure in MEASURES}
    if len(studies.studies) > 1:
        over = over_seeds(studies.models, ["model"], MEASURES, dict.fromkeys(SIZES, "max"), errors)
        unscored = studies.models.groupby("model", sort=False, dropna=False)[UNSCORED].sum(min_count=1)
        named = over.rename(columns={f"{measure}_reach": f"{measure}_error" for measure in MEASURES})
        judges = studies.models.groupby("model", sort=False, dropna=False)["judge"].agg(_listed)
        return named.assign(**{UNSCORED: unscored.to_numpy(dtype=float), "judge": judges.to_numpy()})
    rows = studies.studies[0].models
    several = rows["analysis"].nunique() > 1
    pairs = zip(rows["model"], rows["analysis"], strict=True)
    labels = [f"{model} ({analysis})" if several else str(model) for model, analysis in pairs]
    frame = rows.assign(model=labels, **{f"{measure}_error": rows[stderr] for measure, stderr in errors.items()})
    counted = frame.assign(**{f"{measure}_seeds": frame[measure].notna().astype(int) for measure in MEASURES})
    names = [name for measure in MEASURES for name in (measure, f"{measure}_error", f"{measure}_seeds")]
    counted["judge"] = [_listed([judge]) for judge in counted["judge"]]
    return counted[["model", "judge", *names, *SAMPLE_COLUMNS]]


def _listed(judges: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(judge) for judge in judges if isinstance(judge, str)))
