"""Which models a study knows: under which labels its analyses name them, which stage each is, and in which role.

A label is a word that somebody chose. What a model is stands in the manifest of its stage, or follows from what other
runs started from, or from the arguments of analyses that take a base and an aligned model. Every model has one label in
a study: the first one that it was given; a label that means another model elsewhere is told apart.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from safety_subspaces.artefacts.description import facts_about
from safety_subspaces.artefacts.places import Place, StagePlaces, place_of_result, place_of_run

# Arguments that name one model, with the role that it has in the analysis, and those that name several by label.
MEASURED_FROM = ("aligned",)
ONE_MODEL = {"base": "base", "aligned": "aligned"}
LABELLED = {"models": "", "tuned": "tuned", "others": ""}
# What a run says that it started from, and the role that this has by the run's own.
STARTS_FROM = "starts_from"
START_OF = {"aligned": "base", "tuned": "aligned"}
# The analyses whose labels are taken first: those that most of a page is about.
FIRST_COMMANDS = ("evaluate", "project", "overlap")
# What names a model in a table, whichever the analysis.
LABEL_COLUMNS = ["command", "analysis", "given", "label", "stage", "role"]


@dataclass(frozen=True)
class KnownModel:
    """A model of a study.

    Args:
        label: What tables and sentences call it.
        stage: The stage of this study that trained it; empty for any other model.
        role: ``base``, ``aligned`` or ``tuned``; empty where that is not known.
    """

    label: str
    stage: str = ""
    role: str = ""


@dataclass(frozen=True)
class KnownModels:
    """The models of a study.

    Args:
        labels: A row for each label of each analysis, with ``LABEL_COLUMNS``: ``given`` is the label there, ``label``
            the model's own.
        base: What alignment started from.
        aligned: What the fine-tunes started from.
        starts: The label of what each stage started from, empty where that is not known.
        aligned_in: The label of the aligned model that each analysis was given, by command and label of the run.
    """

    labels: pd.DataFrame
    base: KnownModel | None = None
    aligned: KnownModel | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    aligned_in: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, str]:
        """The role of each label."""
        return dict(zip(self.labels["label"], self.labels["role"], strict=True))

    @cached_property
    def _known(self) -> dict[tuple[str, ...], KnownModel]:
        rows = self.labels.astype(str).itertuples(index=False, name=None)
        known: dict[tuple[str, ...], KnownModel] = {}
        for command, analysis, given, *model in rows:
            known[command, analysis, given] = known[model[0],] = KnownModel(*model)
        return known

    def of(self, command: str, analysis: str, given: str) -> KnownModel:
        """Return the model that an analysis calls by a label; one that it gave no path for goes by that label alone."""
        return self._known.get((command, analysis, given)) or self._known.get((given,)) or KnownModel(given)

    def relabelled(self, shown: Mapping[str, str]) -> "KnownModels":
        """Return the same models under other labels: ``shown`` by the present ones; what it lacks stays."""

        def renamed(model: KnownModel | None) -> KnownModel | None:
            return None if model is None else replace(model, label=shown.get(model.label, model.label))

        return KnownModels(
            labels=self.labels.assign(label=[shown.get(label, label) for label in self.labels["label"]]),
            base=renamed(self.base),
            aligned=renamed(self.aligned),
            starts={stage: shown.get(label, label) for stage, label in self.starts.items()},
            aligned_in={analysis: shown.get(label, label) for analysis, label in self.aligned_in.items()},
        )


@dataclass(frozen=True)
class _Mention:
    """One model that a record names: by whom, as what, its path then, and the hash of its files where it was taken."""

    command: str
    analysis: str
    argument: str
    label: str
    path: str
    content: str
    place: Place | None


# What a mention is of: a stage by its name, or a model from elsewhere by its files or its path.
_Identity = tuple[str, str]
_Pair = tuple[_Mention, _Identity]


def known_models(places: StagePlaces, roles: Mapping[str, str], results: Iterable[Any]) -> KnownModels:
    """Find out which models a study names.

    Args:
        places: Its stages.
        roles: The role of each, as manifests have it.
        results: Its analyses: ``command``, ``label``, ``arguments`` and ``result`` of each.
    """
    mentions = [*_of_runs(places.manifests), *(mention for result in results for mention in _of_result(result))]
    identities = _identities(mentions, places)
    # A stage that nothing names is known all the same.
    role_of = {("stage", stage): role for stage, role in roles.items() if role}
    pairs = list(zip(mentions, identities, strict=True))
    started = [(identity, roles[m.analysis]) for m, identity in pairs if m.argument == STARTS_FROM]
    named = [(identity, {**ONE_MODEL, **LABELLED}[m.argument]) for m, identity in pairs if m.argument != STARTS_FROM]
    for identity, role in [*((identity, START_OF[role]) for identity, role in started if role in START_OF), *named]:
        if role:
            role_of.setdefault(identity, role)
    labels = _labels(pairs)
    models = {i: KnownModel(labels[i], i[1] if i[0] == "stage" else "", role_of.get(i, "")) for i in labels}
    stages = {("stage", stage): KnownModel(stage, stage, role) for stage, role in roles.items()}
    every = {**stages, **models}
    aligned = _aligned(pairs, every, roles)
    return KnownModels(
        labels=_label_table(pairs, models),
        base=_base(pairs, every, aligned),
        aligned=None if aligned is None else every[aligned],
        starts={m.analysis: every[identity].label for m, identity in pairs if m.argument == STARTS_FROM},
        aligned_in={(m.command, m.analysis): every[identity].label for m, identity in pairs if m.argument == "aligned"},
    )


def _of_runs(manifests: Mapping[str, Mapping[str, Any]]) -> list[_Mention]:
    return [
        _Mention("fit", stage, STARTS_FROM, "", start, _content(manifest, start), place_of_run(manifest))
        for stage, manifest in manifests.items()
        for start in facts_about(STARTS_FROM, manifest)
        if isinstance(start, str) and start
    ]


def _of_result(result: Any) -> list[_Mention]:
    named = [(name, "", result.arguments.get(name)) for name in ONE_MODEL]
    for name in LABELLED:
        models = result.arguments.get(name)
        named += [(name, str(label), path) for label, path in models.items()] if isinstance(models, dict) else []
    place = place_of_result(result.result)
    return [
        _Mention(result.command, result.label, argument, label, path, _content(result.result, path), place)
        for argument, label, path in named
        if isinstance(path, str) and path
    ]


def _content(record: Mapping[str, Any], path: str) -> str:
    """Return the hash that a record has of a model's files, empty where it has none."""
    entries = [entry for entry in record.get("inputs") or () if entry.get("path") == path and entry.get("sha256")]
    return json.dumps([entries[0]["sha256"], entries[0].get("base")], sort_keys=True) if entries else ""


def _identities(mentions: Sequence[_Mention], places: StagePlaces) -> list[_Identity]:
    """Return what each mention is of: a stage, or a model from elsewhere, told by its files or by its path."""
    stages = [places.model_at(mention.path, mention.place) for mention in mentions]
    # A path that leads to a stage by a link which is gone is known by what was read there.
    read: dict[str, set[str]] = {}
    for mention, stage in zip(mentions, stages, strict=True):
        if mention.content and stage:
            read.setdefault(mention.content, set()).add(stage)
    known: dict[str, _Identity] = {}
    identities = []
    for mention, own in zip(mentions, stages, strict=True):
        alike = read.get(mention.content, set())
        stage = own or (next(iter(alike)) if len(alike) == 1 else "")
        keys = [key for key in (mention.content, f"path {mention.path.rstrip('/')}") if key]
        identity = ("stage", stage) if stage else next((known[key] for key in keys if key in known), ("path", keys[-1]))
        known |= {} if stage else dict.fromkeys(keys, identity)
        identities.append(identity)
    return identities


def _labels(pairs: Sequence[_Pair]) -> dict[_Identity, str]:
    """Give every model a label of its own: the first one it was given, in the order of the page."""
    rank = {command: number for number, command in enumerate(FIRST_COMMANDS)}
    labels: dict[_Identity, str] = {}
    for mention, identity in sorted(pairs, key=lambda pair: (not pair[0].label, rank.get(pair[0].command, len(rank)))):
        if identity not in labels:
            stage = [identity[1]] if identity[0] == "stage" else []
            given = [mention.label] if mention.label else []
            apart = f"{mention.label or mention.path} ({mention.analysis})"
            labels[identity] = free_label([*given, *stage, *([] if stage else [apart])], labels.values())
    return labels


def free_label(wanted: Sequence[str], taken: Iterable[str]) -> str:
    """Return the first of some labels that is not taken; where all are, the last one with a number."""
    used = set(taken)
    numbered = (f"{wanted[-1]} {number}" for number in range(2, len(used) + 3))
    return next(label for label in (*wanted, *numbered) if label not in used)


def _label_table(pairs: Sequence[_Pair], models: Mapping[_Identity, KnownModel]) -> pd.DataFrame:
    rows = [
        (mention.command, mention.analysis, mention.label, model.label, model.stage, model.role)
        for mention, identity in pairs
        if mention.label
        for model in (models[identity],)
    ]
    return pd.DataFrame(rows, columns=LABEL_COLUMNS, dtype=object)


def _aligned(
    pairs: Sequence[_Pair], models: Mapping[_Identity, KnownModel], roles: Mapping[str, str]
) -> _Identity | None:
    """Return the aligned model that most is started from or measured against; of equals the first stage.

    Without one of that role it is what most fine-tunes started from.
    """
    of_tuned = [identity for m, identity in pairs if m.argument == STARTS_FROM and roles[m.analysis] == "tuned"]
    uses = Counter([*of_tuned, *(identity for m, identity in pairs if m.argument in MEASURED_FROM)])
    aligned = [identity for identity, model in models.items() if model.role == "aligned"]
    return max(aligned or uses, key=lambda identity: uses[identity], default=None)


def _base(
    pairs: Sequence[_Pair], models: Mapping[_Identity, KnownModel], aligned: _Identity | None
) -> KnownModel | None:
    """Return what the aligned model started from; else the first model of that role."""
    starts = [
        identity
        for mention, identity in pairs
        if mention.argument == STARTS_FROM and aligned == ("stage", mention.analysis)
    ]
    bases = [identity for identity, model in models.items() if model.role == "base" and identity != aligned]
    return models[(starts or bases)[0]] if starts or bases else None
