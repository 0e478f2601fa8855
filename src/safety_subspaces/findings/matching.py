"""Which models of several studies are the same but for their seeds, so that one label stands for them in all.

What a model is called is up to whoever ran the analysis. Studies are matched by what their models are: the base and the
aligned model by their role, every other stage by the kind of its run (its recipe without seeds, from the manifest). A
model that no stage made goes by its label.
"""

from collections.abc import Sequence

from safety_subspaces.artefacts.known_models import KnownModel, free_label
from safety_subspaces.artefacts.study import Study

# What is the same in several studies: a word for how it was told, and what tells it.
Key = tuple[str | int, ...]


def match_labels(studies: Sequence[Study]) -> tuple[Study, ...]:
    """Return the studies with one label for each model that is the same in several: that of the first which has it."""
    has_kinds = all(stage.kind is not None for study in studies for stage in study.stages if stage.role == "tuned")
    shown: dict[Key, str] = {}
    matched = []
    for study in studies:
        own: dict[str, str] = {}
        for key, model in _keys_of(study, has_kinds).items():
            if key not in shown:
                wanted = [model.label, *([model.stage] if model.stage else [])]
                shown[key] = free_label(wanted, shown.values())
            own[model.label] = shown[key]
        matched.append(study.relabelled(own))
    return tuple(matched)


def _keys_of(study: Study, has_kinds: bool) -> dict[Key, KnownModel]:
    """Return every model of a study that has a label, by what it is."""
    ends = {"base": study.known.base, "aligned": study.known.aligned}
    keys: dict[Key, KnownModel] = {(role,): model for role, model in ends.items() if model is not None}
    kind_of = {stage.name: stage.kind if has_kinds and stage.kind else stage.name for stage in study.stages}
    rows = study.known.labels.drop_duplicates("label")[["label", "stage", "role"]]
    models = [KnownModel(*row) for row in rows.itertuples(index=False)]
    # The first run of a kind stands before its repeats in every study, whatever they are called.
    for model in sorted(models, key=lambda model: model.stage in study.repeats):
        if model in keys.values():
            continue
        if not model.stage:
            keys["label", model.label] = model
            continue
        is_from_aligned = study.known.aligned is not None and (
            study.known.starts.get(model.stage) == study.known.aligned.label
        )
        kind = (model.role, kind_of[model.stage], int(is_from_aligned))
        number = sum(key[:-1] == kind for key in keys)
        keys[*kind, number] = model
    return keys
