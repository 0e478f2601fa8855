"""Reads the tables of the analyses of hidden states, which not every study has: stacked, with the columns needed.

A study is read with its name, so that the tables of several seeds stand under one another. Further columns are left
out; an optional one that a table lacks is NaN in each of its rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import Study

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

    Columns: ``seed``, ``analysis`` (the label of the run), then those that the contract names, in its order.

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
            frames.append(table.reindex(columns=columns).assign(seed=seed, analysis=result.label))
    if not frames:
        return pd.DataFrame(columns=["seed", "analysis", *columns]).astype(dict.fromkeys(contract.flags, bool))
    frame = pd.concat(frames, ignore_index=True)
    for name in contract.flags:
        frame[name] = [value is True or str(value) == "True" for value in frame[name]]
    return frame[["seed", "analysis", *columns]]


def labels_of(frame: pd.DataFrame, *columns: str) -> list[str]:
    """Return every label in some columns, in the order of its first appearance."""
    return list(dict.fromkeys(str(value) for name in columns for value in frame[name].dropna()))


def reference_model(models: Sequence[str]) -> str:
    """Return the model that is shown first and spoken of: the aligned one, or the first where there is none."""
    return "aligned" if "aligned" in models else models[0]
