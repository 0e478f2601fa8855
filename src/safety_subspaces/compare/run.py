"""Runs the steps of a comparison that are not done yet, one after another, and then writes the page."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safety_subspaces.artefacts.files import holding, remove
from safety_subspaces.compare.estimate import estimates, to_text
from safety_subspaces.compare.plan import COMPARED_SETS, Comparison, Step
from safety_subspaces.compare.record import ComparisonRecord
from safety_subspaces.evaluation.prompt_sets import FEWEST_PROMPTS
from safety_subspaces.report.command import report
from safety_subspaces.report.summary import StudyReport

logger = logging.getLogger(__name__)


def run(comparison: Comparison, dry_run: bool = False, overwrite: bool = False) -> StudyReport | str:
    """Check a comparison, say what it will take, do what is not done, and write the page.

    Args:
        comparison: What is compared.
        dry_run: Whether to stop after saying what it will take; nothing is written then.
        overwrite: Whether what was made of other models or settings is made anew.

    Returns:
        The page; of a dry run what it would take.

    Raises:
        InputError: What the comparison, its record or a step refuses; what was done before stays.
    """
    record = ComparisonRecord(comparison.out)  # of all that can be wrong this is the soonest found
    comparison.check()
    steps = comparison.steps()
    record.check(steps, overwrite)
    if comparison.behaviour is not None and not comparison.state_sources:
        logger.info(
            "activations are left out: they need two of the sets %s with %d prompts or more",
            ", ".join(COMPARED_SETS), FEWEST_PROMPTS,
        )  # fmt: skip
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return _forecast(comparison, _todo(record, steps), Path(folder))
    with holding(record.path):
        record.read()  # another process may have ended just now
        record.check(steps, overwrite)
        for name in record.drop_others(steps):
            logger.info("%s: taken away, for it is of the comparison that is replaced", name)
        # What a kill leaves there is taken away by whoever holds the record next.
        trial = record.path.with_name(f".{record.path.name}.partial")
        trial.mkdir()
        try:
            logger.info(_forecast(comparison, _todo(record, steps), trial))
        finally:
            remove(trial)
        for step in steps:
            _do(record, step, overwrite)
        return report(comparison.out)


def _todo(record: ComparisonRecord, steps: Sequence[Step]) -> list[str]:
    """Return the subcommands that are still to be done; what reads what one of them makes is to be done too."""
    todo: list[Step] = []
    for step in steps:
        if not record.is_kept(step) or {str(other.out) for other in todo} & set(step.inputs):
            todo.append(step)
    return [step.command for step in todo]


def _forecast(comparison: Comparison, commands: Sequence[str], folder: Path) -> str:
    if not commands:
        return "Everything is done already: nothing is left to compute"
    return to_text(estimates(comparison, commands, folder))


def _do(record: ComparisonRecord, step: Step, overwrite: bool) -> None:
    """Do one step, unless it is whole and of the same things; say which."""
    if record.is_kept(step):
        logger.info("%s: kept, made of the same models and settings by the same program (%s)", step.command, step.out)
        return
    is_own = record.has_begun(step)
    record.begin(step)
    logger.info("%s: %s", step.command, step.out)
    try:
        step.do(overwrite or is_own)
    except BaseException as error:
        if not getattr(error, "__notes__", []):
            error.add_note(
                f"This was in {step.command}; what was done before stays: the same command goes on from there"
            )
        raise
    record.finish(step)
