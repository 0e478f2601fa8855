"""What the seeds, draws and prompts of some studies cannot show, as counts: nothing here is tested."""

from math import nan, sqrt
from typing import Any, Final

import pandas as pd

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.finding import Finding
from safety_subspaces.findings.intervals import LEAST_DRAWS
from safety_subspaces.findings.models import Seeds

TOPIC: Final = "limits"
SEEDS, DRAWS, SAMPLE, UNFINISHED = "seeds of training", "random draws", "smallest sample", "unfinished runs"


def limits(studies: Seeds) -> list[Finding]:
    """Count the seeds, the draws of random controls, the fewest harmful prompts, and the runs that are not complete."""
    drawn = max((_drawn(study) for study in studies.studies), default=0)
    asked = [_seeds(studies), _draws(drawn) if drawn else None, _sample(studies), _unfinished(studies)]
    return [finding for finding in asked if finding is not None]


def _seeds(studies: Seeds) -> Finding:
    several = len(studies.studies) > 1
    seeds = list(studies.seeds) if several else [str(seed) for seed in studies.studies[0].seeds]
    verdict = "unknown seed" if not seeds else "one seed" if len(seeds) == 1 else "several seeds"
    details: dict[str, Any] = {"seeds": seeds, "studies": len(studies.studies)}
    return Finding(TOPIC, SEEDS, "", unit="seeds", n=len(seeds), verdict=verdict, details=details)


def _draws(drawn: int) -> Finding:
    few = f"fewer than {LEAST_DRAWS}" if drawn < LEAST_DRAWS else f"at least {LEAST_DRAWS}"
    return Finding(TOPIC, DRAWS, "", unit="random draws", n=drawn, verdict=few, details={"needed": LEAST_DRAWS})


def _drawn(study: Study) -> int:
    """Return how often a random control was drawn at most, in one configuration."""
    drawn = study.projections[study.projections["subspace"].astype(str).str.startswith("random")]
    cells = drawn.groupby(["group", "subspace", "method", "fraction"], sort=False).size()
    return int(cells.max()) if len(cells) else 0


def _sample(studies: Seeds) -> Finding | None:
    """Say what the fewest harmful prompts of a model leave open, its groups counted where they are known."""
    every = pd.concat([study.models for study in studies.studies], ignore_index=True)
    known = every.dropna(subset="n_harmful").reset_index(drop=True)
    if known.empty:
        return None
    independent = known["n_groups_harmful"].astype(float).fillna(known["n_harmful"].astype(float))
    smallest = known.iloc[int(independent.argmin())]
    units, prompts = max(float(independent.min()), 1.0), int(smallest["n_harmful"])
    is_grouped = pd.notna(smallest["n_groups_harmful"])
    return Finding(
        TOPIC,
        SAMPLE,
        str(smallest["model"]),
        "harmful prompts",
        unit="groups of prompts" if is_grouped else "prompts",
        n=int(units),
        verdict=f"{prompts} prompts",
        details={
            "prompts": prompts,
            "groups": int(units) if is_grouped else nan,
            "step": 1 / max(prompts, 1),
            # A rate of one half is the least certain: sqrt(0.25 / n).
            "error": 0.5 / sqrt(units),
            # Where n of n agree, a rate of the other kind above 3 / n is ruled out with 95 %: (1 - 3 / n)^n < 0.05.
            "room": min(3 / units, 1.0),
            "unscored": int(every["n_unscored"].fillna(0).sum()),
        },
    )


def _unfinished(studies: Seeds) -> Finding | None:
    several = len(studies.studies) > 1
    runs = [
        f"{stage.name}{f' of seed {seed}' if several else ''} ({stage.status})"
        for seed, study in studies.named
        for stage in study.stages
        if stage.status != "complete"
    ]
    return Finding(TOPIC, UNFINISHED, "", n=len(runs), verdict="not complete", details={"runs": runs}) if runs else None
