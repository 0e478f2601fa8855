"""What the models of one study said: their first answers to each set of prompts, not chosen."""

from dataclasses import dataclass
from typing import Any, Final

from safety_subspaces.artefacts.study import Study
from safety_subspaces.report.parts.section import Part, Section

SETS: Final = ("harmful", "benign", "utility")
# Enough to see how a model talks; all of them stay in generations.jsonl.
SAMPLES: Final = 3


@dataclass(frozen=True)
class Samples:
    """Answers of one model to the first prompts of one set, out of ``total``."""

    model: str
    kind: str
    total: int
    answers: tuple[dict[str, Any], ...]


def answers(part: Part) -> Section | None:
    """Quote the first answers of each model; those of several seeds stand on the page of each."""
    if not part.is_single:
        return None
    quotes: dict[str, list[Samples]] = {}
    for sample in first_answers(part.studies.studies[0]):
        quotes.setdefault(sample.model, []).append(sample)
    note = "The first prompts of each set in the order of the file, not chosen. Text made by models, shown as it is."
    return Section(
        "generations",
        "Answers",
        notes=[note] if quotes else [],
        missing=[] if quotes else [("No answers were kept: they come with evaluate.", "")],
        quotes=quotes,
        place=800,
    )


def first_answers(study: Study, samples: int = SAMPLES) -> list[Samples]:
    """Return the first answers of each model to each set, in the order of the file."""
    said: dict[tuple[str, str], list[dict[str, Any]]] = {}
    results = study.of("evaluate")
    labels = [{str(line.get("model")) for line in result.generations} for result in results]
    for number, result in enumerate(results):
        repeated = set().union(*labels[:number], *labels[number + 1 :])
        for line in result.generations:
            model = str(line.get("model"))
            model += f" ({result.label})" if model in repeated else ""
            said.setdefault((model, str(line.get("set"))), []).append(line)
    order = {kind: number for number, kind in enumerate(SETS)}
    models = list(dict.fromkeys(model for model, _ in said))
    keys = sorted(said, key=lambda key: (models.index(key[0]), order.get(key[1], len(order))))
    return [Samples(model, kind, len(said[model, kind]), tuple(said[model, kind][:samples])) for model, kind in keys]
