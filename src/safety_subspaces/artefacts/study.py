"""Reads a study folder once, into values: stages, scalars, analysis tables and answers; nothing is computed here.

The page, the terminal tables and the reading all start from the same :class:`Study`, so that they cannot
disagree.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from safety_subspaces.artefacts.description import check_record, facts_about, read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import parse_json, read_yaml, reading
from safety_subspaces.artefacts.next_step import command_for, stage_at, stage_roles
from safety_subspaces.artefacts.run_constraint import Constraint, read_constraint
from safety_subspaces.artefacts.text import from_cell, map_texts

MEASURES = (
    "utility",
    "harmful_rate",
    "harm_score",
    "over_refusal_rate",
    "benign_answered_rate",
    "refusal_margin",
)
EVALUATION_COLUMNS = (
    *(name for measure in MEASURES for name in (measure, f"{measure}_stderr")),
    "n_utility",
    "n_harmful",
    "n_benign",
    "n_unscored",
    # Independent groups of prompts; tables of earlier versions lack them.
    "n_groups_utility",
    "n_groups_harmful",
    "n_groups_benign",
)
SAMPLE_COLUMNS = tuple(name for name in EVALUATION_COLUMNS if name.startswith("n_"))
# Columns without which a table is refused; a measure that it lacks is NaN in every row.
REQUIRED_COLUMNS = {
    "evaluate": ("model",),
    "project": ("tuned", "subspace", "method", "fraction", "draw", "energy_kept"),
    "overlap": ("first", "second", "tensor", "layer", "type", "energy", "overlap"),
}
OPTIONAL_COLUMNS = {
    "evaluate": EVALUATION_COLUMNS,
    "project": ("cos_task_projected", "cos_task_alignment", "chance_energy", *EVALUATION_COLUMNS),
    "overlap": ("rank_first", "rank_second", "chance", "p_haar", "matched_chance", "p_matched", "floor"),
}
# Those of them that are texts, or flags as texts; the others are numbers, or missing throughout.
TEXT_COLUMNS = frozenset(("model", "tuned", "subspace", "method", "first", "second", "tensor", "type", "floor"))
# What pandas infers of a column that a table of ours can have.
TEXTS, NUMBERS = {"string"}, {"integer", "floating", "boolean", "mixed-integer-float", "empty"}
NUMERIC_COLUMNS = {
    command: {*REQUIRED_COLUMNS[command], *OPTIONAL_COLUMNS[command]} - TEXT_COLUMNS for command in REQUIRED_COLUMNS
}
# Folders that a second run of the same kind of fine-tune is written to: repeats, not further seeds of the
# study.
REPEAT_SUFFIX = "_again"


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
    def is_repeat(self) -> bool:
        """Whether the run repeats another stage, as the floors of the overlap need."""
        return self.name.endswith(REPEAT_SUFFIX)

    @property
    def constraint(self) -> Constraint | None:
        """What the run's update was held to, if it was."""
        return read_constraint(self.manifest)

    @property
    def recipe(self) -> str | None:
        """What the run learns from and how, as a hash: runs that share it differ in what they are held to alone."""
        return self.manifest.get("recipe_sha256")

    def metric(self, tag: str) -> float | None:
        """Return the manifest's final value, else the last one of TensorBoard."""
        value = (self.manifest.get("metrics") or {}).get(tag)
        if value is not None:
            return float(value)
        scalars = self.scalars.get(tag)
        return None if scalars is None or scalars.empty else float(scalars["value"].iloc[-1])


@dataclass(frozen=True)
class AnalysisResult:
    """One folder ``analysis/<command>/<label>``: arguments, result.json, tables by name; answers of evaluations."""

    command: str
    label: str
    folder: Path
    arguments: dict[str, Any]
    result: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    generations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything that the report says something about.

    ``models``, ``projections`` and ``overlaps`` are the tables of all ``evaluate``, ``project`` and
    ``overlap`` runs under one another, with the columns of the analyses, NaN where a measure was not taken,
    and the label of the run in ``analysis``. ``projections`` further names in ``group`` what is shown
    together, and in ``aligned_model`` and ``tuned_model`` the rows of ``models`` that it started from.

    Runs under a constraint stand apart: their evaluations in ``constrained``, and in ``energies`` how much of their
    updates lies in the alignment subspace (projections that were measured and not evaluated). The column ``stage``
    names the stage of this study that was evaluated or measured, empty for any other model.
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

    @property
    def seeds(self) -> tuple[int, ...]:
        """The distinct training seeds, repeats of a stage left out."""
        return tuple(sorted({int(s.manifest["seed"]) for s in self.stages if not s.is_repeat and _has_seed(s)}))

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
    def aligned(self) -> pd.Series | None:
        """The evaluation of the aligned model: of a stage of that role, or of what the fine-tunes started from."""
        stages = [stage.name for stage in self.stages if stage.role == "aligned"]
        labels = list(self.models.loc[self.models["stage"].isin(stages), "model"])
        tuned = [stage.manifest for stage in self.stages if stage.role == "tuned"]
        starts = {start for manifest in tuned for start in facts_about("starts_from", manifest)}
        for result in self.of("evaluate"):
            labels += [label for label, path in _mapping(result.arguments.get("models")).items() if path in starts]
        return self.model(labels[0]) if labels else None

    def missing(self) -> dict[str, str]:
        """Return the subcommands that the page wants and does not find, each with :func:`command_for` it."""
        return {name: command_for(self.folder, name) for name in REQUIRED_COLUMNS if not self.of(name)}


def read_study(folder: str | os.PathLike[str]) -> Study:
    """Read a study folder, ``runs/<study>``.

    Raises:
        InputError: The folder is missing or holds no stage and no analysis, or one of its files cannot be
        read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is no folder, expected a study; `make demo` makes runs/organism-0")
    stages = _read_stages(root)
    results = tuple(_read_result(path) for path in sorted(root.glob("analysis/[!.]*/[!.]*")) if path.is_dir())
    results = tuple(result for result in results if result.tables or result.result)
    if not stages and not results:
        inner = sorted({path.parts[len(root.parts)] for path in root.glob("*/*/manifest.json")})
        hint = f"; it holds studies: {', '.join(inner[:5])}" if inner else ""
        raise InputError(
            f"{root} holds no stage (<stage>/manifest.json) and no analysis "
            f"(analysis/<subcommand>/<label>){hint}; "
            "`make demo` makes runs/organism-0, `python train.py fit --config ...` one stage"
        )
    constrained = {stage.name for stage in stages if stage.constraint is not None}
    names = {stage.name for stage in stages}
    models = _with_stages(_together("evaluate", results), results, "model", "models", root, names)
    projections = _with_stages(_together("project", results), results, "tuned", "tuned", root, names)
    measured = projections.groupby("analysis")[list(MEASURES)].count().sum(axis=1).eq(0)
    of_constrained = projections["stage"].isin(constrained).groupby(projections["analysis"]).any()
    apart = projections["analysis"].isin(measured.index[measured & of_constrained])
    return Study(
        name=root.resolve().name,
        folder=root,
        stages=stages,
        results=results,
        models=models[~models["stage"].isin(constrained)].reset_index(drop=True),
        projections=_with_groups(projections[~apart].reset_index(drop=True), results),
        overlaps=_together("overlap", results),
        constrained=models[models["stage"].isin(constrained)].reset_index(drop=True),
        energies=projections[apart].reset_index(drop=True),
    )


def read_scalars(folder: Path) -> dict[str, pd.DataFrame]:
    """Read every TensorBoard scalar under a run folder, tag to a table of ``step`` and ``value``."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    with reading(f"an event file in {folder}", "what TensorBoard writes", "move it away, or train the run again"):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0 keeps every event
        events.Reload()
        return {
            tag: pd.DataFrame([(event.step, event.value) for event in events.Scalars(tag)], columns=["step", "value"])
            for tag in events.Tags()["scalars"]
        }


def read_prompt_counts(folder: Path) -> pd.DataFrame:
    """Read how many prompts were scored at each look at a run's behaviour, a row a look.

    Columns: ``step`` and ``SAMPLE_COLUMNS``, the counts that begin with ``n_``.
    """
    columns, rows = ["step", *SAMPLE_COLUMNS], []
    for path in sorted(folder.glob("behaviour/step=*.json")):
        look = read_json(path)
        with reading(path, "the numbers of a look at a run's behaviour", "remove it, or train the run again"):
            row = {"step": look.get("step"), **(look.get("row") or {})}
            if not all(isinstance(row.get(name), int | float | None) for name in columns):
                raise ValueError("a count is no number")
            rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def _has_seed(stage: Stage) -> bool:
    return isinstance(stage.manifest.get("seed"), int)


def _read_stages(root: Path) -> tuple[Stage, ...]:
    stages = []
    for name, role in stage_roles(root).items():
        manifest = root / name / "manifest.json"
        stages.append(
            Stage(
                name=name,
                folder=root / name,
                role=role,
                manifest=read_manifest(manifest) if manifest.is_file() else {},
                scalars=read_scalars(root / name),
                prompts=read_prompt_counts(root / name),
            )
        )
    return tuple(stages)


def _read_result(folder: Path) -> AnalysisResult:
    config, result = folder / "config.yaml", folder / "result.json"
    recorded = read_json(result) if result.is_file() else {}
    check_record(recorded, result)
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".parquet", ".csv")})
    return AnalysisResult(
        command=folder.parent.name,
        label=folder.name,
        folder=folder,
        arguments=read_yaml(config) if config.is_file() else {},
        result=recorded,
        tables={name: _read_table(folder, name) for name in names},
        # The answers of projected models are not shown: a sweep has a hundred thousand of them.
        generations=_read_generations(folder / "generations.jsonl") if folder.parent.name == "evaluate" else (),
    )


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one table of an analysis; its main table must have the ``REQUIRED_COLUMNS`` of the subcommand."""
    parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
    path = parquet if parquet.is_file() else csv
    with reading(path, "a table", f"remove {folder} and run that analysis again"):
        frame = pd.read_parquet(path) if path == parquet else map_texts(pd.read_csv(path), from_cell)
    required = REQUIRED_COLUMNS.get(folder.parent.name, ()) if name == "table" else ()
    lacking = [column for column in required if column not in frame.columns]
    if lacking:
        raise InputError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(map(str, frame.columns))}. "
            f"It was written by something else than `analyze.py {folder.parent.name}`: run that again"
        )
    for column in frame.columns:
        kind = pd.api.types.infer_dtype(frame[column], skipna=True)
        is_number = name == "table" and column in NUMERIC_COLUMNS.get(folder.parent.name, ())
        if kind not in (NUMBERS if is_number else TEXTS | NUMBERS):
            expected = "numbers" if is_number else "texts or numbers"
            raise InputError(
                f"{path}: column {str(column)[:80]} is {kind}; expected {expected}: remove {folder} and run that "
                "analysis again"
            )
    return frame


def _read_generations(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    answers = []
    with reading(path, "one JSON object a line", "run that analysis again"), path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                answer = parse_json(line)
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number}, is not valid JSON ({error}); run that analysis again"
                ) from error
            if not isinstance(answer, dict):
                raise InputError(f"{path}, line {number}, is no JSON object; run that analysis again")
            answers.append(answer)
    return tuple(answers)


def _together(command: str, results: tuple[AnalysisResult, ...]) -> pd.DataFrame:
    """Stack the main tables of one subcommand: ``analysis``, then its required and optional columns."""
    columns = list(dict.fromkeys((*REQUIRED_COLUMNS[command], *OPTIONAL_COLUMNS[command])))
    tables = [
        result.tables["table"].reindex(columns=columns).assign(analysis=result.label)
        for result in results
        if result.command == command and "table" in result.tables
    ]
    if not tables:
        return pd.DataFrame(columns=["analysis", *columns])
    frame = pd.concat(tables, ignore_index=True)
    if "floor" in columns:
        frame["floor"] = [value is True or str(value) == "True" for value in frame["floor"]]
    return frame[["analysis", *columns]]


def _with_groups(frame: pd.DataFrame, results: tuple[AnalysisResult, ...]) -> pd.DataFrame:
    """Name the group of each projection, and the evaluated models that it lies between.

    Adds the columns ``group``, ``aligned_model`` and ``tuned_model`` to those of the projections.
    """
    label_of = {
        os.path.normpath(path): label
        for result in results
        if result.command == "evaluate"
        for label, path in _mapping(result.arguments.get("models")).items()
        if isinstance(path, str)
    }

    def label(path: Any, otherwise: str) -> str:
        if not isinstance(path, str):
            return otherwise
        return label_of.get(os.path.normpath(path), otherwise)

    arguments = {result.label: result.arguments for result in results if result.command == "project"}
    several = frame["analysis"].nunique() > 1
    pairs = list(zip(frame["analysis"], frame["tuned"].astype(str), strict=True))
    return frame.assign(
        group=[f"{tuned} ({analysis})" if several else tuned for analysis, tuned in pairs],
        aligned_model=[label(arguments[analysis].get("aligned"), "aligned") for analysis, _ in pairs],
        tuned_model=[label(_mapping(arguments[analysis].get("tuned")).get(tuned), tuned) for analysis, tuned in pairs],
    )


def _with_stages(
    frame: pd.DataFrame, results: tuple[AnalysisResult, ...], label: str, argument: str, root: Path, names: set[str]
) -> pd.DataFrame:
    """Add the column ``stage``: the stage of this study behind each row's label, even if the study was moved since."""
    command = "evaluate" if argument == "models" else "project"
    paths = {r.label: _mapping(r.arguments.get(argument)) for r in results if r.command == command}

    def stage(analysis: str, name: str) -> str:
        path = paths.get(analysis, {}).get(name)
        is_model = isinstance(path, str) and Path(path).name == "model"
        return stage_at(Path(path or "").parent, root, names) if is_model else ""

    pairs = zip(frame["analysis"].astype(str), frame[label].astype(str), strict=True)
    return frame.assign(stage=[stage(analysis, name) for analysis, name in pairs])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
