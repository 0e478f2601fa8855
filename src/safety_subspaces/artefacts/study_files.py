"""The files of a study folder, read into values: scalars, looks at the behaviour, tables and answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from safety_subspaces.artefacts.description import check_record
from safety_subspaces.artefacts.earlier_names import by_present_names
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import parse_json, read_yaml, reading
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
# The scalars of a run in a bundle, which holds no event files: columns tag, step and value.
SCALARS_FILE = "scalars.parquet"
# Columns without which a table is refused; a measure that it lacks is NaN in every row.
REQUIRED_COLUMNS = {
    "evaluate": ("model",),
    "project": ("tuned", "subspace", "method", "fraction", "draw", "energy_kept"),
    "overlap": ("first", "second", "tensor", "layer", "type", "energy", "overlap"),
}
OPTIONAL_COLUMNS = {
    "evaluate": ("judge", *EVALUATION_COLUMNS),
    "project": ("cos_task_projected", "cos_task_alignment", "chance_energy", "judge", *EVALUATION_COLUMNS),
    "overlap": (
        *("rank_first", "rank_second", "chance", "p_haar", "matched_chance", "matched_sd", "p_matched"),
        *("covariance_chance", "covariance_sd", "p_covariance", "floor"),
    ),
}
# Those of them that are texts, or flags as texts; the others are numbers, or missing throughout.
TEXT_COLUMNS = frozenset(
    ("model", "judge", "tuned", "subspace", "method", "first", "second", "tensor", "type", "floor")
)
# What pandas infers of a column that a table of ours can have.
TEXTS, NUMBERS = {"string"}, {"integer", "floating", "boolean", "mixed-integer-float", "empty"}
NUMERIC_COLUMNS = {
    command: {*REQUIRED_COLUMNS[command], *OPTIONAL_COLUMNS[command]} - TEXT_COLUMNS for command in REQUIRED_COLUMNS
}


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

    @property
    def started(self) -> str:
        """When the analysis began, as ISO 8601 in UTC; empty where its record does not say."""
        return str((self.result.get("provenance") or {}).get("started") or "")


def read_scalars(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the scalars of a run, tag to a table of ``step`` and ``value``: TensorBoard's, or those in a bundle."""
    kept = folder / SCALARS_FILE
    if not any(folder.glob("events.out.tfevents.*")):
        return _read_kept_scalars(kept) if kept.is_file() else {}
    with reading(f"an event file in {folder}", "what TensorBoard writes", "move it away, or train the run again"):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0 keeps every event
        events.Reload()
        return {
            tag: pd.DataFrame([(event.step, event.value) for event in events.Scalars(tag)], columns=["step", "value"])
            for tag in events.Tags()["scalars"]
        }


def _read_kept_scalars(path: Path) -> dict[str, pd.DataFrame]:
    with reading(path, "a table of tag, step and value", "unpack the bundle again"):
        frame = pd.read_parquet(path, columns=["tag", "step", "value"]).astype({"step": int, "value": float})
        groups = frame.groupby("tag", sort=False)[["step", "value"]]
        return {str(tag): table.reset_index(drop=True) for tag, table in groups}


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


def read_result(folder: Path) -> AnalysisResult:
    """Read one result, ``analysis/<command>/<label>``.

    Raises:
        InputError: One of its files cannot be read, or its table was written by something else.
    """
    config, result = folder / "config.yaml", folder / "result.json"
    recorded = read_json(result) if result.is_file() else {}
    check_record(recorded, result)
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".parquet", ".csv")})
    return AnalysisResult(
        command=folder.parent.name,
        label=folder.name,
        folder=folder,
        arguments=by_present_names(folder.parent.name, read_yaml(config)) if config.is_file() else {},
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
