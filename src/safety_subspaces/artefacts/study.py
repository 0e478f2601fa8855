"""Reads a study folder once, into values: stages, scalars, analysis tables and answers; nothing is computed here.

The page, the terminal tables and the reading all start from the same :class:`Study`, so that they cannot
disagree. Its tables call every model by one label, whatever its analyses call it, and say of each which stage it is and
in which role: see :mod:`.known_models`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.known_models import KnownModels, known_models
from safety_subspaces.artefacts.next_step import command_for, command_for_own, read_manifests, roles_of
from safety_subspaces.artefacts.places import StagePlaces, place_of_result
from safety_subspaces.artefacts.run_constraint import Constraint, read_constraint
from safety_subspaces.artefacts.study_files import (
    MEASURES,
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SAMPLE_COLUMNS,
    AnalysisResult,
    read_prompt_counts,
    read_result,
    read_scalars,
)


@dataclass(frozen=True)
class Stage:
    """One training run: its manifest and its TensorBoard scalars (tag to a table of step and value).

    ``role`` is what the run makes of the model (base, aligned or tuned), empty where that is not known.
    ``prompts`` says of each look at the run's behaviour how many prompts were scored (``step`` and the ``n_`` columns
    of an evaluation); it is empty of a run that was not watched.
    """

    name: str
    folder: Path
    role: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, pd.DataFrame] = field(default_factory=dict)
    prompts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step", *SAMPLE_COLUMNS]))

    @property
    def status(self) -> str:
        """``complete``, ``running``, ``failed``, or what is missing."""
        return str(self.manifest.get("status", "no manifest"))

    @property
    def constraint(self) -> Constraint | None:
        """What the run's update was held to, if it was."""
        return read_constraint(self.manifest)

    @property
    def recipe(self) -> str | None:
        """What the run learns from and how, as a hash: runs that share it differ in what they are held to alone."""
        return self.manifest.get("recipe_sha256")

    @property
    def kind(self) -> str | None:
        """What the run learns from and how, whatever its seeds, as a hash: runs that share it differ in those alone.

        ``None`` of a run that an earlier version made.
        """
        return self.manifest.get("kind_sha256")

    def metric(self, tag: str) -> float | None:
        """Return the manifest's final value, else the last one of TensorBoard."""
        value = (self.manifest.get("metrics") or {}).get(tag)
        if value is not None:
            return float(value)
        scalars = self.scalars.get(tag)
        return None if scalars is None or scalars.empty else float(scalars["value"].iloc[-1])


@dataclass(frozen=True)
class Study:
    """Everything that the report says something about.

    ``models``, ``projections`` and ``overlaps`` are the tables of all ``evaluate``, ``project`` and
    ``overlap`` runs under one another, with the columns of the analyses, NaN where a measure was not taken,
    and the label of the run in ``analysis``. Labels are those of ``known``: one for each model. ``models`` and
    ``projections`` have the columns ``stage`` and ``role``, ``overlaps`` has ``first_stage`` and ``second_stage``: the
    stage of this study behind a label, empty for any other model, and what it is (base, aligned, tuned, empty where
    that is not known). ``projections`` further names in ``group`` what is shown together, and in ``aligned_model`` and
    ``tuned_model`` the rows of ``models`` that it started from.

    Runs under a constraint stand apart: their evaluations in ``constrained``, and in ``energies`` how much of their
    updates lies in the alignment subspace (projections that were measured and not evaluated).
    """

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    results: tuple[AnalysisResult, ...]
    models: pd.DataFrame
    projections: pd.DataFrame
    overlaps: pd.DataFrame
    constrained: pd.DataFrame
    energies: pd.DataFrame
    known: KnownModels

    @cached_property
    def repeats(self) -> dict[str, str]:
        """Each stage that is of a kind which the study has already, with the first stage of that kind.

        The runs of a kind share all but their seeds, and what they start from; where the manifests do not say, a stage
        that stands second in a floor of an overlap repeats the first.
        """
        floors = self.overlaps[self.overlaps["floor"].astype(bool)][["first_stage", "second_stage"]]
        seconds = {second: first for first, second in floors.itertuples(index=False) if first and second}
        first_of: dict[tuple[str, str], str] = {}
        repeats: dict[str, str] = {}
        for stage in sorted(self.stages, key=lambda stage: stage.name in seconds):
            if stage.kind is not None:
                first = first_of.setdefault((stage.kind, self.known.starts.get(stage.name, "")), stage.name)
                repeats |= {stage.name: first} if first != stage.name else {}
        return {**seconds, **repeats}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The distinct training seeds, repeats of a stage left out."""
        first = [stage for stage in self.stages if stage.name not in self.repeats]
        return tuple(sorted({int(stage.manifest["seed"]) for stage in first if _has_seed(stage)}))

    @property
    def has_evaluated_projections(self) -> bool:
        """Whether any projected model was evaluated, not only measured."""
        return bool(self.projections[list(MEASURES)].notna().any(axis=None))

    def of(self, command: str) -> tuple[AnalysisResult, ...]:
        """Return the results of one subcommand."""
        return tuple(result for result in self.results if result.command == command)

    def model(self, label: str) -> pd.Series | None:
        """Return the evaluation of one model, or ``None``; of several, the one with most harmful prompts."""
        rows = self.models[self.models["model"] == label]
        if rows.empty:
            return None
        return rows.sort_values("n_harmful", ascending=False, kind="stable", na_position="last").iloc[0]

    @property
    def evaluated(self) -> pd.DataFrame:
        """One evaluation of each model, as :meth:`model` has it: the columns of ``models``."""
        rows = [self.model(str(label)) for label in dict.fromkeys(self.models["model"])]
        return pd.DataFrame([row for row in rows if row is not None]).reindex(columns=self.models.columns)

    @property
    def base(self) -> pd.Series | None:
        """The evaluation of the model that alignment started from."""
        return None if self.known.base is None else self.model(self.known.base.label)

    @property
    def aligned(self) -> pd.Series | None:
        """The evaluation of the aligned model: of several, the one that most fine-tunes started from."""
        return None if self.known.aligned is None else self.model(self.known.aligned.label)

    @property
    def aligned_stage(self) -> Stage | None:
        """The run that made the aligned model; ``None`` where this study has none."""
        name = "" if self.known.aligned is None else self.known.aligned.stage
        return next((stage for stage in self.stages if stage.name == name), None)

    def run_of(self, result: AnalysisResult, argument: str, *folders: str) -> str:
        """Return the stage whose run folder, or one of the ``folders`` in it, an analysis was given; else nothing."""
        places = StagePlaces(self.folder, {stage.name: stage.manifest for stage in self.stages})
        return places.run_at(result.arguments.get(argument), place_of_result(result.result), folders)

    def missing(self) -> dict[str, str]:
        """Return the subcommands that the page wants and does not find, each with the next command towards it."""
        return {name: self.command_for(name) for name in REQUIRED_COLUMNS if not self.of(name)}

    def command_for(self, analysis: str) -> str:
        """Return the next command towards an analysis; empty where none is known."""
        if self.stages:
            return command_for(self.folder, analysis)
        return command_for_own(self.folder, analysis, [result.arguments for result in self.results])

    def relabelled(self, shown: Mapping[str, str]) -> "Study":
        """Return the same study with other labels: ``shown`` by the present ones; a label that it lacks stays."""

        def renamed(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
            return frame.assign(**{name: [shown.get(label, label) for label in frame[name]] for name in columns})

        ends = ("tuned", "aligned_model", "tuned_model")
        return replace(
            self,
            models=renamed(self.models, "model"),
            projections=_grouped(renamed(self.projections, *ends)),
            overlaps=renamed(self.overlaps, "first", "second"),
            constrained=renamed(self.constrained, "model"),
            energies=renamed(self.energies, "tuned"),
            known=self.known.relabelled(shown),
        )


def read_study(folder: str | os.PathLike[str]) -> Study:
    """Read a study folder, ``runs/<study>``.

    Raises:
        InputError: The folder is missing or holds no stage and no analysis, or one of its files cannot be
        read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is no folder, expected a study; `make demo` makes runs/organism-0")
    manifests = read_manifests(root)
    places = StagePlaces(root, manifests)
    stages = _read_stages(root, manifests, roles_of(places))
    results = tuple(read_result(path) for path in sorted(root.glob("analysis/[!.]*/[!.]*")) if path.is_dir())
    # Those of one subcommand as they were run: what was asked first stands first.
    in_order = sorted(results, key=lambda result: (result.command, result.started, result.label))
    results = tuple(result for result in in_order if result.tables or result.result)
    if not stages and not results:
        inner = sorted({path.parts[len(root.parts)] for path in root.glob("*/*/manifest.json")})
        hint = f"; it holds studies: {', '.join(inner[:5])}" if inner else ""
        raise InputError(
            f"{root} holds no stage (<stage>/manifest.json) and no analysis "
            f"(analysis/<subcommand>/<label>){hint}; "
            "`make demo` makes runs/organism-0, `python train.py fit --config ...` one stage"
        )
    known = known_models(places, {stage.name: stage.role for stage in stages}, results)
    constrained = {stage.name for stage in stages if stage.constraint is not None}
    models = _named(_together("evaluate", results), "evaluate", {"model": ""}, known)
    projections = _named(_together("project", results), "project", {"tuned": ""}, known)
    measured = projections.groupby("analysis")[list(MEASURES)].count().sum(axis=1).eq(0)
    of_constrained = projections["stage"].isin(constrained).groupby(projections["analysis"]).any()
    apart = projections["analysis"].isin(measured.index[measured & of_constrained])
    return Study(
        name=root.resolve().name,
        folder=root,
        stages=stages,
        results=results,
        models=models[~models["stage"].isin(constrained)].reset_index(drop=True),
        projections=_with_ends(projections[~apart].reset_index(drop=True), known),
        overlaps=_named(_together("overlap", results), "overlap", {"first": "first_", "second": "second_"}, known),
        constrained=models[models["stage"].isin(constrained)].reset_index(drop=True),
        energies=projections[apart].reset_index(drop=True),
        known=known,
    )


def _has_seed(stage: Stage) -> bool:
    return isinstance(stage.manifest.get("seed"), int)


def _read_stages(root: Path, manifests: Mapping[str, dict[str, Any]], roles: Mapping[str, str]) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            name=name,
            folder=root / name,
            role=role,
            manifest=manifests[name],
            scalars=read_scalars(root / name),
            prompts=read_prompt_counts(root / name),
        )
        for name, role in roles.items()
    )


def _together(command: str, results: tuple[AnalysisResult, ...]) -> pd.DataFrame:
    """Stack the main tables of one subcommand: ``analysis``, then its required and optional columns."""
    columns = list(dict.fromkeys((*REQUIRED_COLUMNS[command], *OPTIONAL_COLUMNS[command])))
    tables = [
        _with_judge(_with_drawn_energies(result), result).reindex(columns=columns).assign(analysis=result.label)
        for result in results
        if result.command == command and "table" in result.tables
    ]
    if not tables:
        return pd.DataFrame(columns=["analysis", *columns])
    frame = pd.concat(tables, ignore_index=True)
    if "floor" in columns:
        frame["floor"] = [value is True or str(value) == "True" for value in frame["floor"]]
    return frame[["analysis", *columns]]


def _with_judge(frame: pd.DataFrame, result: AnalysisResult) -> pd.DataFrame:
    """Return a main table with the judge of its harm scores; earlier versions named it among the arguments alone."""
    asked = result.arguments.get("evaluate")
    judge = (asked if isinstance(asked, dict) else result.arguments).get("judge")
    return frame if "judge" in frame or not isinstance(judge, str) else frame.assign(judge=judge)


def _with_drawn_energies(result: AnalysisResult) -> pd.DataFrame:
    """Return an analysis's main table; of controls in closed form with a row for each energy that was drawn.

    No model is made of such a draw, and none of a control in closed form: these draws are all that there are.
    """
    table, drawn = result.tables["table"], result.tables.get("draws")
    if result.command != "project" or drawn is None or not {*REQUIRED_COLUMNS["project"]} <= {*drawn.columns}:
        return table
    has_draws = table["draw"].notna().groupby(table["subspace"]).transform("any")
    closed = set(table.loc[~has_draws, "subspace"])
    rows = drawn[drawn["subspace"].isin(closed)]
    return table if rows.empty else pd.concat([table, rows.reindex(columns=table.columns)], ignore_index=True)


def _named(frame: pd.DataFrame, command: str, columns: Mapping[str, str], known: KnownModels) -> pd.DataFrame:
    """Call every model by its own label, and say which stage it is and in which role.

    Args:
        frame: A table of :func:`_together`.
        command: Its subcommand.
        columns: The columns with labels, each with what the added ones begin with.
        known: The models of the study.

    Returns:
        The same rows, with the columns ``stage`` and ``role`` behind each prefix.
    """
    analyses = list(frame["analysis"].astype(str))
    for column, prefix in columns.items():
        models = [known.of(command, *pair) for pair in zip(analyses, frame[column].astype(str), strict=True)]
        added = {f"{prefix}{name}": [getattr(model, name) for model in models] for name in ("stage", "role")}
        frame = frame.assign(**{column: [model.label for model in models]}, **added)
    return frame


def _with_ends(projections: pd.DataFrame, known: KnownModels) -> pd.DataFrame:
    """Name the evaluated models that each projection lies between, and its group.

    Adds the columns ``aligned_model``, ``tuned_model`` and ``group`` to those of the projections.
    """
    otherwise = "" if known.aligned is None else known.aligned.label
    aligned = [known.aligned_in.get(("project", str(analysis)), otherwise) for analysis in projections["analysis"]]
    return _grouped(projections.assign(aligned_model=aligned, tuned_model=projections["tuned"]))


def _grouped(projections: pd.DataFrame) -> pd.DataFrame:
    """Set ``group``: the fine-tune, and the analysis where there are several."""
    several = projections["analysis"].nunique() > 1
    pairs = zip(projections["analysis"], projections["tuned"].astype(str), strict=True)
    return projections.assign(group=[f"{tuned} ({analysis})" if several else tuned for analysis, tuned in pairs])
