"""Whether the models that weights were compared of can be what they are given as: nothing here is tested."""

from typing import Any, Final

from safety_subspaces.findings.finding import Finding
from safety_subspaces.findings.models import Seeds

TOPIC: Final = "lineage"
PLACES: Final = "models in their places"
RULE: Final = "each analysis looks at a few matrices before it begins"


def lineage(studies: Seeds) -> list[Finding]:
    """Return one finding for each analysis whose models do not look like base, aligned and fine-tunes of that one."""
    several = len(studies.studies) > 1
    return [
        Finding(
            TOPIC,
            PLACES,
            f"{result.command} {result.label}{f' of seed {seed}' if several else ''}",
            verdict="not plausible",
            rule=RULE,
            details={"said": said},
        )
        for seed, study in studies.named
        for result in study.results
        if (said := implausible(result.result.get("summary")))
    ]


def implausible(summary: Any) -> list[str]:
    """Return what an analysis said of its models' places, wherever in its summary it stands."""
    if not isinstance(summary, dict):
        return []
    found = [str(said) for said in summary.get("implausible") or []]
    nested = summary.get("lineage")
    if isinstance(nested, dict):
        found += [said for each in (nested, *nested.values()) for said in implausible(each)]
    return list(dict.fromkeys(found))
