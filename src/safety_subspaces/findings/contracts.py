"""Reads the tables of the analyses of hidden states, which not every study has: stacked, with the columns needed.

A study is read with its name, so that the tables of several seeds stand under one another. Further columns are left
out; an optional one that a table lacks is NaN in each of its rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import Study

# Columns of these tables that name models.
MODEL_COLUMNS = ("model", "first_model", "second_model")
# A study with the name of its seed, empty where it stands alone.
Named = tuple[str, Study]


@dataclass(frozen=True)
class Contract:
    """What is read of one table of a subcommand.

    Args:
        command: The subcommand.
        table: Name of the table's file, without its ending.
        required: Columns without which it says nothing.
        optional: Columns that are NaN where they are missing.
        flags: Those of them that are true or false; false where they are missing.
    """

    command: str
    table: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def stacked(studies: Iterable[Named], contract: Contract) -> pd.DataFrame:
    """Return the rows of one table of every run of a subcommand in every study.

    Columns: ``seed``, ``analysis`` (the label of the run), then those that the contract names, in its order. Models go
    by the labels of ``Study.known``.

    Raises:
        InputError: A table lacks a column that is required.
    """
    columns = [*contract.required, *contract.optional, *contract.flags]
    frames = []
    for seed, study in studies:
        for result in study.of(contract.command):
            table = result.tables.get(contract.table)
            if table is None or table.empty:
                continue
            lacking = [name for name in contract.required if name not in table.columns]
            if lacking:
                raise InputError(
                    f"{result.folder / contract.table} has no column {', '.join(lacking)}; it has "
                    f"{', '.join(map(str, table.columns))}. It was written by something else than `analyze.py "
                    f"{contract.command}`: run that again"
                )
            named = {
                name: [study.known.of(result.command, result.label, str(given)).label for given in table[name]]
                for name in MODEL_COLUMNS
                if name in columns and name in table
            }
            frames.append(table.reindex(columns=columns).assign(seed=seed, analysis=result.label, **named))
    if not frames:
        return pd.DataFrame(columns=["seed", "analysis", *columns]).astype(dict.fromkeys(contract.flags, bool))
    frame = pd.concat(frames, ignore_index=True)
    for name in contract.flags:
        frame[name] = [value is True or str(value) == "True" for value in frame[name]]
    return frame[["seed", "analysis", *columns]]


def labels_of(frame: pd.DataFrame, *columns: str) -> list[str]:
    """Return every label in some columns, in the order of its first appearance."""
    return list(dict.fromkeys(str(value) for name in columns for value in frame[name].dropna()))


def roles_of(studies: Iterable[Named]) -> dict[str, str]:
    """Return the role of each label: base, aligned, tuned, or nothing that is known; the first study's, if they differ.

    The model that a study is aligned by stands before others of that role.
    """
    roles: dict[str, str] = {}
    for _, study in studies:
        if study.known.aligned is not None:
            roles.setdefault(study.known.aligned.label, "aligned")
        for label, role in study.known.roles.items():
            roles.setdefault(label, role)
    return roles


def reference_model(models: Sequence[str], roles: Mapping[str, str]) -> str:
    """Return the model that is shown first and spoken of: the aligned one, or the first where there is none.

    Args:
        models: Labels, at least one.
        roles: As :func:`roles_of` has them.
    """
    aligned = [label for label, role in roles.items() if role == "aligned" and label in models]
    return aligned[0] if aligned else models[0]
