"""The subcommand ``findings``: what one or more studies say, as a table on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safety_subspaces.artefacts.results import ResultFolder, recorded
from safety_subspaces.artefacts.screen import View

if TYPE_CHECKING:
    import pandas as pd

VIEW = View(
    columns=("question", "subject", "measure", "estimate", "low", "high", "p_adjusted", "verdict"),
    says="low and high are the ends of the interval; p_adjusted is corrected for the tests of its family.",
)


def findings(study: list[str] | str, out: str | None = None, topics: Sequence[str] = ()) -> "pd.DataFrame":
    """Write what studies say as ``findings.parquet`` and ``.csv``: estimates, chance levels, verdicts and their rules.

    An earlier result is replaced: it is derived from the studies alone. The page of ``report`` says the same.

    Columns: ``aligned_by`` (the studies of one alignment are read together), ``topic question subject measure
    estimate low high level unit n null p p_adjusted family tests verdict rule details``. ``unit`` is what the interval,
    the p and ``n`` count; ``p_adjusted`` is Holm's over the ``tests`` of its ``family``.

    Args:
        study: The study folder, such as runs/organism-0; or a list of them, one a seed and alignment.
        out: The folder to write; by default findings inside the study, of several in a folder "study" beside them.
        topics: Findings of your own: import paths of functions from studies to a list of findings.

    Returns:
        The table.

    Raises:
        InputError: A study folder is missing, holds nothing, or holds a file that cannot be read; or two studies of one
            alignment and seed.
    """
    arguments = recorded(locals())

    from safety_subspaces.findings.finding import as_table
    from safety_subspaces.findings.organisms import read_organisms
    from safety_subspaces.findings.table import findings_table, records_of

    folders = [study] if isinstance(study, str) else study
    organisms = read_organisms(folders)
    usual = Path(folders[0]) if len(folders) == 1 else Path(folders[0]).parent / "study"
    inputs = [path for organism in organisms for one in organism.seeds.studies for path in records_of(one)]
    table = findings_table(organisms, topics)
    with ResultFolder(out or usual / "findings", "findings", arguments, inputs, overwrite=True) as result:
        result.write_table(as_table(table), "findings")
        result.summary = {"findings": len(table), "tests": int(table["p"].notna().sum())}
    shown = table.drop(columns=["null", "rule", "details", "level", "family"])
    shown.attrs["result"] = str(result.out)
    return shown
